"""Configuration files with which the stock TensorFlow Serving image serves exported versions."""

import ipaddress
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tfdeq.programs import commands
from tfdeq.programs.paths import expanded
from tfdeq.programs.workdir import read_json
from tfdeq.serving.server import compose_text, version_labels
from tfdeq.serving.versions import model_card, publishing

# The image of the TensorFlow version that writes the exports. docs/serving.md names its
# documentation.
IMAGE = "tensorflow/serving:2.21.0"
LOOPBACK = "127.0.0.1"
PORTS = (8500, 8501)  # gRPC; REST and metrics
METRICS_PATH = "/monitoring/prometheus/metrics"
CONFIG_FOLDER, MODELS_FOLDER = "/config", "/models"  # in the container
# The image's entry point serves a single model, MODEL_NAME; this program serves all models.
ENTRY_POINT = ("tensorflow_model_server", f"--port={PORTS[0]}", f"--rest_api_port={PORTS[1]}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# [registry[:port]/]path[:tag][@digest]
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")


def models_config(
    models: Mapping[str, Any], keep: int, history: Sequence[version_labels.Labels] = ()
) -> str:
    """Returns the text of a ModelServerConfig.

    Args:
        models: names of the models; each is under /models in the container.
        keep: number of newest versions to keep loaded, so that a client may ask for the previous one.
        history: the labels of versions, the current ones last. Of a model with labels, the server loads the
            versions that these and the labels before name, and no others.
    """
    config = model_server_config_pb2.ModelServerConfig()
    for name in models:
        model = config.model_config_list.config.add()
        model.name, model.base_path = name, f"{MODELS_FOLDER}/{name}"
        model.model_platform = "tensorflow"
        versions = version_labels.loaded(history, name)
        if versions:
            model.model_version_policy.specific.versions.extend(versions)
            model.version_labels.update(history[-1].get(name, {}))
        else:
            model.model_version_policy.latest.num_versions = keep
    return text_format.MessageToString(config)


def monitoring_config() -> str:
    """Returns the text of a MonitoringConfig."""
    return f'prometheus_config {{\n  enable: true\n  path: "{METRICS_PATH}"\n}}\n'


def server_flags(xla: bool) -> list[str]:
    """Returns the flags of the server beside its ports.

    Args:
        xla: whether a model is jit-compiled.
    """
    found = [
        f"--model_config_file={CONFIG_FOLDER}/models.config",
        f"--monitoring_config_file={CONFIG_FOLDER}/monitoring.config",
        "--model_config_file_poll_wait_seconds=60",
        # Without it, a server refuses labels while it starts, and new labels for new versions.
        "--allow_version_labels_for_unavailable_models=true",
    ]
    if xla:
        # Without this flag, the stock server loads a jit-compiled version but fails at the first
        # request.
        found.append("--xla_cpu_compilation_enabled=true")
    return found


def compose_file(
    models: Mapping[str, pathlib.Path],
    config_folder: pathlib.Path,
    image: str,
    xla: bool,
    bind_address: str = LOOPBACK,
) -> str:
    """Returns the text of a compose file: gRPC on 8500, REST and metrics on 8501.

    Args:
        models: name -> folder of versions. config_folder: where the other files are.
        image: image of the server. xla: whether a model is jit-compiled.
        bind_address: address of this machine on which the ports are open. The server has no
            authentication.

    Raises:
        ValueError: for a path that YAML cannot represent.
    """
    mounts = [(config_folder, CONFIG_FOLDER)]
    mounts += [(path, f"{MODELS_FOLDER}/{name}") for name, path in models.items()]
    lines = ["services:", "  serving:", f"    image: {compose_text.value(image)}", "    ports:"]
    for port in PORTS:
        open_port = {"target": port, "published": str(port), "host_ip": bind_address}
        lines.append(f"      - {compose_text.value(open_port)}")
    lines.append("    volumes:")
    for source, target in mounts:
        mount = {"type": "bind", "source": str(source), "target": target, "read_only": True}
        lines.append(f"      - {compose_text.value(mount)}")
    lines.append(f"    entrypoint: [{', '.join(map(compose_text.value, ENTRY_POINT))}]")
    lines.append("    command:")
    lines += [f"      - {compose_text.value(argument)}" for argument in server_flags(xla)]
    lines.append("    restart: unless-stopped")
    return "\n".join(lines) + "\n"


def read_models(named: list[str], keep: int) -> tuple[dict[str, pathlib.Path], bool]:
    """Reads NAME=FOLDER pairs; returns name -> folder, and whether a version needs XLA.

    Args:
        named: the pairs. keep: number of newest versions that the server loads.

    Raises:
        ValueError: for an invalid pair, or a name that occurs twice.
        FileNotFoundError: for a folder without a version from `export.saved_model`.
    """
    models: dict[str, pathlib.Path] = {}
    xla = False
    for pair in named:
        name, _, folder = pair.partition("=")
        if not folder or not _NAME.fullmatch(name) or name in models:
            raise ValueError(
                f"--models takes NAME=FOLDER pairs of different names; received {pair!r}. A name stands "
                "in URLs: it begins with a letter or digit, and has letters, digits, '_', '-' and '.' "
                "of ASCII only. A pair whose folder has a comma goes into double quotes: "
                "--models='\"NAME=FOLDER\"'."
            )
        folder = str(expanded(folder))
        found = publishing.existing_versions(folder)
        card = found and read_json(found[max(found)] / model_card.FOLDER / model_card.NAME)
        if not card:
            raise FileNotFoundError(
                f"{folder!r} has no version with a model card. Name the --output of: "
                f"{commands.command('export.saved_model')}"
            )
        models[name] = pathlib.Path(folder).resolve()
        xla |= bool(compiled(folder, sorted(found)[-keep:]))
    return models, xla


def compiled(folder: str | os.PathLike, versions: Iterable[int]) -> list[int]:
    """Returns those of a model's versions that a server needs XLA for."""
    found = publishing.existing_versions(str(folder))
    cards = {
        number: read_json(found[number] / model_card.FOLDER / model_card.NAME) or {}
        for number in versions
        if number in found
    }
    return [number for number, card in cards.items() if card.get("jit_compile")]


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


# Flag -> whether its value is valid in a compose file.
SETTINGS = {
    "image": lambda text: _IMAGE.fullmatch(text) is not None,
    "bind_address": _is_address,
}

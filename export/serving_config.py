"""Writes what the stock TensorFlow Serving image needs to serve exported versions.

    python -m export.serving_config --models=language_model=runs/quickstart/export --output=serving
    docker compose --file serving/compose.yaml up

models.config names the models, monitoring.config turns the Prometheus page on, compose.yaml starts
the image with both. Whether XLA is needed is read from the versions' cards. The server's own batching
stays off: it joins requests that nothing has looked at yet, and one of another rank or dtype then ends
the server or fails its neighbours. Versions join requests themselves; see `export.batching`.
"""

import ipaddress
import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

from absl import flags
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from export import compose_text, model_card, versions
from trainers import program
from trainers.paths import expanded
from trainers.workdir import read_json, write_atomically

FLAGS = flags.FLAGS
# Of the TensorFlow that the versions are written with. docs/serving.md says where it is documented.
IMAGE = "tensorflow/serving:2.21.0"
LOOPBACK = "127.0.0.1"
PORTS = (8500, 8501)  # gRPC; REST and metrics
METRICS_PATH = "/monitoring/prometheus/metrics"
_CONFIG_FOLDER, _MODELS_FOLDER = "/config", "/models"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# [registry[:port]/]path[:tag][@digest]
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")


def models_config(models: Mapping[str, Any], keep: int) -> str:
    """Returns the text of a ModelServerConfig.

    Args:
        models: names of the models; each lies under /models in the container.
        keep: newest versions that stay loaded, so that a client may name the one before.
    """
    config = model_server_config_pb2.ModelServerConfig()
    for name in models:
        model = config.model_config_list.config.add()
        model.name, model.base_path = name, f"{_MODELS_FOLDER}/{name}"
        model.model_platform = "tensorflow"
        model.model_version_policy.latest.num_versions = keep
    return text_format.MessageToString(config)


def monitoring_config() -> str:
    """Returns the text of a MonitoringConfig."""
    return f'prometheus_config {{\n  enable: true\n  path: "{METRICS_PATH}"\n}}\n'


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
        image: the server's. xla: whether a model is jit-compiled.
        bind_address: of this machine, on which the ports are open. The server asks nobody who they are.

    Raises:
        ValueError: a path that YAML cannot hold.
    """
    command = [
        f"--model_config_file={_CONFIG_FOLDER}/models.config",
        f"--monitoring_config_file={_CONFIG_FOLDER}/monitoring.config",
        "--model_config_file_poll_wait_seconds=60",
    ]
    if xla:
        # Without it the stock server loads a jit-compiled version and fails at the first request.
        command.append("--xla_cpu_compilation_enabled=true")
    mounts = [(config_folder, _CONFIG_FOLDER)]
    mounts += [(path, f"{_MODELS_FOLDER}/{name}") for name, path in models.items()]
    lines = ["services:", "  serving:", f"    image: {compose_text.value(image)}", "    ports:"]
    for port in PORTS:
        open_port = {"target": port, "published": str(port), "host_ip": bind_address}
        lines.append(f"      - {compose_text.value(open_port)}")
    lines.append("    volumes:")
    for source, target in mounts:
        mount = {"type": "bind", "source": str(source), "target": target, "read_only": True}
        lines.append(f"      - {compose_text.value(mount)}")
    # The image's own entry point names one model by MODEL_NAME; these flags name ours.
    lines.append(
        '    entrypoint: ["tensorflow_model_server", "--port=8500", "--rest_api_port=8501"]'
    )
    lines.append("    command:")
    lines += [f"      - {compose_text.value(argument)}" for argument in command]
    lines.append("    restart: unless-stopped")
    return "\n".join(lines) + "\n"


def read_models(named: list[str], keep: int) -> tuple[dict[str, pathlib.Path], bool]:
    """Reads NAME=FOLDER pairs: name -> folder, and whether a version needs XLA.

    Args:
        named: the pairs. keep: newest versions that the server loads.

    Raises:
        ValueError: a pair that is none, or a name twice.
        FileNotFoundError: a folder without a version that `export.saved_model` wrote.
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
        found = versions.existing_versions(folder)
        card = found and read_json(found[max(found)] / model_card.FOLDER / model_card.NAME)
        if not card:
            raise FileNotFoundError(
                f"{folder!r} has no version with a model card. Name the --output of: "
                f"{program.command('export', 'saved_model')}"
            )
        models[name] = pathlib.Path(folder).resolve()
        for number in sorted(found)[-keep:]:
            older = read_json(found[number] / model_card.FOLDER / model_card.NAME) or {}
            xla |= bool(older.get("jit_compile"))
    return models, xla


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


# Flag -> whether a compose file can take its value.
SETTINGS = {
    "image": lambda text: _IMAGE.fullmatch(text) is not None,
    "bind_address": _is_address,
}


def main() -> None:
    models, xla = read_models(FLAGS.models, FLAGS.keep_versions)
    output = pathlib.Path(FLAGS.output)
    texts = {
        "models.config": models_config(models, FLAGS.keep_versions),
        "monitoring.config": monitoring_config(),
        "compose.yaml": compose_file(
            models, output.resolve(), FLAGS.image, xla, FLAGS.bind_address
        ),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(
            str(output / name),
            lambda path, text=text: pathlib.Path(path).write_text(text, encoding="utf-8"),
        )
        print(f"Wrote {output / name}.")
    print(f"Start it: docker compose --file {shlex.quote(str(output / 'compose.yaml'))} up")
    name, host = next(iter(models)), FLAGS.bind_address
    print(
        f"Ports {PORTS[0]} (gRPC) and {PORTS[1]} (REST) are open on {host}; whoever reaches them may ask."
    )
    print(
        f"Ask it: {program.command('export', 'client')} --model_name={name} --text='import os'\n"
        f"Watch it: http://localhost:8501{METRICS_PATH}"
    )


def define_flags() -> None:
    flags.DEFINE_list("models", None, "NAME=FOLDER pairs: how clients name it, its versions.")
    flags.DEFINE_string("output", None, "Folder for the files; made if missing.")
    flags.DEFINE_string("image", IMAGE, "The server's image: name:tag.")
    flags.DEFINE_string(
        "bind_address",
        LOOPBACK,
        "IP address of this machine on which the ports are open; 0.0.0.0: on all of them. The server "
        "asks nobody who they are.",
    )
    flags.DEFINE_integer("keep_versions", 2, "Newest versions that stay loaded.", lower_bound=1)
    flags.mark_flags_as_required(["models", "output"])
    for name, may_be in SETTINGS.items():
        flags.register_validator(name, may_be, f"must be as {flags.FLAGS[name].default} is")


def run() -> None:
    """Entry point of the console script."""
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()

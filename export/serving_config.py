"""Writes what the stock TensorFlow Serving image needs to serve exported versions.

    python -m export.serving_config --models=language_model=runs/quickstart/export --output=serving
    docker compose --file serving/compose.yaml up
    python -m export.serving_config labels --output=serving --labels=stable:3,canary:4
    python -m export.serving_config rollback --output=serving

models.config names the models, monitoring.config enables the Prometheus page, and compose.yaml starts
the image with both. The versions' cards say whether XLA is needed. The server's own batching
stays off, because it joins requests before they are checked: a request with another rank or dtype then ends
the server or fails the other requests. Versions join requests themselves;
see tfdeq/serving/signatures/batching.py.

With --kubernetes_claim, kubernetes.yaml has a Deployment of the same server with its configuration and a
Service; see docs/serving.md.

With --labels, the server loads the labelled versions only, and a client asks for one by its label. labels
changes the labels of a server that runs, which reads models.config once a minute; LABEL: without a
version removes one. rollback returns to the labels before the last change, whose versions stay loaded.
"""

import pathlib
import shlex

from absl import flags

from tfdeq.programs import commands, program
from tfdeq.serving.server import config_files, kubernetes_flags, version_labels
from tfdeq.serving.server.serving_config import (
    IMAGE,
    LOOPBACK,
    METRICS_PATH,
    PORTS,
    SETTINGS,
    compose_file,
    monitoring_config,
    read_models,
)

FLAGS = flags.FLAGS


def main(arguments: list[str]) -> None:
    if arguments and (len(arguments) > 1 or arguments[0] not in version_labels.COMMANDS):
        raise ValueError(
            f"Name one command of {', '.join(version_labels.COMMANDS)}, or none; received "
            f"{' '.join(arguments)}."
        )
    if arguments:
        _change_labels(arguments[0])
        return
    if not FLAGS.models:
        raise ValueError("--models is missing: NAME=FOLDER pairs. See --help.")
    _write_all()


def _change_labels(command: str) -> None:
    output = pathlib.Path(FLAGS.output)
    state = version_labels.read(output)
    state["history"] = version_labels.after(command, state, FLAGS.labels)
    config_files.check_xla(state)
    config_files.write(output, config_files.texts_of(state))
    for name, labels in state["history"][-1].items():
        print(f"{name}: {', '.join(f'{label} {version}' for label, version in labels.items())}")
    print("The server reads models.config within a minute.")
    if state.get("kubernetes"):
        command = config_files.apply_command(output)
        print(f"In Kubernetes, each pod reads it up to two minutes after: {command}")


def _write_all() -> None:
    models, xla = read_models(FLAGS.models, FLAGS.keep_versions)
    output = pathlib.Path(FLAGS.output)
    changes = version_labels.parse(FLAGS.labels, list(models))
    state = {
        "models": {name: str(folder) for name, folder in models.items()},
        "keep_versions": FLAGS.keep_versions,
        "history": version_labels.changed([], changes, models) if changes else [],
    }
    # A label may be of an older version than those that are kept.
    xla |= bool(config_files.labelled_compiled(state))
    kubernetes = kubernetes_flags.settings_of(FLAGS, list(models), xla)
    state = {**state, "xla": xla, "kubernetes": kubernetes and kubernetes._asdict()}
    config_files.check_stays_true(output, state)
    texts = {
        **config_files.texts_of(state),
        "monitoring.config": monitoring_config(),
        "compose.yaml": compose_file(
            models, output.resolve(), FLAGS.image, xla, FLAGS.bind_address
        ),
    }
    config_files.write(output, texts)
    print(f"Start it: docker compose --file {shlex.quote(str(output / 'compose.yaml'))} up")
    if kubernetes:
        print(
            f"Or in Kubernetes, as {kubernetes.name}, when the claim {kubernetes.claim!r} holds every "
            f"model as NAME/VERSION: {config_files.apply_command(output)}"
        )
    name, host = next(iter(models)), FLAGS.bind_address
    print(
        f"Ports {PORTS[0]} (gRPC) and {PORTS[1]} (REST) are open on {host}. The server accepts every "
        "client that can reach them."
    )
    print(
        f"Send a request: {commands.command('export.client')} --model_name={name} --text='import "
        f"os'\nMetrics: http://localhost:8501{METRICS_PATH}"
    )


def define_flags() -> None:
    flags.DEFINE_list(
        "models", None, "NAME=FOLDER pairs: the name that clients use, and the folder of versions."
    )
    flags.DEFINE_string("output", None, "Folder for the files; it is created if it is missing.")
    flags.DEFINE_string("image", IMAGE, "The server's image: name:tag.")
    flags.DEFINE_string(
        "bind_address",
        LOOPBACK,
        "IP address of this machine on which the ports are open; 0.0.0.0: on all of them. The server "
        "does not authenticate its clients.",
    )
    flags.DEFINE_integer(
        "keep_versions", 2, "Number of newest versions that stay loaded.", lower_bound=1
    )
    flags.DEFINE_list(
        "labels", [], "LABEL:VERSION pairs; with several models MODEL/LABEL:VERSION. Default: none."
    )
    kubernetes_flags.define_kubernetes_flags()
    flags.mark_flag_as_required("output")
    for name, may_be in SETTINGS.items():
        flags.register_validator(name, may_be, f"must be as {flags.FLAGS[name].default} is")


def run() -> None:
    """Entry point of the console script."""
    define_flags()
    program.run(main, arguments=True)


if __name__ == "__main__":
    run()

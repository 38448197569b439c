"""The files of a server's configuration: those that change with the labels, and their state."""

import json
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from tfdeq.programs.workdir import write_atomically
from tfdeq.serving.server import kubernetes_text, version_labels
from tfdeq.serving.server.serving_config import compiled, models_config


def texts_of(state: Mapping[str, Any]) -> dict[str, str]:
    """Returns file name -> text of the files that change with the labels.

    Args:
        state: "models", name -> folder; "keep_versions"; "history" of the labels; "xla", whether the server
            compiles; "kubernetes", the values of `kubernetes_text.Settings`, or None. It is written as
            serving.json.
    """
    text = models_config(state["models"], state["keep_versions"], state["history"])
    found = {"models.config": text, version_labels.NAME: json.dumps(state, indent=2) + "\n"}
    kubernetes = state.get("kubernetes")  # missing in older files
    if kubernetes:
        settings = kubernetes_text.Settings(**kubernetes)
        found[kubernetes_text.NAME] = kubernetes_text.manifest(
            list(state["models"]), text, settings
        )
    return found


def labelled_compiled(state: Mapping[str, Any]) -> dict[str, list[int]]:
    """Returns model -> its versions with a label that a server needs XLA for."""
    found = {
        name: compiled(folder, version_labels.loaded(state["history"], name))
        for name, folder in state["models"].items()
    }
    return {name: versions for name, versions in found.items() if versions}


def check_xla(state: Mapping[str, Any]) -> None:
    """Raises a ValueError if a label needs a server with XLA, and it was configured without."""
    needing = labelled_compiled(state)
    if needing and not state.get("xla", True):  # missing in older files
        name, versions = next(iter(needing.items()))
        raise ValueError(
            f"Version {versions[0]} of {name!r} is compiled by XLA, and the server is configured without: "
            "it would refuse each request to this version. Write the configuration again with --models and "
            "--labels, and start the server again."
        )


def check_stays_true(output: pathlib.Path, state: Mapping[str, Any]) -> None:
    """Raises a ValueError if a kubernetes.yaml in `output` would be left as it is beside new files."""
    path = output / kubernetes_text.NAME
    if not state["kubernetes"] and path.exists():
        raise ValueError(
            f"{str(path)!r} would no longer agree with the other files. Name --kubernetes_claim again, "
            "or remove that file."
        )


def apply_command(output: pathlib.Path) -> str:
    """Returns the command that gives a cluster the manifest in `output`."""
    return f"kubectl apply --filename {shlex.quote(str(output / kubernetes_text.NAME))}"


def write(output: pathlib.Path, texts: Mapping[str, str]) -> None:
    """Writes file name -> text into `output`, each file atomically, and says so."""
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(
            str(output / name),
            lambda path, text=text: pathlib.Path(path).write_text(text, encoding="utf-8"),
        )
        print(f"Wrote {output / name}.")

"""Labels of versions in a server's configuration, such as `stable` and `canary`, and the way back.

A server assigns a label that it knows already only to a version that is loaded. So a new version first
gets a new label, and after that the old one. The versions of the labels before the last change stay loaded,
so that a rollback needs nothing else.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfdeq.programs.workdir import read_json
from tfdeq.serving.versions import publishing

NAME = "serving.json"
COMMANDS = ("labels", "rollback")
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_MOST_KEPT = 20

Labels = dict[str, dict[str, int]]  # model -> label -> version


def parse(texts: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, int | None]]:
    """Returns model -> label -> version (None: the label is removed) from texts [MODEL/]LABEL:VERSION.

    Raises:
        ValueError: for another form, an unknown model, or a model that is missing where there are several.
    """
    found: dict[str, dict[str, int | None]] = {}
    for text in texts:
        where, separator, version = text.partition(":")
        model, slash, label = where.rpartition("/")
        if not slash and len(models) == 1:
            model = models[0]
        if (
            not separator
            or model not in models
            or not _LABEL.fullmatch(label)
            or not re.fullmatch(r"[0-9]*", version)
        ):
            raise ValueError(
                "--labels takes LABEL:VERSION, with several models MODEL/LABEL:VERSION, and LABEL: to "
                f"remove one; received {text!r}. The models are {', '.join(models)}. A label begins with "
                "a letter, and has letters, digits, '_' and '-'."
            )
        found.setdefault(model, {})[label] = int(version) if version else None
    return found


def changed(
    history: Sequence[Labels],
    changes: Mapping[str, Mapping[str, int | None]],
    folders: Mapping[str, Any],
) -> list[Labels]:
    """Returns the history of labels with one more entry.

    Args:
        history: the labels so far, the current ones last; [] for a server that has not been started.
        changes: as of `parse`. folders: model -> folder of its versions.

    Raises:
        ValueError: for a version that does not exist, or a known label for a version that is not loaded.
    """
    before = history[-1] if history else {}
    labels = {model: dict(named) for model, named in before.items()}
    for model, named in changes.items():
        existing = publishing.existing_versions(str(folders[model]))
        there = loaded(history, model)
        for label, version in named.items():
            if version is None:
                labels.get(model, {}).pop(label, None)
                continue
            if version not in existing:
                raise ValueError(
                    f"{model!r} has no version {version}; there are "
                    f"{', '.join(map(str, sorted(existing))) or 'none'} in {str(folders[model])!r}."
                )
            if label in before.get(model, {}) and version not in there:
                raise ValueError(
                    f"{label!r} of {model!r} cannot move to version {version}, which is not loaded yet: a "
                    f"server refuses that. Give it a new label first, such as --labels=canary:{version}, and "
                    f"move {label!r} when the server says that it is AVAILABLE."
                )
            labels.setdefault(model, {})[label] = version
    return [*history, {model: named for model, named in labels.items() if named}][-_MOST_KEPT:]


def rolled_back(history: Sequence[Labels]) -> list[Labels]:
    """Returns the history without its last entry.

    Raises:
        ValueError: if there is nothing before it.
    """
    if len(history) < 2:
        raise ValueError("There are no earlier labels to return to.")
    return list(history[:-1])


def after(command: str, state: Mapping[str, Any], texts: Sequence[str]) -> list[Labels]:
    """Returns the history after a command.

    Args:
        command: one of COMMANDS. state: as of `read`. texts: as of `parse`, for "labels".

    Raises:
        ValueError: as `parse`, `changed` and `rolled_back`.
    """
    if command == "rollback":
        return rolled_back(state["history"])
    changes = parse(texts, list(state["models"]))
    if not changes:
        raise ValueError("labels needs --labels=LABEL:VERSION.")
    return changed(state["history"], changes, state["models"])


def loaded(history: Sequence[Labels], model: str) -> list[int]:
    """Returns the versions that the server loads: of the current labels and of those before."""
    return sorted(
        {version for labels in history[-2:] for version in labels.get(model, {}).values()}
    )


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the state of a configuration: its models, number of kept versions and labels.

    Raises:
        FileNotFoundError: for a folder that `export.serving_config` did not write.
    """
    found = read_json(folder / NAME)
    if found is None:
        raise FileNotFoundError(
            f"{str(folder)!r} has no {NAME}. Write the configuration first, with --models and --output."
        )
    return found

"""Checks whether a run was already exported."""

import pathlib

from tfdeq.programs.workdir import read_json
from tfdeq.serving.versions import manifest, model_card, publishing


def already_exported(output: str, version: int | None, workdir: str) -> str | None:
    """Returns a line if a version exists, also if it is of another model file; None if there is none."""
    path = publishing.existing_versions(output).get(version)
    if path is None:
        return None
    card = read_json(path / model_card.FOLDER / model_card.NAME) or {}
    model = pathlib.Path(workdir) / "model.keras"
    made_from = card.get("source", {}).get("sha256")
    changed = model.is_file() and made_from is not None and made_from != manifest.sha256(model)
    note = " It was made from another model file; export another version for this one."
    return f"Version {version} is there already: {path}.{note if changed else ''}"

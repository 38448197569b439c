"""A trained run as a preset: its model, its tokenizer, how it was trained, and how good it is."""

import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from tfdeq.programs import commands
from tfdeq.programs.workdir import read_json
from tfdeq.serving.kinds import runs

# What names files on the machine that trained: no business of those who load the preset.
_PRIVATE = ("workdir", "data_dir", "files", "flagfile", "prepared_dir", "test_set")


def preset_from_run(
    workdir: str | os.PathLike, folder: str | os.PathLike, overwrite: bool = False
) -> None:
    """Writes the model of a trainer's run as a preset, for `from_preset` of its class.

    metadata.json also has the command that trained it, its flags (but for paths), its data set, and its
    scores on the test data.

    Args:
        workdir: folder that a trainer wrote.
        folder: of the preset.
        overwrite: whether a preset that is there is replaced.

    Raises:
        FileNotFoundError: no such run, or no model in it yet.
        FileExistsError: there is a folder already; with overwrite: one that is no preset.
        ValueError: a file that cannot be read, or a model that has no presets.
    """
    run = runs.read(workdir, data=False)
    model = run.kind.model
    if not hasattr(model, "save_to_preset"):
        raise ValueError(
            f"The run in {str(workdir)!r} trained a {type(model).__name__}, which has no presets. Use its "
            "file model.keras, which keras.models.load_model reads."
        )
    model.tokenizer = run.kind.tokenizer()
    model.save_to_preset(folder, overwrite, _metadata(pathlib.Path(workdir), run.card))


def _metadata(workdir: pathlib.Path, card: Mapping[str, Any]) -> dict[str, Any]:
    flags = {name: value for name, value in card["flags"].items() if name not in _PRIVATE}
    test = card["metrics"].get("test") or {}
    start = ((read_json(workdir / "environment.json") or {}).get("starts") or [{}])[0]
    found = {
        "kind": card["kind"],
        "unit": card.get("unit"),
        "dataset": card["dataset"],
        "command": _command(start.get("command")),
        "trained_with": {"python": start.get("python"), **(start.get("packages") or {})},
        "test": {name: value for name, value in test.items() if isinstance(value, int | float)},
        "flags": flags,
    }
    return {name: value for name, value in found.items() if value is not None}


def _command(words: Sequence[str] | None) -> str | None:
    """What a run was begun with, without paths; None where it did not write it down."""
    if not words:
        return None
    program = pathlib.Path(words[0]).stem
    called = (
        [program]
        if program in commands.SCRIPTS.values()
        else ["python", "-m", f"trainers.{program}"]
    )
    kept = [word for word in words[1:] if word.lstrip("-").partition("=")[0] not in _PRIVATE]
    return shlex.join([*called, *kept])

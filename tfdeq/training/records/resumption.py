"""Checks whether a folder holds the same run, and determines how it continues."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tfdeq.programs.processes import flag_text
from tfdeq.programs.workdir import read_json
from tfdeq.training.flags.flag_uses import is_used
from tfdeq.training.schedule import SHORTEST

# The source of the text. Two runs have the same text if its fingerprint is the same.
PLACES_OF_DATA = ("dataset", "data_dir", "files")
FINGERPRINT = "data_fingerprint"
_NO_FLAGS = (FINGERPRINT, SHORTEST)
_CHECKPOINT = re.compile(r"ckpt-([0-9]+)\.index")


def check_configuration(
    workdir: str,
    config: Mapping[str, Any],
    may_differ: Iterable[str] = (),
    before: Mapping[str, Any] | None = None,
) -> bool:
    """Returns whether workdir holds the same run; writes nothing.

    The text is the same if its fingerprint is, in any place. Flags that have no effect with the other
    flags may differ, and so may those of the test after training.

    Args:
        may_differ: names of settings that do not change results, such as how often to report. If it
            includes "train_steps", the run may become longer, or shorter down to the steps that it has
            made.
        before: flag -> its effective value in runs that were started before it existed.

    Raises:
        NotADirectoryError: if workdir is a file.
        ValueError: if workdir belongs to a run with another configuration, or with more steps.
    """
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise NotADirectoryError(
            f"--workdir={workdir} is a file. Name a new folder, or the folder of this run."
        )
    known = read_json(os.path.join(workdir, "config.json"))
    if known is None:
        return False
    received = json.loads(json.dumps(dict(config)))
    _check_text(workdir, known, received)
    may_differ = {*may_differ, *_NO_FLAGS, *_of_the_test({*known, *received})}
    if FINGERPRINT in known and FINGERPRINT in received:
        may_differ.update(PLACES_OF_DATA)
    there = {**(before or {}), **known}
    differing = [
        name
        for name in sorted({*known, *received} - may_differ)
        if there.get(name) != received.get(name) and is_used(name, received)
    ]
    if differing:
        raise ValueError(_refusal(workdir, differing, there, received))
    made = steps_made(workdir)
    if received.get("train_steps", made) < made:
        raise ValueError(
            f"The run in --workdir={workdir} has made {made:,} steps, more than "
            f"--train_steps={received['train_steps']}. Give at least {made}, or name another --workdir. "
            "Nothing was changed."
        )
    return True


def going_on(workdir: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration for training, with the smallest --train_steps that the run has had.

    That entry is added only if it differs from the current one. It determines the phase at the start of
    a run, which is not repeated when the run is made longer.
    """
    known = read_json(os.path.join(workdir, "config.json")) or {}
    shortest = known.get(SHORTEST, known.get("train_steps", config["train_steps"]))
    if shortest >= config["train_steps"]:
        return dict(config)
    return {**config, SHORTEST: shortest}


def finished(
    workdir: str, config: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Returns the metrics of a run that has completed its --train_steps and its test, or None.

    With other flags of the test, the test is not completed.

    Args:
        before: flag -> its effective value in runs that were started before it existed. Default: the
            given value.
    """
    metrics = read_json(os.path.join(workdir, "metrics.json"))
    if metrics is None or _length(metrics) != config["train_steps"]:
        return None
    received = json.loads(json.dumps(dict(config)))
    there = {**received, **(before or {}), **metrics["config"]}
    if any(there[name] != received[name] for name in _of_the_test(received)):
        return None
    return metrics


def _of_the_test(names: Iterable[str]) -> list[str]:
    """Returns the flags that only the test after training reads."""
    return [name for name in names if name.startswith("test_")]


def steps_made(workdir: str) -> int:
    """Returns the step of a run's last checkpoint, complete or not, or of its metrics; 0 without either."""
    folder = os.path.join(workdir, "checkpoints")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    steps = [int(found[1]) for found in map(_CHECKPOINT.fullmatch, names) if found]
    metrics = read_json(os.path.join(workdir, "metrics.json")) or {}
    return max([*steps, _length(metrics) or 0])


def _length(metrics: Mapping[str, Any]) -> int | None:
    return metrics.get("config", {}).get("train_steps")


def _check_text(workdir: str, known: Mapping[str, Any], received: Mapping[str, Any]) -> None:
    """Raises an error for other data."""
    one, other = known.get(FINGERPRINT), received.get(FINGERPRINT)
    if None in (one, other) or one == other:
        return
    names = [name for name in PLACES_OF_DATA if known.get(name) != received.get(name)]
    if "dataset" not in {**known, **received}:  # examples that the trainer makes itself
        what = "was started with other data; the data have changed since"
        # Some of these decide how many examples are made, and so which.
        test = [name for name in _of_the_test(received) if known.get(name) != received[name]]
        changed = (
            f"--{n} was {flag_text(known.get(n))}, now {flag_text(received[n])}" for n in test
        )
        what = "; ".join([what, *changed])
    elif "dataset" in names:
        what = f"was trained on --dataset={known.get('dataset')}, not on {received.get('dataset')}"
    else:
        what = (
            f"was started with other data; the content of --dataset={received.get('dataset')} has "
            "changed since"
        )
        moved = (f"--{n} was {known.get(n)!r}, now {received.get(n)!r}" for n in names)
        what = "; ".join([what, *moved])
    raise ValueError(
        f"The run in --workdir={workdir} {what} (fingerprint {one[:12]}…, now {other[:12]}…). To "
        "continue the run, give the data that it was started with. To train on the new data, choose "
        "another --workdir. Nothing was changed."
    )


def _refusal(
    workdir: str, names: Iterable[str], there: Mapping[str, Any], received: Mapping[str, Any]
) -> str:
    differences, flags, gone = [], [], []
    for name in names:
        if name not in received:
            gone.append(f"--{name}={flag_text(there[name])}")
            continue
        differences.append(f"--{name}: {there.get(name)!r} there, {received[name]!r} received")
        known = there.get(name)
        flags.append(f"no --{name}" if known is None else f"--{name}={flag_text(known)}")
    said = []
    if differences:
        said.append(
            f"--workdir={workdir} holds a run of another configuration: {'; '.join(differences)}."
        )
    if gone:
        said.append(
            f"The run in --workdir={workdir} was started by another version of this program, with "
            f"{' '.join(gone)}, which this version does not have. Continue with that version, which "
            "its environment.json names, or start a new run in another --workdir."
        )
    else:
        said.append(
            f"To continue the run, give {' '.join(flags)}. To start a new one, choose another "
            "--workdir or delete the folder."
        )
    return " ".join([*said, "Nothing was changed."])

"""Checks that a version belongs to the run that it is verified against."""

import pathlib
from collections.abc import Mapping
from typing import Any

from tfdeq.programs.workdir import read_json
from tfdeq.runs.kind import VOCABULARY
from tfdeq.serving.verification.card_checks import differences
from tfdeq.serving.verification.checks import Check
from tfdeq.serving.versions import model_card

_SHOWN = 3


def check_source(path: pathlib.Path, run_card: dict[str, Any]) -> Check:
    """Checks that the version was made from the model file that it is compared with."""
    card = read_json(path / model_card.FOLDER / model_card.NAME) or {}
    made_from = card.get("source", {}).get("sha256")
    same = made_from == run_card["source"]["sha256"]
    text = "the model file's SHA-256 is the one in the model card"
    if not same:
        text = (
            f"the model card names {made_from}, the workdir's model.keras is "
            f"{run_card['source']['sha256']}. Export the model again, or verify against the "
            "workdir that the version was made from"
        )
    return Check("made from this model", same, text, {"sha256": made_from})


def check_words(path: pathlib.Path, card: Mapping[str, Any], words: str | None) -> Check:
    """Checks the version's words against those of its run.

    Args:
        words: the run's file of words by id, one per line; None if it has none.
    """
    named = (card.get("vocabulary") or {}).get("file")
    file = path / model_card.FOLDER / VOCABULARY
    there = file.read_text(encoding="utf-8") if file.is_file() else None
    problem = ""
    if named != (None if words is None else VOCABULARY):
        problem = (
            f"the card names {named!r}, the run has {'no words' if words is None else VOCABULARY}"
        )
    elif there != words:
        pairs = zip((there or "").splitlines(), (words or "").splitlines(), strict=False)
        places = [str(place) for place, (one, other) in enumerate(pairs) if one != other]
        at = f" at the ids {', '.join(places[:5])}" if places else ""
        problem = f"{VOCABULARY} differs from the run's{at}"
    count = 0 if words is None else len(words.splitlines())
    text = problem or (f"{count:,} words, as in the run" if count else "a model without words")
    return Check("the words are the run's", not problem, text, {})


def check_run(card: Mapping[str, Any], run: Mapping[str, Any]) -> Check:
    """Checks the card's entries about the training run against the run's folder.

    Figures that the run has received since then do not count as differences.
    """
    entries = [name for name in ("unit", "dataset", "flags") if name in run]
    wrong = differences(
        {entry: run[entry] for entry in entries}, {entry: card.get(entry) for entry in entries}
    )
    said = card.get("metrics") or {}
    wrong += differences({each: run["metrics"].get(each) for each in said}, said, "metrics.")
    text = "data set, flags and metrics are those of the run"
    if wrong:
        text = f"{'; '.join(wrong[:_SHOWN])}. If the run went on since, export the model again"
    return Check("the card says what the run says", not wrong, text, {"wrong": wrong})

"""Makes models that solve puzzles from a configuration."""

from collections.abc import Mapping
from typing import Any

import keras

from tfdeq.cells import (
    ComposedCell,
    GroupAttention,
    NestedRecursion,
    RecallConvolution,
    TokenMixing,
)
from tfdeq.data.puzzles import Puzzle
from tfdeq.models import Reasoner
from tfdeq.training.flags.equilibrium import equilibrium_settings


def make_model(config: Mapping[str, Any], puzzle: Puzzle) -> Reasoner:
    """Returns the untrained model of a configuration.

    Raises:
        ValueError: for incompatible flags.
    """
    places = (config["size"] or puzzle.size,) * puzzle.rank
    cells = [_cell(config, puzzle, places, number) for number in range(config["layers"])]
    precision = config["precision"]
    cell = cells[0] if len(cells) == 1 else ComposedCell(cells, dtype=precision)
    if config["recursion"]:
        cell = NestedRecursion(cell, config["inner_steps"], dtype=precision)
    model = Reasoner(
        puzzle.tokens,
        puzzle.classes,
        cell,
        **equilibrium_settings(config),
        block=None if config["depth"] else config["block"] or None,
        start_noise=0.0 if config["depth"] else config["start_noise"],
        path_noise=config["path_noise"] if config["segments"] else 0.0,
        dtype=precision,
    )
    model.build((None, *places))
    return model


def _cell(
    config: Mapping[str, Any], puzzle: Puzzle, places: tuple[int, ...], number: int
) -> keras.layers.Layer:
    width = config["width"]
    common = {"dtype": config["precision"], "name": f"cell_{number}"}
    if config["cell"] == "convolution":
        return RecallConvolution(width, puzzle.rank, **common)
    if config["cell"] == "mixing":
        return TokenMixing(width, places[0] ** puzzle.rank, **common)
    if puzzle.rank != 2:
        raise ValueError(
            f"--cell=attention is for grids; the puzzles of --task={puzzle.name} are lines. Give "
            "--cell=convolution."
        )
    kinds = ("row", "column", "box") if puzzle.boxes else ("row", "column")
    return GroupAttention(width, config["attention_heads"], kinds, **common)

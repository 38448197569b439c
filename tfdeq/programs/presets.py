"""Presets: named files of flags that are part of tfdeq."""

import os
from collections.abc import Sequence

from tfdeq.programs import commands


def names() -> list[str]:
    """Returns the names of the presets."""
    return sorted(name.removesuffix(".flags") for name in os.listdir(commands.PRESETS))


def path_of(name: str) -> str:
    """Returns the file of a preset.

    Raises:
        ValueError: if there is no such preset.
    """
    if name not in names():
        raise ValueError(f"--preset={name} is none of the presets: {', '.join(names())}.")
    return os.path.join(commands.PRESETS, f"{name}.flags")


def expanded(arguments: Sequence[str]) -> list[str]:
    """Returns a command line in which each --preset=NAME is replaced by its --flagfile.

    Raises:
        ValueError: if there is no such preset, or the name is missing.
    """
    found, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*found, argument, *rest]
        flag, given, name = argument.partition("=")
        if flag not in ("--preset", "-preset"):
            found.append(argument)
            continue
        if not given:
            name = rest.pop(0) if rest else ""
        found.append(f"--flagfile={path_of(name)}")
    return found

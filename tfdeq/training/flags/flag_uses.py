"""The flags that a configuration uses, in one table for checks, resumption and --help."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tfdeq.programs.processes import flag_text

# In place of a flag's values: any value except 0, "" and an empty list; or only these.
GIVEN, NOT_GIVEN = "given", "not given"

# Kinds of models; a trainer without --model trains an equilibrium or applications of its cell.
EQUILIBRIUM = {"model": ("deq",), "depth": (0,)}
CELL = {"model": ("deq",)}
_PENALTY = {**CELL, "jacobian_penalty": GIVEN}

# flag -> settings of other flags, one of which must hold for the flag to be used. Flags that are
# not in the table are always used. Entries for a task's own flags are added where these are
# defined.
USES: dict[str, list[dict[str, Any]]] = {
    "solver": [EQUILIBRIUM],
    "max_steps": [EQUILIBRIUM],
    "training_max_steps": [EQUILIBRIUM],
    "training_max_steps_end": [EQUILIBRIUM],
    "sampled_depth": [EQUILIBRIUM],
    "tolerance": [EQUILIBRIUM],
    "adjoint": [EQUILIBRIUM],
    "adjoint_steps": [{**EQUILIBRIUM, "adjoint": ("unrolled", "phantom_gradient")}],
    "adjoint_damping": [{**EQUILIBRIUM, "adjoint": ("phantom_gradient",)}],
    "backward_solver": [{**EQUILIBRIUM, "adjoint": ("implicit",)}],
    "backward_max_steps": [{**EQUILIBRIUM, "adjoint": ("implicit",)}],
    "shallow_share": [EQUILIBRIUM],
    "shallow_steps": [{**EQUILIBRIUM, "shallow_share": GIVEN}],
    "equilibrium_watch": [EQUILIBRIUM],
    "inspect_gradient": [{**EQUILIBRIUM, "inspect_every": GIVEN}],
    "watch_residual": [{**EQUILIBRIUM, "equilibrium_watch": ("penalty", "budget")}],
    "jacobian_penalty": [CELL],
    "jacobian_penalty_end": [_PENALTY],
    "jacobian_penalty_fraction": [_PENALTY],
    "jacobian_penalty_power_steps": [_PENALTY],
    "adam_rate_ratio": [{"optimizer": ("muon",)}],
    "logical_devices": [{"strategy": ("mirrored",)}],
    "tpu": [{"strategy": ("tpu",)}],
}


def add(uses: Mapping[str, list[dict[str, Any]]]) -> None:
    """Adds the entries for the flags of a task; see `USES`."""
    USES.update(uses)


def is_used(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a flag has an effect with the given values of the other flags.

    If the values lack a flag, because the trainer does not have it, its condition counts as met.
    """
    return name not in USES or any(
        all(other not in values or _fits(values[other], wanted) for other, wanted in case.items())
        for case in USES[name]
    )


def used(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of the flags that have an effect."""
    return {name: value for name, value in values.items() if is_used(name, values)}


def when_used(name: str) -> str:
    """Returns the flags that a flag needs to be used, as on a command line; "" if none."""
    cases = (
        " ".join(_typed(other, wanted) for other, wanted in case.items())
        for case in USES.get(name, ())
    )
    return ", or with ".join(cases)


def unused(
    values: Mapping[str, Any], defaults: Mapping[str, Any], names: Collection[str]
) -> dict[str, str]:
    """Returns those of the named flags that have no effect although they are not at their default.

    A flag that switches something off (0, "none") is correct, and is not included.

    Returns:
        flag -> an explanation.
    """
    found = {}
    for name in sorted(names):
        is_off = values[name] == "none" or not values[name]
        if values[name] != defaults[name] and not is_off and not is_used(name, values):
            beside = _beside(name, values)
            found[name] = (
                f"--{name}={flag_text(values[name])} changes nothing with {beside}: it is used with "
                f"{when_used(name)}."
            )
    return found


def refuse_unused(
    values: Mapping[str, Any], defaults: Mapping[str, Any], names: Iterable[str]
) -> None:
    """Raises an error for flags without an effect.

    Args:
        values: flag -> value. defaults: flag -> default value.
        names: the flags that the user has set.

    Raises:
        ValueError: with an explanation for each of them.
    """
    found = unused(values, defaults, {name for name in names if name in values})
    if found:
        them = "it" if len(found) == 1 else "them"
        raise ValueError(f"{' '.join(found.values())} Leave {them} out, or change the others.")


def _fits(value: Any, wanted: Any) -> bool:
    if wanted in (GIVEN, NOT_GIVEN):
        return bool(value) == (wanted == GIVEN)
    return value in wanted


def _typed(name: str, wanted: Any) -> str:
    if wanted == NOT_GIVEN:
        return f"no --{name}"
    if wanted == GIVEN:
        return f"--{name}"
    if isinstance(wanted[0], bool):  # 0 == False
        return f"--{name}" if wanted[0] else f"--no{name}"
    return f"--{name}={'|'.join(map(str, wanted))}"


def _beside(name: str, values: Mapping[str, Any]) -> str:
    """Returns the values that determine whether a flag is used."""
    others = dict.fromkeys(other for case in USES[name] for other in case if other in values)
    return " ".join(f"--{other}={flag_text(values[other])}" for other in others)

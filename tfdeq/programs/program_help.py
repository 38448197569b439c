"""The text of --help: only the flags that a program and this project's modules define, in groups."""

import re
import sys
import textwrap
from collections.abc import Callable, Iterable

from absl import app, flags

from tfdeq.programs.flag_groups import GROUPS, REMOVED

_PACKAGES = ("tfdeq", "trainers", "export", "benchmarks")
_WIDTH = 100
_END = "--helpfull lists the libraries' flags too; --flagfile=FILE reads flags from a file, one a line."


class _Help(flags.BooleanFlag):
    """A flag that prints something and ends the program with status 0."""

    def __init__(self, name: str, short_name: str | None, show: Callable[[], str]):
        super().__init__(
            name, False, "show the program's own flags", short_name, allow_override=True
        )
        self._show = show

    def parse(self, argument: str) -> None:
        if self._parse(argument):
            print(self._show())
            sys.exit(0)


def define(main: Callable[..., None]) -> None:
    """Makes --help, --helpshort and -? print `text`; call it before flags are parsed."""
    app.define_help_flags()
    for name, short_name in (("help", "?"), ("helpshort", None)):
        flags.DEFINE_flag(_Help(name, short_name, lambda: text(main)))


def text(main: Callable[..., None]) -> str:
    """Returns a program's description, and its flags with defaults and allowed values, in groups."""
    parts = [(sys.modules[main.__module__].__doc__ or "").strip()]
    left = own_flags(main.__module__)
    groups = {}
    if "train_steps" in left:  # a program that trains: its own flags, and the trainers'
        grouped = {name for names in GROUPS.values() for name in names}
        groups["This program"] = [name for name in left if name not in grouped]
        groups.update({title: [n for n in names if n in left] for title, names in GROUPS.items()})
    else:
        groups["Flags"] = sorted(left, key=lambda name: name != "workdir")
    for title, names in groups.items():
        if names:
            parts.append("\n".join([title, *map(_described, names)]))
    return "\n\n".join([*filter(None, parts), _END])


def own_flags(main_module: str) -> list[str]:
    """Returns the names of the flags that this project's modules define."""
    found = []
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        own = module in (main_module, sys.argv[0], "__main__")
        if own or set(module.split(".")) & set(_PACKAGES):
            found += [flag for flag in defined if flags.FLAGS[flag.name] is flag]
    return [
        flag.name
        for flag in found
        if not isinstance(flag, _Help) and not (flag.help or "").startswith(REMOVED)
    ]


def _described(name: str) -> str:
    flag = flags.FLAGS[name]
    said = re.sub(r"^<[^>]*>: ", "", flag.help or "")  # absl's list of an enum's values
    if _is_required(flag.validators):
        said += " Required."
    elif "efault:" not in said:
        said += f" Default: {_default(flag.default)}."
    return f"  {_typed(flag)}\n" + textwrap.fill(
        said, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
    )


def _typed(flag: flags.Flag) -> str:
    """Returns a flag as it is written on a command line."""
    if flag.boolean:
        return f"--[no]{flag.name}"
    values = getattr(flag.parser, "enum_values", None)
    kinds = {"int": "NUMBER", "float": "NUMBER", "string": "TEXT"}
    kind = flag.parser.flag_type()
    return f"--{flag.name}={'|'.join(values) if values else kinds.get(kind, 'VALUE,VALUE')}"


def _default(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _is_required(validators: Iterable[object]) -> bool:
    # absl marks a required flag this way.
    return any("value other than None" in validator.message for validator in validators)

"""Paths as users write them: `~` means the home folder, in every flag and argument that is a path.

A shell does not expand `~` in `--workdir=~/runs`.
"""

import os
import pathlib

from absl import flags

# The flags of all programs whose value is a file or folder.
PATH_FLAGS = frozenset(
    (
        *("workdir", "data_dir", "prepared_dir", "output", "model", "report", "program"),
        *(
            "inputs",
            "vocabulary",
            "results",
            "document",
            "plots",
            "peers_python",
            "record",
            "runs",
            "test_set",
            "token_file",
            "certificate_authority",
            "client_certificate",
        ),
    )
)


def expanded(path: str | os.PathLike) -> pathlib.Path:
    """Returns a path in which a leading `~` or `~user` is replaced by that home folder.

    As in a shell, the name of a user who does not exist is not replaced; `./~` is a folder with that
    name.
    """
    return pathlib.Path(os.path.expanduser(os.fspath(path)))


def expand_flags(values: flags.FlagValues) -> None:
    """Expands the defined flags that are paths; call it after the flags are parsed."""
    for name in PATH_FLAGS & set(values):
        flag = values[name]
        if isinstance(flag.value, str):
            flag.value = _expanded_text(flag.value)
        elif isinstance(flag.value, list):
            flag.value = [_expanded_text(value) for value in flag.value]


def _expanded_text(path: str) -> str:
    return str(expanded(path)) if path.startswith("~") else path

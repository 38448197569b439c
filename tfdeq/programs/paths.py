"""Paths as users write them: `~` is the home folder, in every flag and argument that is a path.

A shell leaves `~` alone in `--workdir=~/runs`.
"""

import os
import pathlib

from absl import flags

# The flags of all programs that name one file or folder.
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
            "test_set",
        ),
    )
)


def expanded(path: str | os.PathLike) -> pathlib.Path:
    """Returns a path whose `~` or `~user` in front is that home folder.

    As in a shell, the name of a user who does not exist stays as it is; `./~` is a folder of that name.
    """
    return pathlib.Path(os.path.expanduser(os.fspath(path)))


def expand_flags(values: flags.FlagValues) -> None:
    """Expands the flags that are paths, of those that are defined; to be called once they are parsed."""
    for name in PATH_FLAGS & set(values):
        flag = values[name]
        if isinstance(flag.value, str) and flag.value.startswith("~"):
            flag.value = str(expanded(flag.value))

"""The manifest of a version: the SHA-256 of every file, and one digest of them all.

`assets.extra/manifest.json` is written last, and its files include the model card. Its text has a
unique form, so `sha256sum manifest.json` gives the digest of the version.
"""

import hashlib
import json
import os
import pathlib
from typing import NamedTuple

from tfdeq.programs.paths import expanded

FOLDER, NAME = "assets.extra", "manifest.json"
_SHOWN = 5


class ChangedVersionError(ValueError):
    """A version whose files differ from those exported."""


class Differences(NamedTuple):
    """Sorted paths of a version's files that differ from its manifest."""

    changed: list[str]
    missing: list[str]
    extra: list[str]

    def text(self) -> str:
        """A description of the differences; "" if there are none."""
        found = zip(("changed", "missing", "not of the version"), self, strict=True)
        return "; ".join(f"{what}: {_listed(names)}" for what, names in found if names)


def write(folder: pathlib.Path) -> None:
    """Writes the manifest of the files in a folder, and replaces an existing one."""
    (folder / FOLDER / NAME).write_text(_to_text(file_hashes(folder)), encoding="utf-8")


def file_hashes(folder: pathlib.Path) -> dict[str, str]:
    """Returns path in the version -> SHA-256, for every file except the manifest itself."""
    own = folder / FOLDER / NAME
    # Anything that is neither a file nor a folder, such as a broken link, is also listed.
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {
        path.relative_to(folder).as_posix(): sha256(path) if path.is_file() else "no file"
        for path in sorted(files)
        if path != own
    }


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: str | os.PathLike) -> dict[str, str]:
    """Returns path in the version -> SHA-256, for the files in the manifest.

    Args:
        path: a version folder; `~` is the home folder.

    Raises:
        FileNotFoundError: if there is no manifest: not a version of `export.saved_model`, or one of an
            older release.
        ChangedVersionError: for a manifest that is not in the form that `write` gives it.
    """
    file = expanded(path) / FOLDER / NAME
    try:
        text = file.read_text(encoding="utf-8")
        files = json.loads(text)["files"]
        whole = isinstance(files, dict) and files and _to_text(files) == text
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"{str(file)!r}, the list of the version's files, is missing. {str(path)!r} was not "
            "written by export.saved_model, or an older release exported it. Export the model again."
        ) from error
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ChangedVersionError(
            f"{str(file)!r} has changed since export.saved_model wrote it. Export the model again."
        )
    return files


def digest(path: str | os.PathLike) -> str:
    """Returns the digest of a version: the SHA-256 of its manifest's text.

    Args:
        path: a version folder.

    Raises:
        FileNotFoundError, ChangedVersionError: as `read`.
    """
    return hashlib.sha256(_to_text(read(path)).encode()).hexdigest()


def differences(path: str | os.PathLike) -> Differences:
    """Returns which files of a version differ from its manifest.

    Raises:
        FileNotFoundError, ChangedVersionError: as `read`.
    """
    listed, found = read(path), file_hashes(expanded(path))
    return Differences(
        sorted(name for name in listed.keys() & found.keys() if listed[name] != found[name]),
        sorted(listed.keys() - found.keys()),
        sorted(found.keys() - listed.keys()),
    )


def require_whole(path: str | os.PathLike) -> None:
    """Raises an error for a version whose files differ from those exported.

    Raises:
        FileNotFoundError: as for `read`.
        ChangedVersionError: with the files that are changed, missing or not part of the version.
    """
    wrong = differences(path).text()
    if wrong:
        raise ChangedVersionError(
            f"The version {str(path)!r} has changed since its export ({wrong}). Copy it again from an "
            "intact copy, or export the model again."
        )


def _to_text(files: dict[str, str]) -> str:
    """Returns the manifest's unique form: sorted by path, one file per line."""
    return json.dumps({"files": files}, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

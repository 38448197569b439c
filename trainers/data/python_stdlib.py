"""python_stdlib: the running interpreter's standard library (.py sources) as bytes."""

import os
import pathlib
import sys
import sysconfig

from trainers.data import byte_documents, prepared
from trainers.data.prepared import Document
from trainers.data.token_data import TokenData

# Tests, installed packages, what belongs to one machine's build, and pydoc_data: its one file is
# documentation, and larger than all other files of its split together.
EXCLUDED_FOLDERS = frozenset(
    {"__pycache__", "dist-packages", "idle_test", "pydoc_data", "site-packages", "test", "tests"}
)
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")
MINIMUM_FILES = 20


class PythonStdlib(prepared.DocumentsBuilder, skip_registration=True):
    """Sources of a Python standard library, split by file; the config names the version."""

    name = "tfdeq_python_stdlib"


def load(*, prepared_dir: str | None = None) -> TokenData:
    """Loads the standard library's sources.

    Whole files go to a split, about 90/5/5, by a hash of their path in the library.

    Args:
        prepared_dir: folder of the prepared copies; None: TFDS's own.

    Returns:
        Bytes; files in order of their paths, one newline byte between them. Two interpreters of one
        version may differ in a few files, and then in `fingerprint`.

    Raises:
        FileNotFoundError: the interpreter has no standard library as .py files.
    """
    documents = source_documents(pathlib.Path(sysconfig.get_paths()["stdlib"]))
    version = f"{sys.implementation.name}_{'_'.join(map(str, sys.version_info[:3]))}"
    config_name = prepared.content_name(version, documents)
    splits = byte_documents.split_by_file(documents, [d.path.encode() for d in documents])

    def make_builder() -> PythonStdlib:
        return PythonStdlib(config_name=config_name, prepared_dir=prepared_dir, documents=splits)

    return byte_documents.byte_data(prepared.read_texts(make_builder))


def source_documents(folder: pathlib.Path) -> list[Document]:
    """Returns the non-empty .py files under a library's folder, sorted by path."""
    documents = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _excluded(name)]
        for name in files:
            path = pathlib.Path(parent, name)
            if name.endswith(".py") and not _excluded(name) and path.is_file():
                text = path.read_bytes()
                if text:
                    documents.append(Document(path.relative_to(folder).as_posix(), text))
    if len(documents) < MINIMUM_FILES:
        raise FileNotFoundError(
            f"Found {len(documents)} .py files of the standard library in {str(folder)!r}; this "
            "interpreter seems to ship without sources. Use another one, or another data set."
        )
    return sorted(documents)


def _excluded(name: str) -> bool:
    return name in EXCLUDED_FOLDERS or name.startswith(EXCLUDED_PREFIXES)

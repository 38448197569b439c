"""A griffe extension: the API pages show docstrings as `tools.docstring_markdown` writes them.

mkdocs.yml refers to this file; it runs in the environment of `make docs`, which has griffe.
"""

import pathlib
import sys

import griffe

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from tools.docstring_markdown import as_markdown


class DocstringSections(griffe.Extension):
    """Rewrites every docstring after it has been read."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)

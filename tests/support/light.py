"""Lets a process import tfdeq.programs without the library, whose TensorFlow import takes seconds."""

import pathlib
import sys
import types

_package = types.ModuleType("tfdeq")
_package.__path__ = [str(pathlib.Path(__file__).absolute().parents[2] / "tfdeq")]
sys.modules["tfdeq"] = _package

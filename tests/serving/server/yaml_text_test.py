"""YAML as it is written, read back with a YAML parser."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.server.compose_text_test import TEXTS
from tfdeq.serving.server import yaml_text

# Texts for which a block, or no quotes, could go wrong.
LINES = (
    "a\n",
    "a\nb\n",
    "a\n\n",
    "a\n\nb\n",
    "a\n  b\n",
    "a \nb \n",
    "a\n   \n",
    " a\nb\n",
    "\na\n",
    "\n",
    "a\nb",
    "a\r\nb\n",
    "a\n\tb\n",
    "a\n---\nb\n",
    "# a\nb\n",
    "ü\nb\n",
)
WORDS = ("y", "N", "Yes", "no", "on", "OFF", "True", "false", "Null", "nan", "a.", "/", "a-", "-a")


@pytest.mark.parametrize("text", [*TEXTS, *LINES, *WORDS])
def test_a_text_is_read_back(text):
    written = yaml_text.document({text: text, "list": [text, [text], {"a": text}]})
    assert written.isascii()
    assert yaml.safe_load(written) == {text: text, "list": [text, [text], {"a": text}]}


TEXT = st.text(st.characters(exclude_categories=("Cs",))) | st.text("ab :\n-#'\"|>\\")
VALUE = st.recursive(
    TEXT | st.booleans() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(TEXT, VALUE, max_size=3))
def test_any_document_is_read_back(document):
    written = yaml_text.document(document)
    read = yaml.safe_load(written)
    assert read == document
    assert repr(read) == repr(document)  # True is not 1


def test_what_people_read():
    written = yaml_text.document(
        {
            "kind": "ConfigMap",
            "data": {"models.config": "a {\n  b: 1\n}\n", "yes": "no"},
            "args": ["--port=8500", "serve", ["a", "b"]],
            "empty": {"map": {}, "list": []},
        }
    )
    assert written == (
        "kind: ConfigMap\n"
        "data:\n"
        "  models.config: |\n"
        "    a {\n"
        "      b: 1\n"
        "    }\n"
        '  "yes": "no"\n'
        "args:\n"
        '  - "--port=8500"\n'
        "  - serve\n"
        "  - - a\n"
        "    - b\n"
        "empty:\n"
        "  map: {}\n"
        "  list: []\n"
    )


def test_what_is_no_text():
    with pytest.raises(ValueError, match="no Unicode text.*Rename the folder"):
        yaml_text.document({"path": "/models/\udcff"})

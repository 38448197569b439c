"""Values of a compose file, read back with a YAML parser."""

import unicodedata

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdeq.serving.server import compose_text

TEXTS = (
    *(
        "plain",
        "",
        "a b",
        " ",
        "a: b",
        "- a",
        "# no",
        "'\"\\",
        "{a}",
        "[a]",
        "*a",
        "&a",
        "!a",
        "%a",
    ),
    *(
        "yes",
        "null",
        "1",
        "0x1",
        "1e3",
        "~",
        "a\nb: c",
        "a\r\tb",
        "\x00\x01\x1b\x7f\x85\xa0",
        "\ufeff",
    ),
    *("\u2028\u2029", "ü✓", "\U0001f600", "\\U0001f600", "\\ud83d\\ude00", "${HOME}", "$$", "a$"),
)


def read(text):
    """Reads like compose: YAML, then `$$` for `$`; a single `$` would be a variable."""

    def resolved(value):
        if isinstance(value, dict):
            return {resolved(key): resolved(item) for key, item in value.items()}
        if not isinstance(value, str):
            return value
        assert "$" not in value.replace("$$", "")
        return value.replace("$$", "$")

    (value,) = yaml.safe_load(f"- {text}\n")
    return resolved(value)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_read_back(text):
    written = compose_text.value(text)
    assert written.isascii()
    assert written.isprintable()
    assert read(written) == text
    assert read(compose_text.value({text: text, "n": 3, "yes": True})) == {
        text: text,
        "n": 3,
        "yes": True,
    }


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_is_read_back(text):
    assert read(compose_text.value(text)) == text


def test_what_is_no_text():
    with pytest.raises(ValueError, match="no Unicode text.*Rename the folder"):
        compose_text.value("/models/\udcff")
    assert unicodedata.category("\udcff") == "Cs"  # how Python reads a byte that is not UTF-8

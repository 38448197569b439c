"""YAML that people can read, written without a YAML library, so that parsers read back the same values."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Texts that need no quotes, except those that YAML 1.1 reads as true, false or null.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9/_.-]*")
_RESERVED = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))
# Lines that a block takes as they are: the first one shows the indentation, one break ends the last.
_BLOCK = re.compile(r"[!-~][ -~]*\n(?:[ -~]*\n)*(?<!\n\n)")


def document(given: Mapping[str, Any]) -> str:
    """Returns a mapping as the text of a YAML document.

    Args:
        given: texts, booleans, integers, and mappings and sequences of these. Keys are texts.

    Raises:
        ValueError: for a text that is not valid Unicode.

    Example:
        >>> print(document({"kind": "List", "items": [{"name": "a: b", "on": True}]}), end="")
        kind: List
        items:
          - name: "a: b"
            "on": true
    """
    return "\n".join(_lines(given)) + "\n"


def quoted(text: str) -> str:
    """Returns a text in double quotes, all characters except printable ASCII escaped.

    Raises:
        ValueError: for a text that is not valid Unicode, such as a path in another encoding.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{text!r} is no Unicode text, which a YAML file is made of. Rename the folder."
        ) from error
    return '"' + "".join(map(_escaped, text)) + '"'


def _lines(given: Any) -> list[str]:
    if isinstance(given, Mapping) and given:
        return [line for key, item in given.items() for line in _entry(_text(key), item)]
    if _is_list(given) and given:
        return [line for item in given for line in _prefixed("- ", _lines(item))]
    if isinstance(given, str) and "\n" in given and _BLOCK.fullmatch(given):
        return ["|", *(f"  {line}" for line in given.splitlines())]
    if isinstance(given, str):
        return [_text(given)]
    return [json.dumps(given)]  # true, 1, {} or []


def _entry(key: str, item: Any) -> list[str]:
    first, *others = _lines(item)
    if (isinstance(item, Mapping) or _is_list(item)) and item:
        return [f"{key}:", f"  {first}", *(f"  {line}" for line in others)]
    return [f"{key}: {first}", *others]


def _prefixed(prefix: str, lines: Sequence[str]) -> list[str]:
    return [prefix + lines[0], *(" " * len(prefix) + line for line in lines[1:])]


def _is_list(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str)


def _text(given: str) -> str:
    plain = _PLAIN.fullmatch(given) and given.lower() not in _RESERVED
    return given if plain else quoted(given)


def _escaped(sign: str) -> str:
    # JSON would write a character beyond 16 bits as two escapes, which YAML reads as two
    # characters, and would not escape DEL, which YAML refuses.
    code = ord(sign)
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\u{code:04x}" if code == 0x7F else json.dumps(sign)[1:-1]

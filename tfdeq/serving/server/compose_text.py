"""Values of a compose file, escaped so that they are read back unchanged."""

import json
from collections.abc import Mapping
from typing import Any


def value(given: str | bool | int | Mapping[str, Any]) -> str:
    """Returns a text, a number or a mapping of these as YAML on one line.

    Texts are in double quotes, and all characters except printable ASCII are escaped. `$` is doubled,
    because compose would otherwise expand it as a variable.

    Raises:
        ValueError: for a text that is not valid Unicode, such as a path in another encoding.

    Example:
        >>> print(value({"source": "/a: b/$HOME", "read_only": True}))
        {"source": "/a: b/$$HOME", "read_only": true}
    """
    if isinstance(given, Mapping):
        pairs = (f"{value(key)}: {value(item)}" for key, item in given.items())
        return "{" + ", ".join(pairs) + "}"
    if not isinstance(given, str):
        return json.dumps(given)
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{given!r} is no Unicode text, which a compose file is made of. Rename the folder."
        ) from error
    return '"' + "".join(map(_escaped, given.replace("$", "$$"))) + '"'


def _escaped(sign: str) -> str:
    # JSON would write a character beyond 16 bits as two escapes, which YAML reads as two
    # characters, and would not escape DEL, which YAML refuses.
    code = ord(sign)
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\u{code:04x}" if code == 0x7F else json.dumps(sign)[1:-1]

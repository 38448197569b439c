"""Values of a compose file, escaped so that they are read back unchanged."""

import json
from collections.abc import Mapping
from typing import Any

from tfdeq.serving.server import yaml_text


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
    return yaml_text.quoted(given.replace("$", "$$"))

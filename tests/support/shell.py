"""The output of the project's programs, without the lines that TensorFlow writes at import."""

import re

_TENSORFLOW = re.compile(r"(WARNING: All log messages before absl|[IWE]\d{4} \d)")


def own_lines(text: str) -> str:
    """Returns the text without TensorFlow's messages about the processor and CUDA."""
    return "".join(line for line in text.splitlines(True) if not _TENSORFLOW.match(line))

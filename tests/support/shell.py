"""What a program of ours says, without the lines that TensorFlow writes when it is imported."""

import re

_TENSORFLOW = re.compile(r"(WARNING: All log messages before absl|[IWE]\d{4} \d)")


def own_lines(text: str) -> str:
    """Returns the text without TensorFlow's notes about the processor and CUDA."""
    return "".join(line for line in text.splitlines(True) if not _TENSORFLOW.match(line))

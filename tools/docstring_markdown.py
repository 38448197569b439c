"""The docstrings' own headings as Markdown, for the API pages of the documentation site.

mkdocstrings knows the sections Args, Returns, Raises and Attributes. It does not know "Call arguments:"
and "Source:", whose continuation lines it would show as a box, nor "Example:" for interpreter sessions.
"""

import re
import textwrap

_HEADING = re.compile(r"^(Source|Call arguments|Example):[ ]?(.*)$")
_ARGUMENT = re.compile(r"^([a-z_][\w, ]*): ")
# At the start of a line or of an entry, Markdown would treat it as a quotation.
_GREATER = re.compile(r"(^\s*|: )>(?!>)")


def as_markdown(docstring: str) -> str:
    """Returns a docstring without indentation, in the form that mkdocstrings reads.

    Args:
        docstring: the result of `inspect.cleandoc`, with Google-style sections and `>>>` examples.

    Example:
        >>> print(as_markdown("Adds.\\n\\nSource: A, B,\\n    C."))
        Adds.
        <BLANKLINE>
        **Source:** A, B,
        C.
    """
    lines, out = docstring.split("\n"), []
    while lines:
        line = lines.pop(0)
        heading = _HEADING.match(line)
        if not heading:
            out.append(_GREATER.sub(r"\1\\>", line))
            continue
        body = []
        while lines and (not lines[0] or lines[0].startswith(" ")):
            body.append(lines.pop(0))
        text = textwrap.dedent("\n".join(body)).strip("\n")
        out += [*_section(heading[1], heading[2], text), ""]
    return "\n".join(out).strip("\n")


def _section(name: str, first: str, body: str) -> list[str]:
    lines = body.split("\n")
    if name == "Example":
        return ["Examples:", *textwrap.indent(body, "    ").split("\n")]
    body = [_GREATER.sub(r"\1\\>", line) for line in lines]
    if first or name == "Source":
        return [f"**{name}:** {first}", *filter(None, body)]
    if all(line.startswith(" ") or _ARGUMENT.match(line) for line in body):
        body = [_ARGUMENT.sub(r"- **`\1`** – ", line) for line in body]
    return [f"**{name}:**", "", *body]

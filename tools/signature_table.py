"""Writes the table of the language models' signatures in docs/serving.md from their classes.

python -m tools.signature_table            rewrites it where it differs
python -m tools.signature_table --check    only says whether it does
"""

import argparse
import inspect
import pathlib
import sys

from tfdeq.cells import TransformerCell
from tfdeq.models import LanguageModel
from tfdeq.serving.signatures import text

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "serving.md"
BEGIN = "<!-- Written by `python -m tools.signature_table`. -->\n"
END = "<!-- end -->\n"
HEADER = (
    "| signature | what | of | takes beside `tokens` [B, T] and `lengths` | returns besides |\n"
    "|---|---|---|---|---|\n"
)


def table() -> str:
    """Returns the table of all signatures in the registry."""
    # Names and meanings do not depend on the sizes; with a span the model has a memory.
    model = LanguageModel(7, 6, TransformerCell(8, 2, 6, span=4))
    rows = []
    for signature in text.REGISTRY.values():
        what = inspect.getdoc(type(signature)).splitlines()[0]
        cells = [
            f"`{signature.name}`",
            what.rstrip("."),
            signature.models,
            signature.taken(model),
            signature.returned(model),
        ]
        rows.append(f"| {' | '.join(cells)} |\n")
    return HEADER + "".join(rows)


def written(document: str) -> str:
    """Returns the document with the new table.

    Raises:
        ValueError: for a document without the lines that mark the place of the table.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"No place for the table: expected the lines {BEGIN!r} and {END!r}.")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Rewrites the document, or with --check only reports whether it differs and returns 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="only say whether it differs")
    check = parser.parse_args(arguments).check
    before = DOCUMENT.read_text(encoding="utf-8")
    after = written(before)
    if before == after:
        return 0
    print(f"{DOCUMENT.name} differs" if check else f"wrote {DOCUMENT.name}")
    if not check:
        DOCUMENT.write_text(after, encoding="utf-8")
    return int(check)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

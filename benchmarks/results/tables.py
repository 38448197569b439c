"""Tables of figures in Markdown; this module has no flags."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table of the rows' cells, formatted by str()."""
    lines = [f"| {' | '.join(map(str, cells))} |\n" for cells in (columns, *rows)]
    return "".join([lines[0], "|---" * len(columns) + "|\n", *lines[1:]])


def comparison_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the results as a Markdown table."""
    columns = (
        *("trained", "rate", "steps", "s/step", "seconds", "test bits, mean (each seed)"),
        *("residual", "peak MiB"),
    )
    rows = [
        (
            name,
            f"{row['learning_rate']:g}" if "learning_rate" in row else "",
            f"{row['steps']:,}",
            f"{row['seconds_per_step']:.3f}",
            f"{row['seconds']:.0f}",
            f"**{row['mean_bits']:.3f}** ({', '.join(f'{bits:.3f}' for bits in row['bits'])})",
            f"{row['residual']:.1e}",
            f"{row['peak_memory_mib']:.0f}",
        )
        for name, row in results.items()
    ]
    return markdown_table(columns, rows)


def memory_table(rows: list[dict[str, Any]]) -> str:
    """Returns the figures as a Markdown table, each row relative to the equilibrium's."""
    own = next(row for row in rows if not row["depth"])
    cells = []
    for row in rows:
        depth = row["depth"]
        name = f"{depth} application{'s' * (depth > 1)}" if depth else "the equilibrium"
        memory = f"{row['bytes'] / 2**20:.0f}", f"{row['bytes'] / own['bytes']:.1f}"
        time = f"{row['seconds']:.2f}", f"{row['seconds'] / own['seconds']:.2f}"
        cells.append((name, *memory, *time))
    return markdown_table(("trains", "MiB a step", "× the equilibrium's", "s/step", "×"), cells)


def figure_of(test: Mapping[str, Any]) -> tuple[str, float]:
    """Returns the name and the value of the figure by which runs are compared."""
    for name in ("perplexity", "loss", "bits_per_byte"):
        if name in test:
            return name.replace("_", " "), test[name]
    raise ValueError(f"No figure of quality among {', '.join(test)}.")

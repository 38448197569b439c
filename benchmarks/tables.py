"""Tables of stored figures, in Markdown; without any flags."""

from collections.abc import Mapping
from typing import Any


def comparison_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the results as a Markdown table."""
    lines = [
        "| trained | steps | s/step | seconds | held-out bits, mean (each seed) | residual | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        seeds = ", ".join(f"{bits:.3f}" for bits in row["bits"])
        lines.append(
            f"| {name} | {row['steps']:,} | {row['seconds_per_step']:.3f} | {row['seconds']:.0f} | "
            f"**{row['mean_bits']:.3f}** ({seeds}) | {row['residual']:.1e} | "
            f"{row['peak_memory_mib']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def memory_table(rows: list[dict[str, Any]]) -> str:
    """Returns the figures as a Markdown table, each row beside the equilibrium's."""
    own = next(row for row in rows if not row["depth"])
    lines = ["| trains | MiB a step | × the equilibrium's | s/step | × |", "|---|---|---|---|---|"]
    for row in rows:
        depth = row["depth"]
        name = f"{depth} application{'s' * (depth > 1)}" if depth else "the equilibrium"
        lines.append(
            f"| {name} | {row['bytes'] / 2**20:.0f} | {row['bytes'] / own['bytes']:.1f} | "
            f"{row['seconds']:.2f} | {row['seconds'] / own['seconds']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def figure_of(test: Mapping[str, Any]) -> tuple[str, float]:
    """Returns the name and the value of what a run is judged by."""
    for name in ("perplexity", "loss", "bits_per_byte"):
        if name in test:
            return name.replace("_", " "), test[name]
    raise ValueError(f"No figure of quality among {', '.join(test)}.")

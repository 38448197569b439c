"""The lines that a trainer prints at its end."""

from collections.abc import Mapping
from typing import Any

from tfdeq.programs import commands


def last_lines(metrics: Mapping[str, Any], workdir: str) -> list[str]:
    """Returns the figures of a finished run, and the command for more information, line by line.

    Args:
        metrics: the run's metrics.json.
        workdir: folder of the run.
    """
    report = commands.command("trainers.report")
    return [
        *(f"{name}: {_figures(metrics[name])}" for name in ("test", "baseline") if name in metrics),
        f"What lies in {workdir}, and what to do with it: {report} {workdir}",
    ]


def _figures(results: Mapping[str, Any]) -> str:
    numbers = [f"{name} {value:.4g}" for name, value in results.items() if isinstance(value, float)]
    line = ", ".join(numbers)
    if "examples" in results:
        tokens = f", {results['tokens']:,} tokens" if "tokens" in results else ""
        line += f" (over {results['examples']:,} examples{tokens})"
    return line

"""The cost of serving an equilibrium in TensorFlow's C++ runtime, timed without Python.

    python -m benchmarks.serving.costs --workdir=runs/serving_model [--results=... --document=...]

For a trained language model, it measures: `generate` against solving the prefix again for every token;
a batch with one hard example, with and without compaction; XLA and graph at several batch sizes; the
first request after the warm-up; and the cost and quality at each tolerance.
"""

import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks.engine.speed import processor
from benchmarks.results.tables import markdown_table
from benchmarks.serving import long_texts
from tfdeq.data.windows import spread_windows
from tfdeq.models import LanguageModel
from tfdeq.programs import program
from tfdeq.programs.workdir import read_json, write_json
from tfdeq.serving.kinds import runs
from tfdeq.serving.server import serving_program
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.signatures import language_model_signatures
from tfdeq.serving.signatures.text.generate import Generate, greedy
from tfdeq.serving.verification.quality import TextTable
from tfdeq.serving.versions import saved_model, warm_up

FLAGS = flags.FLAGS

NEW_TOKENS = 256
MOST_STEPS = 100
GENERATING = (1, 8)  # batch sizes
EASY, HARD = 31, 1
EASY_TOLERANCE, HARD_TOLERANCE = 1e-1, 1e-6
COMPILED = (1, 8, 32)  # batch sizes
TURNS = 5


class Versions:
    """A model's versions, each timed in a separate process of the C++ program."""

    def __init__(self, model: LanguageModel, folder: str, executable: pathlib.Path):
        self._model, self._folder, self._executable = model, folder, executable
        self._paths: dict[str, pathlib.Path] = {}

    def path(self, name: str, **options: Any) -> pathlib.Path:
        """Returns the version whose signatures have these options; it is written only once."""
        if name not in self._paths:
            signatures = runs.of_model(self._model).signatures(**options)
            jit_compile = options.get("jit_compile", False)
            self._paths[name] = saved_model.export(
                self._model, f"{self._folder}/{name}", signatures, jit_compile=jit_compile
            )
        return self._paths[name]

    def ask(self, path: pathlib.Path, requests: Sequence[Request], rounds: int, **options: Any):
        return serving_program.answer(self._executable, path, requests, rounds=rounds, **options)


def request_of(
    signature: str,
    tokens: np.ndarray,
    lengths: Any,
    tolerance: Any = 0.0,
    max_steps: Any = 0,
    **further: np.ndarray,
) -> Request:
    """Returns a request for texts [B, T]; settings that are not given are 0, the model's own."""
    batch = len(tokens)
    inputs = {
        "tokens": tokens.astype(np.int32),
        "lengths": np.broadcast_to(np.int32(lengths), [batch]),
        "tolerance": np.broadcast_to(np.float32(tolerance), [batch]),
        "max_steps": np.broadcast_to(np.int32(max_steps), [batch]),
    }
    return Request(signature, signature, {**inputs, **further})


def measure_generation(versions: Versions, windows: np.ndarray, tolerance: float) -> list[dict]:
    """Compares `generate` with one solve of the whole prefix per token, alternately."""
    path = versions.path("graph")
    length = windows.shape[1] - NEW_TOKENS
    rows = []
    for batch in GENERATING:
        prompts = windows[:batch, :length]
        options = greedy(batch, NEW_TOKENS)
        one = request_of(Generate.name, prompts, length, tolerance, MOST_STEPS, **options)
        (found,) = versions.ask(path, [one], rounds=0).outputs
        texts = np.concatenate([prompts, found["tokens"][:, :NEW_TOKENS]], axis=1)
        prefixes = [
            request_of("serving_default", texts[:, :size], size, tolerance, max_steps=MOST_STEPS)
            for size in range(length, length + NEW_TOKENS)
        ]
        times: dict[str, list[float]] = {"generate": [], "again": []}
        for _ in range(2):
            times["generate"].append(np.median(versions.ask(path, [one], rounds=3).seconds))
            # Both are warmed up by the runs that give the answers, which are not timed.
            again = versions.ask(path, prefixes, rounds=1)
            times["again"].append(again.seconds.sum())
        chosen = [np.argmax(answer["log_probabilities"], axis=-1) for answer in again.outputs]
        gaps = [np.sort(answer["log_probabilities"], axis=-1) for answer in again.outputs]
        same = np.stack(chosen, axis=1) == found["tokens"][:, :NEW_TOKENS]
        margin = np.stack([gap[:, -1] - gap[:, -2] for gap in gaps], axis=1)
        steps = found["steps"] - found["prompt_steps"]
        rows.append(
            {
                "batch": batch,
                "prompt": length,
                "tokens": NEW_TOKENS,
                "generate_seconds": float(np.median(times["generate"])),
                "again_seconds": float(np.median(times["again"])),
                "ratio": float(np.median(times["again"]) / np.median(times["generate"])),
                "evaluations_per_token": float(steps.mean() / (NEW_TOKENS - 1)),
                "full_solve_evaluations": float(
                    np.mean([answer["steps"].mean() for answer in again.outputs])
                ),
                "same_tokens": float(same.mean()),
                "largest_margin_where_not": float(margin[~same].max(initial=0.0)),
                "largest_residual": float(found["residual"].max()),
            }
        )
    return rows


def measure_compaction(versions: Versions, windows: np.ndarray) -> dict[str, Any]:
    """Measures 31 easy examples and a hard one, with and without compaction."""
    texts = np.resize(windows, [EASY + HARD, windows.shape[1]])
    tolerances = np.float32([EASY_TOLERANCE] * EASY + [HARD_TOLERANCE] * HARD)
    request = request_of(
        "serving_default", texts, windows.shape[1], tolerances, max_steps=MOST_STEPS
    )
    paths = {
        "leave": versions.path("graph"),
        "stay": versions.path("plain", compaction=False),
    }
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(TURNS):
        for name, path in paths.items():
            found = versions.ask(path, [request], rounds=3)
            times[name].append(float(np.median(found.seconds)))
    steps = found.outputs[0]["steps"]
    leave, stay = (float(np.median(times[name])) for name in ("leave", "stay"))
    return {
        "easy_steps": float(steps[:EASY].mean()),
        "hard_steps": float(steps[EASY:].mean()),
        "leave_seconds": leave,
        "stay_seconds": stay,
        "ratio": leave / stay,
    }


def measure_compiled(versions: Versions, windows: np.ndarray) -> list[dict[str, Any]]:
    """Measures `serving_default` at several batch sizes, as a graph and with XLA, alternately."""
    paths = {
        "graph": versions.path("graph"),
        "xla": versions.path("xla", jit_compile=True),
    }
    requests = [
        request_of(
            "serving_default", np.resize(windows, [batch, windows.shape[1]]), windows.shape[1]
        )
        for batch in COMPILED
    ]
    times: dict[str, list[np.ndarray]] = {name: [] for name in paths}
    for _ in range(TURNS):
        for name, path in paths.items():
            times[name].append(np.median(versions.ask(path, requests, rounds=5).seconds, axis=0))
    medians = {name: np.median(found, axis=0) for name, found in times.items()}
    return [
        {
            "batch": batch,
            "graph_seconds": float(medians["graph"][index]),
            "xla_seconds": float(medians["xla"][index]),
        }
        for index, batch in enumerate(COMPILED)
    ]


def measure_warm_up(versions: Versions, windows: np.ndarray, model: LanguageModel) -> list[dict]:
    """Measures the first request after the warm-up records, and later ones."""
    path = versions.path("graph")
    signatures = runs.of_model(model).signatures()
    examples = language_model_signatures.examples(windows, model)
    records = list(warm_up.requests(signatures, examples, saved_model.BATCH_SIZES))
    requests = [Request("warm-up", *record) for record in records]
    found = [versions.ask(path, requests, rounds=8) for _ in range(3)]
    rows = []
    for index, request in enumerate(requests):
        cold = np.median([answer.first_seconds[index] for answer in found])
        first = np.median([answer.seconds[0, index] for answer in found])
        later = np.median([np.median(answer.seconds[1:, index]) for answer in found])
        rows.append(
            {
                "signature": request.signature,
                "batch": len(request.inputs["tolerance"]),
                "warm_up_seconds": float(cold),
                "first_seconds": float(first),
                "later_seconds": float(later),
                "ratio": float(first / later),
            }
        )
    return rows


def document(results: Mapping[str, Any]) -> str:
    """Returns the tables of docs/serving_benchmarks.md."""
    parts = [
        "# What serving an equilibrium costs\n",
        "`make serving_bench`: a language model of "
        f"{results['parameters']:,} parameters (width {results['width']}, texts of up to "
        f"{results['sequence_length']} bytes), trained on the Python standard library, in "
        f"TensorFlow's C++ runtime on {results['machine']}. The compared variants "
        "alternate; figures are medians, times are in milliseconds.\n",
        "## generate, against solving the prefix again for every token\n",
        f"{NEW_TOKENS} tokens, greedy, tolerance {results['tolerance']:g}. Evaluations of the cell: "
        "on one position for `generate`, on the whole prefix for the full solve.\n",
        _generation_table(results["generation"]),
        "## One hard example in a batch of 32\n",
        _compaction_text(results["compaction"]),
        "## Graph and XLA\n",
        _compiled_table(results["compiled"]),
        "## The first request after the warm-up\n",
        _warm_up_table(results["warm_up"]),
        "## What each tolerance costs and gives\n",
        _quality_table(results["quality"]),
    ]
    return "\n".join(parts)


def _generation_table(rows: Iterable[Mapping[str, Any]]) -> str:
    columns = (
        *("batch", "prompt", "generate, ms", "prefix again, ms", "faster"),
        *("evaluations a token", "evaluations of a full solve", "same tokens"),
    )
    cells = [
        (
            *(row["batch"], row["prompt"], f"{1e3 * row['generate_seconds']:,.0f}"),
            *(f"{1e3 * row['again_seconds']:,.0f}", f"{row['ratio']:.1f} x"),
            *(f"{row[name]:.1f}" for name in ("evaluations_per_token", "full_solve_evaluations")),
            f"{row['same_tokens']:.2%}",
        )
        for row in rows
    ]
    return markdown_table(columns, cells)


def _compaction_text(row: Mapping[str, Any]) -> str:
    return (
        f"{EASY} examples at tolerance {EASY_TOLERANCE:g} ({row['easy_steps']:.1f} steps), one at "
        f"{HARD_TOLERANCE:g} ({row['hard_steps']:.0f} steps): {1e3 * row['leave_seconds']:.1f} ms when "
        f"those that are done leave the batch, {1e3 * row['stay_seconds']:.1f} ms when they stay: "
        f"{row['ratio']:.2f} of the plain loop.\n"
    )


def _compiled_table(rows: Iterable[Mapping[str, Any]]) -> str:
    cells = [
        (row["batch"], *(f"{1e3 * row[f'{name}_seconds']:.1f}" for name in ("graph", "xla")))
        for row in rows
    ]
    return markdown_table(("batch", "graph, ms", "XLA, ms"), cells)


def _warm_up_table(rows: Iterable[Mapping[str, Any]]) -> str:
    columns = (
        *("signature", "batch", "warm-up record, ms", "first request, ms", "later ones, ms"),
        "first / later",
    )
    cells = [
        (
            *(f"`{row['signature']}`", row["batch"]),
            *(f"{1e3 * row[f'{name}_seconds']:.1f}" for name in ("warm_up", "first", "later")),
            f"{row['ratio']:.2f}",
        )
        for row in rows
    ]
    return markdown_table(columns, cells)


def _quality_table(rows: Iterable[Mapping[str, Any]]) -> str:
    columns = (
        *("tolerance", "bits per byte", "steps", "mean residual", "largest residual"),
        "converged",
    )
    cells = [
        (
            *(f"{row['tolerance']:g}", f"{row['bits_per_token']:.4f}", f"{row['steps']:.1f}"),
            *(f"{row[name]:.1e}" for name in ("residual", "largest_residual")),
            f"{row['converged']:.0%}",
        )
        for row in rows
    ]
    return markdown_table(columns, cells)


def measure_quality(model: LanguageModel, windows: np.ndarray) -> list[dict[str, Any]]:
    """Measures bits per token, residual and steps of windows at each tolerance."""
    return TextTable(windows).measured(runs.of_model(model).signatures()["score"])


def main() -> None:
    run = runs.read(FLAGS.workdir, data=False)
    model = run.kind.model
    stream, _ = runs.tokens_of_test(run.card["flags"], model.vocabulary_size, None)
    windows = spread_windows(stream, model.sequence_length, 64)
    if model.sequence_length < NEW_TOKENS + 16:
        raise ValueError(
            f"The model reads {model.sequence_length} tokens; {NEW_TOKENS} new ones after a prompt need "
            f"at least {NEW_TOKENS + 16}. Train it with --sequence_length={2 * NEW_TOKENS}."
        )
    executable = serving_program.build()
    with tempfile.TemporaryDirectory(prefix="tfdeq-serving-") as folder:
        versions = Versions(model, folder, executable)
        results = {
            "parameters": model.count_params(),
            "width": model.cell.width,
            "sequence_length": model.sequence_length,
            "machine": FLAGS.machine or processor(),
            "tolerance": FLAGS.tolerance,
        }
        for name, measure in {
            "generation": lambda: measure_generation(versions, windows, FLAGS.tolerance),
            "compaction": lambda: measure_compaction(versions, windows),
            "compiled": lambda: measure_compiled(versions, windows),
            "warm_up": lambda: measure_warm_up(versions, windows, model),
            "quality": lambda: measure_quality(model, windows),
        }.items():
            results[name] = measure()
            print(f"{name}: {results[name]}", flush=True)
    if FLAGS.results:
        write_json(FLAGS.results, results)
    if FLAGS.document:
        # Measured by a program of its own.
        text = long_texts.with_section(document(results), read_json(long_texts.RESULTS))
        pathlib.Path(FLAGS.document).write_text(text, encoding="utf-8")
        print(f"Wrote {FLAGS.document}.")


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder that trainers.language_model wrote.")
    flags.DEFINE_float("tolerance", 1e-4, "Of the generated texts.", lower_bound=1e-7)
    flags.DEFINE_string("machine", None, "What the document calls the machine. Default: its CPU.")
    flags.DEFINE_string("results", None, "JSON to write.")
    flags.DEFINE_string("document", None, "Markdown to write.")
    flags.mark_flag_as_required("workdir")


def run() -> None:
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()

"""Models in LiteRT and ONNX Runtime beside TensorFlow: every solver with every cell, times and sizes.

python -m benchmarks.serving.edge --document=docs/edge_benchmarks.md [--results=...]

Every solver with every cell is converted to both formats and asked the same examples as the Keras model.
Three models are timed in all runtimes, in turns, on one thread. It takes about twenty minutes.
"""

import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfdeq
from benchmarks.engine.speed import processor
from benchmarks.results.tables import markdown_table
from tfdeq import cells, solvers
from tfdeq.models import LanguageModel
from tfdeq.programs import program
from tfdeq.programs.workdir import write_json
from tfdeq.serving import convert
from tfdeq.serving.edge.converted import FORMATS
from tfdeq.serving.edge.interpreter import Interpreter
from tfdeq.serving.kinds import runs

FLAGS = flags.FLAGS

TOLERANCE, NEVER = 1e-4, 1e-12
MAX_STEPS = 60
# A history as long as the smallest state would make Anderson's systems singular.
MEMORY = 3
EXAMPLES = 4
TEXT = b"def main(argv):\n    import os\n    return os.path.join(argv[0], name"
# GMRES is for linear systems.
SOLVERS = [name for name in solvers.REGISTRY if name != "gmres"]
# Cell -> how to make it, and the shape of an input without the batch.
CELLS: dict[str, tuple[Callable[[], keras.layers.Layer], tuple[int, ...]]] = {
    "DenseCell": (lambda: cells.DenseCell(8, contraction=0.8), (8,)),
    "MonotoneDense": (lambda: cells.MonotoneDense(8, monotonicity=0.5, recurrent_scale=0.3), (8,)),
    "LipschitzBounded": (lambda: cells.LipschitzBounded(8, recurrent_scale=0.3), (8,)),
    "TransformerCell": (lambda: cells.TransformerCell(8, 2, 6, recurrent_scale=0.2), (6, 8)),
    "TrellisCell": (lambda: cells.TrellisCell(8, recurrent_scale=0.2), (6, 8)),
    "RecallConvolution": (lambda: cells.RecallConvolution(8, recurrent_scale=0.2), (5, 5, 8)),
    "GroupAttention": (lambda: cells.GroupAttention(6, 3, recurrent_scale=0.2), (4, 4, 6)),
    "TokenMixing": (lambda: cells.TokenMixing(8, places=6, recurrent_scale=0.2), (6, 8)),
    "MonotoneConvolution": (
        lambda: cells.MonotoneConvolution(4, monotonicity=0.5, recurrent_scale=0.3),
        (5, 5, 2),
    ),
    "MonotoneMultiscaleConvolution": (
        lambda: cells.MonotoneMultiscaleConvolution((3, 4), monotonicity=0.5, recurrent_scale=0.3),
        (6, 6, 2),
    ),
    "MultiscaleCell": (
        lambda: cells.MultiscaleCell([4, 6], 2, groups=2, skip="input", recurrent_scale=0.1),
        (6, 6, 4),
    ),
}
RUNTIMES = {"litert": "LiteRT", "onnx": "ONNX Runtime"}
COLUMNS = (
    *("model", "runtime", "weights", "file", "evaluations", "ms", "TensorFlow ms", "ratio"),
    "largest difference",
)
HEAD = """# LiteRT and ONNX Runtime

Made by `python -m benchmarks.serving.edge --document=docs/edge_benchmarks.md`
on {processor}.

## Every solver with every cell

Each small model is converted in float32 and asked {examples} examples. The first figure is the largest
difference of an answer from the Keras model's at a tolerance of {tolerance:g}. The second is the largest
residual after at most {steps} evaluations at a tolerance that nothing meets: how far the solver gets in
float32. "steps" marks a pair in which an example stopped a step apart, because its residual was so near the
tolerance that rounding decided. "–" marks a solver that needs another kind of cell. "no" marks a pair that
needs an operation that LiteRT lacks or that it cannot run: the inverse Fourier transform of a convolution's
linear solve, the factorisation that gives a step size, derivatives of some activations in Newton's method.
ONNX files are made of LiteRT's.
All files use the formats' own operations alone.

"""
TIMES = """## Time and size

One example, one thread. Medians of {rounds} answers, the runtimes asked in turns; in brackets from the
fastest to the slowest.

"""


def grid(folder: pathlib.Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a row for each of the named cells: solver -> format -> difference, floor, equal steps."""
    rows = []
    for name in names:
        make, shape = CELLS[name]
        x = np.random.default_rng(0).normal(size=(EXAMPLES, *shape)).astype(np.float32)
        row: dict[str, Any] = {"cell": name}
        for solver in SOLVERS:
            keras.utils.set_random_seed(0)
            row[solver] = _compared(make(), solver, x, folder)
        rows.append(row)
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    return rows


def _compared(cell: keras.layers.Layer, name: str, x: np.ndarray, folder: pathlib.Path) -> dict:
    if solvers.REGISTRY[name].needs_splitting and not hasattr(cell, "splitting"):
        return {format: {"inapplicable": True} for format in FORMATS}
    more = {"memory": MEMORY} if name == "anderson" else {}
    solver = solvers.get(name, max_steps=MAX_STEPS, tolerance=TOLERANCE, **more)
    inputs = keras.Input(x.shape[1:], name="x")
    leaves = tf.nest.flatten(tfdeq.DEQLayer(cell, solver, name="depth")(inputs))
    model = keras.Model(inputs, {f"y{index}": leaf for index, leaf in enumerate(leaves)})
    with tfdeq.SolveScope() as scope:
        expected = model(x)
    steps = scope.solutions["depth"].steps.numpy()
    return {
        format: _asked(model, folder / form.names["float32"], x, expected, steps)
        for format, form in FORMATS.items()
    }


def _asked(
    model: keras.Model, path: pathlib.Path, x: np.ndarray, expected: Any, steps: Any
) -> dict:
    """Converts a model, and compares its answers to x with the expected ones."""
    never = np.full([len(x)], NEVER, np.float32)
    settings = {"tolerance": never, "max_steps": np.full([len(x)], MAX_STEPS, np.int32)}
    try:
        interpreter = Interpreter(convert(model, path))
        answer = interpreter.answer("serving_default", {"x": x})
        floor = interpreter.answer("serving_default", {"x": x, **settings})["residual"].max()
    except (ValueError, RuntimeError) as error:  # of the converters, and of the runtimes themselves
        return {"refused": str(error)}
    difference = max(
        float(np.abs(answer[key] - value.numpy()).max()) for key, value in expected.items()
    )
    same = bool((answer["steps"] == steps).all())
    return {"difference": difference, "floor": float(floor), "same_steps": same}


def timed(folder: pathlib.Path, rounds: int) -> list[dict[str, Any]]:
    """Returns a row for each model, format and precision: size, times in ms, largest difference."""
    rows = []
    for name, model, shapes, given in _models():
        kind = runs.of_model(model)
        traced = kind.traced(
            jit_compile=False, compaction=True, max_steps_limit=None, only=["serving_default"]
        )["serving_default"].function
        settings = {"tolerance": np.zeros([1], np.float32), "max_steps": np.zeros([1], np.int32)}
        tensors = {key: tf.constant(value) for key, value in {**given, **settings}.items()}
        reference = functools.partial(traced, **tensors)
        for format, precision, file in _files():
            path = convert(model, folder / file, shapes=shapes, precision=precision)
            row: dict[str, Any] = {"model": name, "format": format, "precision": precision}
            row["bytes"] = path.stat().st_size
            row |= _raced(reference, Interpreter(path, threads=1), given, rounds)
            rows.append(row)
            print(row)
    return rows


def _files() -> list[tuple[str, str, str]]:
    """Returns format, precision and file name of each kind of file."""
    return [
        (format, precision, file)
        for format, form in FORMATS.items()
        for precision, file in form.names.items()
    ]


def _raced(
    reference: Callable[[], Mapping[str, tf.Tensor]],
    interpreter: Interpreter,
    given: Mapping[str, np.ndarray],
    rounds: int,
) -> dict[str, Any]:
    times: dict[str, list[float]] = {"tensorflow": [], "converted": []}
    for _ in range(rounds + 3):  # the first three are discarded
        start = time.perf_counter()
        expected = {key: value.numpy() for key, value in reference().items()}
        middle = time.perf_counter()
        answer = interpreter.answer("serving_default", given)
        times["tensorflow"].append(1e3 * (middle - start))
        times["converted"].append(1e3 * (time.perf_counter() - middle))
    outputs = [key for key in expected if key not in ("residual", "steps", "status")]
    found: dict[str, Any] = {
        "difference": max(float(np.abs(answer[key] - expected[key]).max()) for key in outputs),
        "steps": int(answer["steps"][0]),
    }
    for runtime, values in times.items():
        kept = values[3:]
        found[runtime] = [statistics.median(kept), min(kept), max(kept)]
    return found


def _models() -> list[tuple[str, keras.Model, dict[str, list[int]], dict[str, np.ndarray]]]:
    """Returns name, model, open sizes and an example of each timed model."""
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    text = LanguageModel.from_preset("tfdeq_bytes_small")
    tokens = np.frombuffer(TEXT[:64], np.uint8).astype(np.int32)[None]
    picture = keras.Input((28, 28, 1), name="picture")
    stem = keras.layers.Conv2D(16, 3, 2, padding="same", activation="relu")(picture)
    cell = cells.MultiscaleCell([16, 32], 2, groups=4, skip="input", recurrent_scale=0.1)
    branches = tfdeq.DEQLayer(cell, tfdeq.Anderson(tolerance=1e-3))(stem)
    pooled = keras.layers.GlobalAveragePooling2D()(branches[0])
    pictures = keras.Model(picture, keras.layers.Dense(10)(pooled))
    row = keras.Input((64,), name="row")
    dense = cells.DenseCell(128, contraction=0.8)
    rows = keras.Model(row, keras.layers.Dense(4)(tfdeq.DEQLayer(dense, "broyden")(row)))
    floats = lambda *shape: generator.normal(size=shape).astype(np.float32)  # noqa: E731
    return [
        (
            "preset tfdeq_bytes_small, 64 bytes of text",
            text,
            {"tokens": [64]},
            {"tokens": tokens, "lengths": np.array([64], np.int32)},
        ),
        ("multiscale, 28 × 28", pictures, {}, {"picture": floats(1, 28, 28, 1)}),
        ("dense, 128 units, Broyden", rows, {}, {"row": floats(1, 64)}),
    ]


def document(found: Mapping[str, Any]) -> str:
    """Returns the page of a measurement."""
    # Words, so that a narrow page can break them.
    columns = ["cell", *(name.replace("_", " ") for name in SOLVERS)]
    page = HEAD.format(
        processor=found["processor"], examples=EXAMPLES, tolerance=TOLERANCE, steps=MAX_STEPS
    )
    for format, runtime in RUNTIMES.items():
        pairs = [
            [row["cell"], *(_pair(row[name][format]) for name in SOLVERS)] for row in found["grid"]
        ]
        page += f"### {runtime}\n\n{markdown_table(columns, pairs)}\n"
    times = [
        (
            row["model"],
            RUNTIMES[row["format"]],
            row["precision"],
            f"{row['bytes'] / 1e6:.2f} MB",
            row["steps"],
            _range(row["converted"]),
            _range(row["tensorflow"]),
            f"{row['converted'][0] / row['tensorflow'][0]:.2f}",
            f"{row['difference']:.0e}",
        )
        for row in found["times"]
    ]
    return page + TIMES.format(rounds=found["rounds"]) + markdown_table(COLUMNS, times)


def _pair(found: Mapping[str, Any]) -> str:
    if "inapplicable" in found:
        return "–"
    if "refused" in found:
        return "no"
    apart = "" if found["same_steps"] else ", steps"
    return f"{found['difference']:.0e} / {found['floor']:.0e}{apart}"


def _range(times: Sequence[float]) -> str:
    return "{:.2f} ({:.2f}–{:.2f})".format(*times)


def main() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "processor": processor(),
            "rounds": FLAGS.rounds,
            "times": timed(pathlib.Path(folder), FLAGS.rounds),
            "grid": grid(pathlib.Path(folder), FLAGS.cells),
        }
    if FLAGS.results:
        write_json(FLAGS.results, found)
    if FLAGS.document:
        pathlib.Path(FLAGS.document).write_text(document(found), encoding="utf-8")


def run() -> None:
    flags.DEFINE_integer("rounds", 30, "Timed answers of each model.", lower_bound=1)
    flags.DEFINE_list("cells", list(CELLS), "Cells to convert. Default: all.")
    flags.DEFINE_string("document", None, "Markdown file to write the tables to.")
    flags.DEFINE_string("results", None, "JSON file for the figures.")
    program.run(main)


if __name__ == "__main__":
    run()

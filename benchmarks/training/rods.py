"""What an equilibrium is for: answers that travel further than layers reach, at any length.

    python -m benchmarks.training.rods [--document=docs/rods.md]

The temperature of rods whose places are heated, or cooled to 0, or neither: u_i = 0.499 (u_{i-1} + u_{i+1})
+ heat_i, and 0 where it is cooled. Heat travels over dozens of places. An equilibrium, the same cell applied
a number of times, and plain convolutions learn it from rods of 64 places by the same search of
rates; then they see rods of 256. All answers are compared with the exact solution of the linear system.
"""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from absl import flags

import tfdeq
from benchmarks.engine.speed import processor
from benchmarks.results.tables import markdown_table
from tfdeq.programs import program

FLAGS = flags.FLAGS
LENGTH, LONG = 64, 256
KEPT = 0.499  # of a neighbour's temperature
RATES = (0.001, 0.003, 0.01)
SEEDS = (0, 1, 2)
TOLERANCES = (1e-2, 1e-3, 1e-4)
MOST_STEPS = 400


class Contraction(keras.constraints.Constraint):
    """Scales each channel's filter so that it passes on less than it receives."""

    def __call__(self, w):
        return w * keras.ops.minimum(1.0, 0.999 / keras.ops.sum(keras.ops.abs(w), axis=0))


class Flow(keras.layers.Layer):
    """f(z, x) = gate(x) · spread(z) + x: heat from the neighbours, limited by each place's gate."""

    def __init__(self, channels: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.spread = keras.layers.DepthwiseConv1D(
            3,
            padding="same",
            use_bias=False,
            depthwise_initializer=keras.initializers.Constant(0.3),
            depthwise_constraint=Contraction(),
        )
        self.gate = keras.layers.Dense(channels, "sigmoid")

    def call(self, z, x):
        return self.gate(x) * self.spread(z) + x


def rods(count: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where rods are cooled and heated, [N, L, 2], and their exact temperature, [N, L, 1]."""
    random = np.random.default_rng(seed)
    cooled = random.random((count, length)) < 0.02
    heated = (random.random((count, length)) < 0.05) & ~cooled
    passed = KEPT * (np.eye(length, k=1) + np.eye(length, k=-1))
    system = np.eye(length) - np.where(cooled[..., None], 0.0, passed)
    temperature = np.linalg.solve(system, heated[..., None].astype(float)) / 5
    return np.stack([cooled, heated], -1).astype("float32"), temperature.astype("float32")


def equilibrium(x):
    solver = tfdeq.Anderson(max_steps=60, tolerance=1e-4, memory=20)
    return tfdeq.DEQLayer(Flow(8), solver)(keras.layers.Dense(8)(x))


def applications(number: int) -> Callable:
    """Returns the same cell, applied a number of times from 0."""

    def apply(x):
        x = keras.layers.Dense(8)(x)
        cell, z = Flow(8), keras.layers.Rescaling(0.0)(x)
        for _ in range(number):
            z = cell(z, x)
        return z

    return apply


def convolutions(number: int) -> Callable:
    def apply(x):
        for _ in range(number):
            x = keras.layers.Conv1D(16, 3, padding="same", activation="relu")(x)
        return x

    return apply


# Name -> (layers, epochs), with about equal training times.
MODELS = {
    "equilibrium": (equilibrium, 14),
    "the cell, 32 times": (applications(32), 14),
    "16 convolutions": (convolutions(16), 60),
    "32 convolutions": (convolutions(32), 30),
}


def explained(model: keras.Model, data: tuple[np.ndarray, np.ndarray]) -> float:
    """Returns the share of the variance that a model explains, R²."""
    x, y = data
    return float(1 - np.mean((model.predict(x, verbose=0) - y) ** 2) / np.var(y))


def train(name: str, rate: float, seed: int, count: int, epochs: int | None = None):
    """Returns a trained model and the training time in seconds."""
    layers, own_epochs = MODELS[name]
    epochs = epochs or own_epochs
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((None, 2))
    model = keras.Model(inputs, keras.layers.Dense(1)(layers(inputs)))
    steps = epochs * count // 32
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, alpha=0.05, warmup_target=rate, warmup_steps=steps // 10
    )
    model.compile(keras.optimizers.Adam(schedule), "mse", jit_compile=True)
    started = time.perf_counter()
    model.fit(*rods(count, LENGTH, seed=0), batch_size=32, epochs=epochs, verbose=0)
    return model, time.perf_counter() - started


def measure(
    name: str,
    count: int = 2048,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS,
    epochs: int | None = None,
) -> list[dict[str, Any]]:
    """Returns one row per tolerance (or None), for the rate that is best on validation rods."""
    validation = rods(256, LENGTH, seed=1)
    tried = {rate: train(name, rate, seeds[0], count, epochs) for rate in rates}
    found = {rate: explained(model, validation) for rate, (model, _) in tried.items()}
    rate = max(found, key=found.get)
    test, far = rods(256, LENGTH, seed=2), rods(64, LONG, seed=3)
    rows: dict[Any, dict[str, Any]] = {}
    for seed in seeds:
        trained = tried[rate] if seed == seeds[0] else train(name, rate, seed, count, epochs)
        model, seconds = trained
        for tolerance in TOLERANCES if name == "equilibrium" else (None,):
            with tfdeq.SolveScope(tolerance=tolerance, max_steps=tolerance and MOST_STEPS):
                values = explained(model, test), explained(model, far)
            row = rows.setdefault(
                tolerance,
                {
                    "model": name,
                    "parameters": model.count_params(),
                    "rate": rate,
                    "tolerance": tolerance,
                    "seconds": [],
                    "near": [],
                    "far": [],
                },
            )
            for column, value in zip(("seconds", "near", "far"), (seconds, *values), strict=True):
                row[column].append(value)
    return list(rows.values())


def table(rows: Sequence[dict[str, Any]]) -> str:
    def spread(values):
        return f"{np.mean(values):.3f} ({min(values):.3f} … {max(values):.3f})"

    return markdown_table(
        ["model", "parameters", "rate", "seconds", f"R², {LENGTH} places", f"R², {LONG} places"],
        [
            [
                row["model"]
                + ("" if row["tolerance"] is None else f", tolerance {row['tolerance']:g}"),
                f"{row['parameters']:,}",
                f"{row['rate']:g}",
                f"{np.mean(row['seconds']):.0f}",
                spread(row["near"]),
                spread(row["far"]),
            ]
            for row in rows
        ],
    )


def main() -> None:
    rows = [row for name in MODELS for row in measure(name)]
    text = table(rows)
    print(text)
    if FLAGS.document:
        pathlib.Path(FLAGS.document).write_text(
            f"# Rods\n\n{__doc__.split(chr(10) * 2, 2)[2].strip()}\n\n{text}\n"
            f"*Mean of {len(SEEDS)} seeds (least … largest), 2,048 rods of {LENGTH} places, rates of "
            f"{', '.join(f'{rate:g}' for rate in RATES)} by the R² of validation rods; {processor()} "
            "(`python -m benchmarks.training.rods --document=docs/rods.md`).*\n",
            encoding="utf-8",
        )


def define_flags() -> None:
    flags.DEFINE_string("document", None, "Markdown to write. Default: none.")


def run() -> None:
    """Entry point of the console script."""
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()

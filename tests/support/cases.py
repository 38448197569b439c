"""Cells, solvers and helpers that several tests share."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfdeq import solvers
from tfdeq.cells import TransformerCell
from tfdeq.models import LanguageModel

# Solvers for any f; the others require a splitting, see tests/solvers/peaceman_rachford_test.py.
GENERAL = tuple(name for name in solvers.REGISTRY if not solvers.REGISTRY[name].needs_splitting)
EVERY_MODE = ("eager", "graph", "xla")
# For parametrize. The fast run only has graph mode: tests that are not parametrized run eagerly,
# and conformance_test.py compares eager mode, graph mode and XLA for every solver, adjoint, cell
# and model.
MODES = tuple(
    mode if mode == "graph" else pytest.param(mode, marks=pytest.mark.slow) for mode in EVERY_MODE
)


def fast(chosen: Sequence[Any], values: Iterable[Any]) -> list[Any]:
    """Returns values for parametrize; the chosen ones are in the fast run, and the others are slow."""
    return [value if value in chosen else _slow(value) for value in values]


def _slow(value: Any) -> Any:
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=pytest.mark.slow)


def fast_pairs(left: Iterable[Any], right: Iterable[Any], chosen: Sequence[Any]) -> list[Any]:
    """Returns pairs for parametrize; those whose left or right one is chosen are in the fast run."""
    pairs = [(one, other) for one in left for other in right]
    return fast([pair for pair in pairs if set(pair) & set(chosen)], pairs)


def in_mode(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """Returns the function unchanged, as a tf.function, or compiled by XLA."""
    if mode == "eager":
        return function
    return tf.function(function, jit_compile=mode == "xla", autograph=False)


def exact_solvers(max_steps: int = 150, tolerance: float = 1e-13) -> dict[str, solvers.Solver]:
    """Returns every solver for any f, undamped and, if possible, damped, with float64 precision."""
    settings = {"max_steps": max_steps, "tolerance": tolerance}
    result = {name: solvers.get(name, **settings) for name in GENERAL}
    for name in GENERAL:
        if hasattr(result[name], "damping"):
            result[f"{name}-damped"] = solvers.get(name, **settings, damping=0.7)
    return result


def linear(z, a, x):
    """f(z) = zA + x, whose fixed point is x (I − A)^-1."""
    return tf.matmul(z, a) + x


def linear_case(batch: int = 3, size: int = 4, radius: float = 0.5, seed: int = 0):
    """A of the given spectral norm and x, float64 arrays."""
    random = np.random.default_rng(seed)
    a = random.normal(size=(size, size))
    return a * radius / np.linalg.norm(a, 2), random.normal(size=(batch, size))


def tanh_cell(z, a, x):
    return tf.tanh(tf.matmul(z, a) + x)


class Recorder:
    """f that records every state at which it is evaluated, in eager mode and in a compiled graph."""

    def __init__(self, f: Callable[..., Any]):
        self.f = f
        self.states: list[np.ndarray] = []

    def _record(self, z):
        self.states.append(np.array(z))
        return z

    def __call__(self, z, *args):
        seen = tf.numpy_function(self._record, [z], z.dtype)
        seen.set_shape(z.shape)
        return self.f(seen, *args)


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class DenseCell(keras.layers.Layer):
    """tanh(z W + x), with W of spectral norm `gain` at the start: a contraction."""

    def __init__(self, units, gain=0.5, **kwargs):
        super().__init__(**kwargs)
        self.units, self.gain = units, gain
        self.dense = keras.layers.Dense(
            units,
            kernel_initializer=keras.initializers.Orthogonal(gain),
            dtype=self.dtype_policy,
            name="dense",
        )

    def call(self, z, x):
        return ops.tanh(self.dense(z) + x)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "gain": self.gain}


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class NoisyCell(keras.layers.Layer):
    """tanh(BatchNorm(Dropout(z) W + x)): a cell with seeds and moving statistics."""

    def __init__(self, units, rate=0.3, gain=0.2, **kwargs):
        super().__init__(**kwargs)
        self.units, self.rate, self.gain = units, rate, gain
        self.dropout = keras.layers.Dropout(rate, name="dropout")
        self.dense = keras.layers.Dense(
            units,
            kernel_initializer=keras.initializers.Orthogonal(gain),
            dtype=self.dtype_policy,
            name="dense",
        )
        self.norm = keras.layers.BatchNormalization(momentum=0.9, name="norm")

    def call(self, z, x, training=None):
        y = self.dense(self.dropout(z, training=training)) + x
        return ops.tanh(self.norm(y, training=training))

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "rate": self.rate,
            "gain": self.gain,
        }


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class PairCell(keras.layers.Layer):
    """A state of two tensors and an input with an integer leaf."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.embedding = keras.layers.Embedding(5, units)
        self.mix = keras.layers.Dense(
            2 * units, kernel_initializer=keras.initializers.Orthogonal(0.4)
        )

    def initial_state(self, x):
        zeros = ops.zeros_like(x["value"])
        return {"first": zeros, "second": zeros}

    def call(self, z, x):
        mixed = self.mix(ops.concatenate([z["first"], z["second"]], axis=-1))
        first, second = ops.split(mixed, 2, axis=-1)
        return {
            "first": ops.tanh(first + x["value"]),
            "second": ops.tanh(second + self.embedding(x["token"])),
        }

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def image_data(images_per_class: int = 32, size: int = 6, seed: int = 0):
    """Noisy stripes: across, down and both. Images [N, size, size] float32 and labels [N]."""
    random = np.random.default_rng(seed)
    stripe = np.tile([1.0, -1.0], size // 2)
    down, across = np.tile(stripe, (size, 1)), np.tile(stripe[:, None], (1, size))
    patterns = np.stack([across, down, across * down])
    labels = np.tile(np.arange(3), images_per_class)
    images = patterns[labels] + 0.5 * random.normal(size=(labels.size, size, size))
    return images.astype("float32"), labels.astype("int32")


def image_classifier(rate=0.3, units=8, seed=0, **settings) -> keras.Model:
    """Flatten, Dense, DEQLayer around a `NoisyCell`, Dense; the same weights for the same seed."""
    from tfdeq import DEQLayer

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6))
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(units)(x)
    x = DEQLayer(NoisyCell(units, rate=rate), name="deq", **settings)(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def compile_classifier(model: keras.Model, **settings) -> keras.Model:
    model.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **settings,
    )
    return model


def contracting_language_model(
    vocabulary_size: int,
    length: int,
    solver: str | solvers.Solver = "anderson",
    seed: int = 3,
) -> LanguageModel:
    """A small built model whose cell contracts well, as after training.

    An iteration that does not converge amplifies rounding, so that no two computations agree.
    """
    keras.utils.set_random_seed(seed)
    cell = TransformerCell(16, 2, length, recurrent_scale=1.0)
    model = LanguageModel(vocabulary_size, length, cell, solver=solver)
    model.build((None, length))
    for layer in (model.cell.attention_output, model.cell.contract):
        layer.kernel.assign(0.3 * layer.kernel)
    return model

"""A Transformer-like cell of Keras's own layers, trained by unrolling and then as an equilibrium."""

import keras
import numpy as np
import pytest
from keras import layers

import tfdeq
from tfdeq.callbacks import EquilibriumMonitor

PLACES, DIGITS, WIDTH, BATCH = 81, 9, 96, 8


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class AttentionCell(layers.Layer):
    """f(z, x): attention over the places, then an MLP, with Keras's own initialisation."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.norms = [layers.LayerNormalization() for _ in range(2)]
        self.attention = layers.MultiHeadAttention(4, width // 4)
        self.mlp = keras.Sequential([layers.Dense(2 * width, "gelu"), layers.Dense(width)])

    def call(self, z, x):
        h = self.norms[0](z) + x
        h = x + self.attention(h, h)
        return h + self.mlp(self.norms[1](h))


def examples(count, seed):
    """Returns rows of digits; the first half of the answer is the row, the second its mirror image."""
    x = np.random.default_rng(seed).integers(0, DIGITS, (count, PLACES))
    half = PLACES // 2
    return x, np.concatenate([x[:, :half], x[:, ::-1][:, half:]], axis=1)


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class _WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 2e-3 * keras.ops.minimum(1.0, (keras.ops.cast(step, "float32") + 1) / 50)

    def get_config(self):
        return {}


def _trained(seed, callbacks, unrolled_steps=150, steps=400, **settings):
    """Returns loss and residual on new examples after both kinds of training."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((PLACES,), dtype="int32")
    x = layers.Embedding(DIGITS, WIDTH)(inputs)
    x += layers.Embedding(PLACES, WIDTH)(keras.ops.arange(PLACES)[None])
    cell, answer = AttentionCell(WIDTH), layers.Dense(DIGITS)
    unrolled = tfdeq.DEQLayer(
        cell, tfdeq.FixedPointIteration(6, 1e-9), tfdeq.Unrolled(6), jacobian_penalty=0.1
    )
    solved = tfdeq.DEQLayer(cell, tfdeq.Anderson(12), name="depth", **settings)
    for layer, count, used in ((unrolled, unrolled_steps, []), (solved, steps, callbacks)):
        model = keras.Model(inputs, answer(layer(x)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(_WarmUp()), loss, jit_compile=True)
        model.fit(*examples(count * BATCH, seed), BATCH, 1, callbacks=used, verbose=0)
    found = model.evaluate(*examples(256, 1000), BATCH, verbose=0, return_dict=True)
    print(
        seed,
        bool(callbacks),
        settings,
        f"loss {found['loss']:.3f}",
        f"{found['depth_residual']:.2e}",
    )
    return found["loss"], found["depth_residual"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_monitor_makes_a_run_end_well_that_loses_its_equilibrium(seed):
    lost, high = _trained(seed, [], jacobian_penalty=0.1)
    loss, residual = _trained(seed, [EquilibriumMonitor()], jacobian_penalty=0.1)
    assert not high < 0.1  # NaN too
    assert residual < 1e-2
    assert not lost <= loss


@pytest.mark.slow
def test_the_automatic_penalty_keeps_the_same_run_an_equilibrium():
    _, residual = _trained(0, [], jacobian_penalty="auto")
    assert residual < 1e-2

"""NestedRecursion: one application, computed by hand, and the part that a model reads."""

import keras
import numpy as np
import pytest

import tfdeq
from tfdeq.cells import NestedRecursion, RecallConvolution, TokenMixing
from tfdeq.cells.linear import norm
from tfdeq.models import Reasoner


def _draw(*shape, seed=0):
    return keras.random.normal(shape, seed=seed)


def test_one_application():
    inner = RecallConvolution(4, rank=1)
    cell = NestedRecursion(inner, inner_steps=2)
    x, answer, latent = (_draw(2, 5, 4, seed=seed) for seed in range(3))
    found = cell(keras.ops.concatenate([answer, latent], -1), x)
    for _ in range(2):
        latent = inner(latent, inner.inject(x + norm(answer)))
    answer = inner(answer, inner.inject(norm(latent)))
    np.testing.assert_array_equal(found, keras.ops.concatenate([answer, latent], -1))
    np.testing.assert_array_equal(cell.answer(found), answer)


def test_an_inner_cell_without_inject():
    class Plain(keras.layers.Layer):
        width = 2

        def call(self, z, x):
            return 0.5 * z + x

    layer = tfdeq.DEQLayer(NestedRecursion(Plain(), inner_steps=1), explicit_steps=2)
    # l = 1, y = norm(l) = 1; then l = 1/2 + 1 + 1 = 5/2, y = 1/2 + 1.
    expected = [[1.5, 1.5, 2.5, 2.5]]
    np.testing.assert_allclose(
        layer(keras.ops.ones((1, 2))), expected, rtol=1e-4
    )  # the norms' epsilon


def test_a_model_reads_the_answer_alone():
    model = Reasoner(3, 2, NestedRecursion(RecallConvolution(4, rank=1), 2), start_noise=1.0)
    inputs = np.array([[0, 1, 2, 0, 1]], "int32")
    logits, solution = model(inputs, return_solution=True, explicit_steps=3)
    assert solution.z.shape == (1, 5, 8)
    other = keras.ops.concatenate([solution.z[..., :4], _draw(1, 5, 4)], -1)
    np.testing.assert_array_equal(model.read(other), logits)
    x, _ = model.embed(inputs)
    assert model.start(x, training=True).shape == (1, 5, 8)
    np.testing.assert_array_equal(model.start(x), np.zeros((1, 5, 8)))


def test_reach():
    assert NestedRecursion(RecallConvolution(4, rank=1), 6).reach == 7
    assert NestedRecursion(TokenMixing(4, places=6), 6).reach is None


@pytest.mark.slow
def test_saved_and_loaded(tmp_path):
    inputs = keras.Input((5, 4))
    layer = tfdeq.DEQLayer(NestedRecursion(RecallConvolution(4, rank=1), 2), explicit_steps=2)
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    x = _draw(2, 5, 4)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))


def test_bad_settings():
    with pytest.raises(ValueError, match="inner_steps"):
        NestedRecursion(RecallConvolution(4), inner_steps=0)
    with pytest.raises(ValueError, match="must say its width; received a Dense"):
        NestedRecursion(keras.layers.Dense(3))

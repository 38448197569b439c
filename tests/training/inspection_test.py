import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import contracting_language_model
from tfdeq import FixedPointIteration
from tfdeq.cells import TransformerCell
from tfdeq.models import LanguageModel
from tfdeq.training.inspection import Inspection, write_histograms
from tfdeq.training.task import Task
from tfdeq.training.text.models import radius_of, token_loss


def make_task(model):
    loss = functools.partial(token_loss, model)
    radius = radius_of(model, examples=5)
    return Task(model, loss, None, None, None, 1, [model.equilibrium], radius)


@pytest.mark.slow
def test_each_samples_solve_and_nothing_changes():
    model = contracting_language_model(vocabulary_size=9, length=6)
    before = [variable.numpy() for variable in model.variables]
    tokens = tf.constant(np.random.default_rng(0).integers(0, 9, (5, 6)), tf.int32)
    inspect = Inspection(make_task(model), jit_compile=False)
    found = inspect((tokens, tokens), 3)
    assert set(found) == {
        "steps",
        "residual",
        "backward_steps",
        "backward_residual",
        "spectral_radius",
    }
    assert all(value.shape == (5,) for value in found.values())
    assert int(tf.reduce_max(found["steps"])) <= 3
    # The forward figures are those of a solve.
    _, solution = model(tokens, max_steps=3, return_solution=True)
    np.testing.assert_allclose(found["residual"], solution.residual, rtol=1e-4)
    assert 0 < float(tf.reduce_max(found["spectral_radius"])) < 1
    # A larger budget, the same graph: smaller residuals.
    assert float(tf.reduce_max(inspect((tokens, tokens), 30)["residual"])) < float(
        tf.reduce_min(found["residual"])
    )
    for one, other in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(one.numpy(), other)
    assert model.equilibrium.convergence_report() == {}


@pytest.mark.slow
def test_segments_are_inspected_as_texts_that_begin():
    """The batch of a training step with a memory, of which the inspection uses some rows."""
    keras.utils.set_random_seed(3)
    solver = FixedPointIteration(max_steps=30, tolerance=1e-5)
    model = LanguageModel(
        9, 6, TransformerCell(8, 2, 6, recurrent_scale=0.3, span=4), solver=solver
    )
    model.build((None, 6))
    task = make_task(model)._replace(carried=model.initial_memory)
    tokens = tf.constant(np.random.default_rng(0).integers(0, 9, (3, 6)), tf.int32)
    found = Inspection(task, jit_compile=True)((tokens, tokens, tf.fill([3], True)), 3)
    assert len(found) == 5
    assert all(value.shape == (3,) for value in found.values())
    _, solution = model(tokens, max_steps=3, return_solution=True)
    # A float32 difference of states that agree in three digits.
    np.testing.assert_allclose(found["residual"], solution.residual, rtol=1e-3)


def test_histograms_of_residuals_are_of_their_logarithms():
    written = {}
    write_histograms(
        {"steps": tf.constant([3, 4]), "residual": tf.constant([1e-2, 0.0])},
        lambda name, values: written.update({name: values.numpy()}),
    )
    np.testing.assert_allclose(written["samples/steps"], [3, 4])
    np.testing.assert_allclose(written["samples/log10_residual"], [-2, -30], rtol=1e-6)

"""Reasoner: its parts, the start of a solve, and saving."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeq.cells import ComposedCell, GroupAttention, RecallConvolution
from tfdeq.models import Reasoner
from tfdeq.solvers import FixedPointIteration


def _model(**settings):
    keras.utils.set_random_seed(0)
    solver = FixedPointIteration(max_steps=60, tolerance=1e-6)
    model = Reasoner(3, 2, RecallConvolution(8, rank=1, recurrent_scale=0.3), solver, **settings)
    model.build((None, 6))
    return model


ROOT = pathlib.Path(__file__).absolute().parents[2]
INPUTS = np.array([[0, 1, 2, 0, 1, 2], [2, 2, 1, 1, 0, 0]], "int32")


def test_what_it_is_made_of():
    """Embedding, equilibrium, norm and readout in sequence."""
    model = _model()
    logits, solution = model(INPUTS, return_solution=True)
    x = tf.gather(model.embedding.embeddings, INPUTS)
    z = model.equilibrium(x)
    normed = z / tf.sqrt(tf.reduce_mean(z**2, -1, keepdims=True) + 1e-5)
    expected = normed @ model.readout.kernel + model.readout.bias
    assert solution.converged.numpy().all()
    np.testing.assert_allclose(logits, expected, atol=1e-5)  # float32
    np.testing.assert_array_equal(model.read(solution.z), logits)


def test_larger_inputs():
    model = _model()
    assert model(np.ones((2, 50), "int32")).shape == (2, 50, 2)


@pytest.mark.parametrize(
    ("cell", "small", "large"),
    [
        pytest.param(
            lambda: RecallConvolution(8, rank=1, recurrent_scale=0.3),
            (6,),
            (9,),
            marks=pytest.mark.slow,
        ),
        (lambda: RecallConvolution(8, recurrent_scale=0.3), (3, 4), (5, 6)),
        (lambda: GroupAttention(8, 2, ["row", "column"], recurrent_scale=0.3), (3, 3), (5, 5)),
        pytest.param(
            lambda: ComposedCell([RecallConvolution(8, 1, recurrent_scale=0.3) for _ in range(2)]),
            (6,),
            (9,),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_places_outside_of_the_puzzle(cell, small, large):
    """A puzzle next to a larger one has the same answer, residual and steps as alone."""
    keras.utils.set_random_seed(0)
    solver = FixedPointIteration(max_steps=60, tolerance=1e-5)
    model = Reasoner(3, 2, cell(), solver)
    random = np.random.default_rng(0)
    inside = random.integers(0, 3, (1, *small)).astype("int32")
    padded = np.full((2, *large), -1, "int32")
    padded[1] = random.integers(0, 3, large)
    places = (slice(0, 1), *(slice(size) for size in small))
    padded[places] = inside
    alone, solution = model(inside, return_solution=True)
    beside, both = model(padded, return_solution=True)
    np.testing.assert_allclose(beside[places], alone, atol=2e-5)  # sums in another order
    assert both.steps[0] == solution.steps[0]
    np.testing.assert_allclose(both.residual[0], solution.residual[0], rtol=0.05)  # near rounding


def test_starts_from_noise_in_training_alone():
    model = _model(start_noise=1.0)
    rough = {"max_steps": 1}
    np.testing.assert_array_equal(model(INPUTS, **rough), model(INPUTS, **rough))
    first = model(INPUTS, training=True, **rough)
    assert np.abs(first - model(INPUTS, training=True, **rough)).max() > 0.1
    given = tf.zeros((2, 6, 8))
    np.testing.assert_array_equal(
        model(INPUTS, z0=given, training=True, **rough), model(INPUTS, **rough)
    )
    # The cell is a contraction, so the start of a solve does not affect its result.
    settled = model(INPUTS, training=True)
    np.testing.assert_allclose(
        settled, model(INPUTS), atol=1e-4
    )  # the solver's tolerance, in logits


def test_noise_of_the_path_is_a_share_of_each_given_state():
    model = _model(path_noise=0.1)
    plain = {"explicit_steps": 0, "max_steps": 1, "return_solution": True}
    np.testing.assert_array_equal(  # the cell's own start has none
        model(INPUTS, training=True, **plain)[0], model(INPUTS, **plain)[0]
    )
    small, large = 0.01, 100.0
    given = tf.stack([tf.fill([6, 8], small), tf.fill([6, 8], large)])
    np.testing.assert_array_equal(
        model(INPUTS, z0=given, **plain)[0], model(INPUTS, z0=given, **plain)[0]
    )
    starts = np.stack([model._perturbed(given) for _ in range(200)])
    np.testing.assert_allclose(starts.std(axis=(0, 2, 3)), [0.1 * small, 0.1 * large], rtol=0.05)
    first = model(INPUTS, z0=given, training=True, **plain)[0]
    assert np.abs(first - model(INPUTS, z0=given, training=True, **plain)[0]).max() > 1e-3


def test_saved_and_loaded(tmp_path):
    model = _model(start_noise=0.5, path_noise=0.1, explicit_steps=3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(INPUTS), model(INPUTS))
    assert loaded.get_config() == model.get_config()


@pytest.mark.slow
def test_import_of_tfdeq_is_enough_to_load(tmp_path):
    path = tmp_path / "model.keras"
    _model().save(path)
    program = f"import keras, tfdeq; print(keras.models.load_model({str(path)!r}).count_params())"
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert int(said.stdout) == _model().count_params()


@pytest.mark.slow
def test_fit():
    """Model.fit learns the inputs' parity, place by place."""
    model = _model(adjoint="jacobian_free")
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    inputs = np.random.default_rng(0).integers(0, 3, (64, 6)).astype("int32")
    history = model.fit(inputs, inputs % 2, epochs=20, verbose=0).history
    assert history["accuracy"][-1] == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, "tokens must be"),
        ({"start_noise": -1.0}, "start_noise must be >= 0; received -1.0"),
        ({"cell": keras.layers.Dense(3)}, "The cell must say its width; received a Dense"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Reasoner(**{"tokens": 3, "classes": 2, "cell": RecallConvolution(8), **settings})

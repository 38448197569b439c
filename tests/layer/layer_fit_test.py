"""Tests of tfdeq.layer in `fit`, `evaluate`, `predict`, saving and exporting."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import (
    DenseCell,
    NoisyCell,
    compile_classifier,
    fast,
    image_classifier,
    image_data,
)

ROOT = pathlib.Path(__file__).absolute().parents[2]
LOGS = [
    f"deq{part}_{name}" for part in ("", "_backward") for name in ("steps", "residual", "converged")
]


@pytest.fixture(scope="module")
def trained():
    """A classifier with Dropout and BatchNormalization in its cell, and its fit logs."""
    images, labels = image_data()
    model = compile_classifier(image_classifier(), jit_compile=False)
    history = model.fit(
        images,
        labels,
        batch_size=24,
        epochs=6,
        verbose=0,
        shuffle=False,
        validation_data=(images[:24], labels[:24]),
    )
    return model, history.history


def test_fit_learns_and_logs_convergence(trained):
    _, logs = trained
    assert logs["loss"][-1] < 0.7 * logs["loss"][0]
    for name in LOGS:
        assert len(logs[name]) == 6, name
    # The mean over samples in training mode, forward and backward: below the tolerance of 1e-3.
    for part in ("deq", "deq_backward"):
        assert max(logs[f"{part}_residual"]) < 1e-3
        assert min(logs[f"{part}_converged"]) == 1.0
        assert min(logs[f"{part}_steps"]) > 1.0
        assert max(logs[f"{part}_steps"]) < 30.0
    assert min(logs["val_deq_converged"]) == 1.0
    assert max(logs["val_deq_residual"]) < 1e-3


@pytest.mark.slow
def test_residuals_in_training_mode_are_below_the_tolerance(trained):
    model, _ = trained
    images, _ = image_data()
    layer = model.get_layer("deq")
    before = [variable.numpy() for variable in layer.variables]
    x = keras.Model(model.inputs, layer.input)(images)
    solution = layer(x, training=True, return_solution=True)
    for variable, value in zip(layer.variables, before, strict=True):
        variable.assign(value)
    assert solution.converged.numpy().all()
    assert (solution.residual.numpy() <= 1e-3).all()


def test_evaluate_logs_and_predict_writes_nothing(trained):
    model, _ = trained
    images, labels = image_data(images_per_class=8)
    logs = model.evaluate(images, labels, batch_size=12, verbose=0, return_dict=True)
    assert logs["deq_converged"] == 1.0
    assert 1.0 < logs["deq_steps"] < 30.0
    assert 0.0 < logs["deq_residual"] < 1e-3
    layer = model.get_layer("deq")
    before = [variable.numpy() for variable in layer.variables + layer.metrics_variables]
    model.predict(images, verbose=0)
    after = [variable.numpy() for variable in layer.variables + layer.metrics_variables]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_keras_file_in_this_and_in_a_fresh_process(trained, tmp_path):
    model, _ = trained
    images, _ = image_data(images_per_class=4)
    expected = model.predict(images, verbose=0)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    np.testing.assert_allclose(loaded.predict(images, verbose=0), expected, rtol=1e-6, atol=1e-7)
    np.save(tmp_path / "images.npy", images)
    program = (
        "import keras, numpy, sys, tests.support.cases, tfdeq\n"
        "folder = sys.argv[1]\n"
        "model = keras.saving.load_model(folder + '/model.keras')\n"
        "images = numpy.load(folder + '/images.npy')\n"
        "numpy.save(folder + '/answers.npy', model.predict(images, verbose=0))\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        check=True,
        timeout=120,
        capture_output=True,
    )
    np.testing.assert_allclose(np.load(tmp_path / "answers.npy"), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_training_goes_on_after_loading(trained, tmp_path):
    model, _ = trained
    images, labels = image_data(images_per_class=8)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.fit(images, labels, batch_size=24, verbose=0)
    assert np.isfinite(loaded.predict(images[:3], verbose=0)).all()


@pytest.mark.slow
def test_clone_model(trained):
    model, _ = trained
    images, _ = image_data(images_per_class=4)
    clone = keras.models.clone_model(model)
    layer = clone.get_layer("deq")
    assert layer is not model.get_layer("deq")
    assert layer.cell is not model.get_layer("deq").cell
    assert np.abs(clone.predict(images, verbose=0) - model.predict(images, verbose=0)).max() > 1e-3
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(
        clone.predict(images, verbose=0), model.predict(images, verbose=0), rtol=1e-6
    )


@pytest.mark.slow
def test_export_answers_as_the_model(trained, tmp_path):
    model, _ = trained
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    images, _ = image_data(images_per_class=4)
    for batch in (1, 3, 8):
        # The exported graph is optimised differently from the model's, so the last bits differ, and
        # the iterate at which the tolerance of 1e-3 is met may differ slightly.
        np.testing.assert_allclose(
            served.serve(images[:batch]), model(images[:batch]), rtol=1e-4, atol=1e-4
        )


# --- modes of training ------------------------------------------------------------------------------


def _losses(rate, epochs=2, **settings):
    images, labels = image_data(images_per_class=16)
    solver = tfdeq.Broyden(tolerance=1e-5)
    model = compile_classifier(image_classifier(rate, seed=3, solver=solver), **settings)
    logs = model.fit(images, labels, batch_size=24, epochs=epochs, verbose=0, shuffle=False).history
    assert min(logs["deq_converged"]) == 1.0
    assert min(logs["deq_backward_converged"]) == 1.0
    return np.array(logs["loss"])


@pytest.mark.slow
def test_compiled_by_xla_it_trains_to_the_same_losses():
    # Four optimiser steps on equilibria with tolerance 1e-5; the error of the solves affects the
    # loss.
    np.testing.assert_allclose(
        _losses(0.0, jit_compile=True), _losses(0.0, jit_compile=False), rtol=1e-4
    )


@pytest.mark.slow
def test_compiled_by_xla_with_dropout_it_trains_alike():
    """With other digits: XLA has other dropout masks for the same seed.

    TensorFlow's stateless_dropout uses rng_alg "auto_select", which chooses another generator in XLA.
    """
    np.testing.assert_allclose(
        _losses(0.3, jit_compile=True), _losses(0.3, jit_compile=False), rtol=0.2
    )


@pytest.mark.slow
def test_eager_training_gives_the_same_losses():
    np.testing.assert_allclose(
        _losses(0.3, epochs=1, run_eagerly=True),
        _losses(0.3, epochs=1, jit_compile=False),
        rtol=1e-4,
    )


class DeepCell(keras.layers.Layer):
    """A cell with an equilibrium inside."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.inner = tfdeq.DEQLayer(NoisyCell(units, rate=0.2), name="inner")
        self.outer_dense = keras.layers.Dense(
            units, kernel_initializer=keras.initializers.Orthogonal(0.3)
        )

    def call(self, z, x, training=None):
        return keras.ops.tanh(self.inner(self.outer_dense(z) + x, training=training))


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_nested_layers_train(jit_compile):
    inputs = keras.Input((4,))
    deq = tfdeq.DEQLayer(DeepCell(4), name="deq")
    model = keras.Model(inputs, keras.layers.Dense(1)(deq(inputs)))
    model.compile("sgd", "mse", jit_compile=jit_compile)
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    mean = deq.cell.inner.cell.norm.moving_mean
    before = mean.numpy()
    kernel = deq.cell.inner.cell.dense.kernel
    start = kernel.numpy()
    logs = model.fit(x, x[:, :1], batch_size=16, verbose=0).history
    assert logs["deq_converged"] == [1.0]
    assert np.isfinite(logs["loss"]).all()
    assert np.abs(mean.numpy() - before).max() > 0
    assert np.abs(kernel.numpy() - start).max() > 0


@pytest.mark.parametrize("policy", fast(["mixed_bfloat16"], ["mixed_bfloat16", "mixed_float16"]))
@pytest.mark.slow
def test_mixed_policies_train(policy):
    keras.config.set_dtype_policy(policy)
    images, labels = image_data(images_per_class=8)
    solver = tfdeq.Anderson(tolerance=2e-2)
    model = compile_classifier(image_classifier(solver=solver), jit_compile=False)
    logs = model.fit(images, labels, batch_size=12, epochs=2, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    assert min(logs["deq_converged"]) > 0.9


@pytest.mark.slow  # callbacks_test.py has it with its exact value
def test_penalty_enters_the_loss_of_fit():
    def first_loss(weight):
        keras.utils.set_random_seed(5)
        inputs = keras.Input((4,))
        deq = tfdeq.DEQLayer(DenseCell(4), jacobian_penalty=weight)
        model = keras.Model(inputs, deq(inputs))
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
        x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
        return model.fit(x, x, batch_size=16, verbose=0).history["loss"][0]

    difference = first_loss(10.0) - first_loss(1e-6)
    # ‖J‖_F² / D of a tanh cell whose matrix is 0.5 times an orthogonal one is slightly below 0.25.
    assert 0.2 < difference < 2.5

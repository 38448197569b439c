"""The served output `certified_radius`: that of tfdeq.certified_radius, and 0 where nothing is certified."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tfdeq.serving.signatures import certificates
from tfdeq.serving.signatures.keras_signatures import keras_signatures
from tfdeq.serving.verification.verify import verify
from tfdeq.serving.versions import saved_model

X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")


def make_model(shape=(3,), **settings):
    keras.utils.set_random_seed(0)
    cell = tfdeq.cells.MonotoneDense(5, monotonicity=1.0)
    layer = tfdeq.DEQLayer(cell, tfdeq.PeacemanRachford(60, 1e-5), **settings)
    x = keras.Input(shape, name="x")
    y = layer(keras.layers.Rescaling(0.5)(x))
    return keras.Model(x, keras.layers.Dense(3, bias_initializer="normal")(y))


def answers(signature, x, tolerance=0.0, max_steps=0):
    rows = len(x)
    settings = {
        "tolerance": tf.fill([rows], tolerance),
        "max_steps": tf.fill([rows], max_steps),
    }
    return {
        name: value.numpy()
        for name, value in signature.function(x=tf.constant(x), **settings).items()
    }


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_radius_is_that_of_the_library(model, jit_compile):
    signature = keras_signatures(model, jit_compile=jit_compile, only=[])["serving_default"]
    assert signature.outputs["certified_radius"] == certificates.MEANING
    found = answers(signature, X)
    assert (found["status"] == 0).all()
    assert (found["certified_radius"] > 0).all()
    # What the solve leaves is deducted; it is of the size of the tolerance, and rounding moves it.
    np.testing.assert_allclose(
        found["certified_radius"], tfdeq.certified_radius(model, X), rtol=1e-4
    )


def test_nothing_is_certified_of_what_did_not_converge(model):
    signature = keras_signatures(model, only=[])["serving_default"]
    x = X.copy()
    x[1] = np.nan
    found = answers(signature, x)
    assert found["certified_radius"][1] == 0
    assert (np.delete(found["certified_radius"], 1) > 0).all()
    # Eight steps leave so small a residual that the bound still certifies something.
    with tfdeq.SolveScope(max_steps=8, tolerance=1e-30):
        assert (tfdeq.certified_radius(model, X).numpy() > 0).any()
    found = answers(signature, X, tolerance=1e-30, max_steps=8)
    assert (found["status"] != 0).all()
    assert (found["certified_radius"] == 0).all()


@pytest.mark.slow
def test_a_rough_answer_certifies_less(model):
    signature = keras_signatures(model, only=[])["serving_default"]
    rough = answers(signature, X, tolerance=0.1)
    exact = answers(signature, X)["certified_radius"]
    assert (rough["status"] == 0).all()
    assert (rough["certified_radius"] <= exact * (1 + 1e-5)).all()
    assert (rough["certified_radius"] < 0.99 * exact).any()


def test_other_weights_than_those_of_the_export_certify_nothing():
    model = make_model()
    signature = keras_signatures(model, only=[])["serving_default"]
    assert (answers(signature, X)["certified_radius"] > 0).all()
    model.layers[-1].kernel.assign(2 * model.layers[-1].kernel)
    assert (answers(signature, X)["certified_radius"] == 0).all()


@pytest.mark.slow
def test_inputs_of_any_size():
    """The constants then depend on the request."""
    keras.utils.set_random_seed(0)
    cell = tfdeq.cells.MonotoneConvolution(2, monotonicity=1.0)
    layer = tfdeq.DEQLayer(cell, tfdeq.PeacemanRachford(40, 1e-4))
    x = keras.Input((None, None, 1), name="x")
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(layer(x)))
    model = keras.Model(x, outputs)
    signature = keras_signatures(model, only=[])["serving_default"]
    for size in ((4, 5), (6, 3)):
        images = np.random.default_rng(0).normal(size=(2, *size, 1)).astype("float32")
        found = answers(signature, images)["certified_radius"]
        expected = tfdeq.certified_radius(model, images)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_model(explicit_steps=2),
        pytest.param(lambda: make_model((4, 3)), marks=pytest.mark.slow),
        pytest.param(
            lambda: keras.Sequential([keras.Input((3,)), tfdeq.DEQLayer(tfdeq.cells.DenseCell(4))]),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["applications", "places", "another cell"],
)
def test_models_without_a_certificate_have_no_such_output(make):
    outputs = keras_signatures(make(), only=[])["serving_default"].function.structured_outputs
    assert "certified_radius" not in outputs


@pytest.mark.slow
def test_an_export_is_verified_and_a_wrong_radius_found(model, tmp_path, monkeypatch):
    path = saved_model.export(model, tmp_path / "right", examples={"x": X})
    checks, _ = verify(model, path, {"x": X})
    assert [check.text for check in checks if not check.passed] == []
    right = certificates.Certificate.radius_of
    monkeypatch.setattr(
        certificates.Certificate, "radius_of", lambda *given: 1.01 * right(*given) + 0.01
    )
    path = saved_model.export(model, tmp_path / "wrong", examples={"x": X})
    checks, _ = verify(model, path, {"x": X})
    wrong = [check.name for check in checks if not check.passed]
    assert [name for name in wrong if name.endswith("equal to the Keras model")] == wrong
    assert len(wrong) == 2  # one in each runtime

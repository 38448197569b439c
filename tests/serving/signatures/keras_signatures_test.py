"""Signatures of a user's own Keras model: answers, settings, streams, bad examples."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast
from tfdeq import Status
from tfdeq.serving.signatures import served_names
from tfdeq.serving.signatures.keras_signatures import keras_signatures
from tfdeq.serving.signatures.signature import own_settings, solving_of
from tfdeq.serving.verification import graph_checks

FUNCTIONS_ARE_KEPT = True  # see tests/conftest.py


class Cell(keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(
            units, kernel_initializer=keras.initializers.Orthogonal(0.6)
        )

    def call(self, z, x):
        return keras.ops.tanh(self.dense(z) + x)


def make_model(depths=1):
    keras.utils.set_random_seed(3)
    a = keras.Input((4,), name="a")
    b = keras.Input((3,), dtype="int32", name="b")
    h = keras.layers.Dense(5)(a) + keras.layers.Dense(5)(keras.ops.cast(b, "float32"))
    for depth in range(depths):
        solver = tfdeq.Anderson if depths == 1 else tfdeq.FixedPointIteration  # is traced faster
        h = tfdeq.DEQLayer(Cell(5), solver(60, 1e-3), name=f"depth{depth}")(h)
    outputs = {"label": keras.layers.Dense(2)(h), "top": keras.ops.argmax(h, axis=-1)}
    return keras.Model([a, b], outputs)


def inputs_of(batch, tolerance=0.0):
    random = np.random.default_rng(0)
    return {
        "a": random.normal(size=(batch, 4)).astype(np.float32),
        "b": random.integers(0, 3, (batch, 3), np.int32),
        "tolerance": np.full([batch], tolerance, np.float32),
        "max_steps": np.zeros([batch], np.int32),
    }


def call(signature, inputs):
    outputs = signature.function(**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def signatures(model):
    return keras_signatures(model)


def test_every_tensor_is_named_described_and_batched(signatures):
    assert signatures.keys() == {"serving_default", "encode", "step"}
    for signature in signatures.values():
        specs = signature.function.structured_input_signature[1]
        outputs = signature.function.structured_outputs
        assert signature.inputs.keys() == specs.keys() >= {"a", "b", "tolerance", "max_steps"}
        assert signature.outputs.keys() == outputs.keys() >= {"residual", "steps", "status"}
        for tensor in (*specs.values(), *outputs.values()):
            assert tensor.shape[0] is None
        assert graph_checks.problems(signature.function) == []


@pytest.mark.parametrize("batch", fast([3], [1, 3, 33]))
def test_answers_are_the_models(model, signatures, batch):
    inputs = inputs_of(batch)
    found = call(signatures["serving_default"], inputs)
    with tfdeq.SolveScope() as scope:
        expected = model([inputs["a"], inputs["b"]], training=False)
    solution = scope.solutions["depth0"]
    np.testing.assert_allclose(found["label"], expected["label"], atol=1e-5)
    np.testing.assert_array_equal(found["top"], expected["top"])
    np.testing.assert_array_equal(found["steps"], solution.steps)
    encoded = call(signatures["encode"], inputs)
    np.testing.assert_allclose(encoded["equilibrium"], solution.z, atol=1e-5)


def test_the_dial_of_each_example(signatures):
    tolerances = np.float32([1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
    inputs = {name: value[[0] * 5] for name, value in inputs_of(1).items()}
    found = call(signatures["serving_default"], {**inputs, "tolerance": tolerances})
    assert (found["residual"] <= tolerances).all()
    assert (np.diff(found["steps"]) >= 0).all()
    assert found["steps"][-1] > found["steps"][0]
    few = call(
        signatures["serving_default"],
        {**inputs, "tolerance": [1e-6] * 5, "max_steps": [1, 2, 3, 4, -1]},
    )
    assert few["steps"][:4].tolist() == [1, 2, 3, 4]
    assert (few["status"][:4] == Status.MAX_STEPS).all()


@pytest.fixture(scope="module")
def frugal():
    """Returns a model with a budget of four evaluations, where 1e-5 takes about twenty."""
    keras.utils.set_random_seed(3)
    x = keras.Input((5,), name="x")
    return keras.Model(x, tfdeq.DEQLayer(Cell(5), tfdeq.FixedPointIteration(4, 1e-1))(x))


def test_a_tolerance_alone_is_reached_whatever_the_models_own_steps(frugal):
    served = keras_signatures(frugal, max_steps_limit=30)
    x = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    asked = [(0.0, 0), (1e-5, 0), (1e-5, 7), (0.0, 7), (1e-30, 0), (1e-30, 2**31 - 1)]
    tolerance, max_steps = (np.asarray(column) for column in zip(*asked, strict=True))
    for name, signature in served.items():
        starts = {"equilibrium": np.zeros_like(x)} if name == "step" else {}
        settings = {"tolerance": np.float32(tolerance), "max_steps": np.int32(max_steps)}
        found = call(signature, {"x": x, **settings, **starts})
        assert found["steps"][0] <= 4
        assert found["status"][1] == Status.CONVERGED, name
        assert 7 < found["steps"][1] < 30
        assert found["residual"][1] <= 1e-5
        assert (found["steps"][2], found["status"][2]) == (7, Status.MAX_STEPS)
        assert found["steps"][3] <= 7
        assert found["residual"][3] <= 1e-1
        # The limit ends solves, unless float32's precision or a residual of exactly 0 ends them
        # earlier.
        assert (found["steps"][4:] <= 30).all()
        exact = found["residual"][4:] == 0
        assert (exact == (found["status"][4:] == Status.CONVERGED)).all()


def test_the_limit_of_a_version(frugal):
    assert solving_of(frugal).max_steps_limit == 100
    assert solving_of(make_model()).max_steps_limit == 100
    x = keras.Input((5,))
    patient = keras.Model(x, tfdeq.DEQLayer(Cell(5), tfdeq.Anderson(400, 1e-3))(x))
    assert solving_of(patient).max_steps_limit == 400
    with pytest.raises(ValueError, match=r"at least 400, the steps.*received 399"):
        keras_signatures(patient, max_steps_limit=399)
    settings = own_settings(patient, solving_of(patient, 500))
    assert settings == {"max_steps_limit": 500, "own_tolerance": 1e-3, "own_max_steps": 400}
    two = own_settings(make_model(2), solving_of(make_model(2)))
    assert two["own_max_steps"] == {"depth0": 60, "depth1": 60}


def test_a_layer_inside_a_cell_has_no_say_in_the_limit():
    z, h = keras.Input((5,)), keras.Input((5,))
    inner = tfdeq.DEQLayer(Cell(5), tfdeq.Anderson(400, 1e-3))
    cell = keras.Model([z, h], 0.3 * inner(h) + 0.3 * z)
    x = keras.Input((5,))
    model = keras.Model(x, tfdeq.DEQLayer(cell, tfdeq.Anderson(20, 1e-3))(x))
    assert own_settings(model, solving_of(model)) == {
        "max_steps_limit": 100,
        "own_tolerance": 1e-3,
        "own_max_steps": 20,
    }


def test_a_stream_starts_from_its_last_equilibrium(signatures):
    inputs = inputs_of(3, tolerance=1e-4)
    first = call(signatures["encode"], inputs)
    again = call(signatures["step"], {**inputs, "equilibrium": first["equilibrium"]})
    assert (again["steps"] == 1).all()
    inputs["a"] += 0.01
    cold = call(signatures["serving_default"], inputs)
    warm = call(signatures["step"], {**inputs, "equilibrium": first["equilibrium"]})
    assert (warm["steps"] < cold["steps"]).all()
    np.testing.assert_allclose(warm["label"], cold["label"], atol=1e-3)
    lost = first["equilibrium"].copy()
    lost[1, 2] = np.inf
    found = call(signatures["step"], {**inputs, "equilibrium": lost})
    assert found["steps"].tolist() == [warm["steps"][0], cold["steps"][1], warm["steps"][2]]


def test_nan_that_a_layer_before_the_equilibrium_turns_into_zero_is_reported():
    """A convolution, its bias and relu are one operation in a graph on a CPU, and relu(NaN) is 0 there."""
    keras.utils.set_random_seed(3)
    image = keras.Input((12, 12, 1), name="image")
    features = keras.layers.Conv2D(8, 3, 2, padding="same", activation="relu")(image)
    pooled = keras.layers.GlobalAveragePooling2D()(features)
    z = tfdeq.DEQLayer(Cell(8), tfdeq.FixedPointIteration(60, 1e-3))(pooled)
    function = keras_signatures(keras.Model(image, z), only=[])["serving_default"].function
    images = np.random.default_rng(0).random((3, 12, 12, 1)).astype("float32")
    images[1, 5, 5] = np.nan
    rest = {"tolerance": tf.zeros([3]), "max_steps": tf.zeros([3], tf.int32)}
    found = function(image=tf.constant(images), **rest)
    assert found["status"].numpy().tolist() == [0, Status.NON_FINITE, 0]
    assert found["residual"].numpy()[1] == np.finfo("float32").max
    assert not found["output_0"].numpy()[1].any()
    assert found["output_0"].numpy()[[0, 2]].any(axis=1).all()


def test_nan_stays_with_its_example(signatures):
    inputs = inputs_of(3)
    expected = call(signatures["serving_default"], inputs)
    inputs["a"][1, 0] = np.nan
    found = call(signatures["serving_default"], inputs)
    assert found["status"].tolist() == [0, Status.NON_FINITE, 0]
    assert all(np.isfinite(value).all() for value in found.values())
    for row in (0, 2):
        np.testing.assert_allclose(found["label"][row], expected["label"][row], atol=1e-5)
        assert found["steps"][row] == expected["steps"][row]
    assert not found["label"][1].any()


def test_an_empty_batch(signatures):
    for name in ("serving_default", "encode"):
        found = call(signatures[name], inputs_of(0))
        assert all(len(value) == 0 for value in found.values())


@pytest.mark.slow
def test_compiled_signatures_answer_alike(model, signatures):
    compiled = keras_signatures(model, jit_compile=True)
    inputs = inputs_of(5, tolerance=1e-5)
    for name in ("serving_default", "encode"):
        expected, found = call(signatures[name], inputs), call(compiled[name], inputs)
        for output in expected:
            np.testing.assert_allclose(found[output], expected[output], atol=1e-5)
        assert any(
            "jit-compiled" in text for text in graph_checks.problems(compiled[name].function)
        )
        assert graph_checks.problems(compiled[name].function, jit_compile=True) == []


@pytest.mark.slow
def test_two_depths_add_their_steps_and_have_two_equilibria():
    model = make_model(depths=2)
    signatures = keras_signatures(model)
    inputs = inputs_of(2)
    found = call(signatures["encode"], inputs)
    assert found.keys() >= {"equilibrium_depth0", "equilibrium_depth1"}
    with tfdeq.SolveScope() as scope:
        model([inputs["a"], inputs["b"]])
    solutions = scope.solutions.values()
    np.testing.assert_array_equal(found["steps"], sum(solved.steps.numpy() for solved in solutions))
    starts = {name: value for name, value in found.items() if name.startswith("equilibrium")}
    again = call(signatures["step"], {**inputs, **starts})
    assert (again["steps"] == 2).all()


def test_a_model_of_a_class_names_its_inputs():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.deq = tfdeq.DEQLayer(Cell(4), "fixed_point_iteration")

        def call(self, x):
            return self.deq(x)

    model = Model()
    model(np.zeros([1, 4], np.float32))
    with pytest.raises(ValueError, match="inputs=tf.TensorSpec"):
        keras_signatures(model)
    found = keras_signatures(model, tf.TensorSpec([None, 4], tf.float32, "x"), only=[])
    x = np.ones([2, 4], np.float32)
    given = {"x": x, "tolerance": [0.0, 0.0], "max_steps": [0, 0]}
    answer = call(found["serving_default"], given)
    np.testing.assert_allclose(answer["output_0"], model(x), atol=1e-6)


def test_models_that_cannot_be_served_so():
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="calls no tfdeq.DEQLayer"):
        keras_signatures(plain)
    x = keras.Input((3,), name="tolerance")
    with pytest.raises(ValueError, match="two tensors of a signature: tolerance"):
        keras_signatures(keras.Model(x, tfdeq.DEQLayer(Cell(3))(x)))
    x = keras.Input((3,), name="x")
    with pytest.raises(ValueError, match="two tensors of a signature: steps"):
        keras_signatures(keras.Model(x, {"steps": tfdeq.DEQLayer(Cell(3))(x)}))


def named_model(name="x", outputs=lambda z: z):
    x = keras.Input((4,), name=name)
    return keras.Model(x, outputs(tfdeq.DEQLayer(Cell(4), "fixed_point_iteration")(x)))


@pytest.mark.parametrize(
    "name", ["pixel values", "a.b", "x:0", "class", "self", "länge", "_x", "None", "0"]
)
def test_an_input_whose_name_would_change_is_refused_by_name(name):
    with pytest.raises(ValueError, match="cannot be named " + re.escape(repr(name))) as refused:
        keras_signatures(named_model(name))
    assert "Rename the model's input" in str(refused.value)


def test_inputs_can_be_named_anew():
    model = named_model("pixel values")
    signatures = keras_signatures(model, tf.TensorSpec([None, 4], tf.float32, "x"), only=[])
    given = {"x": np.ones([1, 4], np.float32), "tolerance": [0.0], "max_steps": [0]}
    answer = call(signatures["serving_default"], given)
    np.testing.assert_allclose(answer["output_0"], model(given["x"]), atol=1e-6)


def test_names_that_a_saved_model_cannot_keep_apart_are_refused():
    a, b = keras.Input((4,), name="x"), keras.Input((4,), name="X")
    with pytest.raises(ValueError, match="'x' and 'X' differ only in case.*Rename"):
        keras_signatures(keras.Model([a, b], tfdeq.DEQLayer(Cell(4))(a + b)))


def test_a_layer_whose_equilibrium_is_an_input_has_a_name_for_it():
    x = keras.Input((4,), name="x")
    z = tfdeq.DEQLayer(Cell(4), name="first.layer")(x)
    model = keras.Model(x, tfdeq.DEQLayer(Cell(4), name="second")(z))
    with pytest.raises(ValueError, match="'equilibrium_first.layer'.*its DEQLayer"):
        keras_signatures(model)


def test_nested_outputs_are_named_by_their_path():
    model = named_model(outputs=lambda z: {"head": {"mean": z, "scales": [z + 1, z + 2]}, "z": z})
    signatures = keras_signatures(model, only=[])
    given = {"x": np.ones([1, 4], np.float32), "tolerance": [0.0], "max_steps": [0]}
    answer = call(signatures["serving_default"], given)
    expected = model(given["x"])["z"]
    for name, plus in {"head_mean": 0, "head_scales_0": 1, "head_scales_1": 2, "z": 0}.items():
        np.testing.assert_allclose(answer[name], expected + plus, atol=1e-6)
    assert "output_0" not in answer


def test_outputs_that_cannot_be_named_are_refused():
    twice = named_model(outputs=lambda z: {"head": {"mean": z}, "head_mean": z + 1})
    with pytest.raises(ValueError, match="two tensors of a signature: head_mean. Rename"):
        keras_signatures(twice)
    for key in (0, ""):
        with pytest.raises(ValueError, match=f"cannot be named {key!r}. Rename"):
            served_names.leaves({key: tf.zeros([1])})
    with pytest.raises(ValueError, match="'head_mean' has the type NoneType"):
        served_names.leaves({"head": {"mean": None}})

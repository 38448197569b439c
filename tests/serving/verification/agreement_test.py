"""Four runtimes agree: Keras, tf.saved_model.load without tfdeq, the C API, the C++ program."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import contracting_language_model
from tfdeq import Status
from tfdeq.serving.server import isolated, serving_program
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.signatures.language_model_signatures import signature_names
from tfdeq.serving.signatures.signature import INVALID, solving_of
from tfdeq.serving.verification import language_model_checks
from tfdeq.serving.verification.checks import compare
from tfdeq.serving.versions import saved_model

VOCABULARY, LENGTH = 17, 12
BATCHES = (1, 3, 8, 33)
LIMIT = 1e-5


@pytest.fixture(scope="module")
def model():
    return contracting_language_model(
        VOCABULARY, LENGTH, tfdeq.Anderson(max_steps=60, tolerance=1e-5)
    )


@pytest.fixture(scope="module")
def version(model, tmp_path_factory):
    return saved_model.export(model, tmp_path_factory.mktemp("output"))


def requests_of(model, batches, lengths_from):
    tokens = np.random.default_rng(5).integers(0, VOCABULARY, (max(batches), LENGTH), np.int32)
    return [
        language_model_checks.request(
            model,
            f"batch of {batch}",
            signature,
            tokens[:batch],
            np.linspace(LENGTH, lengths_from, batch).round(),
        )
        for batch in batches
        for signature in signature_names(model)
    ]


def check_all(model, requests, answers):
    limit = solving_of(model).max_steps_limit
    references = language_model_checks.KerasModel(model, limit).references(requests)
    for runtime, outputs in answers.items():
        pairs = [
            (
                f"{runtime}, {request.signature}, {request.name}, row {row}",
                {name: value[row] for name, value in output.items()},
                reference,
            )
            for request, output, rows in zip(requests, outputs, references, strict=True)
            for row, reference in enumerate(rows)
        ]
        found = compare(runtime, pairs, model.equilibrium.solver.tolerance)
        assert found.passed, found.text
        assert found.values["largest_difference"] <= LIMIT, found.text
        # Rounding may sometimes end a solve one step apart, but not often.
        assert len(found.values["near"]) <= len(pairs) // 20


@pytest.mark.slow
def test_every_signature_and_batch_size(model, version, serving_executable):
    requests = requests_of(model, BATCHES, lengths_from=1)
    answers = {name: isolated.answer(version, requests, name).outputs for name in isolated.RUNTIMES}
    # Without XLA, as in the stock server.
    answers["program"] = serving_program.answer(
        serving_executable, version, requests, disable_xla=True
    ).outputs
    check_all(model, requests, answers)


@pytest.mark.slow
def test_every_signature_and_batch_size_compiled(model, serving_executable, tmp_path):
    path = saved_model.export(model, tmp_path, jit_compile=True)
    requests = requests_of(model, BATCHES, lengths_from=1)
    answers = {name: isolated.answer(path, requests, name).outputs for name in isolated.RUNTIMES}
    answers["program"] = serving_program.answer(serving_executable, path, requests).outputs
    check_all(model, requests, answers)


@pytest.mark.slow
def test_a_compiled_version_answers_and_is_refused_without_xla(model, serving_executable, tmp_path):
    path = saved_model.export(model, tmp_path, jit_compile=True)
    requests = [
        request for request in requests_of(model, (3,), 5) if request.signature != "generate"
    ]
    found = serving_program.answer(serving_executable, path, requests[:2])
    check_all(model, requests[:2], {"program": found.outputs})
    with pytest.raises(ChildProcessError, match="could not run serving_default"):
        serving_program.answer(serving_executable, path, requests[:1], disable_xla=True)


@pytest.mark.slow
def test_batches_as_the_server_makes_them(version, serving_executable):
    """Requests are joined, padded with their first token and with copies; one diverges, one is invalid."""
    random = np.random.default_rng(7)
    lengths = [12, 5, 8, 3]
    texts = [random.integers(0, VOCABULARY, length).astype(np.int32) for length in lengths]
    # Padding repeats the first element of a request's tensor, and the batch is filled with copies
    # of the last row.
    rows = [np.pad(text, (0, LENGTH - len(text)), constant_values=text[0]) for text in texts]
    rows += [rows[-1]] * 4
    joined = {
        "tokens": np.stack(rows),
        "lengths": np.int32(lengths + lengths[-1:] * 4),
        "tolerance": np.float32([1e-5, 1e-30, 1e-3, 1e-4] + [1e-4] * 4),
        "max_steps": np.int32([0, 60, 3, 0] + [0] * 4),
    }
    joined["lengths"][2] = 99  # an invalid example among them
    alone = [
        {
            "tokens": text[None],
            **{name: joined[name][row : row + 1] for name in joined if name != "tokens"},
        }
        for row, text in enumerate(texts)
    ]
    requests = [Request("joined", "serving_default", joined)]
    requests += [Request("alone", "serving_default", inputs) for inputs in alone]
    together, *single = serving_program.answer(serving_executable, version, requests).outputs
    assert together["status"][:4].tolist() == [
        Status.CONVERGED,
        Status.STAGNATED,
        INVALID,
        Status.CONVERGED,
    ]
    for row, expected in enumerate(single):
        copies = [row] if row < 3 else range(3, 8)
        for copy in copies:
            assert together["status"][copy] == expected["status"][0]
            if (
                row != 1
            ):  # if rounding ends the progress, the number of steps also depends on rounding
                assert together["steps"][copy] == expected["steps"][0]
            np.testing.assert_allclose(
                together["log_probabilities"][copy], expected["log_probabilities"][0], atol=LIMIT
            )


@pytest.mark.slow
def test_a_model_of_a_users_own(serving_executable, tmp_path):
    class Cell(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            initializer = keras.initializers.Orthogonal(0.6)
            self.dense = keras.layers.Dense(6, kernel_initializer=initializer)

        def call(self, z, x):
            return keras.ops.tanh(self.dense(z) + x)

    x = keras.Input((6,), name="x")
    model = keras.Model(x, tfdeq.DEQLayer(Cell(), "broyden")(x))
    path = saved_model.export(model, tmp_path)
    given = np.random.default_rng(0).normal(size=(33, 6)).astype(np.float32)
    given[7] = np.nan
    requests = []
    for batch in BATCHES:
        settings = {"tolerance": np.full([batch], 1e-5), "max_steps": np.full([batch], 50)}
        inputs = {"x": given[:batch], **settings}
        inputs = {
            name: np.asarray(value, np.int32 if name == "max_steps" else np.float32)
            for name, value in inputs.items()
        }
        requests.append(Request("default", "serving_default", inputs))
        start = {"equilibrium": np.zeros([batch, 6], np.float32)}
        requests.append(Request("step", "step", {**inputs, **start}))
    answers = [isolated.answer(path, requests, name).outputs for name in isolated.RUNTIMES]
    answers.append(serving_program.answer(serving_executable, path, requests).outputs)
    for outputs in answers:
        for request, found in zip(requests, outputs, strict=True):
            x = request.inputs["x"]
            with tfdeq.SolveScope(tolerance=1e-5, max_steps=50) as scope:
                expected = model(x).numpy()
            (solution,) = scope.solutions.values()
            good = np.isfinite(x).all(axis=1)
            np.testing.assert_allclose(found["output_0"][good], expected[good], atol=LIMIT)
            np.testing.assert_array_equal(found["steps"], solution.steps)
            np.testing.assert_array_equal(found["status"], solution.status)
            assert not found["output_0"][~good].any()
    assert isinstance(tf.saved_model.load(str(path)).weights[0], tf.Variable)

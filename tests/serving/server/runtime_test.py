"""The C++ runtime through the C API, in processes that can import neither tfdeq nor TensorFlow."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import DenseCell
from tests.support.verified_run import LENGTH, VOCABULARY, language_model
from tfdeq.models import generate
from tfdeq.serving.server import isolated, runtime
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.signatures.text.generate import greedy
from tfdeq.serving.versions import saved_model


@pytest.fixture(scope="module")
def model():
    return language_model()


@pytest.fixture(scope="module")
def version(verified_run):
    return verified_run / "export" / "1"


def inputs_of(batch):
    return {
        "tokens": np.random.default_rng(5).integers(0, VOCABULARY, (batch, LENGTH), np.int32),
        "lengths": np.linspace(LENGTH, 1, batch).astype(np.int32),
        "tolerance": np.zeros(batch, np.float32),
        "max_steps": np.zeros(batch, np.int32),
    }


@pytest.mark.parametrize(
    "name",
    [
        name if name == "c" else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(isolated.RUNTIMES)
    ],
)
@pytest.mark.slow
def test_round_trip_in_a_process_without_tfdeq(model, version, name):
    requests = [
        Request(f"batch of {batch}", signature, inputs_of(batch))
        for batch in (1, 3, 8)
        for signature in ("serving_default", "score")
    ]
    dial = inputs_of(5)
    dial["tokens"][:], dial["lengths"][:] = dial["tokens"][0], LENGTH
    dial["tolerance"][:], dial["max_steps"][:] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5), 100
    requests.append(Request("dial", "serving_default", dial))
    outputs, facts = isolated.answer(version, requests, name)

    assert facts["blocked"]["tfdeq"] == "import of tfdeq is blocked in this process"
    if name == "c":
        assert facts["blocked"]["tensorflow"] == "import of tensorflow is blocked in this process"
        assert facts["imported"] == []
    for request, output in zip(requests[:-1], outputs[:-1], strict=True):
        tokens, lengths = request.inputs["tokens"], request.inputs["lengths"]
        for row, length in enumerate(lengths):
            logits, solution = model(tokens[row : row + 1, :length], return_solution=True)
            expected = tf.nn.log_softmax(logits)[0].numpy()
            if request.signature == "serving_default":
                received, expected = output["log_probabilities"][row], expected[-1]
            else:
                received = output["log_likelihood"][row, 1:length]
                expected = expected[np.arange(length - 1), tokens[row, 1:length]]
            np.testing.assert_allclose(received, expected, atol=1e-5)
            assert output["steps"][row] == solution.steps[0]
            assert output["status"][row] == solution.status[0]
    assert (outputs[-1]["residual"] <= dial["tolerance"]).all()
    assert (np.diff(outputs[-1]["residual"]) < 0).all()
    assert (np.diff(outputs[-1]["steps"]) > 0).all()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A version of few operations and two signatures, which is loaded quickly."""
    x = keras.Input((4,), name="x")
    model = keras.Model(x, tfdeq.DEQLayer(DenseCell(4), "fixed_point_iteration")(x))
    return saved_model.export(model, tmp_path_factory.mktemp("small"), only=["encode"])


def test_errors_of_the_runtime(small):
    program = (
        "import json, runpy, sys\n"
        "import numpy as np\n"
        "loaded = runpy.run_path(sys.argv[1])['Runtime'](sys.argv[2])\n"
        "good = {'x': np.zeros([1, 4], np.float32), 'tolerance': np.zeros(1, np.float32),\n"
        "        'max_steps': np.zeros(1, np.int32)}\n"
        "cases = [('other', good), ('encode', {}), ('encode', {**good, 'max_steps': np.ones(1)}),\n"
        "         ('encode', {**good, 'x': np.ones((2, 2), np.float32)})]\n"
        "texts = []\n"
        "for signature, inputs in cases:\n"
        "    try:\n"
        "        loaded.run(signature, inputs)\n"
        "    except (ValueError, RuntimeError) as error:\n"
        "        texts.append(f'{type(error).__name__}: {error}')\n"
        "texts.append(loaded.run('encode', good)['status'].tolist())\n"
        "loaded.close()\n"
        "print(json.dumps(texts))\n"
    )
    command = [sys.executable, "-I", "-c", program, runtime.__file__, str(small)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=55)
    assert finished.returncode == 0, finished.stderr
    texts = json.loads(finished.stdout)
    names = ["encode", "serving_default"]
    assert texts[0] == f"ValueError: No signature 'other'; there are {names}."
    assert "encode takes ['max_steps', 'tolerance', 'x'" in texts[1]
    assert texts[2] == "ValueError: max_steps must be of dtype int32; received float64."
    assert texts[3].startswith("RuntimeError: TensorFlow's runtime could not run encode")
    assert texts[4] == [0]


@pytest.mark.slow
def test_segments_are_the_text_of_generate(version, model):
    prompt = np.frombuffer(b"impo", np.uint8).astype(np.int32)
    sampling = {**greedy(1, 7), "temperature": np.float32([1.5]), "seed": np.int32([4])}
    found = generate(model, prompt[None], **sampling)
    new = found.tokens[0, : found.lengths[0]].numpy()
    requests = []
    for drawn, segment in ((None, 0), (0, 1), (1, 3), (4, 16)):
        text = np.concatenate([prompt, new[: drawn or 0]])
        given = {
            "tokens": text[None],
            "lengths": np.int32([len(text)]),
            "tolerance": np.zeros(1, np.float32),
            "max_steps": np.zeros(1, np.int32),
            **sampling,
        }
        name = {None: "generate", 0: "generate_first"}.get(drawn, "generate_next")
        if drawn is not None:
            given["segment_tokens"] = np.int32([segment])
        if drawn:
            given["drawn"] = np.int32([drawn])
        carried = ("state_equilibrium", "state_past_key", "state_past_value") if drawn else ()
        requests.append(Request(name, name, given, carried))
    (whole, *parts), _ = isolated.answer(version, requests, "c")
    tokens = [part["tokens"][0, : part["lengths"][0]] for part in parts]
    assert [len(each) for each in tokens] == [1, 3, 3]
    np.testing.assert_array_equal(np.concatenate(tokens), new)
    np.testing.assert_array_equal(whole["tokens"][0, :7], new)
    assert [part["finish"][0] for part in parts] == [3, 3, whole["finish"][0]]
    assert sum(part["steps"][0] for part in parts) == whole["steps"][0]
    assert max(part["residual"][0] for part in parts) == whole["residual"][0]


@pytest.mark.slow
def test_signatures_are_those_that_tensorflow_reads(version):
    loaded = tf.saved_model.load(str(version)).signatures
    read = runtime.read_signatures(version)
    assert read.keys() == loaded.keys()
    for name, signature in read.items():
        assert signature.inputs.keys() == loaded[name].structured_input_signature[1].keys()
        assert signature.outputs.keys() == loaded[name].structured_outputs.keys()


def test_missing_and_cut_off_models(version, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"saved_model\.pb' is missing"):
        runtime.read_signatures(tmp_path)
    content = pathlib.Path(version, "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is no readable SavedModel"):
        runtime.read_signatures(tmp_path)


def test_failing_process_tells_why(tmp_path):
    with pytest.raises(
        isolated.IsolationError, match=r"(?s)exit code 1.*saved_model\.pb' is missing"
    ):
        isolated.answer(tmp_path, [], "c")

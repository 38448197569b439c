"""Models with a carried memory, from the trainer's folder to a client that uses them."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.support.memory_cases import LENGTH, MODELS, VOCABULARY, equilibrium, memory_in
from tfdeq.data.windows import spread_windows
from tfdeq.serving.client import client_text, model_client
from tfdeq.serving.kinds.language_model_kind import LanguageModelKind
from tfdeq.serving.server import isolated
from tfdeq.serving.signatures.text import ContinueText, Score
from tfdeq.serving.verification import conversation_checks, verify
from tfdeq.serving.versions import saved_model, warm_up

FUNCTIONS_ARE_KEPT = True  # see tests/conftest.py
ROOT = pathlib.Path(__file__).absolute().parents[3]
STREAM = np.random.default_rng(7).integers(0, VOCABULARY, 400).astype(np.int32)


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """A version of the model with a span, with warm-up records and only some signatures."""
    kind = LanguageModelKind(MODELS["span"](), spread_windows(STREAM, LENGTH, 8))
    output = tmp_path_factory.mktemp("output")
    only = [Score.name, ContinueText.name]
    return saved_model.export_kind(kind, output, batch_sizes=[1, 4], only=only)


@pytest.fixture(scope="module")
def loaded(version):
    functions = tf.saved_model.load(str(version)).signatures

    def run(signature, inputs):
        found = functions[signature](**{name: tf.constant(v) for name, v in inputs.items()})
        return {name: value.numpy() for name, value in found.items()}

    return run


def answers(conversation, loaded):
    """Returns a loaded version's answers to a conversation's calls."""
    outputs = []
    for request in conversation.requests:
        carried = {name: outputs[-1][name] for name in request.carried}
        outputs.append(loaded(request.signature, {**request.inputs, **carried}))
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["span", "lstm"])
def test_versions_are_verified_with_their_memory(name, tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "RUNTIMES", {"c": isolated.RUNTIMES["c"]})
    model = MODELS[name]()
    path = saved_model.export(model, tmp_path)
    windows = spread_windows(STREAM, LENGTH, 8)
    found, _ = verify.verify_kind(LanguageModelKind(model, windows, STREAM), path)
    assert all(check.passed for check in found), [check.text for check in found]
    check = next(check for check in found if check.name == "c: texts in segments are whole texts")
    assert max(check.values["log_likelihoods"]) <= 1e-4
    assert max(check.values["perplexities"]) <= 1e-3


@pytest.mark.slow
def test_texts_in_calls_are_whole_texts(loaded):
    conversation = conversation_checks.Conversation(MODELS["span"](), STREAM)
    outputs = answers(conversation, loaded)
    check = conversation.check(outputs, "c")
    assert check.passed, check.text
    assert len(check.values["log_likelihoods"]) == 3
    assert max(check.values["residuals"]) < 1e-6


@pytest.mark.slow
def test_what_is_wrong_with_a_memory_is_found(loaded):
    conversation = conversation_checks.Conversation(MODELS["span"](), STREAM)

    def check_with(change):
        outputs = []
        for request in conversation.requests:
            carried = {name: change(name, outputs[-1][name]) for name in request.carried}
            outputs.append(loaded(request.signature, {**request.inputs, **carried}))
        return conversation.check(outputs, "c")

    assert check_with(lambda name, value: value).passed
    forgotten = check_with(lambda name, value: np.zeros_like(value))
    other_rows = check_with(lambda name, value: np.roll(value, 1, axis=0))
    later = check_with(lambda name, value: np.roll(value, 1, 2) if value.ndim == 4 else value)
    for check in (forgotten, other_rows, later):
        assert not check.passed
        assert max(check.values["log_likelihoods"]) > 1e-3
    invalid = check_with(lambda name, value: value * np.nan if value.ndim == 4 else value)
    assert not invalid.passed
    assert "5 calls hold an example that could not be answered" in invalid.text


@pytest.mark.slow
def test_solves_that_end_early_are_allowed_more():
    """The limits are made for rounding errors; a larger residual is a larger error."""
    conversation = conversation_checks.Conversation(MODELS["span"](), STREAM)
    calls = len(conversation.requests)
    limit = conversation_checks.LIMIT
    output = {
        "residual": np.float32([2e-4, 1e-7, 1e-7]),
        "status": np.int32([1, 2, 0]),
        "log_likelihood": np.zeros([3, LENGTH], np.float32),
        "log_probabilities": np.zeros([3, VOCABULARY], np.float32),
    }
    check = conversation.check([output] * calls, "c")
    assert not check.passed
    assert f"limit {100 * limit:.2g}" in check.text


@pytest.mark.slow
def test_explicit_applications_are_compared_in_segments():
    model = equilibrium(span=4, explicit_steps=2)
    conversation = conversation_checks.Conversation(model, STREAM)
    functions = LanguageModelKind(model).signatures()

    def run(signature, inputs):
        found = functions[signature].function(
            **{name: tf.constant(value) for name, value in inputs.items()}
        )
        return {name: value.numpy() for name, value in found.items()}

    check = conversation.check(answers(conversation, run), "c")
    assert check.passed, check.text


@pytest.mark.slow  # text_signature_test.py has the signature's warm-up inputs
def test_warm_up_records_begin_texts(version):
    records = [inputs for name, inputs in warm_up.read(version) if name == "continue_text"]
    assert [len(inputs["tokens"]) for inputs in records] == [1, 4]
    for inputs in records:
        assert inputs["memory_key"].shape[1:] == (2, 3, 8)
        assert inputs["memory_key"].dtype == np.float32
        assert not any(value.any() for value in memory_in(inputs).values())


def test_records_of_one_number_are_short(tmp_path):
    value = np.zeros([32, 8, 100], np.float32)
    warm_up.write(tmp_path, "name", [("s", {"memory": value, "ones": value + 1})])
    assert (tmp_path / warm_up.FOLDER / warm_up.NAME).stat().st_size < 1000
    ((_, read),) = warm_up.read(tmp_path)
    np.testing.assert_array_equal(read["memory"], value)
    np.testing.assert_array_equal(read["ones"], value + 1)


@pytest.mark.slow
def test_the_documents_example_talks_with_a_version(version, loaded, monkeypatch, capsys):
    """The code of docs/serving.md, with the server's part done by the version itself."""
    document = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", document, re.DOTALL)
               if "continue_text" in block]  # fmt: skip
    code = code.replace("models/language_model/1", str(version))

    def predict(self, inputs, signature, *, tolerance):
        batch = len(inputs["tokens"])
        settings = {
            "tolerance": np.full(batch, tolerance, np.float32),
            "max_steps": np.zeros(batch, np.int32),
        }
        return loaded(signature, {**inputs, **settings})

    monkeypatch.setattr(model_client.Client, "predict", predict)
    # This model's tokens are not bytes.
    monkeypatch.setattr(
        client_text, "encode_text", lambda text, vocabulary: np.int32([ord(c) % 17 for c in text])
    )
    exec(compile(code, "docs/serving.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    tokens = np.int32([[ord(c) % 17 for c in "import numpy as np"]])
    logits, _ = MODELS["span"]()(tokens, memory=MODELS["span"]().initial_memory(1))
    log_probabilities = tf.nn.log_softmax(logits)[0].numpy()
    of_tokens = -log_probabilities[np.arange(tokens.size - 1), tokens[0, 1:]]
    parts = of_tokens[:6].sum(), of_tokens[6:14].sum(), of_tokens[14:].sum()
    for line, nats in zip(lines, parts, strict=True):
        # Solved to 1e-3 there.
        assert abs(float(re.search(r": ([\d.]+) nats", line)[1]) - nats) < 0.1


@pytest.mark.slow
def test_a_trainers_folder_with_a_network_is_read_by_the_program(tmp_path):
    """In a process that has imported nothing of the network's class."""
    MODELS["lstm"]().save(tmp_path / "model.keras")
    (tmp_path / "config.json").write_text(json.dumps({"dataset": "text", "files": "*.txt"}))
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "export.saved_model", f"--workdir={tmp_path}"),
            *(f"--output={tmp_path / 'export'}", "--nodata"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert finished.returncode == 0, finished.stderr
    path = tmp_path / "export" / "1"
    card = json.loads((path / "assets.extra" / "model_card.json").read_text())
    assert card["signatures"].keys() == {"serving_default", "score", "continue_text"}
    assert "own_tolerance" not in card
    assert card["signatures"]["continue_text"]["inputs"]["memory_1_0"]["shape"] == [None, 16]
    program = (
        "import sys; from tfdeq.serving import load_model; print(load_model(sys.argv[1]).network)"
    )
    again = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert again.returncode == 0, again.stderr
    assert "Recurrent" in again.stdout

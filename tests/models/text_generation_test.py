"""From text to text: the same tokens as `generate`, for prompts of any length."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import contracting_language_model
from tfdeq.models import LanguageModel, WordTokenizer, generate

WORDS = [f"w{number}" for number in range(13)]


@pytest.fixture(scope="module")
def model():
    model = contracting_language_model(13, 10, tfdeq.Anderson(max_steps=40, tolerance=1e-4))
    model.readout.kernel.assign(5.0 * model.readout.kernel)
    model.tokenizer = WordTokenizer(WORDS)
    return model


@pytest.mark.slow
def test_the_tokens_of_generate(model):
    prompts = ["w3 w1 w4", "w5"]
    settings = {"temperature": [0.0, 0.7], "seed": 3, "max_new_tokens": [2, 3], "top_k": 5}
    texts = model.generate(prompts, **settings)
    found = generate(model, [[3, 1, 4], [5, 0, 0]], [3, 1], **settings)
    for prompt, text, tokens, length in zip(
        prompts, texts, found.tokens, found.lengths, strict=True
    ):
        new = " ".join(WORDS[token] for token in tokens[:length])
        assert text == f"{prompt} {new}"
    stripped = model.generate(prompts, strip_prompt=True, **settings)
    assert [f"{p} {s}" for p, s in zip(prompts, stripped, strict=True)] == texts
    # A text is not changed by those beside it; a text, not a list of one, for a text.
    assert model.generate("w5", temperature=0.7, seed=3, max_new_tokens=3, top_k=5) == texts[1]
    assert model.generate([]) == []


def test_one_trace_for_all(model):
    model.generate("w1")
    function = model._text_generator._generate
    before = function.experimental_get_tracing_count()
    model.generate(["w1 w2 w3", "w4"], temperature=0.5, max_steps=7)
    model.generate("w1", seed=4, tolerance=1e-2)
    assert function.experimental_get_tracing_count() == before == 1


def test_new_weights_are_used(model):
    before = model.generate("w1")
    kernel = model.readout.kernel.numpy()
    try:
        model.readout.kernel.assign(-kernel)
        assert model.generate("w1") != before
    finally:
        model.readout.kernel.assign(kernel)
    assert model.generate("w1") == before


@pytest.mark.slow
def test_a_model_that_generated_is_saved_as_before(model, tmp_path):
    model.generate("w1")
    tokens = np.int32([[1, 2, 3]])
    model.save(tmp_path / "model.keras")
    tf.saved_model.save(model, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    assert not hasattr(loaded, "_text_generator")
    clone = LanguageModel.from_config(model.get_config())
    clone.build((None, 10))
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone(tokens), model(tokens))


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ("", ValueError, r"1 … 9 tokens.*received 0: ''. Give a text that is not empty"),
        (["w1", " "], ValueError, "received 0"),
        (" ".join(["w1"] * 10), ValueError, "sequence_length, 10; received 10.*Shorten it"),
        ("dog", ValueError, "lacks these words"),
        ([[1, 2]], TypeError, "For token ids use tfdeq.models.generate"),
    ],
)
def test_prompts_that_are_refused(model, prompts, error, message):
    with pytest.raises(error, match=message):
        model.generate(prompts)


def test_models_that_cannot(model):
    cell = tfdeq.cells.TransformerCell(8, 2, 10)
    other = LanguageModel(256, 10, cell)
    other.build((None, 10))
    with pytest.raises(ValueError, match="has no tokenizer.*ByteTokenizer()"):
        other.generate("def ")
    explicit = LanguageModel(256, 10, tfdeq.cells.TransformerCell(8, 2, 10), explicit_steps=2)
    explicit.build((None, 10))
    with pytest.raises(ValueError, match="explicit_steps=2"):
        explicit.generate("def ")

"""Tokenizers: text to token ids and back."""

import keras
import numpy as np
import pytest

from tfdeq.data.text.words import words_of
from tfdeq.models import ByteTokenizer, Tokenizer, WordTokenizer

WORDS = ["<eos>", "the", "cat", "a\u00a0b", "<unk>"]


@pytest.mark.parametrize("text", ["def f(x):\n\treturn x", "Größe ∞", "\x00\u2028 ", ""])
def test_bytes_come_back(text):
    tokens = ByteTokenizer().encode(text)
    assert tokens.dtype == np.int32
    assert bytes(tokens.tolist()) == text.encode()
    assert ByteTokenizer().decode(tokens) == text


def test_a_cut_character_is_marked():
    assert ByteTokenizer().decode(ByteTokenizer().encode("aß")[:-1]) == "a\ufffd"


@pytest.mark.parametrize("token", [-1, 256])
def test_an_id_that_is_no_byte(token):
    with pytest.raises(ValueError, match=f"0 … 255; received {token}"):
        ByteTokenizer().decode([0, token])


def test_words_as_the_data_sets_number_them():
    text = "the cat\nthe a\u00a0b\n"
    expected = [WORDS.index(word.decode()) for word in words_of(text.encode())]
    tokenizer = WordTokenizer(WORDS)
    assert tokenizer.encode(text).tolist() == expected == [1, 2, 0, 1, 3, 0]
    assert tokenizer.decode(expected) == text
    assert tokenizer.encode("the dog").tolist() == [1, 4]
    with pytest.raises(ValueError, match="0 … 4; received 5"):
        tokenizer.decode([5])


def test_words_without_a_sign_for_the_unknown():
    tokenizer = WordTokenizer(["the", "cat"])
    assert tokenizer.encode("the\ncat").tolist() == [0, 1]
    with pytest.raises(ValueError, match="lacks these words, and has no <unk> for them: dog, sat"):
        tokenizer.encode("the dog sat")


@pytest.mark.parametrize(
    ("text", "continuation", "joined"),
    [
        ("the", "cat", "the cat"),
        ("the ", "cat", "the cat"),
        ("the", "\ncat", "the\ncat"),
        ("the", "", "the"),
    ],
)
def test_words_join_by_one_space(text, continuation, joined):
    assert WordTokenizer(WORDS).joined(text, continuation) == joined
    assert ByteTokenizer().joined(text, continuation) == text + continuation


@pytest.mark.parametrize(
    ("words", "message"),
    [(["a", "b", "a"], "'a' is there twice"), (["a b"], "received 'a b'"), ([""], "received ''")],
)
def test_words_that_are_none(words, message):
    with pytest.raises(ValueError, match=message):
        WordTokenizer(words)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), WordTokenizer(WORDS)])
def test_it_comes_back_from_its_configuration_and_its_files(tokenizer):
    other = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(tokenizer))
    assert type(other) is type(tokenizer)
    assert set(tokenizer.assets()) == set(tokenizer.ASSETS)
    other.restore(tokenizer.assets())
    assert other.vocabulary_size == tokenizer.vocabulary_size
    assert other.encode("the cat").tolist() == tokenizer.encode("the cat").tolist()
    with pytest.raises(ValueError, match="received \\['strange'\\]"):
        other.restore({"strange": ""})


def test_it_is_a_class_to_derive_from():
    with pytest.raises(TypeError, match="abstract"):
        Tokenizer()

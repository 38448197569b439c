"""Tokens and texts, whole and in segments that divide characters."""

import numpy as np
import pytest

from tfdeq.serving.client import client_text
from tfdeq.serving.client.client_calls import NoSignatureError


def test_words():
    vocabulary = ["the", "cat", "<unk>"]
    assert client_text.encode_text("the dog", vocabulary).tolist() == [0, 2]
    assert client_text.decode_text(np.array([1, 0]), vocabulary) == " cat the"
    # As a byte, 300 would be a comma.
    for tokens, words in ((np.array([300]), None), (np.array([3]), vocabulary)):
        with pytest.raises(ValueError, match="Name the model's --vocabulary"):
            client_text.decode_text(tokens, words)
    with pytest.raises(ValueError, match="lacks: dog"):
        client_text.encode_text("the dog", vocabulary[:2])
    with pytest.raises(ValueError, match="at least one character"):
        client_text.encode_text(" ", None)


def answer(tokens, finish, steps, residual, status=0, **further):
    """An answer of a server, for one text."""
    row = np.full([1, 9], -1, np.int32)
    row[0, : len(tokens)] = tokens
    values = {"lengths": len(tokens), "finish": finish, "steps": steps, "status": status}
    return {
        "tokens": row,
        "residual": np.float32([residual]),
        **{name: np.int32([value]) for name, value in {**values, **further}.items()},
        "state_past": np.full([1, 2], steps, np.float32),
    }


def replies(*answers):
    """A server that gives these answers; and the requests that it received."""
    asked, left = [], list(answers)

    def predict(inputs, signature):
        asked.append((signature, inputs))
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return predict, asked


def test_segments_send_the_text_and_the_state_and_divide_no_character():
    euro = list("€".encode())
    predict, asked = replies(
        answer(euro[:1], 3, 10, 0.5, prompt_steps=8),
        answer([euro[1]], 3, 2, 0.7),
        answer([euro[2], 65, 200], 1, 3, 0.1, status=1),
    )
    settings = {"max_new_tokens": 5, "temperature": 0.5}
    parts = list(client_text.segments(predict, "ab", None, 1, 4, settings))
    assert [part.text for part in parts] == ["", "", "€A\N{REPLACEMENT CHARACTER}"]
    assert [signature for signature, _ in asked] == ["generate_first", *["generate_next"] * 2]
    texts = [inputs["tokens"].tolist() for _, inputs in asked]
    assert texts == [[[97, 98]], [[97, 98, 226]], [[97, 98, 226, 130]]]
    assert [inputs.get("drawn") for _, inputs in asked] == [None, [1], [2]]
    assert [inputs["segment_tokens"] for _, inputs in asked] == [[1], [4], [4]]
    assert [inputs.get("state_past", np.zeros([1, 1]))[0, 0] for _, inputs in asked] == [0, 10, 2]
    assert all(inputs["temperature"] == [0.5] for _, inputs in asked)
    whole = client_text.together(parts)
    assert whole.text == "€A\N{REPLACEMENT CHARACTER}"
    assert whole.tokens.tolist() == [*euro, 65, 200]
    assert (whole.finish, whole.steps, whole.prompt_steps, whole.status) == (1, 15, 8, 1)
    assert whole.residual == np.float32(0.7)


def test_words_in_segments():
    predict, _ = replies(answer([1], 3, 1, 0.0), answer([0, 1], 0, 1, 0.0))
    vocabulary = ["the", "cat"]
    parts = list(client_text.segments(predict, "the", vocabulary, 1, 4, {}))
    assert "".join(part.text for part in parts) == " cat the cat"


def test_a_model_without_segments():
    predict, asked = replies(NoSignatureError("no signature"), answer([65, 66], 2, 9, 0.0))
    (part,) = client_text.segments(predict, "a", None, 1, 4, {"seed": 3})
    assert (part.text, part.finish) == ("AB", 2)
    assert [signature for signature, _ in asked] == ["generate_first", "generate"]
    assert "segment_tokens" not in asked[1][1]


def test_a_rejected_text():
    predict, _ = replies(answer([], -1, 0, 3e38, status=-1))
    with pytest.raises(ValueError, match="The server rejected the text"):
        list(client_text.segments(predict, "a", None, 1, 4, {}))

"""The verification requests of a language model cover all of the model."""

import types

import numpy as np
import pytest

from tfdeq.serving.server.isolated import Request
from tfdeq.serving.verification import language_model_options as options


@pytest.mark.parametrize(
    ("size", "length"), [(7, 12), (256, 12), (257, 12), (10, 3), (50_000, 128), (5, 2), (5, 1)]
)
def test_every_token_is_read_and_predicted(size, length):
    model = types.SimpleNamespace(vocabulary_size=size, sequence_length=length)
    *asked, last = options.every_token_requests(model)
    rows = np.concatenate([request.inputs["tokens"] for request in asked])
    assert max(len(request.inputs["tokens"]) for request in asked) <= 32
    assert all((request.inputs["max_steps"] == 4).all() for request in asked)
    if length >= 3:
        assert rows.shape == (-(-size // (length - 2)), length)  # as few as hold them
        rows = rows[:, 1:-1]
        assert {request.signature for request in asked} == {"score"}
    assert set(rows.flat) == set(range(size))
    assert last.signature == "serving_default"
    assert last.inputs["lengths"] == (length if length >= 3 else 1)


GENERAL = {
    "status": np.int32([-1, -1]),
    "steps": np.int32([0, 0]),
    "residual": np.full(2, np.finfo(np.float32).max),
}
ANSWERS = {
    "continue_text": {
        "log_probabilities": np.full([2, 5], -np.log(5), np.float32),
        "log_likelihood": np.zeros([2, 4], np.float32),
        "memory_length": np.int32([2, 3]),
    },
    "generate": {
        "tokens": np.full([2, 4], -1, np.int32),
        "lengths": np.int32([0, 0]),
        "finish": np.int32([-1, -1]),
        "prompt_steps": np.int32([0, 0]),
    },
    "step": {
        "log_probabilities": np.full([2, 5], -np.log(5), np.float32),
        "equilibrium": np.zeros([2, 4, 3], np.float32),
    },
}


@pytest.mark.parametrize("signature", ANSWERS)
def test_rows_that_are_answered_though_invalid_are_found(signature):
    inputs = {
        "tokens": np.zeros([2, 4], np.int32),
        "lengths": np.int32([0, 9]),
        "memory_length": np.int32([2, 3]),
        "equilibrium": np.ones([2, 4, 3], np.float32),
    }
    asked = Request("invalid", signature, inputs)
    output = {**ANSWERS[signature], **GENERAL}
    assert options.check_invalid([asked], [output], "c").passed
    for name, value in output.items():
        wrong = {**output, name: np.concatenate([value[:1], value[1:] + value.dtype.type(1)])}
        if name == "residual":
            wrong[name] = np.float32([output[name][0], 0.5])
        check = options.check_invalid([asked], [wrong], "c")
        assert not check.passed, name
        assert check.text.startswith(f"{signature}, length 9: {name} is no invalid")

"""The checks before a served function: each request is checked before it shares a batch."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import fast
from tfdeq.serving.signatures import request_checks
from tfdeq.serving.signatures.batching import Batching, Queues
from tfdeq.serving.signatures.signature import Signature, trace

LENGTH = 40


def numbers():
    """x [B, 3], shift [B] -> y = x + shift, and the number of rows in the batch."""

    def function(x, shift):
        return {"y": x + shift[:, None], "batch": tf.fill(tf.shape(shift), tf.shape(x)[0])}

    specs = {"x": tf.TensorSpec([None, 3], name="x"), "shift": tf.TensorSpec([None], name="shift")}
    return Signature(trace(function, specs), {}, {})


def texts():
    """Texts and starts -> the valid tokens, their width, and the number of valid starts."""

    def function(tokens, lengths, equilibrium, equilibrium_lengths):
        inside = tf.sequence_mask(lengths, tf.shape(tokens)[1])
        return {
            "kept": tf.where(inside, tokens, 0),
            "lengths_seen": lengths,
            "width": tf.fill(tf.shape(lengths), tf.shape(tokens)[1]),
            "starts": equilibrium_lengths,
            "start_width": tf.fill(tf.shape(lengths), tf.shape(equilibrium)[1]),
        }

    specs = {
        "tokens": tf.TensorSpec([None, None], tf.int32, "tokens"),
        "lengths": tf.TensorSpec([None], tf.int32, "lengths"),
        "equilibrium": tf.TensorSpec([None, None, 2], tf.float32, "equilibrium"),
        "equilibrium_lengths": tf.TensorSpec([None], tf.int32, "equilibrium_lengths"),
    }
    return Signature(trace(function, specs), {}, {})


def guarded(signature, joined=True, most=10_000, widths=()):
    queues = Queues(Batching((1, 4), threads=1)) if joined else None
    return request_checks.guarded(signature, "name", most, queues, widths)


def ask(signature, **given):
    answer = signature.function(**{name: tf.constant(value) for name, value in given.items()})
    return {name: value.numpy() for name, value in answer.items()}


def text_request(tokens, lengths, equilibrium_lengths=0, places=3):
    batch = len(tokens)
    return {
        "tokens": np.asarray(tokens, np.int32),
        "lengths": np.asarray(lengths, np.int32),
        "equilibrium": np.zeros([batch, places, 2], np.float32),
        "equilibrium_lengths": np.full([batch], equilibrium_lengths, np.int32),
    }


@pytest.mark.parametrize("joined", [False, True])
def test_answers_are_those_of_the_function(joined):
    signature = guarded(numbers(), joined)
    x, shift = np.arange(18, dtype=np.float32).reshape(6, 3), np.arange(6, dtype=np.float32)
    for batch in (1, 3, 6):
        answer = ask(signature, x=x[:batch], shift=shift[:batch])
        np.testing.assert_array_equal(answer["y"], x[:batch] + shift[:batch, None])
    assert signature.joined == joined
    assert signature.function.structured_outputs["y"].shape.as_list() == [None, 3]


@pytest.mark.parametrize("joined", [False, True])
def test_an_empty_request_has_an_empty_answer(joined):
    answer = ask(guarded(numbers(), joined), x=np.zeros([0, 3], "float32"), shift=np.float32([]))
    assert {name: value.shape for name, value in answer.items()} == {"y": (0, 3), "batch": (0,)}


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(
    ("x", "shift", "words"),
    [
        ([2, 3], [3], "all inputs must have the same number of rows; shift, x have"),
        ([2, 3], [1], "the same number of rows"),  # which would be broadcast
        ([500, 3], [500], "may have 2000 numbers together; send fewer or shorter rows"),
    ],
)
def test_what_is_refused(joined, x, shift, words):
    signature = guarded(numbers(), joined, most=2000)
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        ask(signature, x=np.zeros(x, np.float32), shift=np.zeros(shift, np.float32))


def test_the_limit_counts_the_request_and_its_answer():
    # A row: 3 + 1 numbers in, 3 + 1 out.
    request = {"x": np.zeros([5, 3], np.float32), "shift": np.zeros([5], np.float32)}
    assert ask(guarded(numbers(), most=40), **request)["y"].shape == (5, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="39 numbers"):
        ask(guarded(numbers(), most=39), **request)


def test_a_wide_text_counts_as_often_as_the_answer_repeats_it():
    # Tokens and the answer's `kept` are as wide as the request; the start has 2 numbers per place.
    request = text_request(np.ones([2, 30]), [1, 1], places=3)
    numbers = 2 * (30 + 1 + 3 * 2 + 1) + 2 * (30 + 4)
    assert ask(guarded(texts(), most=numbers, widths=(8, LENGTH)), **request)["kept"].shape == (
        2,
        30,
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="numbers together"):
        ask(guarded(texts(), most=numbers - 1, widths=(8, LENGTH)), **request)


def test_texts_come_in_the_least_width_and_leave_in_their_own():
    signature = guarded(texts(), widths=(8, 16, LENGTH))
    for given, lengths, width in (
        (5, [5, 1], 8),
        (8, [8, 8], 8),
        (9, [9, 2], 16),
        (17, [17, 3], LENGTH),
        (LENGTH, [2, 7], 8),  # the needed width, not the padded one
        (LENGTH + 30, [LENGTH, 3], LENGTH),
        (LENGTH + 30, [3, 3], 8),
        (0, [0, 0], 8),
    ):
        tokens = 1 + np.arange(2 * given).reshape(2, given)
        answer = ask(signature, **text_request(tokens, lengths))
        kept = np.where(np.arange(given) < np.array(lengths)[:, None], tokens, 0)
        np.testing.assert_array_equal(answer["kept"], kept)
        assert answer["width"].tolist() == [width] * 2
        assert answer["start_width"].tolist() == [width] * 2


@pytest.mark.parametrize(
    "length", fast([-1, 6, 2**31 - 1], [0, -1, 6, LENGTH, LENGTH + 1, 2**31 - 1, -(2**31)])
)
def test_a_length_that_the_request_has_no_room_for_becomes_0(length):
    """Padding to a width would make room for it."""
    request = text_request(np.ones([2, 5]), [length, 4])
    answer = ask(guarded(texts(), widths=(8, LENGTH)), **request)
    assert answer["lengths_seen"].tolist() == [0, 4]


@pytest.mark.parametrize(
    ("given", "counts"), fast([(3, 3), (4, 0)], [(3, 3), (4, 0), (-1, 0), (2**31 - 1, 0)])
)
def test_a_start_of_fewer_places_than_it_says_is_none(given, counts):
    request = text_request(np.ones([1, 5]), [5], equilibrium_lengths=given, places=3)
    assert ask(guarded(texts(), widths=(8, LENGTH)), **request)["starts"].tolist() == [counts]


@pytest.mark.parametrize(
    ("length", "widths"),
    [(1, [1]), (16, [16]), (17, [16, 17]), (128, [16, 32, 64, 128]), (100, [16, 25, 50, 100])],
)
def test_widths(length, widths):
    assert request_checks.text_widths(length) == widths


def test_rows_of_an_open_size_are_not_joined():
    """Neither the server nor the model can tell what was padded."""
    spec = {"x": tf.TensorSpec([None, None, 3], name="x")}
    signature = Signature(trace(lambda x: {"y": 2 * x}, spec), {}, {})
    assert not request_checks.can_join(signature)
    found = request_checks.guard_all({"a": signature, "b": numbers()}, Batching())
    assert {name: one.joined for name, one in found.items()} == {"a": False, "b": True}
    for length in (0, 2, 7):
        x = np.ones([2, length, 3], np.float32)
        np.testing.assert_array_equal(ask(found["a"], x=x)["y"], 2 * x)


def test_without_batching_nothing_is_joined_and_gradients_pass():
    found = request_checks.guard_all({"a": numbers()}, None)["a"]
    x = tf.ones([2, 3])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = found.function(x=x, shift=tf.zeros([2]))["y"]
    np.testing.assert_array_equal(tape.gradient(y, x), np.ones([2, 3]))


def test_the_limit_of_a_version():
    signature = numbers()
    found = request_checks.guard_all({"a": signature}, Batching((1, 4)))["a"]
    assert found.max_request_values == request_checks.MOST_VALUES
    found = request_checks.guard_all({"a": signature}, Batching((1, 4_000_000)))["a"]
    assert found.max_request_values == 8 * 4_000_000  # the largest batch is answered
    with pytest.raises(ValueError, match=r"at least 8.*one row and its answer; received 7"):
        request_checks.guard_all({"a": signature}, Batching(), max_request_values=7)


def test_what_is_joined_is_optimised_as_ever():
    """BatchFunction does not optimise its function, except a call in it that is not inlined."""
    function = guarded(numbers()).function
    definitions = {
        each.signature.name: each for each in function.graph.as_graph_def().library.function
    }
    (joined,) = (node for node in function.graph.as_graph_def().node if node.op == "BatchFunction")
    body = definitions[joined.attr["f"].func.name]
    (call,) = (node for node in body.node_def if node.op.endswith("PartitionedCall"))
    assert definitions[call.attr["f"].func.name].attr["_noinline"].b

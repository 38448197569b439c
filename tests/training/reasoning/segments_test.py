"""Deep supervision: the puzzles and starts of a step, and that no gradient is passed on."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeq.adjoints import Unrolled
from tfdeq.cells import RecallConvolution
from tfdeq.models import Reasoner
from tfdeq.solvers import FixedPointIteration
from tfdeq.training.reasoning.loss import PuzzleLoss
from tfdeq.training.reasoning.segments import Segments
from tfdeq.training.task import CallSettings

SETTINGS = CallSettings(0, tf.constant(3), training=True)
FIRST = np.array([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]], "int32")
SECOND = 1 - FIRST


def _targets(inputs):
    return np.cumsum(inputs, axis=1).astype("int32") % 2


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    solver = FixedPointIteration(max_steps=3, tolerance=1e-9)
    made = Reasoner(2, 2, RecallConvolution(4, 1), solver, Unrolled(3))
    made.build((None, 5))
    return made


def _first(segments):
    """Returns the state for the first step, with complete puzzles for all rows."""
    return segments.initial(2)._replace(segment=tf.zeros(2, tf.int32))


def _steps(model, count, halting, batches, settings=SETTINGS):
    """Returns the states that steps over some batches pass on, and their losses."""
    segments = Segments(model, count, halting)
    loss = PuzzleLoss(model, 0.0, segments=segments)
    carried, found = _first(segments), []
    for inputs in batches:
        made = loss((inputs, _targets(inputs)), settings, carried)
        carried = made.carried
        found.append((carried, float(made.value)))
    return found


def test_a_puzzle_stays_and_goes_on(model):
    steps = _steps(model, 2, "none", [FIRST, SECOND, SECOND])
    (one, _), (two, loss), (three, _) = steps
    np.testing.assert_array_equal(two.inputs, FIRST)
    np.testing.assert_array_equal(two.targets, _targets(FIRST))
    np.testing.assert_array_equal(three.inputs, SECOND)
    assert [each.segment.numpy().tolist() for each, _ in steps] == [[1, 1], [0, 0], [1, 1]]
    # Twice three applications equal six, and the next puzzle starts again.
    logits, six = model(FIRST, explicit_steps=6, return_solution=True)
    np.testing.assert_allclose(two.z, six.z, atol=1e-5)
    nats = keras.losses.sparse_categorical_crossentropy(_targets(FIRST), logits, from_logits=True)
    assert loss == pytest.approx(float(np.mean(nats)), rel=1e-5)
    _, other = model(SECOND, explicit_steps=3, return_solution=True)
    np.testing.assert_allclose(three.z, other.z, atol=1e-5)
    assert one.z.shape == (2, 5, 4)


def test_no_gradient_passes_from_one_segment_to_the_next(model):
    segments = Segments(model, 2, "none")
    loss = PuzzleLoss(model, 0.0, segments=segments)
    first = loss((FIRST, _targets(FIRST)), SETTINGS, _first(segments)).carried
    with tf.GradientTape() as tape:
        carried = loss((FIRST, _targets(FIRST)), SETTINGS, _first(segments)).carried
        value = loss((SECOND, _targets(SECOND)), SETTINGS, carried).value
    with tf.GradientTape() as alone:
        expected = loss((SECOND, _targets(SECOND)), SETTINGS, first).value
    weights = model.trainable_variables
    pairs = zip(tape.gradient(value, weights), alone.gradient(expected, weights), strict=True)
    for one, other in pairs:
        one, other = map(tf.convert_to_tensor, (one, other))
        np.testing.assert_allclose(one, other, atol=1e-6)  # float32


def test_a_puzzle_leaves_once_its_answer_is_right(model):
    """Of two rows, the one whose targets are the model's answer."""
    logits = model(FIRST, explicit_steps=3)
    said = np.argmax(logits, -1).astype("int32")
    targets = np.stack([said[0], 1 - said[1]])
    segments = Segments(model, 9, "exact")
    made = PuzzleLoss(model, 0.0, segments=segments)((FIRST, targets), SETTINGS, _first(segments))
    assert made.carried.segment.numpy().tolist() == [0, 1]
    again = segments.begin((SECOND, _targets(SECOND)), made.carried, training=True)
    np.testing.assert_array_equal(again.inputs, [SECOND[0], FIRST[1]])
    np.testing.assert_array_equal(again.z[0], np.zeros((5, 4)))
    np.testing.assert_array_equal(again.z[1], made.carried.z[1])


def test_a_puzzle_leaves_once_it_has_settled():
    keras.utils.set_random_seed(0)
    solver = FixedPointIteration(max_steps=200, tolerance=1e-3)
    model = Reasoner(2, 2, RecallConvolution(4, 1, recurrent_scale=0.2), solver, Unrolled(2))
    model.build((None, 5))
    for budget, left in ((1, 1), (200, 0)):
        settings = SETTINGS._replace(max_steps=tf.constant(budget))
        ((carried, _),) = _steps(model, 9, "settled", [FIRST], settings)
        assert carried.segment.numpy().tolist() == [left, left]


def test_rows_change_their_puzzles_at_different_times(model):
    segments = Segments(model, 3)
    carried, left = segments.initial(4), []
    inputs = np.concatenate([FIRST, SECOND])
    for _ in range(4):
        logits, solution = model(inputs, explicit_steps=1, return_solution=True)
        begun = segments.begin((inputs, _targets(inputs)), carried, training=True)
        carried = segments.end(begun, logits, solution)
        left.append(carried.segment.numpy().tolist())
    assert left == [[1, 2, 0, 1], [2, 0, 1, 2], [0, 1, 2, 0], [1, 2, 0, 1]]


def test_bad_halting(model):
    with pytest.raises(ValueError, match="halting must be one of none, exact, settled"):
        Segments(model, 2, "soon")

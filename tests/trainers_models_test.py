import math

import numpy as np
import pytest
import tensorflow as tf

from tests.cases import contracting_language_model
from trainers.models import radius_of, token_loss


@pytest.fixture(scope="module")
def model():
    return contracting_language_model(vocabulary_size=9, length=6)


def test_the_loss_is_the_mean_negative_log_likelihood(model):
    tokens = tf.constant(np.random.default_rng(0).integers(0, 9, (3, 6)), tf.int32)
    targets = tf.constant(np.random.default_rng(1).integers(0, 9, (3, 6)), tf.int32)
    loss = token_loss(model, (tokens, targets), 0, tf.constant(20), False)
    logits = model(tokens, max_steps=20).numpy()
    likelihood = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = [-math.log(likelihood[i, t, targets[i, t]]) for i in range(3) for t in range(6)]
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)
    applied = token_loss(model, (tokens, targets), 2, tf.constant(20), False)
    assert float(applied) != float(loss)


def test_the_radius_is_the_same_each_time_and_below_one_where_it_contracts(model):
    tokens = tf.constant(np.random.default_rng(0).integers(0, 9, (5, 6)), tf.int32)
    radius = radius_of(model, examples=3)
    first, second = radius((tokens, tokens)), radius((tokens, tokens))
    assert first.shape == (3,)
    np.testing.assert_array_equal(first, second)
    assert 0 < float(tf.reduce_max(first)) < 1

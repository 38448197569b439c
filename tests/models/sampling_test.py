"""Drawing tokens: the distribution, its options and edge cases."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tests.support.cases import fast
from tfdeq.models.sampling import sample

LOGITS = np.log(np.float32([0.05, 0.4, 0.2, 0.3, 0.05]))
DRAWS = 20_000


def draw(logits=LOGITS, uniform=None, temperature=1.0, top_k=0, top_p=0.0, jit_compile=False):
    if uniform is None:
        uniform = np.random.default_rng(0).random(DRAWS)
    uniform = np.float32(uniform)
    count = len(uniform)
    function = tf.function(sample, jit_compile=jit_compile)
    return function(
        tf.constant(np.broadcast_to(np.float32(logits), (count, len(logits)))),
        tf.constant(uniform),
        tf.fill([count], tf.constant(temperature, tf.float32)),
        tf.fill([count], top_k),
        tf.fill([count], tf.constant(top_p, tf.float32)),
    ).numpy()


# Options, and the resulting shares.
CASES = [
    ({}, [0.05, 0.4, 0.2, 0.3, 0.05]),
    # p ** (1 / temperature), renormalised
    ({"temperature": 0.5}, [p / 0.295 for p in (0.0025, 0.16, 0.04, 0.09, 0.0025)]),
    ({"temperature": 1e9}, [0.2] * 5),
    ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
    ({"top_p": 0.5}, [0, 4 / 7, 0, 3 / 7, 0]),
    ({"top_p": 0.85}, [0, 4 / 9, 2 / 9, 3 / 9, 0]),
    # top_p applies to the result of top_k: of 4/7 and 3/7, the first alone reaches 0.5
    ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0, 0]),
    ({"top_k": 9, "top_p": 1.0}, [0.05, 0.4, 0.2, 0.3, 0.05]),
]


@pytest.mark.parametrize(
    ("options", "expected", "jit_compile"),
    fast(
        [*((*case, False) for case in CASES), (*CASES[0], True), (*CASES[5], True)],
        [(*case, jit_compile) for case in CASES for jit_compile in (False, True)],
    ),
)
def test_distribution(options, expected, jit_compile):
    counts = np.bincount(draw(jit_compile=jit_compile, **options), minlength=5)
    expected = DRAWS * np.asarray(expected)
    assert not counts[expected == 0].any()
    possible = expected > 0
    if possible.sum() > 1:
        # A correct sampler fails for one seed in a thousand; this seed is fixed.
        assert scipy.stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan])
def test_without_a_temperature_the_likeliest(temperature):
    assert (draw(uniform=[0.0, 0.5, 0.999], temperature=temperature, top_k=3) == 1).all()


@pytest.mark.parametrize("temperature", [1e-30, np.inf])
def test_extreme_temperatures_draw_a_token(temperature):
    tokens = draw(uniform=[0.0, 0.5, 0.99999994], temperature=temperature)
    assert ((tokens >= 0) & (tokens < 5)).all()
    if temperature < 1:
        assert (tokens == 1).all()


def test_the_largest_draw_never_leaves_what_may_be_drawn():
    largest = np.nextafter(np.float32(1), np.float32(0))
    assert draw(uniform=[largest], top_k=2) == 3
    assert draw(uniform=[0.0]) == 1
    many = np.random.default_rng(1).normal(size=50_000)
    assert many[draw(many, uniform=[largest], top_k=10)[0]] == np.sort(many)[-10]


def test_each_sample_has_options_of_its_own():
    tokens = sample(
        tf.constant(np.stack([LOGITS] * 3)),
        tf.constant([0.9, 0.9, 0.9]),
        tf.constant([0.0, 1.0, 1.0]),
        tf.constant([0, 2, 1]),
        tf.zeros([3]),
    )
    assert tokens.numpy().tolist() == [1, 3, 1]


def test_an_empty_batch():
    empty = tf.zeros([0])
    assert sample(tf.zeros([0, 5]), empty, empty, tf.zeros([0], tf.int32), empty).shape == (0,)

"""Certified accuracy, and the attack that checks it."""

import keras
import numpy as np
import pytest

import tfdeq
from benchmarks.images.certified_accuracy import Attack, measure


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    cell = tfdeq.cells.MonotoneConvolution(3, monotonicity=1.0)
    layers = [
        tfdeq.DEQLayer(cell, "peaceman_rachford"),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]
    return keras.Sequential([keras.Input((4, 4, 1)), *layers])


@pytest.fixture(scope="module")
def attack(model):
    return Attack(model, steps=15, restarts=2)


PICTURES = np.random.default_rng(0).random((6, 4, 4, 1), "float32")


@pytest.mark.slow
def test_no_attack_succeeds_inside_and_most_do_outside(model, attack):
    answers = np.argmax(model(PICTURES), axis=1)
    with tfdeq.SolveScope(tolerance=1e-6, max_steps=100):
        found = measure(model, PICTURES, answers, [0.01, 20.0], attack, batch_size=3)
    assert found["accuracy"] == 1.0  # the labels are the answers
    assert found["attacks_inside_the_radius"] == 0
    assert found["median_radius"] > 0.01
    assert found["certified"]["0.01"] > 0.5 > found["certified"]["20"]
    assert found["attacked"]["0.01"] >= found["certified"]["0.01"]
    assert found["attacked"]["20"] < 0.5


def test_a_radius_that_is_too_large_is_found_out(model, attack):
    answers = np.argmax(model(PICTURES), axis=1)
    radius = tfdeq.certified_radius(model, PICTURES).numpy()
    assert attack.succeeds(PICTURES, answers, 20 * radius).sum() >= 3
    assert not attack.succeeds(PICTURES, answers, 0 * radius).any()

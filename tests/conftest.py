"""Settings that hold for every test."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import gc
import pathlib
import random

import hypothesis
import keras
import numpy as np
import pytest
from tensorflow.python.framework import ops

from tests.support.shared_folder import shared_folder

# What the imports left stays to the end. Each collection would look through it, which takes time.
gc.collect()
gc.freeze()
gc.set_threshold(10_000, 20, 20)

# A solve in a fresh mode includes its compilation: time per example says nothing. Derandomised, a
# failure seen once is seen again.
hypothesis.settings.register_profile("tfdeq", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tfdeq")


@pytest.fixture(autouse=True)
def _fixed_keras_state(request):
    """Seeds before each test; the dtype policy and losses of one test never reach another.

    TensorFlow's own seed has it forget every function that it has prepared, and the next call of a large
    one takes seconds. A module with FUNCTIONS_ARE_KEPT = True keeps them from test to test: nothing in it
    may draw by TensorFlow's stateful operations.
    """
    if getattr(request.module, "FUNCTIONS_ARE_KEPT", False):
        random.seed(1234)
        np.random.seed(1234)
    else:
        keras.utils.set_random_seed(1234)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True, scope="module")
def _graphs_are_freed():
    """After each module, what keeps its graphs alive goes: TensorFlow's registry of custom gradients.

    It has an entry for each tf.custom_gradient in each trace, and each entry holds its graph. A run of all
    tests would grow to many GiB, and become slower as it grows.
    """
    yield
    registry = ops.gradient_registry._registry
    for name in [name for name in registry if name.startswith("CustomGradient-")]:
        del registry[name]


@pytest.fixture(scope="session")
def serving_executable():
    """The C++ program, compiled once for all tests that ask for it."""
    from tfdeq.serving.server import serving_program

    root = pathlib.Path(__file__).absolute().parents[1]
    return serving_program.build(root / serving_program.PROGRAM)


@pytest.fixture(scope="session")
def verified_run(tmp_path_factory):
    """A trainer's folder with the version `export/1` in it, one for all workers, and only for reading."""
    # Here, so that tests that need no TensorFlow start without.
    from tests.support.verified_run import write

    return shared_folder(tmp_path_factory, "run", write)

"""Settings for all tests."""

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

# The first solve in a mode includes compilation, so the time per example is not limited.
# Derandomised, so that failures can be reproduced.
hypothesis.settings.register_profile("tfdeq", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tfdeq")

# Tracing makes hundreds of thousands of small objects, on which the collector spends a twentieth of the
# tests' time by its default thresholds. What the imports have made stays, so it is never looked at again.
gc.freeze()
gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True)
def _fixed_keras_state(request):
    """Sets seeds before each test, and resets the dtype policy and losses.

    Setting TensorFlow's seed discards all functions that it has prepared, and the next call of a large
    one takes seconds. A module with FUNCTIONS_ARE_KEPT = True keeps them between tests; it must not use
    TensorFlow's stateful random operations.
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
    """Clears TensorFlow's registry of custom gradients after each module, which keeps graphs alive.

    It has an entry for each tf.custom_gradient in each trace, and each entry holds its graph. Otherwise
    a run of all tests would need many GiB and become slower and slower.
    """
    yield
    registry = ops.gradient_registry._registry
    for name in [name for name in registry if name.startswith("CustomGradient-")]:
        del registry[name]


@pytest.fixture(scope="session")
def serving_executable():
    """The C++ program, compiled once for all tests that use it."""
    from tfdeq.serving.server import serving_program

    root = pathlib.Path(__file__).absolute().parents[1]
    return serving_program.build(root / serving_program.PROGRAM)


@pytest.fixture(scope="session")
def verified_run(tmp_path_factory):
    """A trainer's folder with the version `export/1`; it is shared by all workers and read-only."""
    # Imported here, so that tests that do not need TensorFlow start without it.
    from tests.support.verified_run import write

    return shared_folder(tmp_path_factory, "run", write)

"""Settings that hold for every test."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pathlib

import hypothesis
import keras
import pytest

# A solve in a fresh mode includes its compilation: time per example says nothing. Derandomised, a
# failure seen once is seen again.
hypothesis.settings.register_profile("tfdeq", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tfdeq")


@pytest.fixture(autouse=True)
def _fixed_keras_state():
    """Seeds before each test; the dtype policy and losses of one test never reach another."""
    keras.utils.set_random_seed(1234)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def serving_executable():
    """The C++ program, compiled once for all tests that ask for it."""
    from export import serving_program

    root = pathlib.Path(__file__).absolute().parent.parent
    return serving_program.build(root / serving_program.PROGRAM)


@pytest.fixture(scope="session")
def verified_run(tmp_path_factory):
    """A trainer's folder with the version `export/1` in it, for those who only read it."""
    # Here, so that tests that need no TensorFlow start without.
    from tests.verified_run import write

    return write(tmp_path_factory.mktemp("run"))

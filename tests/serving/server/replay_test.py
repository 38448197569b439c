"""Many clients of a served version: even hostile ones do not affect others or the server."""

import json
import pathlib
import subprocess
import sys

import keras
import pytest

import tfdeq
from tests.support.memory_cases import equilibrium
from tfdeq.serving.versions import saved_model

ROOT = pathlib.Path(__file__).absolute().parents[3]
# Small, so that a request with too many numbers is made quickly.
MOST_VALUES = 20_000


def dense_model(places=()):
    """Returns a model of x [B, 8], or of x [B, places, 8] with any number of places."""
    keras.utils.set_random_seed(0)
    x, z = keras.Input((*places, 8), name="x"), keras.Input((*places, 8))
    dense = keras.layers.Dense(8, kernel_initializer=keras.initializers.Orthogonal(0.5))
    cell = keras.Model([z, x], keras.ops.tanh(dense(z) + x))
    return keras.Model(x, keras.layers.Dense(3)(tfdeq.DEQLayer(cell, "anderson")(x)))


# "places": a server cannot tell what was padded there, so its requests are not joined.
MODELS = {
    "dense": dense_model,
    "places": lambda: dense_model([None]),
    "text": lambda: equilibrium(span=4),
}


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    found = {}

    def export(name):
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            model = MODELS[name]()
            found[name] = saved_model.export(model, folder, max_request_values=MOST_VALUES)
        return found[name]

    return export


def replay(path, requests, clients):
    """Returns the findings of tests/support/replay.py, from a process that may crash."""
    command = [sys.executable, "-m", "tests.support.replay", str(path)]
    finished = subprocess.run(
        [*command, f"--requests={requests}", f"--clients={clients}"],
        cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads(finished.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "requests", "clients"),
    [
        ("dense", 300, 8),
        ("places", 300, 8),
        *((name, 10_000, clients) for name in MODELS for clients in (8, 32)),
    ],
)
def test_every_request_gets_its_own_answer(version, name, requests, clients):
    found = replay(version(name), requests, clients)
    assert found["wrong"] == 0, found["first_wrong"]
    assert found["requests"] == requests
    assert found["rows"] > requests  # rows that are answered
    assert found["bad_rows"] > 0.05 * requests
    assert found["refused"] > 0.05 * requests
    assert found["empty"] > 0
    # Rows for which rounding decides whether the solve stops one step apart.
    assert found["near"] < 0.03 * found["rows"]
    if requests >= 10_000:
        resident = found["resident_mib"]  # at 20 moments
        assert max(resident[-5:]) < 1.05 * max(resident[5:10]) + 20, resident

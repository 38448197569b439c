"""The C++ program: when it is built, its answers, and its errors for bad requests."""

import os
import pathlib
import shutil
import subprocess
import sys
import types

import keras
import numpy as np
import pytest

import tfdeq
from export import serving_program as timing_program
from tfdeq.serving.server import serving_program
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.versions import manifest, saved_model

ROOT = pathlib.Path(__file__).absolute().parents[3]


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    keras.utils.set_random_seed(3)
    x, z = keras.Input((2,), name="x"), keras.Input((2,))
    cell = keras.Model([z, x], keras.ops.tanh(0.5 * z + x))
    model = keras.Model(x, tfdeq.DEQLayer(cell)(x))
    return saved_model.export(
        model,
        tmp_path_factory.mktemp("output"),
        examples={"x": np.ones([2, 2], np.float32)},
        batch_sizes=[1, 3],
    )


def request(signature="serving_default", **changes):
    inputs = {
        "x": np.ones([2, 2], np.float32),
        "tolerance": np.zeros(2, np.float32),
        "max_steps": np.zeros(2, np.int32),
    }
    return Request("probe", signature, {**inputs, **changes})


def test_answers_and_times(version, serving_executable):
    requests = [request(), request(x=np.zeros([2, 2], np.float32))]
    found = serving_program.answer(serving_executable, version, requests, rounds=4, clients=2)
    assert found.first_seconds.shape == (2,)
    assert found.seconds.shape == (4, 2)
    assert (found.seconds > 0).all()
    assert found.elapsed_seconds <= found.seconds.sum()
    assert not found.outputs[1]["output_0"].any()
    assert (found.outputs[0]["residual"] <= 1e-3).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (request("other"), "no signature other"),
        (request(y=np.zeros(2, np.float32)), "no input y"),
        (request(x=np.ones([2, 2], np.int32)), "could not run serving_default"),
        pytest.param(
            request(x=np.ones([2, 5], np.float32)),
            "could not run serving_default",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            request(tolerance=np.zeros(3, np.float32)),
            "could not run serving_default",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_requests_are_errors_in_words(version, serving_executable, wrong, message):
    with pytest.raises(ChildProcessError, match=message):
        serving_program.answer(serving_executable, version, [wrong])


def test_no_version(serving_executable, tmp_path):
    with pytest.raises(ChildProcessError, match="could not load"):
        serving_program.answer(serving_executable, tmp_path, [])


def test_it_is_built_again_only_when_it_is_old(serving_executable, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    assert serving_program.build(serving_executable) == serving_executable
    with pytest.raises(FileNotFoundError, match="Install a C\\+\\+ compiler"):
        serving_program.build(tmp_path / "program")
    old = tmp_path / "old"
    old.write_text("")
    os.utime(old, (0, 0))
    with pytest.raises(FileNotFoundError, match="compiler"):
        serving_program.build(old)


def test_a_source_that_does_not_compile(tmp_path, monkeypatch):
    source = tmp_path / "broken.cc"
    source.write_text("int main() { return nothing; }")
    monkeypatch.setattr(serving_program, "SOURCE", source)
    with pytest.raises(ChildProcessError, match="(?s)broken.cc does not compile.*nothing"):
        serving_program.build(tmp_path / "program")
    assert not (tmp_path / "program").exists()


@pytest.mark.slow
def test_the_program_times_a_versions_warm_up_records(version, serving_executable):
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "export.serving_program", f"--model={version}"),
            *(f"--program={serving_executable}", "--rounds=2"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert finished.returncode == 0, finished.stderr
    rows = [line.split() for line in finished.stdout.splitlines()[2:]]
    assert [(row[0], row[1]) for row in rows] == [
        (name, batch) for batch in ("1", "3") for name in ("serving_default", "encode", "step")
    ]


def test_a_changed_version_is_refused(version, serving_executable, tmp_path, monkeypatch):
    path = shutil.copytree(version, tmp_path / "1")
    (path / "assets.extra" / "model_card.json").write_text("{}")
    flags = types.SimpleNamespace(model=str(path), program=str(serving_executable))
    monkeypatch.setattr(timing_program, "FLAGS", flags)
    with pytest.raises(manifest.ChangedVersionError, match="assets.extra/model_card.json"):
        timing_program.main()

"""Verification: the real program on a correct version, and the findings on wrong ones."""

import json
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from export import verify as verify_program
from tests.support.verified_run import language_model
from tfdeq.serving.kinds import runs
from tfdeq.serving.server import isolated
from tfdeq.serving.verification import checks, run_checks, verify
from tfdeq.serving.versions import manifest, saved_model, verified

ROOT = pathlib.Path(__file__).absolute().parents[3]


@pytest.fixture(scope="module")
def workdir(verified_run, tmp_path_factory):
    """A copy of the run for this module, which may write to it."""
    return shutil.copytree(verified_run, tmp_path_factory.mktemp("own") / "run")


@pytest.mark.slow
def test_the_program_passes_a_version_that_is_right(workdir):
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "export.verify", f"--workdir={workdir}"),
            *(f"--model={workdir / 'export' / '1'}", f"--prepared_dir={workdir / 'prepared'}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads((workdir / "export_report.json").read_text())
    assert report["passed"]
    assert report["processes"]["c"]["imported"] == []
    assert set(report["processes"]["c"]["blocked"]) >= {"tfdeq", "tensorflow"}
    assert "tfdeq" in report["processes"]["tensorflow"]["blocked"]
    assert len(report["checks"]) == 20
    assert finished.stdout.count("ok    ") == 20
    for check in report["checks"]:
        assert check["values"].get("largest_difference", 0.0) <= 1e-5
    assert "The version answers as the Keras model does" in finished.stdout
    assert report["digest"] == manifest.digest(workdir / "export" / "1")
    assert verified.standing(report) == "passed"


@pytest.mark.slow
def test_a_version_of_another_model_is_found(workdir, tmp_path, monkeypatch):
    run = runs.read(workdir, data=False)
    path = saved_model.export(language_model(seed=4), tmp_path)
    assert not run_checks.check_source(path, run.card).passed
    monkeypatch.setattr(isolated, "RUNTIMES", {"c": isolated.RUNTIMES["c"]})
    stream = np.frombuffer((workdir / "0.txt").read_bytes(), np.uint8)
    found, _ = verify.verify(run.kind.model, path, {"tokens": stream[None]})
    names = [check.name for check in found if not check.passed]
    assert names == ["the Keras model of the version", "c: equal to the Keras model"]


def test_altered_files_are_found(workdir, tmp_path):
    path = shutil.copytree(workdir / "export" / "1", tmp_path / "1")
    assert checks.check_files(path).passed
    (path / "saved_model.pb").write_bytes(b"another graph")
    (path / "assets.extra" / "more").write_text("")
    (path / "variables" / "variables.index").unlink()
    check = checks.check_files(path)
    assert not check.passed
    assert check.values["wrong"] == [
        *("assets.extra/more", "saved_model.pb", "variables/variables.index"),
    ]
    # It is not loaded.
    model = runs.read(workdir, data=False).kind.model
    found, facts = verify.verify(model, path, {"tokens": np.arange(100)})
    assert [each.passed for each in found] == [False]
    assert not facts
    (path / "assets.extra" / "manifest.json").write_text("{}")
    assert "has changed since export.saved_model wrote it" in checks.check_files(path).text
    (path / "assets.extra" / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="Export the model again"):
        verify.verify(model, path, {"tokens": np.arange(100)})


@pytest.mark.slow
def test_ops_that_a_server_lacks_are_found(workdir):
    path = workdir / "export" / "1"
    ops = isolated.answer(path, [], "c").facts["runnable_ops"]
    assert checks.check_ops(path, ops).passed
    assert "MatMul" in ops
    check = checks.check_ops(path, set(ops) - {"While", "StatelessWhile", "MatMul"})
    assert not check.passed
    assert "MatMul" in check.values["lacking"]


def test_a_python_op_is_one_that_a_server_lacks(tmp_path):
    module = tf.Module()
    module.f = tf.function(
        lambda x: {"y": tf.numpy_function(np.sin, [x], tf.float32)},
        input_signature=[tf.TensorSpec([None], tf.float32, "x")],
    )
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.f})
    ops = runtime_ops()
    assert checks.check_ops(tmp_path, ops).values["lacking"] == ["PyFunc"]


def runtime_ops():
    """The ops of the C++ runtime, from a process without other libraries."""
    program = "import runtime; print(*sorted(runtime.runnable_ops()))"
    folder = ROOT / "tfdeq" / "serving" / "server"
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=55
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()


def own_model(scale=0.6):
    keras.utils.set_random_seed(3)
    x, z = keras.Input((4,), name="x"), keras.Input((4,))
    dense = keras.layers.Dense(4, kernel_initializer=keras.initializers.Orthogonal(scale))
    cell = keras.Model([z, x], keras.ops.tanh(dense(z) + x))
    return keras.Model(x, tfdeq.DEQLayer(cell, "anderson")(x))


@pytest.mark.slow
def test_a_model_of_a_users_own(tmp_path, monkeypatch):
    examples = {"x": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}
    path = saved_model.export(own_model(), tmp_path, examples=examples, batch_sizes=[1, 8])
    found, facts = verify.verify(own_model(), path, examples)
    assert all(check.passed for check in found), [check.text for check in found]
    assert len(found) == 14
    assert facts.keys() == isolated.RUNTIMES.keys()
    monkeypatch.setattr(isolated, "RUNTIMES", {"c": isolated.RUNTIMES["c"]})
    found, _ = verify.verify(own_model(scale=0.5), path, examples)
    assert not any(check.passed for check in found if "Keras model" in check.name)


@pytest.mark.slow
def test_answers_that_depend_on_the_batch_are_found(tmp_path):
    """A head that subtracts the batch's mean is right for single examples, and wrong in batches."""
    x, z = keras.Input((4,), name="x"), keras.Input((4,))
    cell = keras.Model([z, x], keras.ops.tanh(0.5 * z + x))
    h = tfdeq.DEQLayer(cell)(x)
    model = keras.Model(x, h - 0.1 * keras.ops.mean(h, axis=0, keepdims=True))
    examples = {"x": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}
    path = saved_model.export(model, tmp_path)
    found, _ = verify.verify(model, path, examples)
    failed = {check.name for check in found if not check.passed}
    assert "c: independent of padding and neighbours" in failed


def test_records_with_an_invalid_example_are_found():
    request = isolated.Request("warm-up", "serving_default", {})
    good, bad = {"status": np.int32([0, 1])}, {"status": np.int32([0, -1])}
    assert checks.check_warm_up([request], [good], "c").passed
    check = checks.check_warm_up([request, request], [good, bad], "c")
    assert not check.passed
    assert "batch of 2" in check.text


def test_whole_numbers_must_be_equal():
    reference = {"tokens": np.int32([100_000, 5]), **solved(-1.0, 3, 1e-4)}
    answer = {**reference, "tokens": np.int32([100_001, 5])}
    assert not checks.compare("test", [("probe", answer, reference)], 1e-3).passed


def flags(monkeypatch, **values):
    defaults = {"prepared_dir": None, "report": None}
    monkeypatch.setattr(verify_program, "FLAGS", type("Flags", (), {**defaults, **values}))


def test_missing_version_names_the_command(workdir, monkeypatch):
    flags(monkeypatch, workdir=str(workdir), model=str(workdir / "export" / "9"))
    with pytest.raises(FileNotFoundError, match=r"python -m export\.saved_model --workdir="):
        verify_program.main()


def test_config_without_a_data_set():
    with pytest.raises(
        ValueError, match=r"config\.json is missing, or names no data set.*--nodata"
    ):
        runs.tokens_of_test({}, 256, None)


def dial(residuals, status=0):
    shape = (checks.DIAL_EXAMPLES, len(checks.TOLERANCES))
    return {
        "residual": np.broadcast_to(np.float32(residuals), shape).ravel(),
        "steps": np.broadcast_to(np.arange(5) + 3, shape).ravel(),
        "status": np.full(shape, status).ravel(),
    }


@pytest.mark.parametrize(
    ("residuals", "status", "finding"),
    [
        ([9e-2, 9e-3, 9e-4, 9e-5, 9e-6], 0, None),
        ([9e-2, 2e-2, 9e-4, 9e-5, 9e-6], 0, "3 residuals above their tolerance"),
        ([9e-2, 9e-3, 5e-2, 9e-5, 9e-6], 1, "3 residuals grew"),
        ([np.inf] * 5, 1, "not finite"),
        ([0.2] * 5, 1, "no example met the tolerance"),
    ],
)
def test_findings_of_the_dial(residuals, status, finding):
    check = checks.check_dial(dial(residuals, status), explicit=False, runtime="c")
    assert check.passed == (finding is None)
    if finding:
        assert finding in check.text


def solved(log_probability, steps, residual, status=0):
    return {
        "log_probabilities": np.float32([log_probability, -1.0]),
        "steps": np.int32(steps),
        "residual": np.float32(residual),
        "status": np.int32(status),
    }


@pytest.mark.parametrize(
    ("answer", "passed", "near"),
    [
        (solved(-2.0, 5, 8e-4), True, 0),
        (solved(-2.00005, 5, 8e-4), True, 0),
        (solved(-2.001, 5, 8e-4), False, 0),
        (solved(np.nan, 5, 8e-4), False, 0),
        (solved(-2.0, 6, 3e-4), False, 0),
        (solved(-2.001, 4, 0.9999e-3), True, 1),  # the tolerance is 1e-3
        (solved(-2.001, 4, 0.9e-3), False, 0),
        (solved(-2.0, 5, 8e-4, status=1), False, 0),
    ],
)
def test_comparison_of_two_answers(answer, passed, near):
    reference = solved(-2.0, 5, 8e-4)
    pairs = [("probe", answer, reference), ("equal", reference, reference)]
    check = checks.compare("test", pairs, tolerance=1e-3)
    assert check.passed == passed
    assert len(check.values["near"]) == near


def test_an_earlier_report_that_holds_no_more_is_named(tmp_path, capsys):
    version, target = tmp_path / "export" / "1", tmp_path / "export_report.json"
    (version / "assets.extra").mkdir(parents=True)
    (version / "saved_model.pb").write_bytes(b"graph")
    manifest.write(version)
    report = {"passed": True, "model": str(version), "digest": manifest.digest(version)}

    def said():
        verify_program._say_earlier(target, str(tmp_path))
        return capsys.readouterr().out

    assert said() == ""
    target.write_text(json.dumps(report))
    assert said() == ""
    (version / "saved_model.pb").write_bytes(b"another graph")
    manifest.write(version)
    assert f"{version} passed, but the version was changed after it was verified." in said()
    shutil.rmtree(version)
    assert "passed, but the verified version is gone." in said()
    target.write_text("{")  # it is overwritten anyway
    assert said() == ""

"""Writing versions: content, program, existing versions, failures half way, broken workdirs."""

import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from export import saved_model as export_program
from tests.support import verified_run as run_of_tests
from tfdeq.cells import TransformerCell
from tfdeq.models import LanguageModel
from tfdeq.serving.verification import graph_checks
from tfdeq.serving.versions import loading, manifest, publishing, saved_model

VOCABULARY, LENGTH = 17, 12
GENERATING = {"generate", "generate_first", "generate_next"}
SIGNATURES = {"serving_default", "score", "encode", "step", *GENERATING}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    cell = TransformerCell(16, 2, LENGTH, recurrent_scale=1.0)
    model = LanguageModel(VOCABULARY, LENGTH, cell, solver=tfdeq.Anderson(12))
    model.build((None, LENGTH))
    return model


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """A trainer's folder; do not change it."""
    workdir = tmp_path_factory.mktemp("workdir")
    model.save(workdir / "model.keras")
    (workdir / "config.json").write_text(json.dumps({"dataset": "text", "files": "*.txt"}))
    metrics = {"config": {}, "train": {"loss": [3.0]}, "test": {"bits_per_byte": 2.5}}
    (workdir / "metrics.json").write_text(json.dumps(metrics))
    (workdir / "vocabulary.txt").write_text("".join(f"word{i}\n" for i in range(VOCABULARY)))
    return workdir


@pytest.fixture
def program(monkeypatch):
    """Calls the program's main in this process, with flags by name."""

    def call(workdir, output, version=None, skip_existing=False):
        flags = types.SimpleNamespace(
            workdir=str(workdir),
            output=str(output),
            version=version,
            skip_existing=skip_existing,
            jit_compile=False,
            data=False,
            prepared_dir=None,
            batch_sizes=["1"],
            batch_threads=2,
            batch_timeout_micros=0,
            max_request_values=None,
            max_steps_limit=None,
            gradients=False,
        )
        monkeypatch.setattr(export_program, "FLAGS", flags)
        export_program.main()

    return call


def card_of(path):
    return json.loads((path / "assets.extra" / "model_card.json").read_text())


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_program_writes_a_version(verified_run):
    output = verified_run / "export"
    said = (verified_run / run_of_tests.SAID).read_text()
    assert f"Exported {output / '1'}." in said
    assert "python -m export.verify" in said
    assert names_in(output) == ["1"]
    card = card_of(output / "1")
    assert card["version"] == 1
    assert card["signatures"].keys() == SIGNATURES
    inputs = card["signatures"]["score"]["inputs"]
    assert inputs["tolerance"]["dtype"] == "float32"
    assert inputs["tokens"]["shape"] == [None, None]
    assert all("meaning" in tensor for tensor in inputs.values())
    assert card["sequence_length"] == run_of_tests.LENGTH
    assert card["vocabulary"] == {"size": run_of_tests.VOCABULARY, "file": "vocabulary.txt"}
    assert (card["unit"], card["dataset"]) == ("word", "text")
    assert card["flags"]["files"] == str(verified_run / "*.txt")
    assert card["metrics"] == {"test": {"bits_per_word": 7.5}}
    assert card["libraries"]["tensorflow"] == tf.__version__
    assert card["status"].keys() == {"0", "1", "2", "3", "-1"}
    vocabulary = output / "1" / "assets.extra" / "vocabulary.txt"
    assert vocabulary.read_text() == (verified_run / "vocabulary.txt").read_text()


@pytest.mark.slow
def test_what_was_written_writes_nothing_and_is_not_compiled(model, tmp_path):
    path = saved_model.export(model, tmp_path)
    loaded = tf.saved_model.load(str(path))
    assert loaded.signatures.keys() == SIGNATURES
    for function in loaded.signatures.values():
        assert graph_checks.problems(function) == []


def test_existing_version_stays_as_it_is(program, trained, tmp_path):
    (tmp_path / "0004").mkdir()
    with pytest.raises(
        publishing.VersionExistsError, match=r"Version 4 already exists.*next free one, 5"
    ):
        program(trained, tmp_path, version=4)
    assert names_in(tmp_path) == ["0004"]
    assert names_in(tmp_path / "0004") == []


@pytest.mark.slow
def test_skip_existing_says_so_and_writes_only_what_is_not_there(
    program, trained, tmp_path, capsys, model
):
    program(trained, tmp_path, version=1, skip_existing=True)
    before = (tmp_path / "1" / "saved_model.pb").stat().st_mtime_ns
    capsys.readouterr()
    program(trained, tmp_path, version=1, skip_existing=True)
    assert capsys.readouterr().out == f"Version 1 is there already: {tmp_path / '1'}.\n"
    other = tmp_path / "other"
    other.mkdir()
    keras.models.clone_model(model).save(other / "model.keras")
    program(other, tmp_path, version=1, skip_existing=True)
    assert "from another model file" in capsys.readouterr().out
    assert (tmp_path / "1" / "saved_model.pb").stat().st_mtime_ns == before


@pytest.mark.slow
def test_failure_half_way_leaves_nothing(model, tmp_path, monkeypatch):
    save = tf.saved_model.save

    def save_and_fail(*args, **kwargs):
        save(*args, **kwargs)
        raise OSError("No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", save_and_fail)
    with pytest.raises(OSError, match="No space"):
        saved_model.export(model, tmp_path)
    assert names_in(tmp_path) == []


def test_workdir_without_a_model_names_the_command(program, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m trainers\.language_model --workdir="):
        program(tmp_path / "nothing", tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["model.keras", "config.json", "metrics.json", "vocabulary.txt"])
def test_broken_file_in_the_workdir(program, trained, tmp_path, name):
    workdir = tmp_path / "workdir"
    workdir.mkdir()
    for path in trained.iterdir():
        content = path.read_bytes()
        half = content[: len(content) // 2] if path.name == name else content
        (workdir / path.name).write_bytes(half)
    expected = "has 9 lines; the model has 17" if name == "vocabulary.txt" else "cannot be read"
    with pytest.raises(ValueError, match=expected):
        program(workdir, tmp_path / "output")
    assert publishing.existing_versions(tmp_path / "output") == {}


def test_keras_file_of_another_model(program, tmp_path):
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"holds a Sequential.*tfdeq\.serving\.export"):
        program(tmp_path, tmp_path / "output")


def test_any_keras_model_with_signatures_of_its_own(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    function = tf.function(lambda x: {"y": model(x)}, autograph=False)
    traced = function.get_concrete_function(tf.TensorSpec([None, 3], tf.float32, "x"))
    path = saved_model.export(
        model, tmp_path, {"serving_default": traced}, version=7, card={"purpose": "test"}
    )
    assert path == tmp_path / "7"
    card = card_of(path)
    assert card["purpose"] == "test"
    assert card["signatures"]["serving_default"]["inputs"] == {
        "x": {"dtype": "float32", "shape": [None, 3]}
    }
    x = np.ones([2, 3], np.float32)
    answer = tf.saved_model.load(str(path)).signatures["serving_default"](x=tf.constant(x))
    np.testing.assert_allclose(answer["y"], model(x), rtol=1e-6)


def plain_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    function = tf.function(lambda x: {"y": model(x)}, autograph=False)
    traced = function.get_concrete_function(tf.TensorSpec([None, 3], tf.float32, "x"))
    return model, {"serving_default": traced}


@pytest.mark.parametrize(
    "name",
    [
        *("../stolen", "/no-such-folder/stolen", "", ".", "..", "a/b"),
        *("model_card.json", "keras_model.json", "manifest.json"),
        *("tf_serving_warmup_requests",),
    ],
)
def test_further_files_stay_in_their_folder(name, tmp_path):
    model, signatures = plain_model()
    with pytest.raises(ValueError, match="files names"):
        saved_model.export(model, tmp_path / "output", signatures, files={name: "text"})
    assert names_in(tmp_path) == []
    path = saved_model.export(
        model, tmp_path / "output", signatures, files={"notes [1].txt": "text"}
    )
    assert (path / "assets.extra" / "notes [1].txt").read_text() == "text"
    assert "assets.extra/notes [1].txt" in manifest.read(path)


def test_the_card_names_no_batching_where_nothing_is_joined(tmp_path):
    model, signatures = plain_model()
    card = card_of(saved_model.export(model, tmp_path / "output", signatures))
    assert card["batching"] is None
    assert not card["signatures"]["serving_default"]["joined"]


def test_paths_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    model, signatures = plain_model()
    path = saved_model.export(model, "~/models", signatures)
    assert path == tmp_path / "home" / "models" / "1"
    assert names_in(tmp_path) == ["home"]
    x = np.ones([2, 3], np.float32)
    np.testing.assert_array_equal(loading.load_model("~/models/1")(x), model(x))


def test_no_version_number_is_left(tmp_path):
    (tmp_path / str(2**63 - 1)).mkdir()
    model, signatures = plain_model()
    with pytest.raises(publishing.VersionExistsError, match="No version can follow"):
        saved_model.export(model, tmp_path, signatures)
    assert names_in(tmp_path) == [str(2**63 - 1)]


def test_signature_that_cannot_be_served_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    function = tf.function(lambda x: {"y": model(x)}, autograph=False, jit_compile=True)
    outer = tf.function(lambda x: function(x), autograph=False)
    traced = outer.get_concrete_function(tf.TensorSpec([None, 3], tf.float32, "x"))
    with pytest.raises(ValueError, match=r"'serving_default' cannot be served.*jit-compiled"):
        saved_model.export(model, tmp_path / "output", {"serving_default": traced})
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
def test_patience_and_absolute_tolerance_of_a_version(tmp_path):
    """Binary increment: the carry travels one place per application, at a constant residual."""
    ops = keras.ops
    z, x = keras.Input((128,)), keras.Input((64,), name="x")
    carry = ops.pad(z[:, 64:127], [[0, 0], [1, 0]], constant_values=1.0)
    cell = keras.Model([z, x], ops.concatenate([x + carry - 2.0 * x * carry, x * carry], 1))
    layer = tfdeq.DEQLayer(cell, tfdeq.FixedPointIteration(80, 1e-6))
    model = keras.Model(x, layer(x))
    ones = tf.ones([1, 64])
    settings = {"tolerance": tf.zeros([1]), "max_steps": tf.zeros([1], tf.int32)}

    def solved(**given):
        path = saved_model.export(model, tmp_path, **given)
        answer = tf.saved_model.load(path).signatures["serving_default"](x=ones, **settings)
        return int(answer["status"][0]), int(answer["steps"][0]), loading.load_model(path)

    assert solved()[:2] == (tfdeq.Status.CONVERGED, 65)
    status, steps, loaded = solved(patience=12)
    assert status == tfdeq.Status.STAGNATED
    assert steps < 20
    assert loaded.layers[-1].solver.patience == 12
    assert layer.solver.patience is None, "the model itself keeps its solver"
    # A carry and a sum change, at a distance of the square root of 2.
    assert solved(absolute_tolerance=1.5)[:2] == (tfdeq.Status.CONVERGED, 2)

"""A disk that is full at any moment of an export: one line of error, and no partial version."""

import os
import signal
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.support import ending_cases as cases
from tests.support.disk_cases import MAY_NOT_MOUNT, put_on_a_disk
from tfdeq.programs import whole_folder
from tfdeq.serving.versions import publishing, saved_model

# what is being written -> the function that starts it
MOMENTS = {
    "the folder": "tfdeq.serving.versions.publishing:publish",
    "the SavedModel": "tfdeq.serving.versions.saved_graph:write",
    "the model's state": "tfdeq.serving.versions.loading:write",
    "warm-up records": "tfdeq.serving.versions.warm_up:write",
    "further files": "tfdeq.serving.versions.further_files:write",
    "the card": "tfdeq.serving.versions.model_card:to_json",
    "the manifest": "tfdeq.serving.versions.manifest:write",
}


def lookup_model():
    """A model with every kind of file: arrays and a vocabulary in addition to weights."""
    import keras

    x = keras.Input((3,), dtype="int64", name="x")
    layer = keras.layers.IntegerLookup()
    layer.adapt(np.arange(5))
    embedding = keras.layers.Embedding(8, 4)
    model = keras.Model(x, keras.layers.Flatten()(embedding(layer(x))))
    embedding.enable_lora(2)
    function = tf.function(lambda x: {"y": model(x, training=False)}, autograph=False)
    return model, {
        "serving_default": function.get_concrete_function(tf.TensorSpec([None, 3], tf.int64, "x"))
    }


def export(output):
    model, signatures = lookup_model()
    examples = {"x": np.ones([2, 3], np.int64)}
    files = {"notes.txt": "text"}
    saved_model.export(model, output, signatures, examples=examples, batch_sizes=[1], files=files)


def run_program(folder, log, hook):
    """Exports like a program, in a separate process."""
    os.chdir(folder)
    with open(log, "w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # This defines a required flag, unless the parent process already has.
    from tfdeq.programs import program
    from tfdeq.training.text import language_model

    assert language_model
    sys.argv = ["program", "--workdir=unused"]

    hook[0](*hook[1:])
    program.run(lambda: export("disk/models"))


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("what", MOMENTS)
def test_one_line_and_no_half_version(tmp_path, what):
    hook = (put_on_a_disk, str(tmp_path), MOMENTS[what], 1, "full")
    log = tmp_path / "said.txt"
    status = cases.in_a_process(run_program, str(tmp_path), str(log), hook)
    if status == MAY_NOT_MOUNT:
        pytest.skip("this process may not mount a tmpfs")
    said = log.read_text()
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert status == 1, said
    assert len(errors) == 1, said
    assert "No space left on device" in errors[0]
    assert errors[0].count("cannot be written") == 1
    assert "Free some space" in errors[0]
    assert "Traceback" not in said
    left = tmp_path / "left" / "models"
    assert not left.exists() or not any(left.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        tf.errors.ResourceExhaustedError(None, None, "variables/x; No space left on device"),
        tf.errors.UnknownError(None, None, "variables/x; No space left on device"),
    ],
)
def test_what_tensorflow_says_of_a_full_disk(tmp_path, monkeypatch, error):
    def full(module, folder, **_):
        with open(os.path.join(folder, "saved_model.pb"), "w") as file:
            file.write("half")
        raise error

    model, signatures = lookup_model()
    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(OSError, match="models cannot be written: .*No space left.*Free some space"):
        saved_model.export(model, tmp_path / "models", signatures)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_rename_that_fails_is_one_line(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole_folder, "rename_to_free_name", full)
    with pytest.raises(
        OSError, match="1 cannot be written: No space left on device. Free some space"
    ):
        publishing.publish(tmp_path, lambda folder: (folder / "content").write_text("x"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file.* (is a file|cannot be written: Not a directory)"):
        publishing.publish(tmp_path / place, lambda folder: None)
    assert (tmp_path / "file").read_text() == ""

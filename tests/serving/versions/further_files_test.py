"""Names of a caller's additional files in a version."""

import pytest

from tfdeq.serving.versions import further_files


@pytest.mark.parametrize(
    "name",
    ["../x", "..", ".", "", "/etc/x", "a/b", "a/", "a\\b", "..\\x", "x\0", "/", "./x"],
)
def test_names_that_lead_elsewhere(name):
    with pytest.raises(ValueError, match="no plain name.*without its folder"):
        further_files.check_names({"good.txt": "", name: "text"})


@pytest.mark.parametrize(
    "name",
    [
        "model_card.json",
        "keras_model.json",
        "manifest.json",
        "keras_state",
        "tf_serving_warmup_requests",
        "Model_Card.json",
        "model.tflite",
        "model.onnx",
    ],
)
def test_names_that_are_taken(name):
    with pytest.raises(ValueError, match="what the version itself writes.*another name"):
        further_files.check_names({name: "text"})


@pytest.mark.parametrize("files", [{3: "text"}, {"a": b"text"}, {"a": None}])
def test_what_is_no_name_or_text(files):
    with pytest.raises(TypeError, match="names to texts"):
        further_files.check_names(files)


def test_good_names_are_written_and_replace_nothing(tmp_path):
    files = {"a b.txt": "é\n", ".hidden": "", "...": "x", "ü: $x'\"": "y"}
    further_files.check_names(files)
    further_files.write(files, tmp_path)
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == files
    with pytest.raises(FileExistsError):
        further_files.write({".hidden": "other"}, tmp_path)
    assert (tmp_path / ".hidden").read_text() == ""

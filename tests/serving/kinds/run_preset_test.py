"""A trained run as a preset."""

import json

import numpy as np
import pytest

from tests.serving.kinds.runs_test import classifier, write
from tests.support.cases import contracting_language_model
from tfdeq.models import ByteTokenizer, LanguageModel, WordTokenizer
from tfdeq.serving import preset_from_run

COMMAND = [
    "/home/me/tfdeq/trainers/language_model.py",
    "--dataset=text",
    "--files=/home/me/**/*.txt",
    "--workdir=/home/me/run",
    "--width=16",
]


def language_run(folder, vocabulary_size, words=None, command=COMMAND):
    """A run's folder as `trainers.language_model` leaves it, as far as a preset looks."""
    model = contracting_language_model(vocabulary_size, 12)
    folder.mkdir()
    model.save(folder / "model.keras")
    config = {"dataset": "text", "files": "/home/me/**/*.txt", "width": 16, "model": "deq"}
    (folder / "config.json").write_text(json.dumps(config))
    test = {"bits_per_byte": 2.5, "by_budget": [{"steps": 1}]}
    metrics = {"kind": {"name": "language_model"}, "test": test, "train": {}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    start = {"command": command, "python": "3.11.7", "packages": {"keras": "3.15.1"}}
    (folder / "environment.json").write_text(json.dumps({"starts": [start, {"command": ["no"]}]}))
    if words:
        (folder / "vocabulary.txt").write_text("".join(f"{word}\n" for word in words))
    return model


def test_bytes(tmp_path):
    model = language_run(tmp_path / "run", 256)
    preset_from_run(tmp_path / "run", tmp_path / "preset")
    loaded = LanguageModel.from_preset(tmp_path / "preset")
    assert isinstance(loaded.tokenizer, ByteTokenizer)
    tokens = np.int32([[1, 2, 3]])
    np.testing.assert_array_equal(loaded(tokens), model(tokens))
    text = (tmp_path / "preset" / "metadata.json").read_text()
    assert "/home/me" not in text
    metadata = json.loads(text)
    assert metadata["command"] == ("python -m trainers.language_model --dataset=text --width=16")
    assert metadata["flags"] == {"dataset": "text", "width": 16, "model": "deq"}
    assert metadata["test"] == {"bits_per_byte": 2.5}
    assert metadata["trained_with"] == {"python": "3.11.7", "keras": "3.15.1"}
    assert metadata["unit"] == "byte"
    with pytest.raises(FileExistsError):
        preset_from_run(tmp_path / "run", tmp_path / "preset")
    preset_from_run(tmp_path / "run", tmp_path / "preset", overwrite=True)


def test_words_from_an_installed_program(tmp_path):
    words = [f"w{number}" for number in range(13)]
    language_run(tmp_path / "run", 13, words, ["/venv/bin/tfdeq-language-model", "--width=16"])
    preset_from_run(tmp_path / "run", tmp_path / "preset")
    loaded = LanguageModel.from_preset(tmp_path / "preset")
    assert isinstance(loaded.tokenizer, WordTokenizer)
    assert loaded.tokenizer.vocabulary == tuple(words)
    metadata = json.loads((tmp_path / "preset" / "metadata.json").read_text())
    assert metadata["command"] == "tfdeq-language-model --width=16"


def test_tokens_of_an_unknown_meaning(tmp_path):
    language_run(tmp_path / "run", 13, command=None)
    preset_from_run(tmp_path / "run", tmp_path / "preset")
    assert LanguageModel.from_preset(tmp_path / "preset").tokenizer is None
    assert "command" not in json.loads((tmp_path / "preset" / "metadata.json").read_text())


def test_a_model_that_has_no_presets(tmp_path):
    write(tmp_path, classifier())
    with pytest.raises(ValueError, match="trained a Functional, which has no presets.*model.keras"):
        preset_from_run(tmp_path, tmp_path / "preset")
    with pytest.raises(FileNotFoundError, match="No model in"):
        preset_from_run(tmp_path / "none", tmp_path / "preset")

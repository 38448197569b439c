"""Presets: saved and loaded without a change, whole or not at all, and found by name."""

import json
import pathlib
import shutil
import tomllib

import keras
import numpy as np
import pytest

import tfdeq
from tests.support.cases import contracting_language_model
from tfdeq.baselines import Recurrent
from tfdeq.cells import RecallConvolution, TrellisCell
from tfdeq.models import (
    ByteTokenizer,
    ExplicitLanguageModel,
    LanguageModel,
    Reasoner,
    WordTokenizer,
    list_presets,
    presets,
)

ROOT = pathlib.Path(__file__).absolute().parents[2]
SHIPPED = "tfdeq_bytes_small"
WORDS = [f"w{number}" for number in range(11)]
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 7)).astype(np.int32)


def _transformer():
    return contracting_language_model(11, 12, tfdeq.Anderson(max_steps=9, tolerance=1e-4))


def _trellis():
    cell = TrellisCell(8, weight_dropout=0.2)
    model = LanguageModel(11, 12, cell, tied_output=True, input_dropout=0.1)
    model.build((None, 12))
    return model


def _cutoffs():
    cell = tfdeq.cells.TransformerCell(8, 2, 12)
    model = LanguageModel(11, 12, cell, cutoffs=[4], cutoff_factor=2, explicit_steps=2)
    model.build((None, 12))
    return model


def _explicit():
    model = ExplicitLanguageModel(11, 12, 8, Recurrent(8, kind="gru"))
    model.build((None, 12))
    return model


def _reasoner():
    model = Reasoner(11, 2, RecallConvolution(8, rank=1), start_noise=0.1)
    model.build((None, None))
    return model


def _called():
    """Built by a call, not by `build`."""
    model = LanguageModel(11, 12, tfdeq.cells.TransformerCell(8, 2, 12))
    model(TOKENS)
    return model


@pytest.mark.parametrize(
    "make",
    [
        _transformer,
        _trellis,
        pytest.param(_cutoffs, marks=pytest.mark.slow),
        _explicit,
        _reasoner,
        pytest.param(_called, marks=pytest.mark.slow),
    ],
)
def test_a_model_comes_back_bit_for_bit(make, tmp_path):
    model = make()
    model.save_to_preset(tmp_path / "preset")
    loaded = type(model).from_preset(tmp_path / "preset")
    for value, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(value, other)
    np.testing.assert_array_equal(model(TOKENS), loaded(TOKENS))
    assert loaded.get_config() == model.get_config()
    assert loaded.tokenizer is None


def test_the_layout_is_that_of_kerashub(tmp_path):
    model = _transformer()
    model.tokenizer = WordTokenizer(WORDS)
    model.compile("sgd", "mse")
    model.save_to_preset(tmp_path / "preset", metadata={"note": "mine"})
    files = [path for path in (tmp_path / "preset").rglob("*") if path.is_file()]
    assert sorted(path.relative_to(tmp_path / "preset").as_posix() for path in files) == [
        "assets/tokenizer/vocabulary.txt",
        "config.json",
        "metadata.json",
        "model.weights.h5",
        "tokenizer.json",
    ]
    config = json.loads((tmp_path / "preset" / "config.json").read_text())
    assert config["registered_name"] == "tfdeq>LanguageModel"
    assert {"module", "class_name", "config"} <= set(config)
    assert "compile_config" not in config
    metadata = json.loads((tmp_path / "preset" / "metadata.json").read_text())
    assert metadata["keras_version"] == keras.version()
    assert metadata["tfdeq_version"] == tfdeq.__version__
    assert metadata["parameter_count"] == model.count_params()
    assert metadata["note"] == "mine"
    assert metadata["date_saved"]


@pytest.mark.slow
def test_text_to_text_with_words(tmp_path):
    model = _transformer()
    model.tokenizer = WordTokenizer(WORDS)
    model.save_to_preset(tmp_path / "preset")
    loaded = LanguageModel.from_preset(tmp_path / "preset")
    assert loaded.tokenizer.vocabulary == tuple(WORDS)
    text = loaded.generate("w3 w1", max_new_tokens=4)
    assert text == model.generate("w3 w1", max_new_tokens=4)
    assert text.startswith("w3 w1 w")
    assert len(text.split()) == 6


def test_settings_instead_of_the_saved_ones(tmp_path):
    model = _reasoner()
    model.save_to_preset(tmp_path / "preset")
    solver = tfdeq.Anderson(max_steps=50, tolerance=1e-6)
    loaded = Reasoner.from_preset(tmp_path / "preset", solver=solver)
    assert loaded.equilibrium.solver.get_config() == solver.get_config()
    with pytest.raises(ValueError, match="does not hold the weights of the model"):
        Reasoner.from_preset(tmp_path / "preset", classes=5)
    untrained = Reasoner.from_preset(tmp_path / "preset", load_weights=False, classes=5)
    assert untrained(TOKENS).shape == (2, 7, 5)
    with pytest.raises(ValueError, match="config.json'.*unheard_of"):
        Reasoner.from_preset(tmp_path / "preset", unheard_of=5)


@pytest.mark.parametrize("name", ["unheard_of", "no/such/folder", pathlib.Path("neither")])
def test_unknown_names_are_told_the_known_ones(name):
    with pytest.raises(ValueError, match=f"{name}' is neither a folder .*Known presets: {SHIPPED}"):
        LanguageModel.from_preset(name)


def test_a_preset_of_another_class(tmp_path):
    _reasoner().save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match="holds a Reasoner, not a LanguageModel. Use Reasoner."):
        LanguageModel.from_preset(tmp_path / "preset")


def test_a_model_that_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="has no weights yet"):
        LanguageModel(11, 12, tfdeq.cells.TransformerCell(8, 2, 12)).save_to_preset(tmp_path / "a")
    model = _transformer()
    model.tokenizer = ByteTokenizer()
    with pytest.raises(ValueError, match="tokenizer has 256 token ids, the model 11"):
        model.save_to_preset(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["save_weights", "count_params"])
def test_half_of_a_preset_is_never_seen(step, tmp_path, monkeypatch):
    model = _reasoner()
    model.save_to_preset(tmp_path / "there")
    before = {path: path.read_bytes() for path in (tmp_path / "there").iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, step, fail)
    for name in ("there", "new"):
        with pytest.raises(OSError, match="No space left"):
            model.save_to_preset(tmp_path / name, overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "there").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_is_replaced(tmp_path):
    model, folder = _reasoner(), tmp_path / "preset"
    model.save_to_preset(folder)
    model.readout.bias.assign([1.0, 2.0])
    with pytest.raises(FileExistsError, match="is there already"):
        model.save_to_preset(folder)
    model.save_to_preset(folder, overwrite=True)
    np.testing.assert_array_equal(Reasoner.from_preset(folder).readout.bias, [1.0, 2.0])
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match="is no preset, since it has no config.json"):
        model.save_to_preset(tmp_path / "own", overwrite=True)
    assert (tmp_path / "own" / "thesis.txt").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    model = _transformer()
    model.tokenizer = WordTokenizer(WORDS)
    folder = tmp_path_factory.mktemp("whole") / "preset"
    model.save_to_preset(folder)
    return folder


def _damage(folder, name, text):
    path = folder / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("config.json", None, FileNotFoundError, "is no preset: config.json is missing"),
        ("model.weights.h5", None, FileNotFoundError, "is no preset: model.weights.h5 is missing"),
        ("assets/tokenizer/vocabulary.txt", None, FileNotFoundError, "vocabulary.txt is missing"),
        ("config.json", "{", ValueError, "config.json' cannot be read as a JSON object"),
        ("tokenizer.json", "[1]", ValueError, "tokenizer.json' cannot be read as a JSON object"),
        ("tokenizer.json", "{}", ValueError, "Keras cannot make an object of .*tokenizer.json"),
        ("model.weights.h5", "", ValueError, "model.weights.h5' does not hold the weights"),
    ],
)
def test_a_damaged_preset(whole, name, text, error, message, tmp_path):
    shutil.copytree(whole, tmp_path / "preset")
    _damage(tmp_path / "preset", name, text)
    with pytest.raises(error, match=message):
        LanguageModel.from_preset(tmp_path / "preset")


@pytest.fixture(scope="module")
def model():
    return LanguageModel.from_preset(SHIPPED)


class TestShipped:
    """The preset that comes with tfdeq."""

    def test_text(self, model):
        text = model.generate("def ")
        assert text.startswith("def ")
        assert len(text.encode()) == model.sequence_length
        drawn = model.generate(["def ", "import "], temperature=0.6, seed=[1, 2])
        assert drawn[0] == model.generate("def ", temperature=0.6, seed=1)
        assert len({text, *drawn}) == 3

    def test_it_has_learnt(self, model):
        """Python that it was not trained on has far fewer bits than by the counts of its bytes."""
        text = pathlib.Path(keras.__file__).parent.joinpath("src/layers/layer.py").read_text()
        tokens = model.tokenizer.encode(text)[: 8 * 129].reshape(8, 129)
        bits = float(np.mean(model(tokens[:, :-1], targets=tokens[:, 1:]))) / np.log(2)
        shares = np.bincount(tokens.ravel()) / tokens.size
        by_counts = -np.sum(shares * np.log2(np.maximum(shares, 1e-9)))
        assert bits < by_counts - 1.0

    def test_it_is_small_and_says_how_it_was_made(self):
        folder = presets.SHIPPED / SHIPPED
        assert sum(path.stat().st_size for path in folder.rglob("*")) < 2_000_000
        metadata = list_presets()[SHIPPED]
        assert "trainers.language_model" in metadata["command"]
        assert metadata["dataset"] == "python_stdlib"
        readme = (folder / "README.md").read_text()
        assert f"{metadata['test']['bits_per_byte']:.3f} bits per byte" in readme
        assert f"{metadata['parameter_count']:,} parameters" in readme
        assert f"--output=tfdeq/models/shipped/{SHIPPED}" in readme

    def test_an_installation_has_all_of_it(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        globs = project["tool"]["setuptools"]["package-data"]["tfdeq.models"]
        package = presets.SHIPPED.parent
        taken = {path for pattern in globs for path in package.glob(pattern) if path.is_file()}
        assert taken == {path for path in presets.SHIPPED.rglob("*") if path.is_file()}

    def test_a_name_goes_before_a_folder(self, tmp_path, monkeypatch):
        _reasoner().save_to_preset(tmp_path / SHIPPED)
        monkeypatch.chdir(tmp_path)
        assert isinstance(LanguageModel.from_preset(SHIPPED, load_weights=False), LanguageModel)
        assert isinstance(Reasoner.from_preset(f"./{SHIPPED}"), Reasoner)

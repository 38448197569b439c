"""A trainer's folder with a version in it, for the tests of verification."""

import json
import pathlib
import subprocess
import sys

import tfdeq
from tests.support.cases import contracting_language_model
from tfdeq.models import LanguageModel
from tfdeq.runs.kind import VOCABULARY as WORDS
from tfdeq.serving.kinds import runs

ROOT = pathlib.Path(__file__).absolute().parents[2]
SAID = "exported.txt"  # the program's output
VOCABULARY, LENGTH = 256, 12


def language_model(seed: int = 3) -> LanguageModel:
    """Returns a model of fixed shape; the seed determines its weights."""
    return contracting_language_model(
        VOCABULARY, LENGTH, tfdeq.FixedPointIteration(max_steps=40), seed=seed
    )


def write(folder: pathlib.Path) -> pathlib.Path:
    """Fills a folder like `trainers.language_model`, and exports it with the real program."""
    model = language_model()
    model.save(folder / "model.keras")
    for place in range(3):
        text = f"Text number {place}, long enough for a window or two.\n" * 20
        (folder / f"{place}.txt").write_text(text)
    words = "".join(f"word{place}\n" for place in range(VOCABULARY))
    (folder / WORDS).write_text(words)
    (folder / "metrics.json").write_text(json.dumps({"test": {"bits_per_word": 7.5}}))
    config = {"dataset": "text", "data_dir": None, "files": str(folder / "*.txt")}
    (folder / "config.json").write_text(json.dumps(config))
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "export.saved_model", f"--workdir={folder}"),
            *(f"--output={folder / 'export'}", f"--prepared_dir={folder / 'prepared'}"),
            "--batch_sizes=1,4",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    (folder / SAID).write_text(finished.stdout)
    return folder


def stream(folder: pathlib.Path):
    """Returns the test split's tokens of a folder that `write` filled."""
    config = json.loads((folder / "config.json").read_text())
    return runs.tokens_of_test(config, VOCABULARY, str(folder / "prepared"))[0]

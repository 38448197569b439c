"""tfdeq installed from a wheel, in a separate environment and folder."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sysconfig
import venv

import pytest

from tfdeq.programs.commands import SCRIPTS

ROOT = pathlib.Path(__file__).absolute().parents[1]
PASSED_ON = ("HOME", "PATH", "PIP_CERT", "PIP_DEFAULT_TIMEOUT", "PIP_INDEX_URL", "SSL_CERT_FILE")
# Documents whose code runs alone; the others need a server or a trained run, and are run by those
# tests.
DOCUMENTS = ("README.md", "docs/serving.md", "docs/theorems.md", "docs/training.md")
pytestmark = pytest.mark.slow


def _python_of(name):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text("utf-8"), re.M | re.S)


def _blocks():
    for name in DOCUMENTS:
        for place, block in enumerate(_python_of(name)):
            if "import tfdeq" in block:
                yield pytest.param(block, id=f"{name}-{place}")


@pytest.fixture(scope="module")
def binaries(tmp_path_factory):
    """The folder of the environment's programs."""
    folder = tmp_path_factory.mktemp("installed")
    sources = folder / "sources"
    _copy(sources)
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / "bin"
    _run([binaries / "python", "-m", "pip", "install", "--quiet", sources], folder)
    shutil.rmtree(sources)
    return binaries


@pytest.fixture
def folder(tmp_path):
    """A user's folder with packages that have the names of the project's program folders."""
    for name in ("trainers", "export"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            f'raise ImportError("{name} is the user\'s own")'
        )
    return tmp_path


def _copy(folder):
    """Copies the sources, because an installation writes to them."""
    left_out = shutil.ignore_patterns(".venv*", ".git", "build", "__pycache__", "*.egg-info")

    def ignored(path, names):
        runs = {"runs"} if pathlib.Path(path) == ROOT else set()  # tfdeq.runs is a package
        return left_out(path, names) | runs

    shutil.copytree(ROOT, folder, ignore=ignored)


def _run(command, folder):
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    finished = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**environment, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert finished.returncode == 0, (command, finished.stdout[-2000:], finished.stderr[-4000:])
    return finished.stdout


def test_it_claims_one_name(binaries, folder):
    code = (
        "import importlib.metadata, pathlib\n"
        "files = importlib.metadata.files('tfdeq')\n"
        "print(*sorted({file.parts[0] for file in files if file.parts[0] != '..'}))"
    )
    names = _run([binaries / "python", "-P", "-c", code], folder).split()
    assert [name for name in names if not name.endswith(".dist-info")] == ["tfdeq"]


@pytest.mark.parametrize("script", SCRIPTS.values())
def test_every_program_says_its_flags(script, binaries, folder):
    assert "--help" in _run([binaries / script, "--help"], folder)


def test_a_run_from_training_to_verification(binaries, folder):
    words = "def f(x):\n    return x + {0}  # the line {0} of a file\n"
    for name in range(60):
        (folder / f"{name}.txt").write_text("".join(words.format(name * 99 + i) for i in range(99)))
    sizes = ["--width=16", "--feedforward=32", "--heads=2", "--sequence_length=32"]
    trained = _run(
        [
            *(
                binaries / "tfdeq-language-model",
                "--dataset=text",
                "--files=*.txt",
                "--workdir=run",
            ),
            *(
                "--train_steps=20",
                "--evaluate_every=10",
                "--baseline",
                "--prepared_dir=data",
                *sizes,
            ),
        ],
        folder,
    )
    assert "tfdeq-report run" in trained
    assert json.loads((folder / "run" / "metrics.json").read_text())["baseline"]
    _run(
        [binaries / "tfdeq-export", "--workdir=run", "--output=out", "--prepared_dir=data"], folder
    )
    verify = [binaries / "tfdeq-verify", "--workdir=run", "--model=out/1", "--prepared_dir=data"]
    assert "answers as the Keras model does" in _run(verify, folder)
    assert "Test bits" in _run([binaries / "tfdeq-report", "run"], folder)


def test_text_from_the_preset_that_comes_with_it(binaries, folder):
    code = (
        "import tfdeq\n"
        'model = tfdeq.models.LanguageModel.from_preset("tfdeq_bytes_small")\n'
        'print(model.generate("def "))'
    )
    assert _run([binaries / "python", "-P", "-c", code], folder).startswith("def ")


def test_the_same_text_from_a_litert_file_of_it(binaries, folder):
    # The guide's first blocks: they write the file and compare its text with the model's.
    blocks = _python_of("docs/guides/edge.md")[:2]
    assert "assert bytes(text).decode() == model.generate(" in blocks[1]
    _run([binaries / "python", "-P", "-c", "\n".join(blocks)], folder)
    assert (folder / "bytes.tflite").stat().st_size < 2**21


@pytest.mark.parametrize("block", _blocks())
def test_the_documents_python(block, binaries, folder):
    trains = ["--workdir=own", "--train_steps=20", "--evaluate_every=10"]
    _run(
        [binaries / "python", "-c", block, *(trains if "define_run_flags" in block else [])], folder
    )


def test_an_editable_clone_is_imported_from_any_folder(tmp_path, folder):
    """As installed by `make`: the library, and the programs of the console scripts."""
    clone, environment = tmp_path / "clone", tmp_path / "venv"
    _copy(clone)
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    _run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", clone], tmp_path)
    # Its dependencies are taken from this environment.
    (place,) = environment.glob("lib/python*/site-packages")
    (place / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    code = "import tfdeq.serving, tfdeq.data, tfdeq.training; print(tfdeq.__file__)"
    assert _run([python, "-c", code], folder).strip() == str(clone / "tfdeq" / "__init__.py")
    assert "--output" in _run([environment / "bin" / "tfdeq-report", "--help"], folder)

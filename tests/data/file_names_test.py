"""--files: names with any characters, and globs."""

import pytest

from tfdeq.data.text.files import matching_files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, which is also the home folder, with its files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "a.txt",
        "b.txt",
        "log [2020].txt",
        "Smith, J.txt",
        "Smith",
        "what?.txt",
        "whatX.txt",
        " spaces ",
        "ü✓.txt",
        "[2020], part/one.txt",
        "[2020], part/deep/two.txt",
        "2/not this.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ("log [2020].txt", ["log [2020].txt"]),
        ("Smith, J.txt", ["Smith, J.txt"]),
        ("Smith", ["Smith"]),
        ("what?.txt", ["what?.txt"]),  # an existing name is literal
        ("what[?X].txt", ["what?.txt", "whatX.txt"]),
        (" spaces ", [" spaces "]),
        ("ü✓.txt", ["ü✓.txt"]),
        ("a.txt,b.txt", ["a.txt", "b.txt"]),
        (" a.txt , b.txt,", ["a.txt", "b.txt"]),
        ("a.txt,Smith, J.txt,log [2020].txt", ["Smith, J.txt", "a.txt", "log [2020].txt"]),
        ("?.txt,Smith, J.txt", ["Smith, J.txt", "a.txt", "b.txt"]),
        ("[2020], part/*.txt", ["[2020], part/one.txt"]),
        ("[2020], part/**/*.txt", ["[2020], part/deep/two.txt", "[2020], part/one.txt"]),
        ("[ab].txt", ["a.txt", "b.txt"]),
        ("~/log [2020].txt,~/a.txt", ["a.txt", "log [2020].txt"]),
        (["Smith, J.txt", "a.txt"], ["Smith, J.txt", "a.txt"]),
        (["./Smith, J.txt"], ["Smith, J.txt"]),
    ],
)
def test_files_that_are_there(folder, files, names):
    assert matching_files(files) == [folder / name for name in names]
    if isinstance(files, str) and not files.startswith(("~", " ", "?")) and "," not in files:
        assert matching_files(f"{folder}/{files}") == [folder / name for name in names]


@pytest.mark.parametrize(
    ("files", "error", "text"),
    [
        ("Smith, K.txt", FileNotFoundError, r"' K.txt' matches no file"),
        ("a.txt,log [2021].txt", FileNotFoundError, r"'log \[2021\].txt' matches no file"),
        ("nothing,else", FileNotFoundError, r"'nothing' matches no file"),
        ("[2020], part", ValueError, r"'\[2020\], part' matches folders only.*part/\*\*/\*.txt"),
        (",", ValueError, "needs the files to read"),
    ],
)
def test_what_is_not_there(folder, files, error, text):
    with pytest.raises(error, match=text):
        matching_files(files)


def test_a_long_list_takes_no_time(folder):
    assert matching_files(",".join(["a.txt", "?.txt"] * 500)) == [
        folder / "a.txt",
        folder / "b.txt",
    ]

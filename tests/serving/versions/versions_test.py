"""Version folders: which names count, and that versions are written atomically."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from tfdeq.programs import whole_folder
from tfdeq.serving.versions import publishing

ROOT = pathlib.Path(__file__).absolute().parents[3]


def write(folder):
    (folder / "part").mkdir()
    (folder / "part" / "content").write_text("content")


def finish(folder, number):
    (folder / "number").write_text(str(number))


def contents(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("1", 1),
        ("0", 0),
        ("0001", 1),
        (" 7", 7),
        ("7\n", 7),
        ("-0", 0),
        ("--7", None),
        ("7 7", None),
        ("0x7", None),
        ("7e0", None),
        ("7\xa0", None),
        ("1" * 200, None),
        ("+3", 3),
        ("-1", None),
        ("1_0", None),
        ("٣", None),
        ("1.0", None),
        ("abc", None),
        ("", None),
        (".tmp-1-x", None),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**63), None),
    ],
)
def test_version_number_is_what_the_server_reads(name, number):
    assert publishing.version_number(name) == number


def test_next_version_among_odd_names(tmp_path):
    assert publishing.next_version(tmp_path / "missing") == 1
    for name in ("0001", ".tmp-9-x", "abc", "-1", "12x"):
        (tmp_path / name).mkdir()
    assert publishing.next_version(tmp_path) == 2
    (tmp_path / " 7").mkdir()
    assert publishing.publish(tmp_path, write).name == "8"


LARGEST = 2**63 - 1


@pytest.mark.parametrize("name", [str(LARGEST), f"000{LARGEST}", f"+{LARGEST} "])
def test_no_number_is_left(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / str(LARGEST + 1)).mkdir()  # not a version: a server does not read it
    for call in (publishing.next_version, lambda output: publishing.publish(output, write)):
        with pytest.raises(publishing.VersionExistsError, match=f"No version can follow {LARGEST}"):
            call(tmp_path)
    with pytest.raises(publishing.VersionExistsError, match="No version can follow"):
        publishing.check_free(tmp_path, None)
    with pytest.raises(publishing.VersionExistsError, match="already.*Name another, or remove"):
        publishing.publish(tmp_path, write, version=LARGEST)
    assert contents(tmp_path) == sorted([name, str(LARGEST + 1)])
    # A free number is still written.
    assert publishing.publish(tmp_path, write, version=3).name == "3"
    with pytest.raises(
        publishing.VersionExistsError, match="Version 3 already exists.*Name another"
    ):
        publishing.publish(tmp_path, write, version=3)


def test_the_largest_number_can_be_written(tmp_path):
    assert publishing.publish(tmp_path, write, version=LARGEST).name == str(LARGEST)
    assert publishing.existing_versions(tmp_path).keys() == {LARGEST}


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert publishing.publish("~/output", write) == tmp_path / "output" / "1"
    assert publishing.existing_versions("~/output").keys() == {1}
    assert publishing.next_version("~/output") == 2


def test_publish_writes_a_whole_version_that_others_can_read(tmp_path):
    output = tmp_path / "new" / "output"
    umask = os.umask(0o022)
    try:
        path = publishing.publish(output, write, finish=finish)
    finally:
        os.umask(umask)
    assert path == output / "1"
    assert (path / "part" / "content").read_text() == "content"
    assert (path / "number").read_text() == "1"
    assert path.stat().st_mode & 0o777 == 0o755
    assert contents(output) == ["1"]


@pytest.mark.parametrize("name", ["3", "0003"])
def test_existing_version_is_not_touched(tmp_path, name):
    (tmp_path / name).mkdir()  # empty: a rename would silently replace it
    with pytest.raises(publishing.VersionExistsError, match=r"Version 3 already exists.*next.* 4"):
        publishing.publish(tmp_path, write, version=3)
    assert contents(tmp_path) == [name]
    assert contents(tmp_path / name) == []


def test_version_that_appears_meanwhile_is_not_touched(tmp_path):
    def finish_late(folder, number):
        (tmp_path / str(number)).mkdir()

    with pytest.raises(publishing.VersionExistsError):
        publishing.publish(tmp_path, write, 1, finish_late)
    assert contents(tmp_path) == ["1"]
    assert contents(tmp_path / "1") == []


def test_number_that_is_taken_meanwhile_gives_way_to_the_next(tmp_path):
    def finish_late(folder, number):
        finish(folder, number)
        if number < 3:
            (tmp_path / str(number)).mkdir()

    path = publishing.publish(tmp_path, write, finish=finish_late)
    assert path.name == (path / "number").read_text() == "3"


@pytest.mark.parametrize("call", [True, False])
def test_a_rename_never_replaces_an_empty_folder(tmp_path, monkeypatch, call):
    if not call:  # as on a file system without renameat2's flag: a folder with content is refused
        monkeypatch.setattr(whole_folder, "rename_to_free_name", lambda source, target: False)
    (tmp_path / "1").mkdir()
    if not call:
        (tmp_path / "1" / "content").write_text("")
    (tmp_path / "new").mkdir()
    with pytest.raises(publishing.VersionExistsError, match="Another process created"):
        publishing._rename(tmp_path / "new", tmp_path / "1")
    assert contents(tmp_path) == ["1", "new"]


@pytest.mark.slow
def test_two_writers_at_once_get_numbers_of_their_own(tmp_path):
    program = (
        "import sys\n"
        "from tfdeq.serving.versions import publishing\n"
        "for _ in range(20):\n"
        "    publishing.publish(\n"
        "        sys.argv[1],\n"
        "        lambda folder: (folder / 'content').write_text('x'),\n"
        "        finish=lambda folder, number: (folder / 'number').write_text(str(number)),\n"
        "    )\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    writers = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [writer.wait(timeout=50) for writer in writers] == [0, 0]
    found = publishing.existing_versions(tmp_path)
    assert sorted(found) == list(range(1, 41))
    for number, path in found.items():
        assert (path / "number").read_text() == str(number)


@pytest.mark.parametrize("version", [-1, 2**63, 1.5, True, "2"])
def test_bad_version_numbers(tmp_path, version):
    with pytest.raises(ValueError, match="version must be an integer"):
        publishing.publish(tmp_path / "output", write, version=version)
    assert not (tmp_path / "output").exists()


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        publishing.publish(tmp_path / "file", write)


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_failing_writer_leaves_nothing(tmp_path, error):
    def fail(folder):
        write(folder)
        raise error

    with pytest.raises(type(error)):
        publishing.publish(tmp_path, fail)
    assert contents(tmp_path) == []


def test_killed_writer_leaves_no_version_and_is_cleaned_up_after(tmp_path):
    program = (
        "import sys, time\n"
        "from tfdeq.serving.versions import publishing\n"
        "def write(folder):\n"
        "    (folder / 'saved_model.pb').write_text('half')\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(50)\n"
        "publishing.publish(sys.argv[1], write)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "writing\n"
        (left,) = tmp_path.iterdir()
        old = time.time() - 3600
        os.utime(left, (old, old))
        # The writer is alive, so another one does not remove its folder.
        assert publishing.publish(tmp_path, write).name == "1"
        assert contents(tmp_path) == [left.name, "1"]
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    assert publishing.existing_versions(tmp_path).keys() == {1}
    assert publishing.publish(tmp_path, write).name == "2"
    assert contents(tmp_path) == ["1", "2"]


def test_a_poller_never_sees_half_a_version(tmp_path):
    seen, done = [], threading.Event()

    def poll():
        while not done.is_set():
            for path in publishing.existing_versions(tmp_path).values():
                seen.append((path / "part" / "content").is_file())

    def write_slowly(folder):
        (folder / "part").mkdir()
        time.sleep(0.05)
        (folder / "part" / "content").write_text("whole")

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        for _ in range(5):
            publishing.publish(tmp_path, write_slowly)
        time.sleep(0.05)
    finally:
        done.set()
        thread.join(timeout=30)
    assert seen
    assert all(seen)

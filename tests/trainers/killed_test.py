"""SIGKILL at every place of a run that renames or removes a file: then the same results, bit for bit."""

import signal

import pytest

from tests.support import ending_cases as cases

# With removals of older checkpoints, and replacements of the best one.
FLAGS = ("--train_steps=5", "--evaluate_every=2", "--checkpoint_every=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    cases.write_text(folder)
    prepare(folder / "whole")
    hook = (cases.watch_moves, str(folder / "places"))
    status, said = cases.run(folder, "whole", *FLAGS, hook=hook)
    assert status == 0, said
    return folder


def prepare(workdir):
    """Creates the leftovers of an earlier killed process, which the run has to remove."""
    unfinished = workdir / "checkpoints" / "unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "ckpt-1.index").write_bytes(b"half")
    (workdir / ".partial-1-model.keras").write_bytes(b"half")


def check_killed(folder, number, place, before):
    name = f"{number}_{'before' if before else 'after'}"
    prepare(folder / name)
    hook = (cases.watch_moves, None, place, before)
    # A separate prepared copy, if its preparation is interrupted.
    flags = (*FLAGS, f"--prepared_dir=prepared_{name}") if "_data" in place else FLAGS
    status, said = cases.run(folder, name, *flags, hook=hook)
    assert status == -signal.SIGKILL, said
    status, said = cases.run(folder, name, *flags)
    assert status == 0, said
    assert cases.results(folder / name) == cases.results(folder / "whole"), place
    assert not cases.leftovers(folder / name), place


def places(folder):
    return (folder / "places").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ckpt-N.data-N-of-N", "ckpt-N.index"])
def test_after_a_move_of_the_first_checkpoint(folder, name):
    (place,) = (place for place in places(folder) if place.startswith(f"replace of {name} "))
    check_killed(folder, name, place, before=False)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_at_every_place(folder, part):
    known = places(folder)
    for number, place in list(enumerate(known))[part::4]:
        # After a removal is the same as before the next one.
        for before in (True, False) if place.startswith(("replace", "rename")) else (True,):
            print(f"{number}: killed {'before' if before else 'after'} {place}", flush=True)
            check_killed(folder, number, place, before)
    assert len(known) >= 20

"""Tests of tfdeq.data.text.near_copies and of splits by its groups."""

import pathlib
import random
import sysconfig
import time

import pytest

from tfdeq import data
from tfdeq.data import prepared
from tfdeq.data.text import byte_documents, files, near_copies, overlap, python_stdlib


def lines(seed, count):
    """Returns lines that are different for each seed."""
    numbers = random.Random(seed)
    return [b"the line %d of the text %d" % (numbers.getrandbits(60), seed) for _ in range(count)]


def documents(*texts):
    return [
        prepared.Document(f"{place:04d}", b"\n".join(own) + b"\n")
        for place, own in enumerate(texts)
    ]


def test_documents_that_share_lines_are_one_group():
    own = [lines(seed, 100) for seed in range(5)]
    shared = lines(9, 10)
    found = near_copies.groups(documents(own[0] + shared, own[1], shared + own[2], own[3], own[4]))
    assert found == [[0, 2], [1], [3], [4]]


def test_a_copy_of_a_copy_belongs_to_the_group():
    a, b, c = (lines(seed, 60) for seed in range(3))
    assert near_copies.groups(documents(a, a[:20] + b, b[:20] + c)) == [[0, 1, 2]]


def test_indentation_and_order_make_no_other_line():
    own = lines(1, 50)
    moved = [b"\t  " + line + b"  " for line in reversed(own)]
    assert near_copies.groups(documents(own, lines(2, 50), moved)) == [[0, 2], [1]]


def test_short_lines_and_a_few_lines_tie_nothing_together():
    short = [b"else:", b"try:", b"pass", b'"""', b"return x"] * 200
    few = lines(9, 3)
    texts = [lines(seed, 20) + short + few for seed in range(4)]
    assert near_copies.groups(documents(*texts)) == [[0], [1], [2], [3]]


def test_a_licence_in_every_file_is_no_copy():
    licence = lines(9, 12)
    texts = [licence + lines(seed, 60) for seed in range(30)]
    assert len(near_copies.groups(documents(*texts))) == 30


def test_many_versions_of_one_text_are_one_group():
    own = lines(9, 60)
    texts = [[*own, *lines(seed, 10)] for seed in range(40)]
    assert near_copies.groups(documents(*texts)) == [list(range(40))]


def test_the_same_content_is_one_group_also_without_lines():
    same = prepared.Document("a", b"\0\1\2")
    other = prepared.Document("b", b"\0\1\3")
    assert near_copies.groups([same, other, same]) == [[0, 2], [1]]


def test_a_line_that_all_have_costs_no_quadratic_time():
    licence = lines(9, 12)
    texts = documents(*(licence + lines(seed, 3) for seed in range(4000)))
    start = time.perf_counter()
    near_copies.groups(texts)
    assert time.perf_counter() - start < 5  # all pairs of them would take minutes


# --- splits -----------------------------------------------------------------------------------------


def of_sizes(*sizes):
    """Returns different documents of the given sizes in bytes."""
    return [
        prepared.Document(f"{place:04d}.txt", random.Random(place).randbytes(size))
        for place, size in enumerate(sizes)
    ]


def keys(found):
    return [document.path.encode() for document in found]


def share(split, whole):
    return sum(len(d.text) for d in split) / sum(len(d.text) for d in whole)


@pytest.mark.parametrize("seed", range(5))
def test_splits_are_shares_of_the_bytes(seed):
    """Even if sizes are as uneven as those of files, and one is huge."""
    numbers = random.Random(seed)
    sizes = [int(numbers.lognormvariate(8, 1.3)) + 1 for _ in range(600)]
    found = of_sizes(*sizes, sum(sizes) // 3)
    splits = byte_documents.split_by_groups(found, keys(found))
    for split in ("validation", "test"):
        assert 0.043 < share(splits[split], found) < 0.057
        assert len(splits[split]) > 4
    whole = [document for split in data.SPLITS for document in splits[split]]
    assert sorted(whole) == found
    assert found[-1] in splits["train"]
    assert splits == byte_documents.split_by_groups(found, keys(found))


def test_a_file_keeps_its_split_when_others_go_or_change():
    found = of_sizes(*[1000 + 13 * place for place in range(400)])
    whole = byte_documents.split_by_groups(found, keys(found))
    changed = [found[0]._replace(text=b"x" * 900), *found[1:200], *found[203:]]
    part = byte_documents.split_by_groups(changed, keys(changed))
    names = {split: {d.path for d in whole[split]} for split in data.SPLITS}
    moved = [d.path for split in data.SPLITS for d in part[split] if d.path not in names[split]]
    assert len(moved) <= 4  # those at the borders


def test_groups_go_to_a_split_whole():
    texts = []
    for seed in range(300):
        own = lines(seed, 40)
        texts += [own, own[:30] + lines(1000 + seed, 10)]
    found = documents(*texts)
    splits = byte_documents.split_by_groups(found, keys(found))
    places = {d.path: split for split in data.SPLITS for d in splits[split]}
    for one, other in zip(found[::2], found[1::2], strict=True):
        assert places[one.path] == places[other.path]
    joined = {split: b"".join(d.text for d in splits[split]) for split in data.SPLITS}
    for split in ("validation", "test"):
        assert overlap.overlap(joined["train"], joined[split]) == 0


def test_too_few_or_too_large_groups_are_no_splits():
    few = of_sizes(*[1000] * 40)
    assert byte_documents.split_by_groups(few, keys(few)) is None
    own = lines(9, 40)
    copies = documents(*(own + lines(seed, 5) for seed in range(200)))
    assert byte_documents.split_by_groups(copies, keys(copies)) is None


def test_near_copies_are_not_cut():
    """Otherwise the end of one could be in the middle of the other."""
    own = lines(1, 200)
    found = documents(own, own + lines(2, 200), lines(3, 800), lines(4, 800))
    splits = byte_documents.split_within_files(found)
    joined = {split: b"\n".join(d.text for d in splits[split]) for split in data.SPLITS}
    for split in ("validation", "test"):
        assert share(splits[split], found) == pytest.approx(0.05, abs=0.001)
        # Except the line that is cut in two.
        assert overlap.overlap(joined["train"], joined[split]) == 0


# --- the standard library ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library():
    """Returns the documents of the running interpreter's library, and their splits."""
    found = python_stdlib.source_documents(pathlib.Path(sysconfig.get_paths()["stdlib"]))
    return found, python_stdlib.split(found)


def joined(splits):
    return {split: b"\n".join(d.text for d in splits[split]) for split in data.SPLITS}


@pytest.mark.slow
def test_little_of_the_librarys_test_stands_in_its_training(library):
    parts = joined(library[1])
    for split in ("validation", "test"):
        # The same for all lines, but `else:` and `return self` occur in every program.
        assert overlap.overlap(parts["train"], parts[split]) < 0.12
        assert overlap.overlap(parts["train"], parts[split], at_least=20) < 0.05
        assert overlap.overlap(parts["train"], parts[split], passage=3) < 0.02


@pytest.mark.slow
def test_the_librarys_splits_are_a_twentieth_of_its_bytes(library):
    whole = [document for split in data.SPLITS for document in library[1][split]]
    for split in ("validation", "test"):
        assert 0.043 < share(library[1][split], whole) < 0.057
        sizes = [len(document.text) for document in library[1][split]]
        assert max(sizes) <= 0.25 * sum(sizes) * 1.2
    assert library[1] == python_stdlib.split(library[0])


@pytest.mark.slow
def test_the_librarys_near_copies_stay_together(library):
    places = {d.path: split for split in data.SPLITS for d in library[1][split]}
    programs = [d for d in library[0] if d.path in places]
    several = [group for group in near_copies.groups(programs) if len(group) > 1]
    assert several
    for group in several:
        assert len({places[programs[index].path] for index in group}) == 1
    for pair in (("tokenize.py", "lib2to3/pgen2/tokenize.py"), ("ntpath.py", "posixpath.py")):
        found = [places[path] for path in pair if path in places]
        assert len(set(found)) <= 1


def test_the_librarys_tables_are_left_out():
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    found = {each.path: each for each in python_stdlib.source_documents(folder)}
    assert "encodings/cp1252.py" not in found
    for path in ("html/entities.py", "stringprep.py", "token.py"):
        assert python_stdlib.is_table(found[path].text)
    for path in ("ast.py", "argparse.py", "typing.py", "decimal.py"):
        assert not python_stdlib.is_table(found[path].text)
    few = [each for path, each in found.items() if len(each.text) < 6000 or "entities" in path]
    splits = python_stdlib.split(few)
    paths = {each.path for split in data.SPLITS for each in splits[split]}
    assert "html/entities.py" not in paths
    assert "__future__.py" in paths


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"x = {\n" + b"".join(b"    %d: 'a',\n" % i for i in range(30)) + b"}\n", True),
        (b"x = [\n" + b"    (1, -2.5),\n" * 30 + b"]\n", True),
        (b"x = [\n" + b"    f(1),\n" * 30 + b"]\n", False),
        (b"x = [\n" + b"    1,\n" * 5 + b"]\n", False),
        (b"# Auto-generated by a program.\nx = 1\n", True),
        (b'"""What is generated by callers."""\nx = 1\n', False),
        (b"x = (\n", False),
        (b"\0", False),
    ],
)
def test_tables(source, expected):
    assert python_stdlib.is_table(source) is expected


def test_copies_of_another_split_are_not_read(tmp_path, monkeypatch):
    """Copies prepared before near-copies shared a split have another version."""
    for place in range(200):
        (tmp_path / f"{place}.txt").write_bytes(b"\n".join(lines(place, 30)))
    options = {"files": str(tmp_path / "*.txt"), "prepared_dir": str(tmp_path / "prepared")}
    with monkeypatch.context() as patched:
        patched.setattr(files.Text, "VERSION", prepared.DocumentsBuilder.VERSION)
        patched.setattr(files, "_split", lambda found, _: byte_documents.split_within_files(found))
        before = data.load("text", **options)
    assert data.load("text", **options).fingerprint != before.fingerprint
    assert python_stdlib.PythonStdlib.VERSION > prepared.DocumentsBuilder.VERSION

"""The BUILD files agree with the imports of the sources."""

import ast
import graphlib
import pathlib

import pytest

from tools import build_files

ROOT = pathlib.Path(__file__).absolute().parents[1]
FOLDERS = build_files.folders()
# Labels that are no Python.
FILEGROUPS = ("//:sources", ":shipped")


def test_build_files_are_as_the_generator_writes_them():
    assert not build_files.differing(), "run `python -m tools.build_files`"


# Below, the files are read without the generator, because Starlark's syntax is Python's.


def _targets(folder):
    """(rule, attributes) of every target of a folder's BUILD file."""
    for node in ast.parse((ROOT / folder / "BUILD").read_text()).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            rule = node.value.func.id
            if rule.startswith("py_"):
                attributes = {k.arg: ast.literal_eval(k.value) for k in node.value.keywords}
                yield rule, attributes


def _file(label, folder):
    """The source of a label: //a/b:c and //a/b name a/b/c.py and a/b/__init__.py."""
    package, _, name = label.rpartition(":") if ":" in label else (label, "", "")
    package = package.removeprefix("//") or folder
    path = ROOT / package / f"{name}.py"
    return path if path.is_file() else ROOT / package / "__init__.py"


def _imported(path):
    """The files of this project in a file's import statements."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [(node.module, alias.name) for alias in node.names]
    found = set()
    for module, name in names:
        base = ROOT.joinpath(*module.split("."))
        candidates = (
            base / f"{name}.py",
            base / name / "__init__.py",
            base / "__init__.py",
            base.with_suffix(".py"),
        )
        found.update([file for file in candidates if file.is_file()][:1])
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_module_is_one_target(folder):
    sources = [
        name for rule, target in _targets(folder) if rule != "py_binary" for name in target["srcs"]
    ]
    assert sorted(sources) == sorted(path.name for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_deps_are_the_imports(folder):
    for rule, target in _targets(folder):
        (name,) = target["srcs"]
        path = ROOT / folder / name
        deps = {_file(label, folder) for label in target.get("deps", [])}
        if rule == "py_binary":
            assert deps == {path}
            continue
        # The __init__.py files with code, which modules below them need without importing them.
        unasked = {
            ROOT / place / "__init__.py"
            for place in ("trainers", "export", "tfdeq/data", "tfdeq/serving")
            if f"{folder}/".startswith(f"{place}/")
        }
        assert deps - unasked == _imported(path) - unasked, target["name"]
        assert (unasked - {path}) <= deps, target["name"]


def test_no_cycles():
    graph = {}
    for folder in FOLDERS:
        for rule, target in _targets(folder):
            if rule != "py_binary":
                labels = [*target.get("deps", []), *target.get("data", [])]
                files = {_file(label, folder) for label in labels if label not in FILEGROUPS}
                graph[ROOT / folder / target["srcs"][0]] = files
    graphlib.TopologicalSorter(graph).prepare()


def test_a_changed_import_shows(tmp_path, monkeypatch):
    for name, text in {"a.py": "import tests.b\n", "b.py": "", "c.py": 'RUN = "tests.b"\n'}.items():
        (tmp_path / "tests").mkdir(exist_ok=True)
        (tmp_path / "tests" / name).write_text(text)
    monkeypatch.setattr(build_files, "ROOT", tmp_path)
    assert build_files.main([]) == 0
    assert build_files.main(["--check"]) == 0
    assert 'deps = [":b"]' in (tmp_path / "tests/BUILD").read_text()
    assert 'data = [":b"]' in (tmp_path / "tests/BUILD").read_text()
    (tmp_path / "tests/a.py").write_text("")
    assert build_files.main(["--check"]) == 1
    assert build_files.differing() == ["tests/BUILD"]

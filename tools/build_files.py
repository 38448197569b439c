"""Writes the BUILD files from the imports.

    python -m tools.build_files            rewrites those that differ
    python -m tools.build_files --check    only says which differ

Every module is a py_library with its name, a package's __init__.py one with its folder's name, every
NAME_test.py a py_test, and a module with a `__main__` block also a py_binary NAME_main.

- `deps` are the modules in import statements anywhere in the file: `from a.b import c` is a.b.c if that
  is a module, else a/b/__init__.py.
- An __init__.py above a module, which Python runs before it, is in `deps` only if it has code but no
  imports of this project (trainers/__init__.py). Others import the modules of their folder and would
  make cycles. A module with complete imports does not need them. If no target depends on one, Bazel
  puts an empty __init__.py in its place, so a test also proves that the imports of the tested module
  are complete.
- `data` are the modules that a file runs by name or by path: a string that is a dotted module name
  ("trainers.language_model", for `python -m`) or a file in the same folder ("runtime.py"); and C++
  sources, and folders without Python ("shipped"), in the same folder that it mentions.

Packages from pip come from the Python interpreter that Bazel finds first on PATH.
"""

import argparse
import ast
import functools
import pathlib
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
TOP_FOLDERS = ("benchmarks", "examples", "export", "tests", "tfdeq", "tools", "trainers")
IGNORED = ("tools/bazel4",)  # as in .bazelignore

# Tests that read the sources of the whole project.
READERS = (
    "tests/build_files_test.py",
    "tests/examples/conventions_test.py",
    "tests/structure_test.py",
)
# Tests that may take more than Bazel's five minutes on a few cores.
LARGE = ("tests/conformance_test.py", "tests/trainers/language_model_test.py")

RULES = "@rules_python//python:defs.bzl"
HEADER = '"""Written by `python -m tools.build_files` from the imports."""\n'
PACKAGE = 'package(default_visibility = ["//visibility:public"])\n'
SOURCES = 'filegroup(\n    name = "sources",\n    srcs = glob(["*.py", "presets/*.flags"]) + ["BUILD"],\n)\n'
EXTRAS = {
    "tools": 'exports_files(["pytest_runner.py"])\n',
    "tfdeq/models": 'filegroup(\n    name = "shipped",\n    srcs = glob(["shipped/**"]),\n)\n',
}


def folders() -> list[str]:
    """Returns the folders with Python files, as paths from ROOT."""
    found = {
        path.parent.relative_to(ROOT).as_posix()
        for top in TOP_FOLDERS
        for path in (ROOT / top).rglob("*.py")
    }
    return sorted(name for name in found if not name.startswith(IGNORED))


@functools.cache
def source(module: str) -> pathlib.Path | None:
    """Returns the file of a dotted module name, or None if the project has no such module."""
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if path.relative_to(ROOT).parts[0] in TOP_FOLDERS and candidate.is_file():
            return candidate
    return None


def module_of(path: pathlib.Path) -> str:
    """Returns the dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(module: str) -> set[str]:
    """Returns the modules of this project in a module's import statements."""
    found = set()
    for name, inner in _facts(module).imported:
        found.add(inner if inner and source(inner) else name)
    return {name for name in found if source(name)} - {module}


def needed(module: str) -> set[str]:
    """Returns the imports, and the ancestors' __init__.py with code but without imports of the project."""
    parts = module.split(".")
    ancestors = {".".join(parts[:length]) for length in range(1, len(parts))}
    return imports(module) | {
        name for name in ancestors if source(name) and _facts(name).has_code and not imports(name)
    }


def runs(module: str) -> set[str]:
    """Returns the modules that a module runs by name or by path, except those in its `deps`."""
    folder = source(module).parent
    found = set()
    for text in _facts(module).strings:
        if re.fullmatch(r"(?!__)\w+\.py", text):
            if (folder / text).is_file():
                found.add(module_of(folder / text))
        elif re.fullmatch(r"\w+(\.\w+)+", text) and source(text):
            found.add(text)
    return found - needed(module) - {module}


def reads(module: str) -> list[str]:
    """Returns the C++ sources, and the filegroups of `EXTRAS`, in a module's folder that it mentions."""
    folder = source(module).parent
    extras = EXTRAS.get(folder.relative_to(ROOT).as_posix(), "")
    strings = _facts(module).every_string
    sources = [
        text for text in strings if re.fullmatch(r"\w+\.cc", text) and (folder / text).is_file()
    ]
    groups = [f":{text}" for text in strings if f'filegroup(\n    name = "{text}"' in extras]
    return sorted(sources + groups)


def label(module: str, folder: str) -> str:
    """Returns the target of a module, as a BUILD file in `folder` refers to it."""
    path = source(module)
    package = path.parent.relative_to(ROOT).as_posix()
    name = path.parent.name if path.stem == "__init__" else path.stem
    if package == folder:
        return f":{name}"
    return f"//{package}" if name == path.parent.name else f"//{package}:{name}"


def build_file(folder: str) -> str:
    """Returns the BUILD file of a folder with Python files."""
    paths = sorted((ROOT / folder).glob("*.py"))
    modules = [module_of(path) for path in paths]
    targets = []
    for module in modules:
        targets.append(_test(module, folder) if _is_test(module) else _library(module, folder))
        if _is_program(module):
            targets.append(_program(module, folder))
    used = [
        rule for rule in ("py_binary", "py_library") if any(t.startswith(rule) for t in targets)
    ]
    loads = _load(RULES, used)
    if any(map(_is_test, modules)):
        loads += _load("//tools:pytest.bzl", ["py_test"])
    extras = [EXTRAS[folder]] if folder in EXTRAS else []
    return "\n".join([HEADER, loads, PACKAGE, *extras, SOURCES, *targets])


def top_build_file() -> str:
    """Returns the BUILD file of ROOT."""
    public = [name for name in folders() if name.startswith("tfdeq") and "programs" not in name]
    return "\n".join(
        [
            HEADER,
            _load(RULES, ["py_library"]),
            PACKAGE,
            'exports_files(["pyproject.toml"])\n',
            "# What `pip install` gives, without the console scripts.",
            _rule("py_library", name="tfdeq", deps=[f"//{name}" for name in public]),
            "# Every Python and BUILD file, for tests that read them.",
            _rule(
                "filegroup",
                name="sources",
                srcs=["BUILD", *(f"//{name}:sources" for name in folders())],
            ),
        ]
    )


def expected() -> dict[pathlib.Path, str]:
    """Returns path -> the expected contents of each BUILD file."""
    for cached in (source, imports, _facts):  # the files may have changed
        cached.cache_clear()
    return {
        ROOT / "BUILD": top_build_file(),
        **{ROOT / folder / "BUILD": build_file(folder) for folder in folders()},
    }


def differing() -> list[str]:
    """Returns the BUILD files that are not as expected, or should not exist, from ROOT."""
    wanted = expected()
    found = {path for top in TOP_FOLDERS for path in (ROOT / top).rglob("BUILD")}
    strays = [
        path
        for path in found - set(wanted)
        if not path.relative_to(ROOT).as_posix().startswith(IGNORED)
    ]
    wrong = [
        path for path, text in wanted.items() if not path.is_file() or path.read_text() != text
    ]
    return sorted(path.relative_to(ROOT).as_posix() for path in wrong + strays)


def main(arguments: list[str]) -> int:
    """Rewrites the files, or with --check only lists those that differ and returns 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="only say which files differ")
    check = parser.parse_args(arguments).check
    names = differing()
    for name in names:
        print(f"{name} differs" if check else f"wrote {name}")
    if check:
        return 1 if names else 0
    wanted = expected()
    for name in names:
        if ROOT / name in wanted:
            (ROOT / name).write_text(wanted[ROOT / name])
        else:
            (ROOT / name).unlink()
    return 0


class _Facts(NamedTuple):
    """Facts from a module's syntax tree, which is walked once."""

    imported: set[tuple[str, str]]  # (module, module.name of `from module import name`, or "")
    every_string: set[str]
    strings: set[str]  # except keys and programs that it only tells the user to run
    has_code: bool
    has_main: bool


@functools.cache
def _facts(module: str) -> _Facts:
    tree = ast.parse(source(module).read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    told = set()
    for node in nodes:
        if isinstance(node, ast.Call) and _is_told(node.func):
            told.update(map(id, node.args))
        elif isinstance(node, ast.Dict):
            told.update(map(id, node.keys))
    texts = [n for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return _Facts(
        _imported(module, nodes),
        {node.value for node in texts},
        {node.value for node in texts if id(node) not in told},
        any(not isinstance(statement, ast.Expr) for statement in tree.body),
        any(
            isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)
            for statement in tree.body
        ),
    )


def _is_told(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr == "command"
        and getattr(function.value, "id", "") == "commands"
    )


def _imported(module: str, nodes: list[ast.AST]) -> set[tuple[str, str]]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{source(module)}:{node.lineno}: write the import in full.")
            found.update((node.module, f"{node.module}.{alias.name}") for alias in node.names)
    return found


def _is_test(module: str) -> bool:
    return module.endswith("_test")


def _is_program(module: str) -> bool:
    return not _is_test(module) and _facts(module).has_main


def _labels(modules: Iterable[str], folder: str) -> list[str]:
    labels = {label(module, folder) for module in modules}
    return sorted(labels, key=lambda text: (not text.startswith(":"), text.replace(":", "!")))


def _library(module: str, folder: str) -> str:
    return _rule(
        "py_library",
        name=label(module, folder)[1:],
        srcs=[source(module).name],
        data=_labels(runs(module), folder) + reads(module),
        deps=_labels(needed(module), folder),
    )


def _program(module: str, folder: str) -> str:
    path = source(module)
    return _rule(
        "py_binary",
        name=f"{path.stem}_main",
        srcs=[path.name],
        main=path.name,
        deps=[label(module, folder)],
    )


def _test(module: str, folder: str) -> str:
    path = source(module)
    place = path.relative_to(ROOT).as_posix()
    return _rule(
        "py_test",
        name=path.stem,
        size="large" if place in LARGE else "",
        srcs=[path.name],
        data=["//:sources"] if place in READERS else _labels(runs(module), folder),
        deps=_labels(needed(module), folder),
    )


def _load(file: str, names: list[str]) -> str:
    return f"load({', '.join(_quoted(name) for name in [file, *names])})\n" if names else ""


def _rule(kind: str, **attributes: str | list[str]) -> str:
    lines = [f"    {name} = {_value(value)},\n" for name, value in attributes.items() if value]
    return f"{kind}(\n{''.join(lines)})\n"


def _value(value: str | list[str]) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if len(value) == 1:
        return f"[{_quoted(value[0])}]"
    return "[\n" + "".join(f"        {_quoted(item)},\n" for item in value) + "    ]"


def _quoted(text: str) -> str:
    return f'"{text}"'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

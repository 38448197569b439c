"""The structure of the project: directions of imports, and sizes of files and functions."""

import ast
import doctest
import importlib
import inspect
import pathlib

import keras
import pytest
import tensorflow as tf

import tfdeq

ROOT = pathlib.Path(__file__).absolute().parents[1]
PACKAGE = ROOT / "tfdeq"

# A file may import from its own layer and from those before it.
LAYERS = (
    (
        "tfdeq.version",
        "tfdeq.numerics.arnoldi",
        "tfdeq.numerics.custom_gradient",
        "tfdeq.numerics.fixed_shapes",
        "tfdeq.cell_calls.batch_part",
        "tfdeq.cell_calls.call_time",
        # Files written whole or not at all; models save themselves with them.
        "tfdeq.programs.paths",
        "tfdeq.programs.preemption",
        "tfdeq.programs.whole_folder",
        "tfdeq.programs.workdir",
    ),
    (
        "tfdeq.rows",
        "tfdeq.numerics.closures",
        "tfdeq.cell_calls.scope_stack",
        "tfdeq.steadiness.live_number",
    ),
    ("tfdeq.solution", "tfdeq.solvers"),
    ("tfdeq.compaction", "tfdeq.numerics", "tfdeq.solve_scope"),
    ("tfdeq.warm_starts", "tfdeq.spectral_norm", "tfdeq.cell_calls.masks"),
    ("tfdeq.cell_calls.scoped_call",),
    ("tfdeq.iteration", "tfdeq.block_solve"),
    ("tfdeq.adjoints",),
    ("tfdeq.fixed_point", "tfdeq.regularizers", "tfdeq.cell_calls"),
    ("tfdeq.steadiness",),
    ("tfdeq.layer",),
    (
        "tfdeq.cells",
        "tfdeq.baselines",
        "tfdeq.models",
        "tfdeq.gradient_report",
        "tfdeq.best_of",
        "tfdeq.certificates",
        "tfdeq.steadiness.residual_watch",
    ),
    ("tfdeq.callbacks",),
    ("tfdeq",),
    ("tfdeq.programs",),
    ("tfdeq.data", "tfdeq.runs"),
    ("tfdeq.serving", "tfdeq.training"),
    ("trainers", "export"),
    ("benchmarks", "examples"),
)


def _layer_of(module: str) -> int | None:
    """Returns the place of a module in LAYERS, by its longest prefix there; None for other packages."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        for index, layer in enumerate(LAYERS):
            # "tfdeq" stands for the package's own __init__, not for its contents.
            if prefix in layer and (prefix != "tfdeq" or module == "tfdeq"):
                return index
    return None


def _module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _path_of(module: str) -> pathlib.Path:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _imports(path: pathlib.Path) -> set[str]:
    """Returns the modules in all import statements of a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if _is_module(inner) else node.module)
    return found


def _sources():
    return sorted(
        path
        for folder in ("tfdeq", "trainers", "export", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*.py")
    )


# Folders outside the core, where a test file may test several modules.
_OUTER = ("programs", "data", "training", "serving")


def _modules_of_the_core():
    return [
        _module_of(path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in _OUTER
    ]


# Their examples train, export or generate, and take seconds.
LONG_EXAMPLES = (
    "tfdeq.callbacks",
    "tfdeq.cells.multiscale.multiscale_cell",
    "tfdeq.gradient_report",
    "tfdeq.models.generation",
    "tfdeq.models.generation_segments",
    "tfdeq.models.language_model",
    "tfdeq.serving.edge.litert",
    "tfdeq.serving.versions.loading",
    "tfdeq.serving.versions.saved_model",
)


def _modules_with_examples():
    return [
        _module_of(path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if ">>> " in path.read_text(encoding="utf-8")
    ]


def _lines_of_body(function: ast.FunctionDef) -> int:
    """Returns the lines of a function's body, without its docstring."""
    start = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        if len(function.body) == 1:
            return 0
        start = function.body[1]
    return function.end_lineno - start.lineno + 1


@pytest.mark.parametrize("path", _sources(), ids=_module_of)
def test_bodies_of_functions_stay_small(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = _lines_of_body(node)
        assert lines <= 50, f"{node.name} in {path}: {lines} lines; make functions of its parts"


def test_the_test_of_bodies_leaves_docstrings_out():
    text = 'def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n    return (\n        a\n    )\n'
    assert _lines_of_body(ast.parse(text).body[0]) == 4
    assert _lines_of_body(ast.parse('def f():\n    """One."""\n').body[0]) == 0


def test_files_and_folders_stay_small():
    for path in (*(ROOT / "trainers").glob("*.py"), *(ROOT / "export").glob("*.py")):
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 150, f"{path}: {lines} lines; what is not flags belongs into the library"
    for folder in {path.parent for path in _sources()}:
        modules = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(modules) <= 15, f"{folder} has {len(modules)} modules: make folders of it"


@pytest.mark.parametrize("path", _sources(), ids=_module_of)
def test_imports_point_one_way(path):
    module = _module_of(path)
    own = _layer_of(module)
    assert own is not None, f"{module} has no place in LAYERS: give it one"
    for imported in sorted(_imports(path)):
        if imported.split(".")[0] not in ("tfdeq", "trainers", "export", "examples"):
            continue
        other = _layer_of(imported)
        assert other is not None, f"{imported} has no place in LAYERS: give it one"
        assert other <= own, f"{module} imports {imported}, which comes after it"


def test_the_import_test_sees_an_arrow_that_points_back(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text("def f():\n    from tfdeq import layer\n    import tfdeq.data\n")
    assert _imports(path) == {"tfdeq.layer", "tfdeq.data"}
    assert _layer_of("tfdeq.layer") > _layer_of("tfdeq.solvers.broyden")
    assert _layer_of("tfdeq.unheard_of") is None


@pytest.mark.parametrize("module", _modules_of_the_core())
def test_every_module_has_a_test_file(module):
    path = module.split(".")[1:]
    if module in ("tfdeq", "tfdeq.version") or _path_of(module).name == "__init__.py":
        return  # names only
    folders = ("/".join(path[:-1]) or "core", path[-1])  # one with many tests has its own
    assert any((ROOT / "tests" / folder / f"{path[-1]}_test.py").exists() for folder in folders)


@pytest.mark.parametrize("name", [name for name in tfdeq.__all__ if not name.startswith("__")])
def test_public_names_say_what_they_are(name):
    thing = getattr(tfdeq, name)
    text = inspect.getdoc(thing)
    assert text
    first = text.split("\n\n")[0]
    assert first.rstrip().endswith((".", "`")), "the first paragraph is a sentence"
    # Classes that hold results have no examples or sources of methods.
    if name not in ("BestOf", "Solution", "Status") and not inspect.ismodule(thing):
        assert "Example:" in text
        assert "Source:" in text or name in ("describe", "SolveScope")  # these have no method


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(module, marks=pytest.mark.slow if module in LONG_EXAMPLES else ())
        for module in _modules_with_examples()
    ],
)
def test_examples_of_the_docstrings(module):
    module = importlib.import_module(module)
    result = doctest.testmod(
        module,
        extraglobs={
            "tf": tf,
            "keras": keras,
            "tfdeq": tfdeq,
            **{name: getattr(tfdeq, name) for name in tfdeq.__all__},
        },
    )
    assert result.failed == 0


_MODEL_CLASSES = {"LanguageModel", "ExplicitLanguageModel", "TokenModel"}
# The module that chooses the adapter, and the check of a function that takes no other models.
_ASKS_FOR_CLASSES = (
    "tfdeq.serving.kinds.runs",
    "tfdeq.serving.signatures.language_model_signatures",
)


@pytest.mark.parametrize(
    "path",
    [path for path in _sources() if {"training", "serving"} & set(path.parts)],
    ids=_module_of,
)
def test_only_the_adapters_ask_for_a_models_class(path):
    if _module_of(path) in _ASKS_FOR_CLASSES:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            asked = {leaf.id for leaf in ast.walk(node.args[1]) if isinstance(leaf, ast.Name)}
            assert not asked & _MODEL_CLASSES, f"{path}:{node.lineno}: let the kind say it"

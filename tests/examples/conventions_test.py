"""What every example has: a story, few lines, public names only, a page and a test."""

import ast
import pathlib
import re
import sys

import pytest

import tfdeq

ROOT = pathlib.Path(__file__).absolute().parents[2]
PAGES = ROOT / "docs" / "examples"
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if path.stem != "__init__"]
# Beside Python's own modules; an example that needs another one says how to install it.
PACKAGES = {"keras", "matplotlib", "numpy", "skimage", "tensorflow", "tfdeq"}

# Those that `import tfdeq` imports on first use are imported by name too, for Bazel.
PUBLIC = ("tfdeq", "tfdeq.data", "tfdeq.serving")
pytestmark = pytest.mark.skipif(not PAGES.is_dir(), reason="under Bazel there are no documents")


def _name(path):
    return path.stem


def _imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def _used(node):
    """Returns the dotted name of an expression like tfdeq.cells.DenseCell, or None."""
    names = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else None


@pytest.mark.parametrize("path", EXAMPLES, ids=_name)
def test_an_example_is_short_and_tells_its_story(path):
    text = path.read_text("utf-8")
    assert text.count("\n") <= 150, "an example has at most 150 lines"
    story = ast.get_docstring(ast.parse(text))
    assert "arXiv" in story or re.search(r"\b(19|20)\d\d\b", story), "name the source"
    assert f"Run: python examples/{path.name}" in story
    assert 'main(sys.argv[1] if len(sys.argv) > 1 else ".")' in text


@pytest.mark.parametrize("path", EXAMPLES, ids=_name)
def test_an_example_uses_public_names(path):

    tree = ast.parse(path.read_text("utf-8"))
    for module in _imported(tree):
        package = module.split(".")[0]
        assert package in PACKAGES or package in sys.stdlib_module_names, module
        assert package != "tfdeq" or module in PUBLIC, f"write `import tfdeq`; found {module}"
    for node in ast.walk(tree):
        names = _used(node)
        if names and names[0] == "tfdeq":
            thing = tfdeq
            for name in names[1:]:
                assert not name.startswith("_"), ".".join(names)
                thing = getattr(thing, name)


@pytest.mark.parametrize("path", EXAMPLES, ids=_name)
def test_an_example_has_a_page_and_a_test(path):
    page = (PAGES / f"{path.stem}.md").read_text("utf-8")
    assert f'``` {{.python}}\n--8<-- "{path.name}"\n```' in page, "the page includes the source"
    assert f"]({path.stem}.png)" in page, "the page shows the picture"
    assert f"python examples/{path.name}" in page, "the page names the command"
    rows = [row for row in _index().splitlines() if row.startswith("|")]
    assert any(f"({path.stem}.md)" in row for row in rows), "docs/examples/index.md lacks it"
    test = (ROOT / "tests" / "examples" / f"{path.stem}_test.py").read_text("utf-8")
    assert "pytest.mark.slow" in test
    assert f"examples.{path.stem}" in test


def test_every_page_has_an_example():
    assert {path.stem for path in PAGES.glob("*.md")} == {*map(_name, EXAMPLES), "index"}


def _index():
    return (PAGES / "index.md").read_text("utf-8")

"""The documents and their site: links, pictures, code, names of the API, words of the glossary."""

import importlib
import inspect
import pathlib
import re

import pytest
import yaml

from tests import installed_test

ROOT = pathlib.Path(__file__).absolute().parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def _name(path):
    return path.relative_to(ROOT).as_posix()


def _is_slow(path):
    return re.search(
        r"\.(fit|train_on_batch)\(|serving\.export\(|convert\(", path.read_text("utf-8")
    )


# Pages whose Python code runs from top to bottom, as readers would copy it.
PAGES = [
    path
    for path in (
        DOCS / "index.md",
        DOCS / "certificates.md",
        *sorted(DOCS.glob("concepts/*.md")),
        *sorted(DOCS.glob("guides/*.md")),
    )
    if "```python" in path.read_text("utf-8")
]
# Pages that train or export take longest; these do neither, and take seconds too.
LONG = ("docs/concepts/stability.md", "docs/guides/images.md", "docs/guides/tune.md")
CODE = [
    pytest.param(
        path,
        id=_name(path),
        marks=pytest.mark.slow if _is_slow(path) or _name(path) in LONG else (),
    )
    for path in PAGES
]
# What a page may show though it need not be installed here, each in a block that no later one needs.
OPTIONAL = ("keras_tuner", "pydot", "graphviz", "tf2onnx", "onnxruntime")
PUBLIC = (
    "tfdeq",
    "tfdeq.adjoints",
    "tfdeq.baselines",
    "tfdeq.callbacks",
    "tfdeq.cells",
    "tfdeq.data",
    "tfdeq.data.images",
    "tfdeq.data.puzzles",
    "tfdeq.models",
    "tfdeq.serving",
    "tfdeq.solvers",
)


def _prose(path):
    """A document's text without its code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text("utf-8"), flags=re.S)


def _anchors(path):
    """Returns the anchors of a Markdown file's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(path)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{path.name} links to {link}"
        assert not anchor or anchor in _anchors(target), f"{path.name} links to {link}"
        # Files outside docs/ are not on the site.
        assert not path.is_relative_to(DOCS) or target.resolve().is_relative_to(DOCS.resolve())


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_pictures_have_a_text(path):
    for text, file in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", _prose(path)):
        assert len(text.split()) >= 3, f"{path.name}: say what {file} shows"


def _navigation():
    """Returns the files of the site's navigation, in order."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    entries = [yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)["nav"]]
    while entries:
        entry = entries.pop(0)
        if isinstance(entry, str):
            yield entry
        else:
            entries[:0] = list(entry.values()) if isinstance(entry, dict) else entry


def test_the_navigation_has_each_page_once():
    listed = list(_navigation())
    assert len(listed) == len(set(listed))
    assert set(listed) == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


@pytest.mark.parametrize("path", CODE)
def test_the_code_of_a_page_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
    namespace = {"__name__": "page"}
    lacking = []
    for block in blocks:
        try:
            exec(compile(block, _name(path), "exec"), namespace)
        except ImportError as error:
            missing = [name for name in OPTIONAL if name in str(error)]
            if not missing:
                raise
            lacking += missing
    if lacking:
        pytest.skip(f"all but the blocks that need {', '.join(lacking)} ran")


def test_all_code_is_run_by_some_test():
    run = {*map(_name, PAGES), *installed_test.DOCUMENTS}
    assert {_name(path) for path in DOCUMENTS if "```python" in path.read_text("utf-8")} <= run


def _thing(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _reference():
    """Returns (name in the heading, path of the object) for each entry of the API pages."""
    for path in sorted(DOCS.glob("api/*.md")):
        entries = re.findall(
            r"^::: ([\w.]+)\n(?:    options:\n(?:      heading: ([\w.]+)\n)?)?",
            path.read_text("utf-8"),
            re.M,
        )
        yield from ((heading or found, found) for found, heading in entries)


def _public(module):
    """Returns the public names of a module."""
    names = getattr(module, "__all__", None) or [
        name
        for name, thing in vars(module).items()
        if name[0] != "_" and getattr(thing, "__module__", "").startswith(module.__name__)
    ]
    return [
        name for name in names if not inspect.ismodule(getattr(module, name)) and name[0] != "_"
    ]


def test_headings_of_the_reference_are_names_to_import():
    for name, path in _reference():
        assert _thing(name) is _thing(path), f"{name} is not {path}"


@pytest.mark.parametrize("module", PUBLIC)
def test_the_reference_has_every_public_name(module):
    module = importlib.import_module(module)
    documented = {id(_thing(path)) for _, path in _reference()}
    names = _public(module)
    assert names
    missing = [name for name in names if id(getattr(module, name)) not in documented]
    assert not missing, f"docs/api lacks {missing} of {module.__name__}"


def test_the_glossary_is_reached_from_the_readme():
    assert "docs/glossary.md" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_an_adjoint_is_called_an_adjoint(path):
    found = re.findall(r"backward rules?", path.read_text("utf-8"), re.I)
    assert len(found) == (path.name == "glossary.md")


def test_the_site_is_built_strictly():
    """With --quiet, MkDocs counts no warnings, and --strict has no effect."""
    (build,) = re.findall(r"mkdocs build.*", (ROOT / "Makefile").read_text())
    assert "--strict" in build
    assert "quiet" not in build
    assert "-q" not in build.split()

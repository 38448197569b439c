"""The documents: that their links lead somewhere, and that they keep to the words of the glossary."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).absolute().parents[1]
DOCUMENTS = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def _anchors(path):
    """The anchors that a Markdown file's headings make."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text("utf-8"), flags=re.S)  # no code
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{path.name} links to {link}"
        assert not anchor or anchor in _anchors(target), f"{path.name} links to {link}"


def test_the_glossary_is_reached_from_the_readme():
    assert "docs/glossary.md" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_an_adjoint_is_called_an_adjoint(path):
    found = re.findall(r"backward rules?", path.read_text("utf-8"), re.I)
    assert len(found) == (path.name == "glossary.md")

"""Docstrings in the form that the API pages show."""

import doctest

from tools import docstring_markdown
from tools.docstring_markdown import as_markdown


def test_the_example_of_the_docstring():
    assert doctest.testmod(docstring_markdown).attempted >= 1
    assert doctest.testmod(docstring_markdown).failed == 0


def test_call_arguments_are_a_list():
    text = as_markdown(
        "Call arguments:\n    x: [B].\n    a, b: two,\n        with more.\n\nReturns:\n    y."
    )
    assert text.split("\n") == [
        "**Call arguments:**",
        "",
        "- **`x`** – [B].",
        "- **`a, b`** – two,",
        "    with more.",
        "",
        "Returns:",
        "    y.",
    ]


def test_call_arguments_in_prose_stay_prose():
    assert as_markdown("Call arguments: z [B]; x as it\n    comes.") == (
        "**Call arguments:** z [B]; x as it\ncomes."
    )


def test_examples_are_sessions_and_a_comparison_is_no_quotation():
    text = as_markdown(
        "Args:\n    k: > 0.\n    n: the number,\n        >= 1.\n\nExample:\n    >>> 1 > 0\n    True"
    )
    assert text == (
        "Args:\n    k: \\> 0.\n    n: the number,\n        \\>= 1.\n\nExamples:\n    >>> 1 > 0\n    True"
    )

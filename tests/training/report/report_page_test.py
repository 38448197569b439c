import html.parser
import math
import re

from tfdeq.training.report.report_page import page
from tfdeq.training.report.report_run import Run

ROW = {"bits_per_word": 7.25, "perplexity": 152.2, "residual": 5e-3, "steps": 6.0}
START = {
    "started": "2026-01-01T00:00:00+00:00",
    "command": ["program", "--files=a b"],
    "python": "3.11.7",
    "packages": {"tensorflow": "2.21.0"},
    "commit": {"hash": "0123456789abcdef", "changed": True},
    "devices": {"CPU": 1, "GPU": 2},
}
FINISHED = Run(
    "first",
    {
        "parameters": 1234567,
        "train": {
            "best": {"step": 40, "score": 7.5},
            "all_skipped_steps": 3,
            "rollbacks": 1,
            "seconds_per_step": 0.25,
            "peak_memory_mib": 1590.6,
        },
        "test": {
            **{**ROW, "standard_error": 0.125, "examples": 12, "tokens": 96},
            "by_budget": {"0.5": ROW, "1.0": ROW},
        },
    },
    {"train_steps": 40, "learning_rate": 0.01, "seed": 0},
    {"step": [20, 40], "loss": [3.0, 2.0]},
    [START, {**START, "python": "3.12.1"}],
)
TRAINING = Run(
    "second",
    None,
    {"train_steps": 80, "learning_rate": 0.02, "seed": 0},
    {"step": [20], "loss": [2.5], "seconds_per_step": [0.5], "skipped_steps": [2]},
)


class Tables(html.parser.HTMLParser):
    """Parses tables to (heading of the first column, row head) -> cells, and finds unclosed tags."""

    VOID = ("meta", "link", "img", "line", "wbr")

    def __init__(self, text):
        super().__init__()
        self.rows, self.open, self.wrong = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in self.VOID and self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data


def rows_of(text):
    tables = Tables(text)
    assert not tables.open
    assert not tables.wrong
    return tables.rows


def test_tells_the_runs():
    rows = rows_of(page([FINISHED, TRAINING], "today"))
    told = dict(zip(rows[0], zip(*rows[1:3], strict=True), strict=True))
    assert told == {
        "Run": ("first", "second"),
        "State": ("finished", "in progress at step 20"),
        "Steps": ("40", "20 of 80"),
        "Test bits per word": ("7.25", "–"),
        "Test perplexity": ("152.2", "–"),
        "Test standard error": ("0.125", "–"),
        "Examples tested": ("12", "–"),
        "Residual at the budget": ("5.0e-03", "–"),
        "Solver steps at the budget": ("6", "–"),
        "Best step (validation score)": ("40 (7.5)", "–"),
        "Skipped steps": ("3", "2"),
        "Rollbacks": ("1", "–"),
        "Seconds per step": ("0.25", "0.5"),
        "Peak memory (MiB)": ("1,591", "–"),
        "Parameters": ("1,234,567", "–"),
    }


def test_tells_budgets_flags_and_environment():
    rows = rows_of(page([FINISHED, TRAINING], "today"))
    assert ["first", "0.5 ×", "7.25", "152.2", "5.0e-03", "6"] in rows
    assert ["--learning_rate", "0.01", "0.02"] in rows
    assert ["--seed", "0"] in rows  # among those that are the same
    assert ["Number of starts", "2", "–"] in rows
    assert ["Python", "3.11.7 → 3.12.1", "–"] in rows
    assert ["Commit", "0123456789ab and changes", "–"] in rows
    assert ["Devices", "1 CPU, 2 GPU", "–"] in rows
    assert ["Command", "program '--files=a b'", "–"] in rows


def test_one_run_has_all_its_flags():
    assert ["--seed", "0"] in rows_of(page([FINISHED], "today"))


def test_is_a_whole_page_that_asks_for_nothing():
    text = page([FINISHED, TRAINING], "today")
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert "<title>Training report: first, second</title>" in text
    assert text.count("<table") == text.count("<caption>") == 5
    assert text.count("<figure>") == text.count("<figcaption>") == text.count(' alt="Line plot of')
    assert "<script" not in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(source.startswith("data:") for source in sources)
    assert "://" not in re.sub(r"base64,[^\"]*", "", text)


def test_everything_from_files_is_escaped():
    bad = '<script>"&\x00\ud800'
    start = {"python": bad, "packages": {bad: bad}, "command": [bad], "devices": {bad: bad}}
    start |= {"started": bad, "platform": bad, "commit": {"hash": bad, "changed": bad}}
    row = {bad: 1.0, "residual": bad, "steps": bad}
    metrics = {"test": {**row, "by_budget": {"1": row, bad: row}}, "train": {"best": bad}}
    curves = {"step": [1, 2], "loss": [bad, 1.0], f"validation_{bad}": [1.0, 2.0]}
    run = Run(bad, metrics, {bad: bad, "seed": [bad]}, curves, [start])
    text = page([run, TRAINING], bad)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    text.encode("utf-8")
    rows_of(text)


def test_missing_and_odd_values_break_nothing():
    odd = [None, math.nan, [], "text", {}]
    runs = [
        Run("a", {}),
        Run("b", None),
        Run("c", {"test": None, "train": None}),
        *(
            Run(
                f"d{index}",
                {
                    "test": {"accuracy": value, "residual": value, "by_budget": {"1.0": value}},
                    "train": {"best": value, "seconds_per_step": value, "rollbacks": value},
                },
                {"train_steps": value},
                {"step": [1, value], "loss": [value, value], "skipped_steps": [value]},
                [{"packages": value, "commit": value, "devices": value}, value],
            )
            for index, value in enumerate(odd)
        ),
    ]
    for chosen in (runs, runs[:1], runs[1:2]):
        text = page(chosen, "today")
        rows_of(text)
        assert all(run.name in text for run in chosen)

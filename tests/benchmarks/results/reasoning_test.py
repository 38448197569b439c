"""The results page of puzzles, made from stored figures."""

import json

import pytest

from benchmarks.results import reasoning, reasoning_recipes

BUDGETS = {
    "0.5": {"exact": 0.1, "settled": 0.0},
    "1.0": {"exact": 0.5, "settled": 0.25, "right_if_settled": 1.0},
    "2.0": {"exact": 0.9, "settled": 0.8, "right_if_settled": 0.75},
}
TEST = {**BUDGETS["1.0"], "by_budget": BUDGETS, "by_size": {"64": BUDGETS["2.0"]}}
ROWS = {
    "equilibrium": {
        "learning_rate": 0.002, "steps": 1200, "seconds_per_step": 0.5, "parameters": 14530,
        "test": [TEST, {**TEST, "by_budget": {**BUDGETS, "2.0": {"exact": 0.7, "settled": 0.6}}}],
    },
    "feed-forward": {
        "learning_rate": 0.001, "steps": 600, "seconds_per_step": 1.0, "parameters": None,
        "test": [{"exact": 0.2, "by_budget": {"1.0": {"exact": 0.2}}, "by_size": {"64": {"exact": 0}}}],
    },
}  # fmt: skip


def test_the_variants_at_the_usual_and_at_the_best_budget():
    table = reasoning.rivals_table(ROWS)
    assert (
        "| equilibrium | 14,530 | 1,200 | 0.002 | **50.0 %** (50.0, 50.0) | **80.0 %** (90.0, 70.0) at 2 × "
        "| 70.0 % | 75.0 % |"
    ) in table
    assert (
        "| feed-forward |  | 600 | 0.001 | **20.0 %** (20.0) | **20.0 %** (20.0) at 1 × |  |  |"
        in table
    )


def test_by_budget_and_size():
    assert "| equilibrium | 10.0 % | 50.0 % | 80.0 % |" in reasoning.budget_table(ROWS)
    assert "| feed-forward |  | 20.0 % |  |" in reasoning.budget_table(ROWS)
    table = reasoning.part_table(ROWS, "by_size")
    assert "| equilibrium | 90.0 % / 80.0 % / 75.0 % |" in table
    assert "| feed-forward | 0.0 % / – / – |" in table
    assert reasoning.part_table(ROWS, "by_grade") == ""


def test_by_grade_at_the_best_budget_of_each():
    rows = {"equilibrium": {"test": [{"by_grade": {"few": BUDGETS}}]}}
    assert "| equilibrium | 90.0 % / 80.0 % / 75.0 % |" in reasoning.part_table(rows, "by_grade")


def test_the_page_says_what_is_missing(tmp_path):
    (tmp_path / "reasoning_maze.json").write_text(json.dumps(ROWS))
    text = reasoning.document(str(tmp_path))
    assert text.count("Not run yet.") == 2 + 3  # comparisons, and runs of the recipes
    assert "| equilibrium | 14,530 |" in text


def test_runs_of_a_recipe_are_kept_and_shown(tmp_path):
    figures = {
        "exact": 0.5,
        "settled": 0.25,
        "right_if_settled": 1.0,
        "residual": 2e-2,
        "steps": 1234.4,
    }
    test = {
        **figures, "examples": 128,
        "by_budget": {"1.0": figures, "64.0": {**figures, "settled": 0.75}},
        "by_grade": {
            "hard": {"1.0": {**figures, "exact": 0.125}},
            "easy": {"1.0": {**figures, "exact": 0.625}, "2.0": figures, "4.0": figures},
        },
        "by_starts": {"hard": {"4": {**figures, "exact": 0.375, "agreed": 0.2, "right_if_agreed": 1.0}}},
    }  # fmt: skip
    metrics = {
        "config": {"task": "sudoku", "train_steps": 600, "max_steps": 32, "depth": 0},
        "parameters": 140000,
        "train": {"seconds_per_step": 0.5, "kept_step": 500},
        "test": test,
    }
    with pytest.raises(FileNotFoundError, match="has not finished"):
        reasoning_recipes.keep(str(tmp_path), str(tmp_path))
    for config in ({"dataset": "text"}, {**metrics["config"], "depth": 1}):
        (tmp_path / "metrics.json").write_text(json.dumps({**metrics, "config": config}))
        with pytest.raises(ValueError, match="no equilibrium that was trained on puzzles"):
            reasoning_recipes.keep(str(tmp_path), str(tmp_path))
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    curves = (
        {"step": 50, "residual": 2e-2},
        {
            "step": 50,
            "spectral_radius": 0.5,
            "gradient_cosine": 0.99987,
            "reference_residual": 1e-6,
        },
        {"step": 60, "residual": 1e-2},
    )
    (tmp_path / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curves))
    reasoning_recipes.keep(str(tmp_path), str(tmp_path))
    text = reasoning.document(str(tmp_path))
    assert "140,000 parameters, 600 steps, about 5 min of training" in text
    assert "| 64 × | 50.0 % | 75.0 % | 100.0 % |  | 2.0e-02 | 1,234 |" in text
    assert "| hard | exact |" in text
    assert "| 1 × | 12.5 % |" in text
    assert "| 1 × | 62.5 % |" in text
    assert "| 2 × and more | 50.0 % |" in text
    assert "| 4 ×" not in text
    assert "| starts, hard | exact |" in text
    assert "| right if not settled | settled and agreed | right if agreed |" in text
    assert "| 4 | 37.5 % | 25.0 % | 100.0 % |  | 20.0 % | 100.0 % |" in text
    assert "| 50 | 2.0e-02 | 0.50 | 0.9999 | 1.0e-06 |" in text
    assert "| 60 |" not in text
    assert text.count("Not run yet.") == 3 + 2

from tfdeq.training.report.last_lines import last_lines


def test_says_the_figures_and_the_command_that_tells_more():
    test = {"bits_per_byte": 1.5, "standard_error": 0.0125, "examples": 1200, "tokens": 153600}
    metrics = {
        "test": {**test, "by_budget": {}},
        "baseline": {"name": "one", "bits_per_byte": 1.75},
    }
    first, second, third = last_lines(metrics, "runs/a")
    assert first == (
        "test: bits_per_byte 1.5, standard_error 0.0125 (over 1,200 examples, 153,600 tokens)"
    )
    assert second == "baseline: bits_per_byte 1.75"
    assert third.startswith("What lies in runs/a, and what to do with it: ")
    assert third.endswith("trainers.report runs/a")

"""The pictures of docs/concepts agree with their captions."""

import pytest

from benchmarks.engine import concept_pictures


def test_samples_stop_on_their_own():
    lines = concept_pictures.budget()
    assert sorted(map(len, lines.values())) == [len(values) for values in lines.values()]
    assert all(values[-1] <= 1e-4 < values[-2] for values in lines.values())


@pytest.mark.slow
def test_warm_starts_need_fewer_evaluations(tmp_path):
    lines = concept_pictures.warm_starts(2)
    zeros, warm = lines["from zeros"], lines["from the last equilibrium"]
    assert warm[0] == zeros[0]
    assert warm[1] < 0.7 * min(zeros)
    concept_pictures.draw(lines, None, str(tmp_path / "plot.png"), "frame", "evaluations", False)
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_gradient_comes_closer():
    for errors in concept_pictures.gradient([1, 8]).values():
        assert errors[1] < errors[0] < 1.0


@pytest.mark.slow
def test_a_larger_gain_leaves_a_larger_residual():
    for residuals in concept_pictures.stability([0.5, 0.9, 1.3], 20).values():
        assert sorted(residuals) == residuals

"""The heads of multiscale equilibria: shapes, sizes, and what they read."""

import keras
import numpy as np
import pytest

from tfdeq.models import BranchMeans, ClassificationHead, DensePredictionHead


def _branches(size=(6, 7), channels=(4, 8, 4), batch=2):
    random, found = np.random.default_rng(0), []
    for count in channels:
        found.append(random.normal(size=(batch, *size, count)).astype("float32"))
        size = tuple((part + 1) // 2 for part in size)
    return found


def test_an_image_has_one_answer_that_every_branch_changes():
    head = ClassificationHead(5, [2, 3, 4], features=7)
    branches = _branches()
    before = head(branches)
    assert before.shape == (2, 5)
    for place in range(3):
        changed = list(branches)
        changed[place] = branches[place] + np.linspace(0, 2, branches[place].shape[-1])
        assert np.abs(head(changed) - before).max() > 1e-4
    np.testing.assert_allclose(head([part[:1] for part in branches]), before[:1], atol=1e-5)


def test_the_parameters_are_the_published_ones():
    """Branches of 24 and 24, 8 and 16 channels, 200 features: counted by hand from the layers' shapes."""
    head = ClassificationHead(10, [8, 16], 200)
    head(_branches((4, 4), (24, 24)))
    bottlenecks = [
        24 * inner + 9 * inner**2 + 4 * inner**2 + 24 * 4 * inner + 2 * 4 * inner
        for inner in (8, 16)
    ]
    halving = 9 * 32 * 64 + 64 + 2 * 64
    last = 64 * 200 + 200 + 2 * 200 + 200 * 10 + 10
    trained = sum(int(np.prod(weight.shape)) for weight in head.trainable_variables)
    assert trained == sum(bottlenecks) + halving + last


def test_each_place_has_an_answer():
    head = DensePredictionHead(3)
    branches = _branches()
    before = np.asarray(head(branches))
    assert before.shape == (2, 6, 7, 3)
    for place in range(3):
        changed = [part.copy() for part in branches]
        changed[place][:, 0, 0] += 1.0
        moved = np.abs(head(changed) - before).max(axis=(0, 3)) > 1e-6
        assert moved[0, 0]
        assert not moved[-1, -1]  # what is far away, at every resolution but the last
    assert head.compute_output_shape([(2, 6, 7, 4), (2, 3, 4, 8)]) == (2, 6, 7, 3)


def test_means_are_those_of_windows():
    branches = _branches((8, 9), (2, 3, 4))  # the others have 4 × 5 and 2 × 3 places
    found = np.asarray(BranchMeans(4)(branches))
    assert found.shape == (2, 2 * 2 * 2 + 2 * 2 * 3 + 2 * 3 * 4)
    np.testing.assert_allclose(found[:, 2:4], branches[0][:, :4, 4:8].mean(axis=(1, 2)), atol=1e-6)
    np.testing.assert_allclose(found[:, 8:11], branches[1][:, :2, :2].mean(axis=(1, 2)), atol=1e-6)
    np.testing.assert_allclose(found[:, 20:], branches[2].reshape(2, -1))
    model = keras.Model(inputs := [keras.Input(part.shape[1:]) for part in branches],
                        BranchMeans(4)(inputs))  # fmt: skip
    assert model.output.shape == (None, 44)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClassificationHead(5, [2, 3], 7),
        lambda: DensePredictionHead(5),
        lambda: BranchMeans(2),
    ],
)
def test_they_are_saved_and_loaded(make, tmp_path):
    branches = _branches(channels=(4, 8))
    inputs = [keras.Input(part.shape[1:]) for part in branches]
    model = keras.Model(inputs, make()(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(branches), model(branches), atol=1e-6)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="features"):
        ClassificationHead(10, [8], 0)
    with pytest.raises(ValueError, match="classes"):
        DensePredictionHead(0)
    with pytest.raises(ValueError, match="size must be an integer of at least 1; received 0"):
        BranchMeans(0)
    with pytest.raises(
        ValueError, match=r"size=14 makes windows of 7 .* in branch 1, .*\(2, 3, 4, 8\)"
    ):
        BranchMeans(14)(_branches((14, 14), (4,)) + _branches((3, 4), (8,)))
    with pytest.raises(ValueError, match=r"channels=\[8\] and 3 branches"):
        ClassificationHead(10, [8])(_branches())

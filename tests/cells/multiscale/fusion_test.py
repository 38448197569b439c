"""Fusion: who says what to whom, and at which sizes."""

import keras
import numpy as np

from tfdeq.cells.multiscale.fusion import Fusion


def _branches(size=(7, 6), channels=(4, 6, 2)):
    random, found = np.random.default_rng(0), []
    for count in channels:
        found.append(random.normal(size=(2, *size, count)).astype("float32"))
        size = tuple((part + 1) // 2 for part in size)
    return found


def test_every_branch_hears_every_other():
    branches = _branches()
    layer = Fusion([4, 6, 2], groups=2)
    before = layer(branches)
    assert [part.shape for part in before] == [part.shape for part in branches]
    for place in range(3):
        changed = list(branches)
        changed[place] = branches[place] * np.linspace(1, 2, branches[place].shape[-1])
        for one, other in zip(layer(changed), before, strict=True):
            assert np.abs(one - other).max() > 1e-3


def test_what_a_branch_becomes():
    """Two branches, the second by hand: itself, and the first through one halving."""
    branches = _branches((6, 8), (4, 6))
    layer = Fusion([4, 6], groups=2, weight_normalization=False)
    found = layer(branches)[1]
    halve, norm = layer.paths[1].steps
    heard = branches[1] + norm(keras.ops.conv(branches[0], halve.kernel, 2, padding="same"))
    mixed = keras.ops.matmul(keras.ops.relu(heard), layer.mixing[1].kernel[0, 0])
    groups = np.asarray(mixed)  # the last norm has half as many groups: one
    mean, variance = groups.mean(axis=(1, 2, 3)), groups.var(axis=(1, 2, 3))
    expected = (groups - mean[:, None, None, None]) / np.sqrt(variance + 1e-5)[:, None, None, None]
    np.testing.assert_allclose(found, expected, atol=1e-4)  # float32 through two norms


def test_a_lower_resolution_is_repeated():
    layer = Fusion([2, 2], groups=1)
    high, low = np.zeros((1, 3, 3, 2), "float32"), np.zeros((1, 2, 2, 2), "float32")
    low[0, 1, 1] = [1.0, -1.0]
    found = np.asarray(layer([high, low])[0])
    changed = (found != found[0, 0, 0]).any(axis=-1)[0]
    # The place (1, 1) stands for (2, 2), as far as the higher resolution goes.
    assert changed.tolist() == [[False] * 3, [False] * 3, [False, False, True]]


def test_it_survives_its_config():
    layer = Fusion([4, 6], 2, False, name="mine")
    assert Fusion.from_config(layer.get_config()).get_config() == layer.get_config()

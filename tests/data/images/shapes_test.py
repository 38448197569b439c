"""Made-up pictures for segmentation."""

import numpy as np
import pytest

from tfdeq.data.images.shapes import CLASSES, load, shapes


def test_the_seed_determines_everything():
    pictures, classes = shapes(5, 24, 3)
    assert pictures.shape == (5, 24, 24, 3)
    assert pictures.dtype == np.uint8
    assert classes.shape == (5, 24, 24)
    assert classes.dtype == np.int32
    for one, other in zip((pictures, classes), shapes(5, 24, 3), strict=True):
        np.testing.assert_array_equal(one, other)
    # Fewer pictures are the first ones.
    np.testing.assert_array_equal(shapes(2, 24, 3)[0], pictures[:2])
    assert (shapes(5, 24, 4)[1] != classes).any()


def test_every_class_is_there_and_areas_are_those_of_the_shapes():
    _, classes = shapes(300, 32, 0)
    shares = np.bincount(classes.ravel(), minlength=len(CLASSES)) / classes.size
    assert shares[0] > 0.5
    assert (shares[1:] > 0.04).all()
    # Of one circumscribed circle: a disc fills it, a square 2 / π of it, a triangle 3 √3 / (4 π).
    assert shares[1] > shares[2] > shares[3]


def test_colours_do_not_say_the_class():
    pictures, classes = shapes(300, 32, 0)
    means = [pictures[classes == kind].mean() for kind in range(len(CLASSES))]
    # One texture's mean has a standard deviation of 255 / 6.5 over √3 colours; hundreds are averaged.
    assert np.ptp(means) < 10


def test_splits_differ():
    data = load(3, 4, 5, 16)
    assert [len(pictures) for pictures, _ in data] == [3, 4, 5]
    assert (data.train[0] != data.validation[0][:3]).any()
    assert (data.validation[0] != data.test[0][:4]).any()


def test_too_small():
    with pytest.raises(ValueError, match="at least 16 rows and columns; received 8"):
        shapes(1, 8, 0)

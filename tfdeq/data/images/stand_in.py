"""Made-up pictures of a data set's shape, for a look at a model before the data are there."""

import numpy as np

from tfdeq.data.examples import Examples
from tfdeq.data.images.cifar10 import CLASSES
from tfdeq.data.images.image_data import ImageData
from tfdeq.data.images.mnist import CLOTHES, DIGITS

_PICTURES = 256  # of each split
_SHAPES = {
    "mnist": ((28, 28, 1), DIGITS),
    "fashion_mnist": ((28, 28, 1), CLOTHES),
    "cifar10": ((32, 32, 3), CLASSES),
}


def stand_in(name: str, image_size: int = 32) -> ImageData:
    """Returns noise in the shape of a data set's pictures; of `folder` in colour, with ten classes.

    image_size: rows and columns of `folder`'s.
    """
    shape, classes = _SHAPES.get(name, ((image_size, image_size, 3), tuple("0123456789")))
    random = np.random.default_rng(0)

    def split():
        pictures = random.integers(0, 256, (_PICTURES, *shape), np.uint8)
        return pictures, random.integers(0, len(classes), _PICTURES).astype(np.int32)

    return ImageData(Examples(split(), split(), split()), classes)

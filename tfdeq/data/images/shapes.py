"""Made-up pictures for segmentation: discs, squares and triangles on textures, with the class of each place.

Every region has a texture of its own, drawn in the same way for all classes: neither the colour nor the
texture of a place says its class, only the shape of its region.
"""

import numpy as np

from tfdeq.data.examples import Examples, Split

CLASSES = ("background", "disc", "square", "triangle")
_SHAPES = (1, 3)  # fewest and most in a picture
_NOISE = 12.0  # standard deviation, of 255


def load(train: int, validation: int, test: int, size: int = 32, seed: int = 0) -> Examples:
    """Returns splits of pictures that are made as `shapes` makes them, from different seeds."""
    return Examples(
        *(shapes(count, size, (seed, part)) for part, count in enumerate((train, validation, test)))
    )


def shapes(count: int, size: int, seed: int | tuple[int, ...]) -> Split:
    """Makes pictures of one to three shapes; later ones hide earlier ones.

    Args:
        count: number of pictures.
        size: rows and columns, at least 16.
        seed: of all random numbers: the same seed makes the same pictures.

    Returns:
        Pictures [N, size, size, 3] uint8, and the class of each place [N, size, size] int32, an index of
        `CLASSES`.

    Raises:
        ValueError: for a size below 16.
    """
    if size < 16:
        raise ValueError(f"Pictures of shapes have at least 16 rows and columns; received {size}.")
    random = np.random.default_rng(seed)
    pictures = np.empty((count, size, size, 3), np.uint8)
    classes = np.zeros((count, size, size), np.int32)
    for picture, places in zip(pictures, classes, strict=True):
        values = _texture(random, size)
        for kind in random.integers(1, len(CLASSES), random.integers(_SHAPES[0], _SHAPES[1] + 1)):
            inside = _region(random, size, kind)
            places[inside] = kind
            values[inside] = _texture(random, size)[inside]
        values += random.normal(0, _NOISE, values.shape)
        picture[:] = np.clip(np.round(values), 0, 255)
    return pictures, classes


def _region(random: np.random.Generator, size: int, kind: int) -> np.ndarray:
    """Returns [size, size] bool, where a shape of a random place, size and direction is."""
    radius = random.uniform(0.16, 0.3) * size
    middle = random.uniform(radius, size - radius, 2)
    row, column = np.mgrid[:size, :size] + 0.5 - middle[:, None, None]
    if kind == 1:
        return row**2 + column**2 <= radius**2
    # The intersection of half planes, three or four at equal distances and angles.
    sides = 4 if kind == 2 else 3
    angles = random.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(sides) / sides
    distance = radius * np.cos(np.pi / sides)
    outward = np.cos(angles)[:, None, None] * row + np.sin(angles)[:, None, None] * column
    return (outward <= distance).all(axis=0)


def _texture(random: np.random.Generator, size: int) -> np.ndarray:
    """Returns waves [size, size, 3] of a random direction, length, strength and colour, in [0, 255]."""
    angle, length, phase = random.uniform(0, [np.pi, 6, 2 * np.pi])
    row, column = np.mgrid[:size, :size]
    along = np.cos(angle) * row + np.sin(angle) * column
    wave = np.sin(2 * np.pi * along / (2 + length) + phase)
    return random.uniform(60, 195, 3) + random.uniform(-50, 50, 3) * wave[..., None]

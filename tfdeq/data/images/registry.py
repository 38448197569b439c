"""Pictures by name.

To add a data set, write a module with `load(...) -> ImageData` and name it in `DATASETS`. Its keyword
arguments are the options that it takes, among data_dir, prepared_dir, validation and image_size.
"""

import inspect

from tfdeq.data.images import cifar10, folder, mnist
from tfdeq.data.images.image_data import ImageData
from tfdeq.programs.paths import expanded

DATASETS = {
    "cifar10": cifar10.load,
    "fashion_mnist": mnist.load_fashion_mnist,
    "folder": folder.load,
    "mnist": mnist.load_mnist,
}
"""Data set's name -> the function that loads it."""


def load(
    name: str,
    *,
    data_dir: str | None = None,
    prepared_dir: str | None = None,
    validation: int | None = None,
    image_size: int | None = None,
) -> ImageData:
    """Loads pictures with classes into memory.

    Validation pictures are some of the training pictures, by a hash of their contents: the same in every run,
    and with all copies of a picture on one side. The test pictures are the published ones.

    Args:
        name: a key of `DATASETS`.
        data_dir: folder of the original files, or of `folder`'s pictures. None: through TFDS, which downloads
            the data set if it is not prepared yet; `folder` needs one.
        prepared_dir: where TFDS keeps prepared data sets; None: the environment variable TFDS_DATA_DIR, or
            ~/tensorflow_datasets.
        validation: number of validation pictures. Default 5000; `folder` takes none: see there.
        image_size: rows and columns that pictures of `folder` are brought to. Default 32.

    Returns:
        Pictures [N, H, W, C] uint8 and classes [N] int32, in three splits, and the names of the classes.

    Raises:
        ValueError: an unknown name, an option that the data set does not take, or bad content; it names the
            file.
        FileNotFoundError, NotADirectoryError: what `data_dir` names is not there.
        ConnectionError: a download failed.
    """
    if name not in DATASETS:
        raise ValueError(f"Unknown data set {name!r}. Known: {', '.join(sorted(DATASETS))}.")
    given = {
        "data_dir": data_dir,
        "prepared_dir": None if prepared_dir is None else str(expanded(prepared_dir)),
        "validation": validation,
        "image_size": image_size,
    }
    given = {option: value for option, value in given.items() if value is not None}
    for option, value in given.items():
        if name not in takers(option):
            raise ValueError(
                f"The data set {name!r} takes no {option}; received {value!r}. Leave it out, or choose one "
                f"that takes it: {', '.join(takers(option))}."
            )
    return DATASETS[name](**given)


def takers(option: str) -> list[str]:
    """Returns the names of the data sets that take an option, such as image_size."""
    return [
        name for name, loader in DATASETS.items() if option in inspect.signature(loader).parameters
    ]

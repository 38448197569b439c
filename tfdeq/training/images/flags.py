"""The flags of models that say what a picture shows, and of the pictures."""

from typing import Any

from absl import flags

from tfdeq.data.images.registry import DATASETS, takers
from tfdeq.training.flags import flag_uses
from tfdeq.training.flags.shared import at_least, bound, define

CELLS = ("monotone", "monotone_multiscale", "multiscale", "residual")
MONOTONE_CELLS = ("monotone", "monotone_multiscale")
ONE_RESOLUTION_CELLS = ("monotone", "residual")
MODELS = ("deq", "resnet")

_BLOCKS = [{"cell": ("multiscale", "residual")}]
_MONOTONE = [{"cell": MONOTONE_CELLS}]
# A residual network has as many parameters as the equilibrium of the other flags, which it uses too.
flag_uses.add(
    {
        "branches": [{"cell": ("monotone_multiscale", "multiscale")}],
        "filters": [{"cell": ONE_RESOLUTION_CELLS}],
        "expansion": _BLOCKS,
        "groups": _BLOCKS,
        "block_dropout": _BLOCKS,
        "weight_normalization": _BLOCKS,
        "skip": _BLOCKS,
        "head_channels": _BLOCKS,
        "head_features": _BLOCKS,
        "monotonicity": _MONOTONE,
        "pooling": _MONOTONE,
        "image_size": [{"dataset": tuple(takers("image_size"))}],
        "validation_pictures": [{"dataset": tuple(takers("validation"))}],
    }
)


def define_image_flags(**defaults: Any) -> list[str]:
    """Defines the flags and returns their names; defaults override those below."""
    definitions = [
        (flags.DEFINE_enum, "dataset", "fashion_mnist", "Pictures to learn from.", sorted(DATASETS)),
        (flags.DEFINE_string, "data_dir", None, "Folder with the data set's original files, or for folder with one folder of PNG or JPEG pictures for each class. Default: through TFDS, which downloads the data set."),
        (flags.DEFINE_string, "prepared_dir", None, "Where TFDS keeps prepared copies. Default: TFDS_DATA_DIR, or ~/tensorflow_datasets."),
        (flags.DEFINE_integer, "image_size", 32, "Rows and columns that pictures are brought to."),
        (flags.DEFINE_integer, "train_pictures", 0, "Number of training pictures to use; 0: all."),
        (flags.DEFINE_integer, "validation_pictures", 5000, "Number of training pictures that are set aside for the evaluations during training."),
        (flags.DEFINE_integer, "test_pictures", 0, "Number of test pictures in the test after training; 0: all."),
        (flags.DEFINE_integer, "shift", 2, "Largest number of places by which a training picture is moved at random, down or up and across."),
        (flags.DEFINE_bool, "mirror", False, "Whether training pictures are mirrored at random, left to right."),
        (flags.DEFINE_enum, "model", "deq", "deq: an equilibrium, or --depth applications, of --cell. resnet: an explicit residual network of --depth blocks, as wide as it can be with no more parameters than the equilibrium that the other flags name.", MODELS),
        (flags.DEFINE_enum, "cell", "multiscale", "Cell of the equilibrium: residual blocks at several resolutions, one residual block, or a monotone convolution at one resolution or several, which has exactly one equilibrium for every picture and certified answers.", CELLS),
        (flags.DEFINE_list, "branches", ["24", "24"], "Channels of the state at each resolution, from the highest to the lowest."),
        (flags.DEFINE_integer, "filters", 24, "Channels of the state."),
        (flags.DEFINE_integer, "expansion", 5, "Factor on the channels inside a residual block."),
        (flags.DEFINE_integer, "groups", 8, "Groups of the group norms; it must divide the channels of the state."),
        (flags.DEFINE_float, "block_dropout", 0.0, "Dropout rate in the residual blocks, in [0, 1)."),
        (flags.DEFINE_bool, "weight_normalization", True, "Whether the filters of the residual blocks are weight-normalised."),
        (flags.DEFINE_enum, "skip", "input", "What a residual block adds to its change: the input, or as published the state, from which solves converge only after training.", ["input", "state"]),
        (flags.DEFINE_float, "recurrent_scale", 0.0, "Initial scale of what the state contributes; with 0, the first equilibrium of residual blocks that add the input is one application."),
        (flags.DEFINE_float, "monotonicity", 1.0, "m > 0 of a monotone cell: a larger one is solved in fewer steps and certifies more, a smaller one expresses more."),
        (flags.DEFINE_integer, "stem_stride", 1, "Factor, a power of 2, by which pictures are made smaller before the equilibrium."),
        (flags.DEFINE_integer, "pooling", 4, "Rows and columns of the windows whose means are read; of a lower resolution those of the same part of the picture, but at least one place."),
        (flags.DEFINE_list, "head_channels", [], "Channels of each branch inside the head. Default: a third of the branch's."),
        (flags.DEFINE_integer, "head_features", 200, "Size of what the last dense layer reads."),
    ]  # fmt: skip
    names = define(definitions, defaults)
    at_least(1, "image_size", "validation_pictures", "filters", "expansion", "groups", "pooling",
             "head_features")  # fmt: skip
    at_least(0, "train_pictures", "test_pictures", "shift", "recurrent_scale")
    bound("block_dropout", lambda value: 0 <= value < 1, "must be in [0, 1)")
    bound("monotonicity", lambda value: value > 0, "must be greater than 0")
    bound(
        "stem_stride", lambda value: value > 0 and not value & (value - 1), "must be a power of 2"
    )
    for name in ("branches", "head_channels"):
        bound(
            name,
            lambda value: all(one.isdigit() and int(one) for one in value),
            "must be whole numbers of at least 1",
        )
    bound("branches", bool, "must name at least one branch")
    flags.register_multi_flags_validator(
        ["model", "depth"],
        lambda values: values["model"] == "deq" or values["depth"] >= 1,
        "--model=resnet needs a --depth of at least 1, its number of blocks. Add for example --depth=6.",
    )
    return names

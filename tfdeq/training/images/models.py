"""The models that say what a picture shows, from a configuration."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import layers

from tfdeq import DEQLayer
from tfdeq.baselines.residual_network import ResidualNetwork, residual_network_size
from tfdeq.cells import MonotoneConvolution, MonotoneMultiscaleConvolution, MultiscaleCell
from tfdeq.models import BranchMeans, ClassificationHead
from tfdeq.training.flags.equilibrium import equilibrium_settings
from tfdeq.training.images.flags import MONOTONE_CELLS, ONE_RESOLUTION_CELLS

_MOMENTUM = 0.9


def make_model(
    config: Mapping[str, Any],
    shape: tuple[int, int, int],
    classes: int,
    mean: float = 0.0,
    deviation: float = 1.0,
) -> keras.Model:
    """Returns the untrained model of a configuration: pictures [B, *shape] in [0, 1] to logits [B, classes].

    Args:
        shape: (H, W, C).
        mean, deviation: of the values of the training pictures; the model takes off the one and divides by
            the other.

    Raises:
        ValueError: flags that do not go together.
    """
    image = keras.Input(shape, name="image")
    # A constant of the model, so that a certified radius is in units of the picture.
    x = layers.Rescaling(1 / deviation, -mean / deviation, name="standardized")(image)
    if config["model"] == "resnet":
        equilibrium = _equilibrium_model(config, shape, classes, image, x)
        logits = _residual_network(config, x, shape[-1], classes, equilibrium.count_params())
        return keras.Model(image, logits, name="classifier")
    return _equilibrium_model(config, shape, classes, image, x)


def _equilibrium_model(config, shape, classes, image, x) -> keras.Model:
    make = _monotone if config["cell"] in MONOTONE_CELLS else _multiscale
    return keras.Model(image, make(config, x, classes), name="classifier")


def _layer(config: Mapping[str, Any], cell: keras.layers.Layer) -> DEQLayer:
    return DEQLayer(cell, **equilibrium_settings(config), name="equilibrium")


def _monotone(config: Mapping[str, Any], x: Any, classes: int) -> Any:
    """Layers one after another whose Lipschitz constants are known, so that answers have a radius."""
    precision = config["precision"]
    several = config["cell"] == "monotone_multiscale"
    branches = _branches(config)
    if config["stem_stride"] > 1:
        stride = config["stem_stride"]
        x = layers.Conv2D(
            branches[0],
            2 * stride - 1,
            stride,
            padding="same",
            activation="relu",
            dtype=precision,
            name="stem",
        )(x)
    # Places around a picture, so that circular convolutions join no opposite sides: one at least in
    # every branch, and as many as make all halvings whole.
    border = 2 ** (len(branches) - 1)
    padding = [(border, border + -size % border) for size in x.shape[1:3]]
    x = layers.ZeroPadding2D(padding, name="border")(x)
    cell = (MonotoneMultiscaleConvolution if several else MonotoneConvolution)(
        branches if several else branches[0],
        monotonicity=config["monotonicity"],
        recurrent_scale=config["recurrent_scale"],
        dtype=precision,
        name="cell",
    )
    z = _layer(config, cell)(x)
    pooling, (rows, columns) = config["pooling"], x.shape[1:3]
    if pooling > min(rows, columns):
        raise ValueError(
            f"--pooling={pooling} is more than the equilibrium's {rows} rows and {columns} columns. "
            "Give a smaller one, or a smaller --stem_stride."
        )
    if several:
        z = BranchMeans(pooling, name="pooled")(z)
    else:
        z = layers.Flatten(name="flat")(layers.AveragePooling2D(pooling, name="pooled")(z))
    return layers.Dense(classes, name="logits")(z)


def _multiscale(config: Mapping[str, Any], x: Any, classes: int) -> Any:
    """Residual blocks at one resolution or several."""
    precision = config["precision"]
    branches = _branches(config)
    cell = MultiscaleCell(
        branches,
        config["expansion"],
        config["groups"],
        config["block_dropout"],
        config["weight_normalization"],
        config["skip"],
        config["recurrent_scale"],
        dtype=precision,
        name="cell",
    )
    z = _layer(config, cell)(_stem(config, x, branches[0]))
    inner = [int(size) for size in config["head_channels"]]
    inner = inner or [-(-size // 3) for size in branches]
    if len(inner) != len(branches):
        raise ValueError(
            f"--head_channels={','.join(map(str, inner))} must have one number for each of the "
            f"{len(branches)} branches."
        )
    return ClassificationHead(classes, inner, config["head_features"], name="head")(z)


def _branches(config: Mapping[str, Any]) -> list[int]:
    """Returns the channels of the state at each resolution."""
    if config["cell"] in ONE_RESOLUTION_CELLS:
        return [config["filters"]]
    return [int(size) for size in config["branches"]]


def _stem(config: Mapping[str, Any], x: Any, channels: int) -> Any:
    """Two convolutions, or one for each halving."""
    stride, place = config["stem_stride"], 0
    while place < 2 or stride > 1:
        step = min(stride, 2)
        x = layers.Conv2D(
            channels,
            3,
            step,
            padding="same",
            use_bias=False,
            dtype=config["precision"],
            name=f"stem_{place}",
        )(x)
        x = layers.BatchNormalization(momentum=_MOMENTUM, epsilon=1e-5, name=f"stem_{place}_norm")(
            x
        )
        x = layers.ReLU(name=f"stem_{place}_relu")(x)
        stride, place = stride // step, place + 1
    return x


def _residual_network(
    config: Mapping[str, Any], x: Any, channels: int, classes: int, parameters: int
) -> Any:
    """A residual network with at most that many parameters."""
    depth, halvings = config["depth"], max(config["stem_stride"].bit_length() - 1, 2)

    def size(width: int) -> int:
        network, last = residual_network_size(width, depth)
        stem = 9 * channels * width + 9 * (halvings - 1) * width * width + 4 * halvings * width
        return stem + network + (last + 1) * classes

    if size(1) > parameters:
        raise ValueError(
            f"A residual network of --depth={depth} blocks has at least {size(1):,} parameters, the "
            f"equilibrium {parameters:,}. Give fewer blocks."
        )
    width = 1
    while size(width + 1) <= parameters:
        width += 1
    x = ResidualNetwork(width, depth, dtype=config["precision"], name="network")(
        _stem(config, x, width)
    )
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return layers.Dense(classes, name="logits")(x)

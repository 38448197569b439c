"""What is read from the branches of a multiscale equilibrium: an answer for an image, or for each place."""

import math
from collections.abc import Sequence

import keras
from keras import layers, ops

from tfdeq.solvers.solver import require_positive_integer

_WIDER = 4  # how much wider a bottleneck's output is than its inside
_MOMENTUM = 0.9


@keras.saving.register_keras_serializable(package="tfdeq")
class ClassificationHead(layers.Layer):
    """Logits of an image, from the branches of a `tfdeq.cells.MultiscaleCell`.

    Each branch goes through a bottleneck (convolutions of 1 × 1, 3 × 3 and 1 × 1 beside one of 1 × 1). From
    the highest resolution on, the sum is halved by a convolution of stride 2 and added to the next branch.
    The mean over the places of the last one, after a convolution of 1 × 1, is read by a dense layer.

    Args:
        classes: number of logits.
        channels: of each branch inside its bottleneck, a quarter of what comes out. In the paper 8, 16 for
            branches of 24, 24.
        features: size of what the dense layer reads. Default 200.

    Call arguments: list of [B, H_i, W_i, c_i], from the highest resolution to the lowest. Returns
    [B, classes].

    Raises:
        ValueError: for sizes below 1, or another number of branches.

    Source: Bai, Koltun, Kolter, Multiscale Deep Equilibrium Models, arXiv:2006.08656, section 3.3.

    Example:
        >>> branches = [keras.ops.ones([2, 6, 6, 8]), keras.ops.ones([2, 3, 3, 8])]
        >>> ClassificationHead(10, [4, 8])(branches).shape
        TensorShape([2, 10])
    """

    def __init__(self, classes: int, channels: Sequence[int], features: int = 200, **kwargs):
        super().__init__(**kwargs)
        self.classes, self.channels, self.features = classes, list(channels), features
        for name, size in (
            ("classes", classes),
            ("features", features),
            *(("channels", size) for size in self.channels),
        ):
            require_positive_integer(name, size)
        policy = self.dtype_policy
        self.bottlenecks = [
            _Bottleneck(size, dtype=policy, name=f"bottleneck_{place}")
            for place, size in enumerate(self.channels)
        ]
        self.halving = [
            _convolution(_WIDER * size, 3, 2, use_bias=True, dtype=policy, name=f"halve_{place}")
            for place, size in enumerate(self.channels[1:])
        ]
        self.halving_norms = [
            _norm(dtype=policy, name=f"halve_{place}_norm") for place in range(len(self.halving))
        ]
        self.widen = _convolution(features, 1, use_bias=True, dtype=policy, name="widen")
        self.widen_norm = _norm(dtype=policy, name="widen_norm")
        self.logits = layers.Dense(classes, dtype=policy, name="logits")

    def call(self, branches, training=None):
        if len(branches) != len(self.channels):
            raise ValueError(
                f"channels must have one entry for each branch; received channels={self.channels} and "
                f"{len(branches)} branches."
            )
        total = self.bottlenecks[0](branches[0], training=training)
        for bottleneck, branch, halve, norm in zip(
            self.bottlenecks[1:], branches[1:], self.halving, self.halving_norms, strict=True
        ):
            lower = ops.relu(norm(halve(total), training=training))
            total = bottleneck(branch, training=training) + lower
        found = ops.relu(self.widen_norm(self.widen(total), training=training))
        return self.logits(ops.mean(found, axis=(1, 2)))

    def get_config(self):
        return {
            **super().get_config(),
            "classes": self.classes,
            "channels": self.channels,
            "features": self.features,
        }


@keras.saving.register_keras_serializable(package="tfdeq")
class DensePredictionHead(layers.Layer):
    """Logits of each place, from the branches of a `tfdeq.cells.MultiscaleCell`, as for segmentation.

    Branches are brought to the first one's rows and columns, linearly between places, and put side by side;
    two convolutions of 1 × 1 follow, with a batch norm and relu between them.

    Args:
        classes: number of logits.

    Call arguments: list of [B, H_i, W_i, c_i], from the highest resolution to the lowest, of known sizes.
    Returns [B, H_0, W_0, classes].

    Source: Bai, Koltun, Kolter, Multiscale Deep Equilibrium Models, arXiv:2006.08656, section 3.3.

    Example:
        >>> branches = [keras.ops.ones([2, 6, 6, 8]), keras.ops.ones([2, 3, 3, 8])]
        >>> DensePredictionHead(5)(branches).shape
        TensorShape([2, 6, 6, 5])
    """

    def __init__(self, classes: int, **kwargs):
        super().__init__(**kwargs)
        require_positive_integer("classes", classes)
        self.classes = classes
        self.joined = self.norm = None
        self.logits = layers.Conv2D(classes, 1, dtype=self.dtype_policy, name="logits")

    def build(self, shapes):
        size, policy = sum(shape[-1] for shape in shapes), self.dtype_policy
        self.joined = _convolution(size, 1, use_bias=True, dtype=policy, name="joined")
        self.norm = _norm(dtype=policy, name="norm")
        place = (*shapes[0][:-1], size)
        for layer in (self.joined, self.norm, self.logits):
            layer.build(place)
        self.built = True

    def call(self, branches, training=None):
        size = branches[0].shape[1:3]
        parts = [branches[0]]
        for branch in branches[1:]:
            larger = ops.image.resize(branch, size, interpolation="bilinear")
            parts.append(ops.cast(larger, branches[0].dtype))
        found = self.joined(ops.concatenate(parts, axis=-1))
        return self.logits(ops.relu(self.norm(found, training=training)))

    def compute_output_shape(self, shapes):
        return (*shapes[0][:-1], self.classes)

    def get_config(self):
        return {**super().get_config(), "classes": self.classes}


@keras.saving.register_keras_serializable(package="tfdeq")
class BranchMeans(layers.Layer):
    """Means over windows of every branch of an equilibrium, one after another in a vector.

    The windows of branch i are 2^i times smaller than the first one's, but have one place at least. If
    size is a multiple of 2^i, all windows cover the same part of the image. This is linear and without
    weights, so a dense layer after it reads every branch, and `tfdeq.certified_radius` knows the model.

    Args:
        size: rows and columns of the first branch's windows, which lie side by side. Default 4.

    Call arguments: list of [B, H_i, W_i, c_i], from the highest resolution to the lowest, of known sizes.
    Returns [B, features].

    Raises:
        ValueError: for a size below 1, or a branch that is smaller than its windows.

    Example:
        >>> branches = [keras.ops.ones([2, 8, 8, 3]), keras.ops.ones([2, 4, 4, 5])]
        >>> BranchMeans(4)(branches).shape  # 2 · 2 windows, 3 + 5 channels
        TensorShape([2, 32])
    """

    def __init__(self, size: int = 4, **kwargs):
        super().__init__(**kwargs)
        require_positive_integer("size", size)
        self.size = size

    def call(self, branches):
        means = []
        for place, branch in enumerate(branches):
            window = max(self.size // 2**place, 1)
            if window > min(branch.shape[1:3]):
                raise ValueError(
                    f"size={self.size} makes windows of {window} rows and columns in branch {place}, which "
                    f"has shape {tuple(branch.shape)}. Give a smaller one."
                )
            found = ops.average_pool(branch, window, window)
            means.append(ops.reshape(found, (-1, math.prod(found.shape[1:]))))
        return ops.concatenate(means, axis=-1)

    def get_config(self):
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable(package="tfdeq")
class _Bottleneck(layers.Layer):
    """Convolutions of 1 × 1, 3 × 3 and 1 × 1, each with a batch norm, beside one of 1 × 1.

    channels: c, of the first two; four times as many leave.
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        policy, wide = self.dtype_policy, _WIDER * channels
        sizes = ((channels, 1), (channels, 3), (wide, 1))
        self.convolutions = [
            _convolution(*size, dtype=policy, name=f"convolution_{place}")
            for place, size in enumerate(sizes)
        ]
        self.norms = [
            _norm(affine=False, dtype=policy, name=f"norm_{place}") for place in range(len(sizes))
        ]
        self.beside = _convolution(wide, 1, dtype=policy, name="beside")
        self.beside_norm = _norm(dtype=policy, name="beside_norm")

    def call(self, x, training=None):
        found = x
        for place, (convolution, norm) in enumerate(
            zip(self.convolutions, self.norms, strict=True)
        ):
            found = norm(convolution(found), training=training)
            if place < len(self.norms) - 1:
                found = ops.relu(found)
        return ops.relu(found + self.beside_norm(self.beside(x), training=training))

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


def _convolution(channels: int, kernel_size: int, stride: int = 1, **settings) -> layers.Layer:
    settings = {"use_bias": False, **settings}
    return layers.Conv2D(channels, kernel_size, stride, padding="same", **settings)


def _norm(affine: bool = True, **settings) -> layers.Layer:
    return layers.BatchNormalization(
        momentum=_MOMENTUM, epsilon=1e-5, center=affine, scale=affine, **settings
    )

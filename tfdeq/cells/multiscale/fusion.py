"""What a multiscale cell does between its resolutions."""

import keras
from keras import layers, ops

from tfdeq.cells.multiscale.residual_block import convolution, group_norm


@keras.saving.register_keras_serializable(package="tfdeq")
class Fusion(layers.Layer):
    """Each branch becomes n(C relu(Σ_j of what branch j says to it)), C a convolution of 1 × 1.

    A branch says itself to itself. To a lower resolution it goes through convolutions of 3 × 3 and stride 2,
    one for each halving, each with a group norm, with relu between them. To a higher one it goes through
    a convolution of 1 × 1 and a group norm, and each place is repeated. The last norm n has half as
    many groups and no weights.

    Args:
        channels: of each branch, whose rows and columns are half those of the one before, rounded up.
        groups: of the norms. Default 8.
        weight_normalization: of the convolutions C. Default True.

    Call arguments: list of a tensor [B, H_i, W_i, c_i] for each branch. Returns the same.

    Source: Bai, Koltun, Kolter, Multiscale Deep Equilibrium Models, arXiv:2006.08656, section 3.2.

    Example:
        >>> Fusion([8, 16])([keras.ops.ones([1, 5, 5, 8]), keras.ops.ones([1, 3, 3, 16])])[1].shape
        TensorShape([1, 3, 3, 16])
    """

    def __init__(self, channels, groups: int = 8, weight_normalization: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.channels = list(channels)
        self.groups = groups
        self.weight_normalization = weight_normalization
        count = len(self.channels)
        self.paths = [
            [self._layers_between(origin, target) for origin in range(count)]
            for target in range(count)
        ]
        policy = self.dtype_policy
        self.mixing = [
            convolution(size, 1, weight_normalization, dtype=policy, name=f"mixing_{place}")
            for place, size in enumerate(self.channels)
        ]
        self.norms = [
            group_norm(max(groups // 2, 1), affine=False, dtype=policy, name=f"norm_{place}")
            for place in range(count)
        ]

    def _layers_between(self, origin: int, target: int) -> list[layers.Layer]:
        """The layers from one branch to another."""
        if origin == target:
            return []
        name, policy = f"from_{origin}_to_{target}", self.dtype_policy
        goal = self.channels[target]
        if origin > target:
            project = layers.Conv2D(goal, 1, use_bias=False, dtype=policy, name=f"{name}_project")
            return [project, group_norm(self.groups, dtype=policy, name=f"{name}_norm")]
        found: list[layers.Layer] = []
        for halving in range(target - origin):
            last = halving == target - origin - 1
            size, part = goal if last else self.channels[origin], f"{name}_{halving}"
            found += [
                layers.Conv2D(
                    size, 3, 2, padding="same", use_bias=False, dtype=policy, name=f"{part}_halve"
                ),
                group_norm(self.groups, dtype=policy, name=f"{part}_norm"),
            ]
            if not last:
                found.append(layers.ReLU(dtype=policy, name=f"{part}_relu"))
        return found

    def call(self, states):
        fused = []
        for target, paths in enumerate(self.paths):
            parts = []
            for origin, path in enumerate(paths):
                part = states[origin]
                for layer in path:
                    part = layer(part)
                parts.append(_enlarged(part, 2 ** max(origin - target, 0), states[target]))
            total = sum(parts[1:], parts[0])
            fused.append(self.norms[target](self.mixing[target](ops.relu(total))))
        return fused

    def compute_output_shape(self, shapes):
        return [(*shape[:-1], size) for shape, size in zip(shapes, self.channels, strict=True)]

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "groups": self.groups,
            "weight_normalization": self.weight_normalization,
        }


def _enlarged(x, factor: int, like):
    """x with each place repeated, cut to the rows and columns of another tensor."""
    if factor == 1:
        return x
    rows, columns = (
        ops.shape(like)[axis] if like.shape[axis] is None else like.shape[axis] for axis in (1, 2)
    )
    repeated = ops.repeat(ops.repeat(x, factor, axis=1), factor, axis=2)
    return repeated[:, :rows, :columns]

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
        # One flat list, which Keras saves: of each target the paths from all other branches, in order.
        self.paths = [
            _Path(self.channels, origin, target, groups, dtype=self.dtype_policy)
            for target in range(count)
            for origin in range(count)
            if origin != target
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

    def call(self, states):
        fused, paths = [], iter(self.paths)
        for target, state in enumerate(states):
            total = state
            for origin, other in enumerate(states):
                if origin != target:
                    total = total + next(paths)(other, state)
            fused.append(self.norms[target](self.mixing[target](ops.relu(total))))
        return fused

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "groups": self.groups,
            "weight_normalization": self.weight_normalization,
        }


@keras.saving.register_keras_serializable(package="tfdeq")
class _Path(layers.Layer):
    """What one branch says to another; call arguments: its state, and that of the other."""

    def __init__(self, channels, origin: int, target: int, groups: int, **kwargs):
        super().__init__(name=f"from_{origin}_to_{target}", **kwargs)
        self.factor = 2 ** max(origin - target, 0)
        policy, goal = self.dtype_policy, channels[target]
        self.steps = []
        if origin > target:
            self.steps.append(layers.Conv2D(goal, 1, use_bias=False, dtype=policy, name="project"))
            self.steps.append(group_norm(groups, dtype=policy, name="norm"))
        for halving in range(target - origin):
            last = halving == target - origin - 1
            size, part = goal if last else channels[origin], f"halve_{halving}"
            convolution = layers.Conv2D(
                size, 3, 2, padding="same", use_bias=False, dtype=policy, name=part
            )
            self.steps += [convolution, group_norm(groups, dtype=policy, name=f"{part}_norm")]
            if not last:
                self.steps.append(layers.ReLU(dtype=policy, name=f"{part}_relu"))

    def call(self, x, like):
        for step in self.steps:
            x = step(x)
        return _enlarged(x, self.factor, like)


def _enlarged(x, factor: int, like):
    """x with each place repeated, cut to the rows and columns of another tensor."""
    if factor == 1:
        return x
    rows, columns = (
        ops.shape(like)[axis] if like.shape[axis] is None else like.shape[axis] for axis in (1, 2)
    )
    repeated = ops.repeat(ops.repeat(x, factor, axis=1), factor, axis=2)
    return repeated[:, :rows, :columns]

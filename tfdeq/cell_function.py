"""One call of a layer around a Keras cell: its pure function, and what the cell does besides."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq.masks import CellMasks, attach_masks, masks_of, without_mask


class Finish(NamedTuple):
    """What the cell left behind at the equilibrium."""

    losses: list[tf.Tensor]  # [] each: those of add_loss and of activity regularisers
    masks: tuple  # of the output's leaves, as its layers put them there; None where there is none


class CellFunction:
    """f(z, x, theta, masks) without side effects, for one call of the layer.

    Every application sees the same weights, seeds and statistics: those of the call's beginning. What
    else the cell does (it assigns variables, adds losses, puts masks on its output) is noted here and
    happens once, at the equilibrium, in `finish`.

    Args:
        pure_cell: the `PureCell`.
        training: whether the cell is in training.
        masks: of the argument and of x.

    Attributes:
        theta: the trainable weights, as tensors.
        masks: those of argument and x, and of the state once `find_state_masks` has looked.
        assigns, adds_losses, puts_masks: what the cell was seen to do so far.
    """

    def __init__(self, pure_cell: Any, training: bool, masks: CellMasks):
        self._pure_cell, self._training = pure_cell, training
        self.masks = masks
        self._trainable = pure_cell.cell.trainable_variables
        self._non_trainable = _state_variables(pure_cell.cell)
        self.theta, self._frozen = pure_cell.exactly(
            lambda: [
                [tf.identity(variable.value) for variable in variables]
                for variables in (self._trainable, self._non_trainable)
            ]
        )
        self.assigns = self.adds_losses = self.puts_masks = False

    def __call__(self, z: Any, x: Any, theta: Any, masks: Any = ()) -> Any:
        output = self._apply(z, x, theta, masks).output
        # How an application was reached must not matter to the next one.
        return tf.nest.map_structure(
            lambda new, old: without_mask(tf.cast(new, old.dtype)), output, z
        )

    def arguments(self, x: Any) -> tuple:
        """Returns (x, theta), and the masks as a third, if there are any, for `__call__`."""
        masks = self.masks.leaves()
        return (x, self.theta, masks) if masks else (x, self.theta)

    def find_state_masks(self, z: Any, x: Any) -> None:
        """Finds the masks that the state carries in an iteration of the cell by plain Keras calls.

        There the mask of one output is that of the next application's z. z, x: like the state and the
        input; the masks may not depend on the values of z.
        """
        count = len(tf.nest.flatten(z))
        for _ in range(count + 1):
            found = self._apply(z, x, self.theta, self.masks.leaves()).masks
            stable = [one is None for one in found] == [
                one is None for one in self.masks.z or [None] * count
            ]
            self.masks = self.masks._replace(z=found)
            if stable:
                return

    def finish(self, z: Any, x: Any) -> Finish:
        """Assigns what the cell assigns, and returns its losses and masks, at the equilibrium z.

        The losses are differentiable in z, x and the weights. Nothing is evaluated for a cell that was
        not seen to do any of that.
        """
        if not (self.assigns or self.adds_losses or self.puts_masks):
            return Finish([], ())
        theta = self.theta
        if not self.adds_losses:
            z, x, theta = tf.nest.map_structure(tf.stop_gradient, (z, x, theta))
        end = self._apply(z, x, theta, self.masks.leaves())
        for variable, value in end.assigned:
            variable.assign(value)
        return Finish(end.losses, end.masks)

    def _apply(self, z: Any, x: Any, theta: Any, mask_leaves: Any) -> "_Application":
        variables = [*self._trainable, *self._non_trainable]
        mapping = list(zip(variables, [*theta, *self._frozen], strict=True))
        masks = self.masks.with_leaves(mask_leaves) if mask_leaves else self.masks
        exactly = self._pure_cell.exactly
        # The scope too would round what it is given.
        with exactly(lambda: keras.StatelessScope(mapping, collect_losses=True)) as scope:
            before = dict(scope.state_mapping)
            output = self._pure_cell.apply(
                attach_masks(z, masks.z),
                attach_masks(x, masks.x),
                training=self._training,
                mask=masks.argument,
            )
        # What the cell did not assign stays.
        assigned = [
            (variable, scope.state_mapping[id(variable)])
            for variable in variables
            if scope.state_mapping[id(variable)] is not before[id(variable)]
        ]
        found = self._own_masks(output, masks)
        self._forget_losses(scope.losses)
        self.assigns |= bool(assigned)
        self.adds_losses |= bool(scope.losses)
        self.puts_masks |= any(mask is not None for mask in found)
        return _Application(output, assigned, list(scope.losses), found)

    def _own_masks(self, output: Any, masks: CellMasks) -> tuple:
        """The masks on the output's leaves.

        Keras's default compute_mask passes the argument's mask on whatever the output's shape is:
        there it has to fit.
        """
        leaves, found = keras.tree.flatten(output), masks_of(output)
        if not self._pure_cell.computes_masks and any(map(masks.passed_on, found)):
            carried = self._pure_cell.carried_masks(masks.argument, leaves)
            found = [
                other if masks.passed_on(mask) else mask
                for mask, other in zip(found, carried, strict=True)
            ]
        return tuple(
            mask if mask is not None and len(mask.shape) <= len(leaf.shape) else None
            for leaf, mask in zip(leaves, found, strict=True)
        )

    def _forget_losses(self, losses: list[tf.Tensor]) -> None:
        # Keras's layers keep the ids of the losses that they gave to a scope.
        ids = {id(loss) for loss in losses}
        for layer in self._pure_cell.cell._flatten_layers() if ids else ():
            layer._loss_ids -= ids


def _state_variables(cell: keras.layers.Layer) -> list[keras.Variable]:
    """Seeds, statistics and frozen weights; and what a stateful recurrent layer keeps, untracked by Keras."""
    states = [getattr(layer, "states", None) for layer in cell._flatten_layers()]
    candidates = [*cell.non_trainable_variables, *keras.tree.flatten(states)]
    found = {id(one): one for one in candidates if isinstance(one, keras.Variable)}
    return list(found.values())


class _Application(NamedTuple):
    output: Any  # like z
    assigned: list  # pairs of a variable and its new value
    losses: list[tf.Tensor]  # [] each
    masks: tuple  # of the output's leaves

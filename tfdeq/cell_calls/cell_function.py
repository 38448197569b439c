"""One call of a layer around a Keras cell: its pure function and the cell's side effects."""

import dataclasses
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq.cell_calls.masks import CellMasks, attach_masks, masks_of, without_mask
from tfdeq.solvers.splitting import Splitting


class Finish(NamedTuple):
    """The side effects of the cell at the equilibrium."""

    losses: list[tf.Tensor]  # scalars, from add_loss and activity regularisers
    masks: tuple  # of the output's leaves, as the cell's layers set them; None for no mask


@dataclasses.dataclass
class Seen:
    """The side effects that a cell has had so far, in training or in inference."""

    assigns: bool = False
    adds_losses: bool = False
    puts_masks: bool = False
    # Variables that it assigns but that Keras does not count as the cell's: the state of a stateful
    # recurrent layer, or the seed of noise that is drawn without a SeedGenerator.
    untracked: list = dataclasses.field(default_factory=list)
    traced: bool = False

    @property
    def anything(self) -> bool:
        """Whether there are side effects to apply at the equilibrium."""
        return self.assigns or self.adds_losses or self.puts_masks


class CellFunction:
    """f(z, x, theta, masks) without side effects, for one call of the layer.

    Every application sees the same weights, seeds and statistics: those at the start of the call. The
    cell's side effects (it assigns variables, adds losses, sets masks on its output) are recorded here
    and take place once, at the equilibrium, in `finish`.

    Args:
        pure_cell: the `PureCell`.
        training: whether the cell is in training.
        masks: masks of the argument and of x.
        seen: the side effects in earlier calls, to which this call adds.

    Attributes:
        theta: the trainable weights, as tensors.
        masks: masks of argument and x, and of the state after `find_state_masks`.
        seen: as above.
    """

    def __init__(self, pure_cell: Any, training: bool, masks: CellMasks, seen: Seen):
        self._pure_cell, self._training = pure_cell, training
        self.masks, self.seen = masks, seen
        self._trainable = pure_cell.cell.trainable_variables
        self._non_trainable = [*pure_cell.cell.non_trainable_variables, *seen.untracked]
        self.theta = self._values(self._trainable)
        self._frozen = self._frozen_values(self._non_trainable)

    def __call__(self, z: Any, x: Any, theta: Any, masks: Any = ()) -> Any:
        output = self._apply(z, x, theta, masks).output
        # The next application must not see the masks that this one set.
        return tf.nest.map_structure(
            lambda new, old: without_mask(tf.cast(new, old.dtype)), output, z
        )

    def splitting(self, x: Any, theta: Any, masks: Any = ()) -> Splitting | None:
        """Returns the splitting that the cell's method splitting(x) declares; None if there is none."""
        del theta, masks  # a step needs only x
        cell = self._pure_cell.cell
        return cell.splitting(x) if hasattr(cell, "splitting") else None

    def arguments(self, x: Any) -> tuple:
        """Returns (x, theta), or (x, theta, masks) if there are masks, for `__call__`."""
        masks = self.masks.leaves()
        return (x, self.theta, masks) if masks else (x, self.theta)

    def trace(self, z: Any, x: Any) -> None:
        """Finds the cell's side effects by tracing, without computing anything."""

        def apply(z, *args):
            # A name scope for the cell's names, because a graph accepts no name that begins with
            # "_".
            with tf.name_scope("cell"):
                return self(z, *args)

        function = tf.function(apply, autograph=False)
        function.get_concrete_function(z, *self.arguments(x))

    def adopt(self) -> bool:
        """Freezes the untracked variables found; returns whether there were new ones."""
        known = {id(variable) for variable in self._non_trainable}
        new = [variable for variable in self.seen.untracked if id(variable) not in known]
        self._non_trainable += new
        self._frozen += self._frozen_values(new)
        return bool(new)

    def find_state_masks(self, z: Any, x: Any) -> None:
        """Finds the masks that the state would carry if the cell were iterated by plain Keras calls.

        There, the mask of an output is the mask of z in the next application. z, x: like the state and
        the input; the masks must not depend on the values of z.
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
        """Makes the cell's assignments at the equilibrium z, and returns its losses and masks.

        The losses are differentiable in z, x and the weights. For a cell without side effects, nothing
        is evaluated.
        """
        if not self.seen.anything:
            return Finish([], ())
        theta = self.theta
        if not self.seen.adds_losses:
            z, x, theta = tf.nest.map_structure(tf.stop_gradient, (z, x, theta))
        end = self._apply(z, x, theta, self.masks.leaves())
        for variable, value in end.assigned:
            variable.assign(value)
        return Finish(end.losses, end.masks)

    def _apply(self, z: Any, x: Any, theta: Any, mask_leaves: Any) -> "_Application":
        variables = [*self._trainable, *self._non_trainable]
        mapping = list(zip(variables, [*theta, *self._frozen], strict=True))
        masks = self.masks.with_leaves(mask_leaves) if mask_leaves else self.masks
        # The scope would also round the values that it is given.
        with self._pure_cell.exactly(lambda: _Scope(mapping)) as scope:
            output = self._pure_cell.apply(
                attach_masks(z, masks.z),
                attach_masks(x, masks.x),
                training=self._training,
                mask=masks.argument,
            )
        found = self._own_masks(output, masks)
        self._forget_losses(scope.losses)
        self._note(variables, scope, found)
        assigned = [(one, scope.state_mapping[id(one)]) for one in scope.assigned.values()]
        return _Application(output, assigned, list(scope.losses), found)

    def _note(self, variables: list, scope: "_Scope", masks: tuple) -> None:
        seen = self.seen
        seen.assigns |= bool(scope.assigned)
        seen.adds_losses |= bool(scope.losses)
        seen.puts_masks |= any(mask is not None for mask in masks)
        known = {id(variable) for variable in [*variables, *seen.untracked]}
        seen.untracked += [one for key, one in scope.assigned.items() if key not in known]

    def _values(self, variables: list) -> list[tf.Tensor]:
        return self._pure_cell.exactly(
            lambda: [tf.identity(variable.value) for variable in variables]
        )

    def _frozen_values(self, variables: list) -> list[tf.Tensor]:
        # If a weight was frozen directly, as LoRA does, TensorFlow's variable remains trainable.
        return [tf.stop_gradient(value) for value in self._values(variables)]

    def _own_masks(self, output: Any, masks: CellMasks) -> tuple:
        """Returns the masks on the output's leaves.

        Keras's default compute_mask passes on the argument's mask for every shape of the output, so it
        is used only if it fits.
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
        # Keras's layers store the ids of the losses that they added to a scope.
        ids = {id(loss) for loss in losses}
        for layer in self._pure_cell.cell._flatten_layers() if ids else ():
            layer._loss_ids -= ids


class _Scope(keras.StatelessScope):
    """A scope that records which variables were assigned in it, including those without a given value."""

    def __init__(self, mapping: list):
        super().__init__(mapping, collect_losses=True)
        self.assigned: dict[int, keras.Variable] = {}

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        self.assigned[id(update[0])] = update[0]
        super().add_update(update)


class _Application(NamedTuple):
    output: Any  # like z
    assigned: list  # pairs of a variable and its new value
    losses: list[tf.Tensor]  # scalars
    masks: tuple  # of the output's leaves

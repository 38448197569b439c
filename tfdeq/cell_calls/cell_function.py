"""One call of a layer around a Keras cell: its pure function, and what the cell does besides."""

import dataclasses
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq.cell_calls.masks import CellMasks, attach_masks, masks_of, without_mask
from tfdeq.solvers.splitting import Splitting


class Finish(NamedTuple):
    """What the cell left behind at the equilibrium."""

    losses: list[tf.Tensor]  # [] each: those of add_loss and of activity regularisers
    masks: tuple  # of the output's leaves, as its layers put them there; None where there is none


@dataclasses.dataclass
class Seen:
    """What a cell was seen to do besides returning its output, in training or in inference."""

    assigns: bool = False
    adds_losses: bool = False
    puts_masks: bool = False
    # Variables that it assigns and Keras does not count among its own: the state of a stateful
    # recurrent layer, the seed of noise that is drawn without a SeedGenerator.
    untracked: list = dataclasses.field(default_factory=list)
    traced: bool = False

    @property
    def anything(self) -> bool:
        """Whether there is something to do at the equilibrium."""
        return self.assigns or self.adds_losses or self.puts_masks


class CellFunction:
    """f(z, x, theta, masks) without side effects, for one call of the layer.

    Every application sees the same weights, seeds and statistics: those of the call's beginning. What
    else the cell does (it assigns variables, adds losses, puts masks on its output) is noted here and
    happens once, at the equilibrium, in `finish`.

    Args:
        pure_cell: the `PureCell`.
        training: whether the cell is in training.
        masks: of the argument and of x.
        seen: what earlier calls have shown; this one adds to it.

    Attributes:
        theta: the trainable weights, as tensors.
        masks: those of argument and x, and of the state once `find_state_masks` has looked.
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
        # How an application was reached must not matter to the next one.
        return tf.nest.map_structure(
            lambda new, old: without_mask(tf.cast(new, old.dtype)), output, z
        )

    def splitting(self, x: Any, theta: Any, masks: Any = ()) -> Splitting | None:
        """Returns what the cell says of its parts, by a method splitting(x); None: nothing."""
        del theta, masks  # all that a step needs is in x
        cell = self._pure_cell.cell
        return cell.splitting(x) if hasattr(cell, "splitting") else None

    def arguments(self, x: Any) -> tuple:
        """Returns (x, theta), and the masks as a third, if there are any, for `__call__`."""
        masks = self.masks.leaves()
        return (x, self.theta, masks) if masks else (x, self.theta)

    def trace(self, z: Any, x: Any) -> None:
        """Sees what the cell does without computing anything."""

        def apply(z, *args):
            # A name for the cell's own to stand in: a graph takes none that begins with "_".
            with tf.name_scope("cell"):
                return self(z, *args)

        function = tf.function(apply, autograph=False)
        function.get_concrete_function(z, *self.arguments(x))

    def adopt(self) -> bool:
        """Freezes the untracked variables that were seen; returns whether there were new ones."""
        known = {id(variable) for variable in self._non_trainable}
        new = [variable for variable in self.seen.untracked if id(variable) not in known]
        self._non_trainable += new
        self._frozen += self._frozen_values(new)
        return bool(new)

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
        # The scope too would round what it is given.
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
        # Of a weight that was frozen by itself, as LoRA does, TensorFlow's variable stays trainable.
        return [tf.stop_gradient(value) for value in self._values(variables)]

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


class _Scope(keras.StatelessScope):
    """A scope that knows which variables were assigned in it, those without a given value too."""

    def __init__(self, mapping: list):
        super().__init__(mapping, collect_losses=True)
        self.assigned: dict[int, keras.Variable] = {}

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        self.assigned[id(update[0])] = update[0]
        super().add_update(update)


class _Application(NamedTuple):
    output: Any  # like z
    assigned: list  # pairs of a variable and its new value
    losses: list[tf.Tensor]  # [] each
    masks: tuple  # of the output's leaves

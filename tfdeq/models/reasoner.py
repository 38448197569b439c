"""A model that answers at every place of its input, by an equilibrium."""

from typing import Any

import keras
from keras import ops

from tfdeq import adjoints, solvers
from tfdeq.cells.linear import checked_scale, linear, norm
from tfdeq.layer import DEQLayer
from tfdeq.models.presets import FromPreset
from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
class Reasoner(FromPreset, keras.Model):
    """Embedding -> `DEQLayer` of a cell -> norm -> logits at every place.

    It is made for puzzles: the input is the content of each place, the output is the answer at each
    place. Only the cell distinguishes places by position. With a cell that takes inputs of any size,
    such as `tfdeq.cells.RecallConvolution`, the model does too: trained on small inputs, it can solve
    larger ones with more evaluations.

    Args:
        tokens: inputs are 0 … tokens − 1.
        classes: answers are 0 … classes − 1.
        cell: a cell on [B, places, d], where d is its `width`. If its inputs have another width, it has the
            attribute `input_width`; if only a part of its state is the answer, the method `answer(z)`; see
            `tfdeq.cells.NestedRecursion`.
        solver, adjoint, explicit_steps, block: see `DEQLayer`.
        jacobian_penalty, jacobian_penalty_fraction, jacobian_penalty_power_steps: see `DEQLayer`.
        start_noise: in training, a solve starts from normal noise of this standard deviation instead of
            the cell's initial state, so that answers do not depend on the start. Default 0.
        path_noise: in training, normal noise is added to a start that the call gives, such as the state
            of an earlier solve. Its standard deviation is this share of the start's root mean square,
            for each example. This keeps answers from depending on the path. Default 0.

    Call arguments:
        inputs: [B, places] integers; the places have one or two dimensions. Places with a number below
            0 are outside the puzzle, as if they did not exist. So puzzles of several sizes can share a
            batch, if the cell takes a mask.
        z0: a start [B, places, width].
        tolerance, max_steps: scalar or [B].
        explicit_steps: overrides the constructor's for this call.
        return_solution: also return the `Solution`.

    Returns:
        logits [B, places, classes] float32; with return_solution a tuple (logits, solution).

    Raises:
        ValueError: for sizes below 1, or a cell without a width.

    Source: noise: Anil et al., Path Independent Equilibrium Models, arXiv:2211.09961, section 4 (starts);
        Equilibrium Reasoners, arXiv:2605.21488 (along the path).

    Example:
        >>> from tfdeq.cells import RecallConvolution
        >>> model = Reasoner(tokens=2, classes=2, cell=RecallConvolution(8, rank=1))
        >>> model(keras.ops.zeros([3, 10], "int32")).shape
        TensorShape([3, 10, 2])
    """

    def __init__(
        self,
        tokens: int,
        classes: int,
        cell: keras.layers.Layer,
        solver: str | solvers.Solver = "fixed_point_iteration",
        adjoint: str | adjoints.Adjoint = "implicit",
        jacobian_penalty: float = 0.0,
        jacobian_penalty_fraction: float = 0.25,
        jacobian_penalty_power_steps: int = 0,
        explicit_steps: int = 0,
        start_noise: float = 0.0,
        path_noise: float = 0.0,
        block: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        require_positive_integer("tokens", tokens)
        require_positive_integer("classes", classes)
        if not getattr(cell, "width", None):
            raise ValueError(f"The cell must say its width; received a {type(cell).__name__}.")
        self.tokens = tokens
        self.classes = classes
        self.start_noise = checked_scale("start_noise", start_noise)
        self.path_noise = checked_scale("path_noise", path_noise)
        noisy = self.start_noise or self.path_noise
        self.seed_generator = keras.random.SeedGenerator() if noisy else None
        self.embedding = keras.layers.Embedding(
            tokens,
            getattr(cell, "input_width", cell.width),
            embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0),
            dtype=self.dtype_policy,
            name="embedding",
        )
        self.equilibrium = DEQLayer(
            cell,
            solver,
            adjoint,
            jacobian_penalty,
            jacobian_penalty_fraction,
            jacobian_penalty_power_steps,
            explicit_steps=explicit_steps,
            block=block,
            dtype=self.dtype_policy,
            name="equilibrium",
        )
        self.readout = linear(classes, name="readout", dtype=self.dtype_policy, use_bias=True)

    @property
    def cell(self) -> keras.layers.Layer:
        return self.equilibrium.cell

    @property
    def input_places(self) -> tuple[int | None, ...]:
        """The sizes of the places that the model was built for."""
        return self._input_places

    def build(self, input_shape):
        self._input_places = tuple(input_shape[1:])
        width = self.embedding.output_dim
        self.embedding.build(input_shape)
        self.equilibrium.build((*input_shape, width))
        self.readout.build((*input_shape, width))
        super().build(input_shape)

    def call(
        self,
        inputs,
        z0=None,
        tolerance=None,
        max_steps=None,
        explicit_steps=None,
        return_solution=False,
        training=None,
    ):
        x, mask = self.embed(inputs)
        if training and z0 is None and self.start_noise:
            z0 = self.start(x, training)
        elif training and z0 is not None and self.path_noise:
            z0 = self._perturbed(z0)
        solution = self.equilibrium(
            x,
            mask=mask,
            z0=z0,
            tolerance=tolerance,
            max_steps=max_steps,
            explicit_steps=explicit_steps,
            return_solution=True,
            training=training,
        )
        logits = self.read(solution.z)
        return (logits, solution) if return_solution else logits

    def embed(self, inputs):
        """Returns x [B, places, d], and a mask [B, places] of the places that are in the puzzle.

        The mask is None if the cell takes none.
        """
        inside = inputs >= 0
        x = self.embedding(ops.where(inside, inputs, 0))
        if not self.cell.supports_masking:
            return x, None
        return ops.where(inside[..., None], x, 0), inside

    def start(self, x, training=False):
        """Returns where a solve of x [B, places, d] starts: the cell's initial state, or noise."""
        initial = self.equilibrium.initial_state(x)
        if not (training and self.start_noise):
            return initial
        noise = keras.random.normal(ops.shape(initial), seed=self.seed_generator)
        return self.start_noise * ops.cast(noise, initial.dtype)

    def _perturbed(self, z):
        """Returns a state [B, places, width] with path noise added."""
        noise = ops.cast(keras.random.normal(ops.shape(z), seed=self.seed_generator), z.dtype)
        axes = tuple(range(1, len(z.shape)))
        return z + self.path_noise * ops.sqrt(ops.mean(z**2, axis=axes, keepdims=True)) * noise

    def applied(self, z, inputs):
        """Returns f(z, x), differentiable, for a state [B, places, width] and inputs [B, places]."""
        x, mask = self.embed(inputs)
        given = {} if mask is None else {"mask": mask}
        x = self.cell.inject(x) if hasattr(self.cell, "inject") else x
        return ops.cast(self.cell(ops.cast(z, self.compute_dtype), x, **given), z.dtype)

    def read(self, z):
        """Returns the float32 logits [B, places, classes] of a state [B, places, width]."""
        z = self.cell.answer(z) if hasattr(self.cell, "answer") else z
        return ops.cast(self.readout(norm(ops.cast(z, self.compute_dtype))), "float32")

    def get_config(self):
        layer = self.equilibrium
        return {
            **super().get_config(),
            "tokens": self.tokens,
            "classes": self.classes,
            # As in the layer's config, without a build_config, because build() builds the cell.
            "cell": layer.get_config()["cell"],
            "solver": keras.saving.serialize_keras_object(layer.solver),
            "adjoint": keras.saving.serialize_keras_object(layer.adjoint),
            "jacobian_penalty": layer.jacobian_penalty,
            "jacobian_penalty_fraction": layer.jacobian_penalty_fraction,
            "jacobian_penalty_power_steps": layer.jacobian_penalty_power_steps,
            "explicit_steps": layer.explicit_steps,
            "start_noise": self.start_noise,
            "path_noise": self.path_noise,
            "block": layer.block,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("cell", "solver", "adjoint"):
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)

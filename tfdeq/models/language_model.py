"""A causal language model whose depth is an equilibrium."""

from typing import Any

import keras
from keras import ops

from tfdeq import adjoints, solvers
from tfdeq.cells.transformer import TransformerCell
from tfdeq.layer import DEQLayer
from tfdeq.solution import Solution
from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
class LanguageModel(keras.Model):
    """Embedding + positions -> `DEQLayer` of a `TransformerCell` -> norm -> next-token logits.

    Args:
        vocabulary_size: V, token ids are 0 … V − 1.
        sequence_length: the longest T.
        width, heads, feedforward, dropout, recurrent_scale: see `TransformerCell`, which also
            gives the positions.
        solver, adjoint, jacobian_penalty, jacobian_penalty_fraction, jacobian_penalty_power_steps:
            see `DEQLayer`.
        tied_output: logits from the transposed embedding instead of a matrix of their own. Default
            False.
        explicit_steps: 0 for the equilibrium; L > 0 for L explicit applications of the same cell
            with ordinary backpropagation. Default 0.

    Call arguments:
        tokens: [B, T] integers, T <= sequence_length. mask: [B, T] bool or None, False at padding,
        which must follow the text; padding changes neither answers nor residuals. tolerance,
        max_steps: scalars or [B].
        explicit_steps: overrides the constructor's for this call. return_solution: return (logits,
        `Solution`).

    Returns:
        logits [B, T, V] float32: position t predicts token t + 1.

    Raises:
        ValueError: for settings out of range, or a T beyond sequence_length.

    Example:
        >>> model = LanguageModel(vocabulary_size=11, sequence_length=8, width=8, heads=2)
        >>> model(keras.ops.zeros([2, 5], "int32")).shape
        TensorShape([2, 5, 11])
    """

    def __init__(
        self,
        vocabulary_size: int,
        sequence_length: int,
        width: int = 128,
        heads: int = 4,
        feedforward: int | None = None,
        dropout: float = 0.0,
        recurrent_scale: float = 0.0,
        solver: str | solvers.Solver = "anderson",
        adjoint: str | adjoints.Adjoint = "implicit",
        jacobian_penalty: float = 0.0,
        jacobian_penalty_fraction: float = 0.25,
        jacobian_penalty_power_steps: int = 0,
        tied_output: bool = False,
        explicit_steps: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        require_positive_integer("vocabulary_size", vocabulary_size)
        require_positive_integer("sequence_length", sequence_length)
        if explicit_steps < 0:
            raise ValueError(f"explicit_steps must be >= 0; received {explicit_steps}.")
        self.vocabulary_size = vocabulary_size
        self.sequence_length = sequence_length
        self.tied_output = tied_output
        self.explicit_steps = explicit_steps
        cell = TransformerCell(
            width,
            heads,
            sequence_length,
            feedforward,
            dropout,
            recurrent_scale,
            dtype=self.dtype_policy,
            name="cell",
        )
        self.embedding = keras.layers.Embedding(
            vocabulary_size,
            width,
            keras.initializers.RandomNormal(stddev=1.0),
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
            dtype=self.dtype_policy,
            name="equilibrium",
        )
        if not tied_output:
            initializer = keras.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal")
            self.readout = keras.layers.Dense(
                vocabulary_size,
                use_bias=False,
                kernel_initializer=initializer,
                dtype=self.dtype_policy,
                name="readout",
            )

    @property
    def cell(self) -> TransformerCell:
        return self.equilibrium.cell

    def build(self, tokens_shape):
        self.embedding.build(tokens_shape)
        state = (tokens_shape[0], tokens_shape[1], self.cell.width)
        self.equilibrium.build(state)
        if not self.tied_output:
            self.readout.build(state)

    def call(
        self,
        tokens,
        tolerance=None,
        max_steps=None,
        explicit_steps=None,
        return_solution=False,
        mask=None,
        training=None,
    ):
        explicit_steps = self.explicit_steps if explicit_steps is None else explicit_steps
        solution = self.equilibrium(
            self.embed(tokens),
            mask=mask,
            training=training,
            tolerance=tolerance,
            max_steps=max_steps,
            return_solution=True,
            explicit_steps=explicit_steps or None,
        )
        logits = self.logits(solution.z)
        return (logits, solution) if return_solution else logits

    def embed(self, tokens):
        """Tokens [B, T] -> the cell's input [B, T, d]."""
        length = tokens.shape[1]
        if length is not None and length > self.sequence_length:
            raise ValueError(
                f"tokens must be at most {self.sequence_length} long, the model's sequence_length; "
                f"received shape {tuple(tokens.shape)}. Cut the text into windows."
            )
        return self.embedding(tokens)

    def logits(self, z):
        """State [B, T, d] -> next-token logits [B, T, V] float32."""
        h = ops.rms_normalization(z, epsilon=1e-5)
        if self.tied_output:
            # Unit-scale embeddings, so that the first logits are of unit scale too.
            scale = self.cell.width**-0.5
            logits = scale * ops.matmul(h, ops.transpose(self.embedding.embeddings))
        else:
            logits = self.readout(h)
        return ops.cast(logits, "float32")

    def compute_output_spec(self, tokens, return_solution=False, **kwargs):
        logits = keras.KerasTensor((*tokens.shape, self.vocabulary_size), dtype="float32")
        if not return_solution:
            return logits
        state = keras.KerasTensor((*tokens.shape, self.cell.width), dtype=self.compute_dtype)
        counts = [
            keras.KerasTensor(tokens.shape[:1], dtype=d) for d in ("float32", "int32", "int32")
        ]
        return logits, Solution(state, *counts)

    def get_config(self):
        layer = self.equilibrium
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "sequence_length": self.sequence_length,
            "width": self.cell.width,
            "heads": self.cell.heads,
            "feedforward": self.cell.feedforward,
            "dropout": self.cell.dropout,
            "recurrent_scale": self.cell.recurrent_scale,
            "solver": keras.saving.serialize_keras_object(layer.solver),
            "adjoint": keras.saving.serialize_keras_object(layer.adjoint),
            "jacobian_penalty": layer.jacobian_penalty,
            "jacobian_penalty_fraction": layer.jacobian_penalty_fraction,
            "jacobian_penalty_power_steps": layer.jacobian_penalty_power_steps,
            "tied_output": self.tied_output,
            "explicit_steps": self.explicit_steps,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("solver", "adjoint"):
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)

"""A causal language model whose depth is an equilibrium."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfdeq import adjoints, solvers
from tfdeq.layer import DEQLayer
from tfdeq.models.text_generation import TextGenerator
from tfdeq.models.token_model import TokenModel
from tfdeq.solution import Solution


@keras.saving.register_keras_serializable(package="tfdeq")
class LanguageModel(TokenModel):
    """Embedding -> `DEQLayer` of a cell -> norm -> next-token logits.

    A long text can be passed in segments, each with the carried memory that the previous call returned.
    The equilibria of a segment then see those of earlier segments. The carried memory has no gradient.

    Args:
        vocabulary_size: V, token ids are 0 … V − 1.
        sequence_length: the longest T of a model without a carried memory; the longest text of `generate`.
        cell: a causal cell on [B, T, d], such as a `tfdeq.cells.TransformerCell` or `TrellisCell`,
            which also encodes positions. The model has a carried memory if the cell has `initial_past`
            and, in the case of attention, a span.
        width: width of the embedding. Default: the cell's.
        solver, adjoint, jacobian_penalty, jacobian_penalty_fraction, jacobian_penalty_power_steps:
            see `DEQLayer`.
        explicit_steps: 0 for the equilibrium; L > 0 for L explicit applications of the same cell
            with ordinary backpropagation. Default 0.
        **kwargs: tied_output, cutoffs, cutoff_factor, input_dropout, output_dropout of `TokenModel`,
            and Keras's own.

    Call arguments:
        tokens: [B, T] integers.
        targets: [B, T] integers. If given, the call returns −log p of each, in nats, [B, T] float32,
            instead of logits. With cutoffs this is much cheaper than the logits.
        memory: what `initial_memory` or the call on the preceding text returned.
        mask: [B, T] bool or None, False at padding, which must follow the text. Padding changes neither
            answers nor residuals.
        tolerance, max_steps: scalar or [B].
        explicit_steps: overrides the constructor's for this call.
        iterates: numbers of evaluations. Also return answers, with gradients, after each of these
            (fixed-point correction).
        return_solution: also return the `Solution`.

    Returns:
        logits [B, T, V] float32: position t predicts token t + 1; with cutoffs they are log p. With
        iterates, return_solution or a carried memory, a tuple: logits, followed by the requested ones of (a
        list of logits after the iterates, solution, memory), where memory is for the text that follows.

    Raises:
        ValueError: for settings out of range, or a T beyond sequence_length.

    Example:
        >>> import tfdeq
        >>> cell = tfdeq.cells.TransformerCell(8, heads=2, sequence_length=8, span=4)
        >>> model = LanguageModel(vocabulary_size=11, sequence_length=8, cell=cell)
        >>> model(keras.ops.zeros([2, 5], "int32")).shape
        TensorShape([2, 5, 11])
        >>> memory = model.initial_memory(batch_size=2)
        >>> logits, memory = model(keras.ops.zeros([2, 5], "int32"), memory=memory)
    """

    def __init__(
        self,
        vocabulary_size: int,
        sequence_length: int,
        cell: keras.layers.Layer,
        width: int | None = None,
        solver: str | solvers.Solver = "anderson",
        adjoint: str | adjoints.Adjoint = "implicit",
        jacobian_penalty: float = 0.0,
        jacobian_penalty_fraction: float = 0.25,
        jacobian_penalty_power_steps: int = 0,
        explicit_steps: int = 0,
        **kwargs: Any,
    ):
        state_width = getattr(cell, "width", width)
        width = state_width if width is None else width
        if width is None:
            raise ValueError(
                f"{type(cell).__name__} does not say its width. Give the model one, or the cell the "
                "attribute `width`."
            )
        super().__init__(vocabulary_size, sequence_length, width, state_width, **kwargs)
        self.equilibrium = DEQLayer(
            cell,
            solver,
            adjoint,
            jacobian_penalty,
            jacobian_penalty_fraction,
            jacobian_penalty_power_steps,
            explicit_steps=explicit_steps,
            dtype=self.dtype_policy,
            name="equilibrium",
        )
        self._text_generator: TextGenerator | None = None  # made when it is first needed

    @property
    def explicit_steps(self) -> int:
        """Number of applications of the cell instead of a solve; 0: a solve."""
        return self.equilibrium.explicit_steps

    @property
    def cell(self) -> keras.layers.Layer:
        return self.equilibrium.cell

    @property
    def remembers(self) -> bool:
        """Whether `call` takes and returns a carried memory of the preceding text."""
        return hasattr(self.cell, "initial_past") and getattr(self.cell, "span", 0) is not None

    def build_states(self, shape):
        """Builds the equilibrium for embeddings of a shape."""
        self.equilibrium.build(shape)

    def initial_memory(self, batch_size: int) -> Any:
        """Returns the carried memory at the beginning of texts: a nest of zeros [B, …]."""
        if not self.remembers:
            return super().initial_memory(batch_size)
        return self.cell.initial_past(ops.zeros((batch_size, 1, self.width), self.compute_dtype))

    def call(
        self,
        tokens,
        targets=None,
        memory=None,
        tolerance=None,
        max_steps=None,
        explicit_steps=None,
        iterates=None,
        return_solution=False,
        mask=None,
        training=None,
    ):
        x = self.embed(tokens, training)
        if memory is not None:
            x = {"input": x, "past": keras.tree.map_structure(ops.stop_gradient, memory)}
            if mask is not None:
                # The memory ends before an example's padding.
                x["lengths"] = ops.sum(ops.cast(mask, "int32"), axis=1)
        solution = self.equilibrium(
            x,
            mask=mask,
            training=training,
            tolerance=tolerance,
            max_steps=max_steps,
            return_solution=True,
            explicit_steps=explicit_steps,
            iterates=iterates,
        )
        # A solution has the solver's dtype.
        z, states = keras.tree.map_structure(
            lambda state: ops.cast(state, self.compute_dtype), (solution.z, solution.iterates)
        )
        results = [self._answer(z, targets, training)]
        if iterates is not None:
            results.append([self._answer(state, targets, training) for state in states])
        if return_solution:
            results.append(solution)
        if memory is not None:
            past = self.cell.remember(ops.stop_gradient(z), self.cell.inject(x))
            results.append(keras.tree.map_structure(ops.stop_gradient, past))
        return results[0] if len(results) == 1 else tuple(results)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        strip_prompt: bool = False,
        max_new_tokens: Any = 0,
        temperature: Any = 0.0,
        top_k: Any = 0,
        top_p: Any = 0.0,
        stop_token: Any = -1,
        seed: Any = 0,
        tolerance: Any = 0.0,
        max_steps: Any = 0,
    ) -> str | list[str]:
        """Continues texts, by the model's `tokenizer` and `tfdeq.models.generate`.

        The first call traces a graph, which takes a few seconds; later calls use it.

        Args:
            prompts: a text, or a list of B texts, each of 1 … sequence_length − 1 tokens.
            strip_prompt: return only what follows the prompts. Default: with the prompts.
            max_new_tokens, temperature, top_k, top_p, stop_token, seed, tolerance, max_steps: scalars or
                [B], see `tfdeq.models.generate`. Default: the most likely tokens, as many as
                sequence_length allows.

        Returns:
            The text, or a list of texts.

        Raises:
            TypeError: prompts that are no text.
            ValueError: a model without a tokenizer, or one that cannot generate; a prompt that is empty,
                too long, or has words that the tokenizer does not know.

        Example:
            >>> model = LanguageModel.from_preset("tfdeq_bytes_small")
            >>> model.generate("def ", max_new_tokens=4).startswith("def ")
            True
        """
        if self._text_generator is None:
            self._text_generator = TextGenerator(self)
        settings = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "stop_token": stop_token,
            "seed": seed,
            "tolerance": tolerance,
            "max_steps": max_steps,
        }
        return self._text_generator(prompts, strip_prompt, settings)

    def compute_output_spec(
        self, tokens, targets=None, memory=None, iterates=None, return_solution=False, **kwargs
    ):
        results = [self._answer_spec(tokens, targets)]
        if iterates is not None:
            results.append([self._answer_spec(tokens, targets) for _ in iterates])
        if return_solution:
            dtype = "float64" if self.compute_dtype == "float64" else "float32"
            state = keras.KerasTensor((*tokens.shape, self.state_width), dtype=dtype)
            counts = [
                keras.KerasTensor(tokens.shape[:1], dtype=d) for d in ("float32", "int32", "int32")
            ]
            results.append(Solution(state, *counts))
        if memory is not None:
            like = keras.tree.map_structure(lambda leaf: (leaf.shape, leaf.dtype), memory)
            results.append(
                keras.tree.map_structure_up_to(
                    memory, lambda spec: keras.KerasTensor(spec[0], dtype=spec[1]), like
                )
            )
        return results[0] if len(results) == 1 else tuple(results)

    def get_config(self):
        layer = self.equilibrium
        return {
            **super().get_config(),
            # As in the layer's config, without a build_config, because build() builds the cell.
            "cell": layer.get_config()["cell"],
            "solver": keras.saving.serialize_keras_object(layer.solver),
            "adjoint": keras.saving.serialize_keras_object(layer.adjoint),
            "jacobian_penalty": layer.jacobian_penalty,
            "jacobian_penalty_fraction": layer.jacobian_penalty_fraction,
            "jacobian_penalty_power_steps": layer.jacobian_penalty_power_steps,
            "explicit_steps": self.explicit_steps,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("cell", "solver", "adjoint"):
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)

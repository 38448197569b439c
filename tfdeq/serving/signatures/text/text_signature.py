"""The base class of the language models' served signatures."""

import abc
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tfdeq.models.generation_segments import Paused
from tfdeq.models.token_model import TokenModel
from tfdeq.serving.signatures.signature import (
    CONVERGENCE,
    SETTING_SPECS,
    SETTINGS,
    Signature,
    Solving,
    trace,
)
from tfdeq.serving.signatures.text_requests import TEXT, TEXT_SPECS

Arrays = Mapping[str, np.ndarray]


class Input(NamedTuple):
    """A tensor that a signature takes in addition to text and settings."""

    spec: tf.TensorSpec  # with its name; [B, …], B unknown
    meaning: str


class Reading(NamedTuple):
    """The Keras model's results for one text."""

    log_probabilities: np.ndarray  # [T, V], natural logarithms, for the token after each
    z: np.ndarray | None  # [T, d], the states; None for a model without solves
    convergence: dict[str, np.ndarray]  # residual, steps, status: scalars
    memory: Any  # after the text, a nest of [1, …]; None if none was given

    def log_likelihood(self, tokens: np.ndarray) -> np.ndarray:
        """Returns log p [T] float32 of each of the tokens [T], given those before; 0 for the first."""
        found = np.zeros(len(tokens), np.float32)
        found[1:] = self.log_probabilities[np.arange(len(tokens) - 1), tokens[1:]]
        return found


class KerasReader(Protocol):
    """The interface through which `reference` uses the Keras model that a version is compared with.

    A request's `tolerance` and `max_steps` have the meanings that the signatures document.
    """

    model: TokenModel

    def read(
        self, given: Arrays, *, start: np.ndarray | None = None, memory: Any = None
    ) -> list[Reading]:
        """Reads texts of equal length.

        Args:
            given: `tokens` [N, T], `tolerance` [N] and `max_steps` [N]; others are ignored.
            start: [1, T, d], start of the solve of one text.
            memory: the carried memory before one text, as the model takes it.
        """

    def generate(self, given: Arrays) -> dict[str, np.ndarray]:
        """Continues one text; returns name -> value for each field of `tfdeq.models.generate`'s result.

        Args:
            given: `tokens` [1, T], and those inputs of `generate` [1] that differ from greedy
                generation.
        """

    def generate_segment(
        self, given: Arrays, paused: Paused | None = None
    ) -> tuple[dict[str, np.ndarray], Paused]:
        """Adds a segment to one text; returns the values as of `generate`, and the state after it.

        Args:
            given: `tokens` [1, T], and inputs of `generate_first` and `generate_next` [1].
            paused: the state before the text's last token; None: the text is a prompt.
        """


class TextSignature(abc.ABC):
    """A served signature of the language models.

    It takes `tokens`, `lengths`, `tolerance` and `max_steps` (see `TEXT` and `SETTINGS`), and the
    additional `inputs`. Every tensor has the batch in dimension 0, and an example's answer depends
    neither on its neighbours nor on its padding.

    To add one, write a class in a file of this folder and add it to `REGISTRY`. Then models that it
    `fits` are exported with it, the card describes it, warm-up records call it at each batch size, and
    `verify` compares both runtimes' answers with `reference`, including other settings, padding,
    neighbours and invalid rows. `python -m tools.signature_table` writes the table in docs/serving.md,
    which describes the signature by the first line of the class's docstring.

    Attributes:
        name: the name that clients use.
        models: description of the models that have it, for the documents.
        one_solve: whether an answer's steps are those of a single solve, limited by the request's
            max_steps.
    """

    name: ClassVar[str]
    models: ClassVar[str] = "language models"
    one_solve: ClassVar[bool] = True

    def fits(self, model: TokenModel) -> bool:
        """Whether a model has this signature. Default: every one."""
        return True

    def inputs(self, model: TokenModel) -> Sequence[Input]:
        """The inputs in addition to text and settings. Default: none.

        If two signatures have an input with the same name, it is the same input.
        """
        return ()

    @abc.abstractmethod
    def outputs(self, model: TokenModel) -> dict[str, str]:
        """Meanings of the outputs by name, including `residual`, `steps` and `status`."""

    @abc.abstractmethod
    def answer(
        self, model: TokenModel, given: Mapping[str, tf.Tensor], solving: Solving
    ) -> dict[str, tf.Tensor]:
        """Returns the outputs, computed by TensorFlow operations only; called in a graph, for inference.

        Examples that cannot be answered (see `text_requests.checked`) are marked by their status, and
        the others in the batch are answered.

        Args:
            given: all inputs by name.
            solving: the version's settings for solves.
        """

    def taken(self, model: TokenModel) -> str:
        """The inputs in addition to text and settings, with shapes, for the documents."""
        return _in_words({each.spec.name: each.meaning for each in self.inputs(model)})

    def returned(self, model: TokenModel) -> str:
        """The outputs in addition to convergence, with shapes, for the documents."""
        outputs = self.outputs(model)
        return _in_words({name: outputs[name] for name in outputs if name not in CONVERGENCE})

    def invalid(self, output: str, given: Arrays) -> np.ndarray | float:
        """Returns an output's value for examples that cannot be answered. Default: 0.

        Not called for `log_probabilities`, `residual`, `steps` and `status`.

        Args:
            given: the request's inputs.

        Returns:
            One number, or a value for each example.
        """
        return 0

    def warm_up_inputs(self, model: TokenModel, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Returns values of `inputs` for warm-up records of texts with these lengths [N]. Default: none.

        Missing inputs with one number per example are 0; an input that is an output of `encode` is
        computed by it for the texts.
        """
        return {}

    def asked_inputs(self, model: TokenModel, count: int) -> dict[str, np.ndarray]:
        """Returns values of `inputs` for verification requests of `count` equal examples. Default: none."""
        return {}

    @abc.abstractmethod
    def reference(self, keras_model: KerasReader, given: Arrays) -> dict[str, np.ndarray]:
        """Returns the Keras model's answer to one example: each output without its batch dimension.

        If an output of the server is longer, the rest must be zeros.

        Args:
            given: all inputs [1, …]; the tokens are those of the text, without padding.
        """

    def references(self, keras_model: KerasReader, inputs: Arrays) -> list[dict[str, np.ndarray]]:
        """Returns the Keras model's answers to a request's examples, each alone and without padding."""
        found = []
        for row, length in enumerate(inputs["lengths"]):
            given = {name: value[row : row + 1] for name, value in inputs.items()}
            given["tokens"] = given["tokens"][:, :length]
            found.append(self.reference(keras_model, given))
        return found

    def traced(self, model: TokenModel, solving: Solving, jit_compile: bool = False) -> Signature:
        """Returns the signature of a built model, as it is served."""

        def function(**given):
            return self.answer(model, given, solving)

        function.__name__ = self.name  # the name of the graph's functions
        further = self.inputs(model)
        specs = {**TEXT_SPECS, **SETTING_SPECS, **{each.spec.name: each.spec for each in further}}
        meanings = {**TEXT, **SETTINGS, **{each.spec.name: each.meaning for each in further}}
        return Signature(trace(function, specs, jit_compile), meanings, self.outputs(model))


def _in_words(meanings: Mapping[str, str]) -> str:
    """Returns the names of tensors, with shapes if they have more than one number per example."""
    found = []
    for name, meaning in meanings.items():
        shape = re.match(r"\[B, .*?\]", meaning)
        found.append(f"`{name}` {shape[0]}" if shape else f"`{name}`")
    return ", ".join(found)

"""A served signature of the language models: all that is to be known of it, as one object."""

import abc
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

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
    """A tensor that a signature takes beside text and settings."""

    spec: tf.TensorSpec  # with its name; [B, …], B not known
    meaning: str


class Reading(NamedTuple):
    """What the Keras model says of one text."""

    log_probabilities: np.ndarray  # [T, V], natural log: of the token after each
    z: np.ndarray | None  # [T, d], the states; None of a model in which nothing is solved
    convergence: dict[str, np.ndarray]  # residual, steps, status: []
    memory: Any  # after the text, a nest of [1, …]; None where none was given

    def log_likelihood(self, tokens: np.ndarray) -> np.ndarray:
        """Returns log p [T] float32 of each of the tokens [T], given those before; 0 of the first."""
        found = np.zeros(len(tokens), np.float32)
        found[1:] = self.log_probabilities[np.arange(len(tokens) - 1), tokens[1:]]
        return found


class KerasReader(Protocol):
    """The Keras model that a version is compared with, as `reference` may ask it.

    A request's `tolerance` and `max_steps` are kept as the meanings of the signatures promise.
    """

    model: TokenModel

    def read(
        self, given: Arrays, *, start: np.ndarray | None = None, memory: Any = None
    ) -> list[Reading]:
        """Reads texts of equal length.

        Args:
            given: `tokens` [N, T], `tolerance` [N] and `max_steps` [N]; more is ignored.
            start: [1, T, d], where the solve of one text starts.
            memory: what one text goes on after, as the model takes it.
        """

    def generate(self, given: Arrays) -> dict[str, np.ndarray]:
        """Goes on from one text: name -> value of each field of `tfdeq.models.generate`'s answer.

        Args:
            given: `tokens` [1, T], and of the inputs of `generate` [1] those that are to be other
                than greedy.
        """


class TextSignature(abc.ABC):
    """What language models are served by, of one name.

    Takes `tokens`, `lengths`, `tolerance` and `max_steps` (see `TEXT` and `SETTINGS`), and what
    `inputs` names besides. Every tensor has the batch in dimension 0, and an example's answer depends
    neither on its neighbours nor on how far and with what it is padded.

    To add one, write a class in a file of this folder and its line in `REGISTRY`. From there on models
    that it `fits` are exported with it, the card describes it, warm-up records ask it at each batch
    size, and `verify` compares both runtimes' answers with `reference`, with other settings, padding,
    neighbours and invalid rows too. `python -m tools.signature_table` writes the table of
    docs/serving.md, in which the first line of the class's docstring says what it is.

    Attributes:
        name: that clients ask for.
        models: which models have it, in words; for the documents.
        one_solve: whether an answer's steps are those of one solve, which a request's max_steps ends.
    """

    name: ClassVar[str]
    models: ClassVar[str] = "language models"
    one_solve: ClassVar[bool] = True

    def fits(self, model: TokenModel) -> bool:
        """Whether a model has this signature. Default: every one."""
        return True

    def inputs(self, model: TokenModel) -> Sequence[Input]:
        """What it takes beside text and settings. Default: nothing.

        Where two signatures name an input alike, it is the same one.
        """
        return ()

    @abc.abstractmethod
    def outputs(self, model: TokenModel) -> dict[str, str]:
        """Meanings of what it returns, by name; `residual`, `steps` and `status` among them."""

    @abc.abstractmethod
    def answer(
        self, model: TokenModel, given: Mapping[str, tf.Tensor], solving: Solving
    ) -> dict[str, tf.Tensor]:
        """What it returns, of TensorFlow operations only; called in a graph, for inference.

        Examples that cannot be answered (see `text_requests.checked`) are marked by their status, and
        the others of the batch are answered.

        Args:
            given: all inputs by name.
            solving: how the version solves.
        """

    def taken(self, model: TokenModel) -> str:
        """What it takes beside text and settings, for the documents: `inputs` by name and shape."""
        return _in_words({each.spec.name: each.meaning for each in self.inputs(model)})

    def returned(self, model: TokenModel) -> str:
        """What it returns beside convergence, for the documents: `outputs` by name and shape."""
        outputs = self.outputs(model)
        return _in_words({name: outputs[name] for name in outputs if name not in CONVERGENCE})

    def invalid(self, output: str, given: Arrays) -> np.ndarray | float:
        """What examples that cannot be answered get as an output of this signature's own. Default: 0.

        Not asked of `log_probabilities`, `residual`, `steps` and `status`.

        Args:
            given: the request's inputs.

        Returns:
            One number, or a value for each example.
        """
        return 0

    def warm_up_inputs(self, model: TokenModel, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Those of `inputs` for warm-up records of texts of these lengths [N]. Default: none.

        Inputs of one number an example that are not named are 0; an input that `encode` returns is
        what it returns for the texts.
        """
        return {}

    def asked_inputs(self, model: TokenModel, count: int) -> dict[str, np.ndarray]:
        """`inputs` for what verification asks of `count` examples, the same for each. Default: none."""
        return {}

    @abc.abstractmethod
    def reference(self, keras_model: KerasReader, given: Arrays) -> dict[str, np.ndarray]:
        """What the Keras model answers to one example: each output without its batch dimension.

        What an output of the server is longer by must be zeros.

        Args:
            given: all inputs [1, …]; the tokens are those of the text alone, without padding.
        """

    def references(self, keras_model: KerasReader, inputs: Arrays) -> list[dict[str, np.ndarray]]:
        """What the Keras model answers to a request's examples, each alone and unpadded."""
        found = []
        for row, length in enumerate(inputs["lengths"]):
            given = {name: value[row : row + 1] for name, value in inputs.items()}
            given["tokens"] = given["tokens"][:, :length]
            found.append(self.reference(keras_model, given))
        return found

    def traced(self, model: TokenModel, solving: Solving, jit_compile: bool = False) -> Signature:
        """The signature of a built model, as it is served."""

        def function(**given):
            return self.answer(model, given, solving)

        function.__name__ = self.name  # what the graph's functions are called
        further = self.inputs(model)
        specs = {**TEXT_SPECS, **SETTING_SPECS, **{each.spec.name: each.spec for each in further}}
        meanings = {**TEXT, **SETTINGS, **{each.spec.name: each.meaning for each in further}}
        return Signature(trace(function, specs, jit_compile), meanings, self.outputs(model))


def _in_words(meanings: Mapping[str, str]) -> str:
    """Tensors by name, with their shapes where they are more than one number an example."""
    found = []
    for name, meaning in meanings.items():
        shape = re.match(r"\[B, .*?\]", meaning)
        found.append(f"`{name}` {shape[0]}" if shape else f"`{name}`")
    return ", ".join(found)

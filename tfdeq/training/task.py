"""The interface between a trainer and the training loop."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq import DEQLayer


class Score(NamedTuple):
    """The figure by which models are compared."""

    name: str  # one of the names that `Task.evaluate` returns
    unit: str = ""
    lower_is_better: bool = True


class CallSettings(NamedTuple):
    """The settings for calling a model on a batch."""

    explicit_steps: int  # number of explicit applications; 0: the equilibrium
    max_steps: tf.Tensor  # scalar int32, the solver's budget
    training: bool


class Loss(NamedTuple):
    """The result of a task's loss for a batch."""

    value: tf.Tensor  # scalar float32, the mean over the batch, for example in nats per prediction
    carried: Any = ()  # state for the next batch, a nest of tensors [B, …] like that received
    measures: Mapping[str, tf.Tensor] = {}  # name -> scalar, means over the batch for the curves


class Task(NamedTuple):
    """Everything that the loop needs to train a model."""

    model: keras.Model
    # (batch, call settings, carried state of the previous batch or ()) -> loss
    loss: Callable[[Any, CallSettings, Any], Loss]
    # (start_step, shard, shards) -> the shard's rows of the batches from that step on; a
    # tf.data.Dataset, or any iterable for one device and one step per call
    batches: Callable[[int, int, int], Any]
    # () -> {name: number} on validation data, the score among them
    evaluate: Callable[[], dict[str, float]]
    # {"loss": number, measure: number, …} -> name -> number, for the progress bar
    display: Callable[[Mapping[str, float]], dict[str, float]]
    # number of items in a step, named by `item`
    items_per_step: int
    # the layers whose convergence the curves show
    equilibria: Sequence[DEQLayer]
    # (batch) -> [b] spectral radius at the equilibrium of a few of its rows; None: not defined
    spectral_radius: Callable[[Any], tf.Tensor] | None = None
    # (rows) -> a nest of tensors [rows, …], the carried state before the first batch; None: batches
    # are independent
    carried: Callable[[int], Any] | None = None
    # the loss of the uniform guess, for example ln of the number of tokens; None: not known
    uniform_loss: float | None = None
    # name of the items, in the plural
    item: str = "tokens"
    score: Score = Score("loss", "nats")
    # the names of the loss's measures
    measures: Sequence[str] = ()


def score_of(metrics: Mapping[str, Any]) -> Score:
    """Returns the score of a finished run, from its metrics.json; older ones only have losses."""
    if "score" in metrics:
        return Score(**metrics["score"])
    for name in ("bits_per_byte", "bits_per_word"):
        if name in metrics["test"]:
            return Score(name, name.replace("_", " "))
    return Score("loss", "nats")

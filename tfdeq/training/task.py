"""What a trainer tells the training loop."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq import DEQLayer


class Score(NamedTuple):
    """The figure that says how good a model is."""

    name: str  # among those that `Task.evaluate` returns
    unit: str = ""
    lower_is_better: bool = True


class CallSettings(NamedTuple):
    """How a model is called on a batch."""

    explicit_steps: int  # explicit applications; 0: the equilibrium
    max_steps: tf.Tensor  # [] int32, the solver's budget
    training: bool


class Loss(NamedTuple):
    """What a task's loss says of a batch."""

    value: tf.Tensor  # [] float32, the mean over the batch, for example in nats per prediction
    carried: Any = ()  # what the next batch receives: as it was received, a nest of tensors [B, …]
    measures: Mapping[str, tf.Tensor] = {}  # name -> [], means over the batch for the curves


class Task(NamedTuple):
    """What a trainer tells the loop."""

    model: keras.Model
    # (batch, how the model is called, what the batch before handed on: () where nothing is)
    loss: Callable[[Any, CallSettings, Any], Loss]
    # (start_step, shard, shards) -> batches from that step on, of each the shard's rows; a
    # tf.data.Dataset, or for one device and one step a call any iterable
    batches: Callable[[int, int, int], Any]
    # () -> {name: number} on validation data, the score among them
    evaluate: Callable[[], dict[str, float]]
    # {"loss": number, measure: number, …} -> what the progress bar shows, name -> number
    display: Callable[[Mapping[str, float]], dict[str, float]]
    # what a step learns from, of what `item` names
    items_per_step: int
    # the layers whose convergence the curves show
    equilibria: Sequence[DEQLayer]
    # (batch) -> [b] spectral radius at the equilibrium of a few of its rows; None: not defined
    spectral_radius: Callable[[Any], tf.Tensor] | None = None
    # (rows) -> a nest of tensors [rows, …]: what a batch hands on to the next one, of nothing before
    # the first; None: batches have nothing to do with each other
    carried: Callable[[int], Any] | None = None
    # the loss of a guess that knows nothing, for example ln of the number of tokens; None: not known
    uniform_loss: float | None = None
    # what is counted, in the plural
    item: str = "tokens"
    score: Score = Score("loss", "nats")
    # the names of the loss's measures
    measures: Sequence[str] = ()


def score_of(metrics: Mapping[str, Any]) -> Score:
    """Returns the score of a finished run, from its metrics.json; older ones have losses alone."""
    if "score" in metrics:
        return Score(**metrics["score"])
    for name in ("bits_per_byte", "bits_per_word"):
        if name in metrics["test"]:
            return Score(name, name.replace("_", " "))
    return Score("loss", "nats")

"""The Transformer equilibrium that several trainers train: its flags, model, loss and spectral radius."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from absl import flags

from tfdeq import Implicit, solvers, spectral_radius
from tfdeq.models import LanguageModel
from trainers.evaluation import next_token_loss
from trainers.flags import bound


def define_model_flags(**defaults: Any) -> list[str]:
    """Defines the model's flags and returns their names; defaults override those below."""
    definitions = [
        (flags.DEFINE_integer, "width", 128, "Size of the state per token."),
        (flags.DEFINE_integer, "heads", 4, "Attention heads; they divide --width."),
        (flags.DEFINE_integer, "feedforward", 512, "Hidden size of the MLP."),
        (flags.DEFINE_float, "dropout", 0.0, "Dropout rate in the cell, in [0, 1)."),
        (flags.DEFINE_float, "recurrent_scale", 0.0, "Scale, at the start, of the weights that the state enters by; 0 starts from an equilibrium that is one application."),
        (flags.DEFINE_bool, "tied_output", False, "Whether the output matrix is the embedding's."),
    ]  # fmt: skip
    for define, name, default, text in definitions:
        value = defaults.get(name, default)
        define(name, value, f"{text} Default: {value}.")
    for name in ("width", "heads", "feedforward"):
        bound(name, lambda value: value >= 1, "must be at least 1")
    bound("dropout", lambda value: 0 <= value < 1, "must be in [0, 1)")
    bound("recurrent_scale", lambda value: value >= 0, "must be at least 0")
    return [name for _, name, _, _ in definitions]


def make_model(
    config: Mapping[str, Any], vocabulary_size: int, sequence_length: int | None = None
) -> LanguageModel:
    """Returns the untrained model of a configuration.

    Args:
        sequence_length: the longest text. Default: the configuration's.
    """
    length = sequence_length or config["sequence_length"]
    backward = solvers.get(
        config["backward_solver"],
        max_steps=config["backward_max_steps"],
        tolerance=config["tolerance"],
    )
    rule = config["adjoint"]
    model = LanguageModel(
        vocabulary_size,
        length,
        width=config["width"],
        heads=config["heads"],
        feedforward=config["feedforward"],
        dropout=config["dropout"],
        recurrent_scale=config["recurrent_scale"],
        solver=solvers.get(
            config["solver"], max_steps=config["max_steps"], tolerance=config["tolerance"]
        ),
        adjoint=Implicit(backward) if rule == "implicit" else rule,
        jacobian_penalty=config["jacobian_penalty"],
        jacobian_penalty_fraction=config["jacobian_penalty_fraction"],
        jacobian_penalty_power_steps=config["jacobian_penalty_power_steps"],
        tied_output=config["tied_output"],
        explicit_steps=config["depth"],
        dtype=config["precision"],
    )
    model.build((None, length))
    return model


def token_loss(
    model: LanguageModel, batch: Any, explicit_steps: int, max_steps: tf.Tensor, training: bool
) -> tf.Tensor:
    """[] mean negative log-likelihood, in nats, of the targets of a batch (tokens, targets) [B, T]."""
    tokens, targets = batch
    logits = model(tokens, training=training, max_steps=max_steps, explicit_steps=explicit_steps)
    return tf.reduce_mean(next_token_loss(logits, targets))


def radius_of(model: LanguageModel, examples: int = 4) -> Callable[[Any], tf.Tensor]:
    """Returns (batch) -> [examples] spectral radius of the cell's Jacobian at their equilibria."""

    def radius(batch: Any) -> tf.Tensor:
        x = model.embed(batch[0][:examples])
        z = model.equilibrium(x, training=False)
        injected = model.cell.inject(x)
        # From the same noise each time: a look draws no random number.
        return spectral_radius(lambda z: model.cell(z, injected), z, seed=(0, 0))

    return radius

"""Models that read tokens, from a configuration, with their loss and spectral radius."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeq import adjoints, spectral_radius
from tfdeq.baselines import Recurrent, TemporalConvolution, TransformerStack, TrellisNetwork
from tfdeq.cells import TransformerCell, TrellisCell
from tfdeq.models import ExplicitLanguageModel, LanguageModel
from tfdeq.models.token_model import TokenModel
from tfdeq.training.flags.equilibrium import equilibrium_settings
from tfdeq.training.task import CallSettings, Loss


def make_model(
    config: Mapping[str, Any], vocabulary_size: int, sequence_length: int | None = None
) -> TokenModel:
    """Returns the untrained model of a configuration.

    Args:
        sequence_length: the longest text. Default: that of the configuration.

    Raises:
        ValueError: for incompatible flags.
    """
    length = sequence_length or config["sequence_length"]
    adds = config["model"] if config["model"] != "deq" else config["cell"]
    if adds == "transformer" and config["embedding_width"] not in (0, config["width"]):
        raise ValueError(
            "A transformer adds its output to its input, so --embedding_width must be 0 or equal to "
            f"--width; received {config['embedding_width']} and {config['width']}. Use --cutoffs for "
            "narrower embeddings."
        )
    make = _equilibrium if config["model"] == "deq" else _explicit
    model = make(
        config,
        length,
        vocabulary_size=vocabulary_size,
        sequence_length=length,
        width=config["embedding_width"] or config["width"],
        tied_output=config["tied_output"],
        cutoffs=[int(cutoff) for cutoff in config["cutoffs"]],
        cutoff_factor=config["cutoff_factor"],
        input_dropout=config["input_dropout"],
        output_dropout=config["output_dropout"],
        loss_chunk=config["loss_chunk"],
        dtype=config["precision"],
    )
    model.build((None, length))
    return model


def _equilibrium(config: Mapping[str, Any], length: int, **settings: Any) -> LanguageModel:
    """Returns a `LanguageModel` around the cell of a configuration."""
    common = {
        "dropout": config["dropout"],
        "recurrent_scale": config["recurrent_scale"],
        "normalization": None if config["normalization"] == "none" else config["normalization"],
        "dtype": config["precision"],
        "name": "cell",
    }
    if config["cell"] == "trellis":
        cell = TrellisCell(
            config["width"],
            config["kernel_size"],
            weight_dropout=config["weight_dropout"],
            **common,
        )
    else:
        cell = TransformerCell(
            config["width"],
            config["heads"],
            length,
            config["feedforward"],
            span=config["attention_span"] or None,
            norm=config["norm"],
            distance_slope=config["distance_slope"],
            locked_dropout=config["locked_dropout"],
            query_key_norm=config["query_key_norm"],
            **common,
        )
    model = LanguageModel(cell=cell, **equilibrium_settings(config), **settings)
    if not config["depth"]:
        _check_correction(config, model.equilibrium.adjoint)
    return model


def _check_correction(config: Mapping[str, Any], adjoint: adjoints.Adjoint) -> None:
    """Raises an error for a correction that the adjoint does not support, before a run claims its folder."""
    if config["correction_steps"] and not adjoint.takes_iterates:
        able = [name for name, rule in adjoints.REGISTRY.items() if rule().takes_iterates]
        raise ValueError(
            f"--correction_steps wants --adjoint={' or '.join(able)}; received "
            f"--adjoint={config['adjoint']}, which differentiates a whole solve."
        )


def _explicit(config: Mapping[str, Any], length: int, **settings: Any) -> ExplicitLanguageModel:
    """Returns an `ExplicitLanguageModel` around the network of a configuration."""
    kind, depth = config["model"], config["depth"]
    common = {"dropout": config["dropout"], "dtype": config["precision"], "name": "network"}
    if kind == "transformer":
        network = TransformerStack(
            config["width"],
            config["heads"],
            length,
            depth,
            config["feedforward"],
            span=config["attention_span"] or None,
            **common,
        )
    elif kind == "tcn":
        network = TemporalConvolution(config["width"], depth, config["kernel_size"], **common)
    elif kind == "trellisnet":
        network = TrellisNetwork(
            config["width"],
            depth,
            config["kernel_size"],
            weight_dropout=config["weight_dropout"],
            **common,
        )
    else:
        network = Recurrent(config["width"], depth, kind, **common)
    return ExplicitLanguageModel(network=network, **settings)


def make_loss(model: TokenModel, config: Mapping[str, Any]) -> Callable[..., Loss]:
    """Returns `token_loss` of a model, with a configuration's fixed-point correction."""
    iterates = tuple(int(steps) for steps in config["correction_steps"])
    weight = config["correction_weight"]
    return functools.partial(token_loss, model, iterates=iterates, weight=weight)


def token_loss(
    model: TokenModel,
    batch: Any,
    settings: CallSettings,
    carried: Any = (),
    iterates: Sequence[int] = (),
    weight: float = 0.0,
) -> Loss:
    """Returns the mean negative log-likelihood of a batch's targets, in nats.

    Args:
        batch: (tokens, targets) [B, T]; with a memory (tokens, targets, continues), where continues [B]
            bool tells which rows continue their text from the previous batch.
        settings: settings for calling the model.
        carried: the model's memory from the previous batch; (): none.
        iterates, weight: in training, numbers of evaluations after which the loss is also computed, and
            the weight of each of these in the mean; the final state has weight 1.

    Source: fixed-point correction: Bai, Geng, Savani, Kolter, arXiv:2204.08442, section 3.3.
    """
    tokens, targets, *continues = batch
    given: dict[str, Any] = {"targets": targets, "training": settings.training}
    remembers = bool(tf.nest.flatten(carried))
    if remembers:
        given["memory"] = continued(carried, *continues)
    if model.equilibrium is not None:
        given.update(max_steps=settings.max_steps, explicit_steps=settings.explicit_steps)
        if settings.training and iterates and not settings.explicit_steps:
            given["iterates"] = iterates
    found = model(tokens, **given)
    nats, *rest = found if isinstance(found, tuple) else (found,)
    loss = tf.reduce_mean(nats)
    if "iterates" in given:
        # A mean, so that the curves show nats and gradients have their usual size for clipping.
        others = tf.add_n([tf.reduce_mean(each) for each in rest[0]])
        loss = (loss + weight * others) / (1.0 + weight * len(rest[0]))
    return Loss(loss, rest[-1] if remembers else ())


def continued(memory: Any, continues: tf.Tensor) -> Any:
    """Returns a memory [B, …] that is empty, that is zero, in the rows in which a text begins."""

    def kept(leaf):
        rows = tf.reshape(continues, [-1] + [1] * (len(leaf.shape) - 1))
        return tf.where(rows, leaf, tf.zeros_like(leaf))

    return keras.tree.map_structure(kept, memory)


def radius_of(model: LanguageModel, examples: int = 4) -> Callable[[Any], tf.Tensor]:
    """Returns (batch) -> [examples], the spectral radius of the cell's Jacobian at their equilibria."""

    def radius(batch: Any) -> tf.Tensor:
        x = model.embed(batch[0][:examples])
        z = model.equilibrium(x, training=False)
        injected = model.cell.inject(x) if hasattr(model.cell, "inject") else x
        # The noise is always the same, so an inspection draws no random numbers.
        return spectral_radius(lambda z: model.cell(z, injected), z, seed=(0, 0))

    return radius

"""The models that several trainers train: their flags, losses and spectral radius."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import flags

from tfdeq import Implicit, adjoints, solvers, spectral_radius
from tfdeq.baselines import Recurrent, TemporalConvolution, TransformerStack, TrellisNetwork
from tfdeq.cells import TransformerCell, TrellisCell
from tfdeq.models import ExplicitLanguageModel, LanguageModel
from tfdeq.models.token_model import TokenModel
from tfdeq.training.flags.shared import at_least, bound, define
from tfdeq.training.task import CallSettings, Loss

CELLS = ("transformer", "trellis")
# Explicit networks of --depth layers, none of which shares its weights but trellisnet's.
BASELINES = ("transformer", "lstm", "gru", "tcn", "trellisnet")
MODELS = ("deq", *BASELINES)


def define_model_flags(**defaults: Any) -> list[str]:
    """Defines the model's flags and returns their names; defaults override those below."""
    definitions = [
        (flags.DEFINE_enum, "model", "deq", "deq: an equilibrium, or --depth applications, of --cell. Or an explicit network of --depth layers: an untied transformer, lstm, gru, tcn (weight-normalised dilated convolutions), or trellisnet (weight-tied).", MODELS),
        (flags.DEFINE_enum, "cell", "transformer", "Cell of the equilibrium, or of its applications.", CELLS),
        (flags.DEFINE_integer, "width", 128, "Size of the state per token."),
        (flags.DEFINE_integer, "embedding_width", 0, "Size of the embedding; 0: --width, which a transformer needs."),
        (flags.DEFINE_integer, "heads", 4, "Attention heads; they divide --width."),
        (flags.DEFINE_integer, "feedforward", 512, "Hidden size of the MLP."),
        (flags.DEFINE_integer, "attention_span", 0, "Positions that attention sees, the own one the last; 0: all of a window, without a memory of windows before."),
        (flags.DEFINE_float, "distance_slope", 1.0, "How much attention prefers what is near, at the start; 0: not at all."),
        (flags.DEFINE_enum, "norm", "pre", "Where a transformer cell has its norms.", ["pre", "post"]),
        (flags.DEFINE_integer, "kernel_size", 2, "Positions that a convolution sees."),
        (flags.DEFINE_float, "dropout", 0.0, "Dropout rate in the cell, in [0, 1)."),
        (flags.DEFINE_bool, "locked_dropout", False, "Whether a transformer cell's dropout masks are the same at all positions; those of all other layers always are."),
        (flags.DEFINE_bool, "query_key_norm", False, "Whether a transformer cell norms queries and keys, which bounds attention's logits."),
        (flags.DEFINE_float, "weight_dropout", 0.0, "Dropout rate on the weights that the state enters by, in [0, 1)."),
        (flags.DEFINE_float, "input_dropout", 0.0, "Dropout rate on the embeddings, in [0, 1)."),
        (flags.DEFINE_float, "output_dropout", 0.0, "Dropout rate on what the readout reads, in [0, 1)."),
        (flags.DEFINE_enum, "normalization", "none", "Reparameterisation of the cell's weights.", ["none", "weight", "spectral"]),
        (flags.DEFINE_float, "recurrent_scale", 0.0, "Scale, at the start, of the weights that the state enters by; 0 starts from an equilibrium that is one application."),
        (flags.DEFINE_bool, "tied_output", False, "Whether the output matrix is the embedding's."),
        (flags.DEFINE_list, "cutoffs", [], "For words: where a new, narrower cluster of the vocabulary begins, the most frequent first, for example 2000,10000; none: one matrix."),
        (flags.DEFINE_integer, "cutoff_factor", 4, "How much narrower each cluster is than the one before."),
        (flags.DEFINE_integer, "loss_chunk", 0, "Positions whose logits are held at a time, which costs four products with the output matrix instead of three; 0: all."),
        (flags.DEFINE_list, "correction_steps", [], "Fixed-point correction: evaluations of the solve, for example 2,4, after which the loss is taken too; none: at its end alone."),
        (flags.DEFINE_float, "correction_weight", 0.3, "Weight of each of those losses in the mean, where that at the end has 1."),
        (flags.DEFINE_integer, "adjoint_steps", 5, "Applications that are differentiated."),
        (flags.DEFINE_float, "adjoint_damping", 1.0, "Damping of the applications that are differentiated, in (0, 1]."),
    ]  # fmt: skip
    names = define(definitions, defaults)
    sizes = ("width", "heads", "feedforward", "kernel_size", "cutoff_factor", "adjoint_steps")
    at_least(1, *sizes)
    for name in ("dropout", "weight_dropout", "input_dropout", "output_dropout"):
        bound(name, lambda value: 0 <= value < 1, "must be in [0, 1)")
    at_least(
        0, "recurrent_scale", "embedding_width", "attention_span", "correction_weight", "loss_chunk"
    )
    bound("adjoint_damping", lambda value: 0 < value <= 1, "must be in (0, 1]")
    for name in ("cutoffs", "correction_steps"):
        bound(
            name,
            lambda value: all(one.isdigit() and int(one) for one in value),
            "must be whole numbers, at least 1",
        )
    flags.register_multi_flags_validator(
        ["model", "depth"],
        lambda values: values["model"] == "deq" or values["depth"] >= 1,
        "Explicit networks want --depth, how many layers they have.",
    )
    return names


def make_model(
    config: Mapping[str, Any], vocabulary_size: int, sequence_length: int | None = None
) -> TokenModel:
    """Returns the untrained model of a configuration.

    Args:
        sequence_length: the longest text. Default: the configuration's.

    Raises:
        ValueError: flags that do not go together.
    """
    length = sequence_length or config["sequence_length"]
    adds = config["model"] if config["model"] != "deq" else config["cell"]
    if adds == "transformer" and config["embedding_width"] not in (0, config["width"]):
        raise ValueError(
            "A transformer adds to its input: --embedding_width must be 0 or --width; received "
            f"{config['embedding_width']} and {config['width']}. --cutoffs make embeddings narrower."
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
    """`LanguageModel` around the cell of a configuration."""
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
    solver = solvers.get(
        config["solver"], max_steps=config["max_steps"], tolerance=config["tolerance"]
    )
    adjoint = adjoints.get(_adjoint(config))
    if not config["depth"]:  # applications are differentiated as they are
        _check_rule(config, solver, adjoint)
    return LanguageModel(
        cell=cell,
        solver=solver,
        adjoint=adjoint,
        jacobian_penalty=config["jacobian_penalty"],
        jacobian_penalty_fraction=config["jacobian_penalty_fraction"],
        jacobian_penalty_power_steps=config["jacobian_penalty_power_steps"],
        explicit_steps=config["depth"],
        **settings,
    )


def _check_rule(
    config: Mapping[str, Any], solver: solvers.Solver, adjoint: adjoints.Adjoint
) -> None:
    """Refuses flags that do not go together, before a run claims its folder."""
    kind = adjoint.solver_kind
    if not isinstance(solver, kind):
        known = [name for name, made in solvers.REGISTRY.items() if issubclass(made, kind)]
        raise ValueError(
            f"--adjoint={config['adjoint']} wants --solver={' or '.join(known)}; received "
            f"--solver={config['solver']}. Give that solver, or --adjoint=implicit, which works with all."
        )
    if config["correction_steps"] and not adjoint.takes_iterates:
        able = [name for name, rule in adjoints.REGISTRY.items() if rule().takes_iterates]
        raise ValueError(
            f"--correction_steps wants --adjoint={' or '.join(able)}; received "
            f"--adjoint={config['adjoint']}, which differentiates a whole solve."
        )


def _adjoint(config: Mapping[str, Any]) -> str | adjoints.Adjoint:
    rule = config["adjoint"]
    if rule == "implicit":
        backward = solvers.get(
            config["backward_solver"],
            max_steps=config["backward_max_steps"],
            tolerance=config["tolerance"],
        )
        return Implicit(backward)
    if rule == "unrolled":
        return adjoints.Unrolled(config["adjoint_steps"])
    if rule == "phantom_gradient":
        return adjoints.PhantomGradient(config["adjoint_steps"], config["adjoint_damping"])
    return rule


def _explicit(config: Mapping[str, Any], length: int, **settings: Any) -> ExplicitLanguageModel:
    """`ExplicitLanguageModel` around the network of a configuration."""
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
    """Mean negative log-likelihood of the targets of a batch, in nats.

    Args:
        batch: (tokens, targets) [B, T]; with a memory (tokens, targets, continues), where continues
            [B] bool says whose text goes on from the batch before.
        settings: how the model is called.
        carried: the model's memory of the batch before; (): none.
        iterates, weight: in training, numbers of evaluations of a solve after which the loss is taken
            too, and the weight of each of these in the mean, where that of its end is 1.

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
        # A mean, so that the curves show nats and gradients are clipped at what they usually are.
        others = tf.add_n([tf.reduce_mean(each) for each in rest[0]])
        loss = (loss + weight * others) / (1.0 + weight * len(rest[0]))
    return Loss(loss, rest[-1] if remembers else ())


def continued(memory: Any, continues: tf.Tensor) -> Any:
    """Returns a memory [B, …] with nothing, that is zeros, in the rows whose text begins."""

    def kept(leaf):
        rows = tf.reshape(continues, [-1] + [1] * (len(leaf.shape) - 1))
        return tf.where(rows, leaf, tf.zeros_like(leaf))

    return keras.tree.map_structure(kept, memory)


def radius_of(model: LanguageModel, examples: int = 4) -> Callable[[Any], tf.Tensor]:
    """Returns (batch) -> [examples] spectral radius of the cell's Jacobian at their equilibria."""

    def radius(batch: Any) -> tf.Tensor:
        x = model.embed(batch[0][:examples])
        z = model.equilibrium(x, training=False)
        injected = model.cell.inject(x)
        # From the same noise each time: a look draws no random number.
        return spectral_radius(lambda z: model.cell(z, injected), z, seed=(0, 0))

    return radius

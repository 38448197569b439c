"""Common parts of all served signatures: settings, convergence and tracing."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq import DEQLayer, Solution, SolveScope, Status, describe
from tfdeq.numerics.fixed_shapes import fixed_spec
from tfdeq.serving.signatures import served_names
from tfdeq.solution import combined

# Status of an example that cannot be answered, in addition to the values of `tfdeq.Status`.
INVALID = -1
# The limit of a request's max_steps, if the export sets no max_steps_limit and the model's own is
# not larger.
MAX_STEPS_LIMIT = 100
SETTINGS = {
    "tolerance": "[B] float32: relative residual at which to stop; not > 0: the model's own.",
    "max_steps": (
        "[B] int32: applications of the cell at most, up to the version's max_steps_limit; not > 0: "
        "that limit where the request names a tolerance, else the model's own."
    ),
}
SETTING_SPECS = {
    "tolerance": tf.TensorSpec([None], tf.float32, "tolerance"),
    "max_steps": tf.TensorSpec([None], tf.int32, "max_steps"),
}
CONVERGENCE = {
    "residual": "[B] float32: ‖f(z) − z‖ / ‖f(z)‖ of the example's equilibrium; always finite.",
    "steps": "[B] int32: applications of the cell spent on the example.",
    "status": "[B] int32: why the solver stopped; see `status`.",
}
STATUS_TEXTS = {str(int(status)): describe(status) for status in Status}


class Solving(NamedTuple):
    """Settings for the solves in a version's signatures."""

    max_steps_limit: int  # largest max_steps of a request
    compaction: bool = True  # whether examples that are done leave the batch, if not compiled


class Signature(NamedTuple):
    """A function to serve, and the meanings of its tensors."""

    function: tf.types.experimental.ConcreteFunction
    inputs: Mapping[str, str]  # name -> meaning
    outputs: Mapping[str, str]
    joined: bool = False  # whether requests share batches
    # Limit for the numbers in a request and its answer together; None: no limit.
    max_request_values: int | None = None


def trace(
    function: Callable[..., dict[str, tf.Tensor]],
    specs: Mapping[str, tf.TensorSpec],
    jit_compile: bool = False,
) -> tf.types.experimental.ConcreteFunction:
    """Traces a function of named tensors that returns named tensors; checks that it can be batched.

    Raises:
        ValueError: for a name that cannot be served, or an output without the batch in dimension 0,
            which a server could not split.
    """
    served_names.require_inputs(specs)
    specs = {name: fixed_spec(name, spec) for name, spec in specs.items()}
    # Not compiled unless requested, because a stock server refuses a compiled function at the first
    # request.
    traced = tf.function(function, jit_compile=jit_compile or None, autograph=False)
    concrete = traced.get_concrete_function(**specs)
    rows = {spec.shape[0] for spec in specs.values()}
    for name, output in concrete.structured_outputs.items():
        if output.shape.rank == 0 or (output.shape.rank and output.shape[0] not in rows):
            raise ValueError(
                f"The output {name!r} has the shape {output.shape}; a server that batches requests "
                "needs every output to be [B, ...], with the batch that the inputs have."
            )
    return concrete


def input_specs(function: tf.types.experimental.ConcreteFunction) -> dict[str, tf.TensorSpec]:
    """Returns the named inputs of a concrete function."""
    positional, by_name = function.structured_input_signature
    return {**{spec.name: spec for spec in positional}, **by_name}


def solving_of(
    model: keras.Model, max_steps_limit: int | None = None, compaction: bool = True
) -> Solving:
    """Returns the settings for serving a model.

    Args:
        max_steps_limit: largest number of evaluations in each solve that a request can ask for. None:
            MAX_STEPS_LIMIT, or the model's own, if that is more.

    Raises:
        ValueError: for a limit below the budget of a request without settings.
    """
    own = [layer.solver.max_steps for layer in solving_layers(model)]
    if max_steps_limit is None:
        return Solving(max([MAX_STEPS_LIMIT, *own]), compaction)
    if max_steps_limit < max([1, *own]):
        raise ValueError(
            f"max_steps_limit must be at least {max([1, *own])}, the steps of a request that names "
            f"none; received {max_steps_limit}."
        )
    return Solving(max_steps_limit, compaction)


def own_settings(model: keras.Model, solving: Solving) -> dict[str, Any]:
    """Returns the card's entries about requests without tolerance and budget, and about the limit.

    For several layers, these are name -> value.
    """
    layers = solving_layers(model)
    found: dict[str, Any] = {"max_steps_limit": solving.max_steps_limit}
    for setting in ("tolerance", "max_steps"):
        own = {layer.name: getattr(layer.solver, setting) for layer in layers}
        found[f"own_{setting}"] = own if len(own) > 1 else next(iter(own.values()), None)
    return found


def solving_layers(model: keras.Model) -> list[DEQLayer]:
    """Returns the layers to which a request's settings apply: not those inside another layer's cell."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, DEQLayer)]
    inner = {id(part) for layer in layers for part in layer._flatten_layers(include_self=False)}
    return [layer for layer in layers if id(layer) not in inner]


def budget(given: Mapping[str, tf.Tensor], solving: Solving) -> tf.Tensor:
    """Returns the budget of a request, [B] int32; 0: the model's own.

    A request with only a tolerance gets the whole limit, because the model's own budget, which is made
    for its own tolerance, could end the solve too early.
    """
    limit = solving.max_steps_limit
    unnamed = tf.where(given["tolerance"] > 0, limit, 0)
    return tf.where(given["max_steps"] > 0, tf.minimum(given["max_steps"], limit), unnamed)


def scope(
    given: Mapping[str, tf.Tensor], solving: Solving, starts: Mapping[str, Any] | None = None
) -> SolveScope:
    """Returns the scope in which a served model is called, with a request's tolerance and max_steps."""
    return SolveScope(given["tolerance"], budget(given, solving), starts, solving.compaction)


def convergence(solutions: Mapping[str, Solution]) -> dict[str, tf.Tensor]:
    """Returns residual, steps and status of a model's solves together; {} if there are none."""
    found = combined(solutions.values())
    return {} if found is None else {name: getattr(found, name) for name in CONVERGENCE}


def nothing_to_solve(rows: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns residual, steps and status for a model without solves. rows: any [B] tensor."""
    zeros = tf.zeros_like(rows, tf.int32)
    return {"residual": tf.cast(zeros, tf.float32), "steps": zeros, "status": zeros}


def answered(
    outputs: Mapping[str, tf.Tensor],
    solved: Mapping[str, tf.Tensor],
    inputs: Iterable[tf.Tensor] = (),
) -> dict[str, tf.Tensor]:
    """Joins a model's outputs and their convergence, and replaces values that are not finite.

    An example with NaN or infinity in any output or input gets zeros instead (REST would write invalid
    JSON), the status NON_FINITE and the largest float32 as its residual. Inputs are checked too because NaN
    does not always reach the outputs: in a graph on a CPU, TensorFlow fuses convolution, bias and relu,
    and the fused operation turns NaN into 0.
    """
    solved = dict(solved)
    half = (tf.float16, tf.bfloat16)  # which JSON or NumPy cannot represent
    outputs = {
        name: tf.cast(output, tf.float32) if output.dtype in half else output
        for name, output in outputs.items()
    }
    finite = tf.fill(tf.shape(solved["status"]), True)
    for value in (*outputs.values(), *inputs):
        if value.dtype.is_floating:
            finite &= tf.reduce_all(tf.math.is_finite(value), axis=range(1, value.shape.rank))
    solved["residual"] = tf.where(finite, solved["residual"], tf.float32.max)
    solved["status"] = tf.where(finite, solved["status"], int(Status.NON_FINITE))

    def shown(output):
        row = tf.reshape(finite, tf.concat([[-1], tf.ones([tf.rank(output) - 1], tf.int32)], 0))
        return tf.where(row, output, tf.zeros_like(output)) if output.dtype.is_floating else output

    return {**{name: shown(output) for name, output in outputs.items()}, **solved}

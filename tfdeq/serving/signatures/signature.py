"""What every served signature has in common: settings, convergence, and how it is traced."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq import DEQLayer, Solution, SolveScope, Status, describe
from tfdeq.serving.signatures import served_names
from tfdeq.solution import combined

# Status of an example that cannot be answered; next to the values of `tfdeq.Status`.
INVALID = -1
# What a request can ask for, where the export names no max_steps_limit and the model's own is not larger.
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
    """How the signatures of a version solve."""

    max_steps_limit: int  # evaluations that a request can ask for
    compaction: bool = True  # whether examples that are done leave the batch, where not compiled


class Signature(NamedTuple):
    """A function to serve, and what its tensors mean."""

    function: tf.types.experimental.ConcreteFunction
    inputs: Mapping[str, str]  # name -> meaning
    outputs: Mapping[str, str]
    joined: bool = False  # whether requests share batches
    # Numbers that a request and its answer may have together; None: not limited.
    max_request_values: int | None = None


def trace(
    function: Callable[..., dict[str, tf.Tensor]],
    specs: Mapping[str, tf.TensorSpec],
    jit_compile: bool = False,
) -> tf.types.experimental.ConcreteFunction:
    """Traces a function of named tensors that returns named tensors; checks that it can be batched.

    Raises:
        ValueError: a name that cannot be served, or an output without the batch in dimension 0,
            which a server could not split.
    """
    served_names.require_inputs(specs)
    # Not compiled unless asked for: a stock server refuses that at the first request.
    traced = tf.function(function, jit_compile=jit_compile or None, autograph=False)
    concrete = traced.get_concrete_function(**specs)
    for name, output in concrete.structured_outputs.items():
        if output.shape.rank == 0 or (output.shape.rank and output.shape[0] is not None):
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
    """Returns how a model is served.

    Args:
        max_steps_limit: evaluations of each solve that a request can ask for. None: MAX_STEPS_LIMIT, or
            what the model's solvers have, if that is more.

    Raises:
        ValueError: a limit below what a request without settings gets.
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
    """Returns what the card says of requests that name no tolerance and no budget, and of the limit.

    Of several layers, name -> value.
    """
    layers = solving_layers(model)
    found: dict[str, Any] = {"max_steps_limit": solving.max_steps_limit}
    for setting in ("tolerance", "max_steps"):
        own = {layer.name: getattr(layer.solver, setting) for layer in layers}
        found[f"own_{setting}"] = own if len(own) > 1 else next(iter(own.values()), None)
    return found


def solving_layers(model: keras.Model) -> list[DEQLayer]:
    """Those that a request's settings reach: not the ones inside another's cell."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, DEQLayer)]
    inner = {id(part) for layer in layers for part in layer._flatten_layers(include_self=False)}
    return [layer for layer in layers if id(layer) not in inner]


def budget(given: Mapping[str, tf.Tensor], solving: Solving) -> tf.Tensor:
    """Returns the evaluations [B] int32 that a request may spend; 0: the model's own.

    A tolerance alone is an order to reach it: the model's own budget, which is made for its own
    tolerance, would end the solve before.
    """
    limit = solving.max_steps_limit
    unnamed = tf.where(given["tolerance"] > 0, limit, 0)
    return tf.where(given["max_steps"] > 0, tf.minimum(given["max_steps"], limit), unnamed)


def scope(
    given: Mapping[str, tf.Tensor], solving: Solving, starts: Mapping[str, Any] | None = None
) -> SolveScope:
    """The scope in which a served model is called with a request's tolerance and max_steps."""
    return SolveScope(given["tolerance"], budget(given, solving), starts, solving.compaction)


def convergence(solutions: Mapping[str, Solution]) -> dict[str, tf.Tensor]:
    """Residual, steps and status of a model's solves together; nothing where there are none."""
    found = combined(solutions.values())
    return {} if found is None else {name: getattr(found, name) for name in CONVERGENCE}


def nothing_to_solve(rows: tf.Tensor) -> dict[str, tf.Tensor]:
    """Residual, steps and status where nothing is solved. rows: any [B] tensor."""
    zeros = tf.zeros_like(rows, tf.int32)
    return {"residual": tf.cast(zeros, tf.float32), "steps": zeros, "status": zeros}


def answered(
    outputs: Mapping[str, tf.Tensor], solved: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    """Joins a model's outputs and their convergence; what is not finite does not leave the server.

    An example with a NaN or infinity in any output gets zeros instead (REST would write no valid
    JSON), the status NON_FINITE and the largest float32 as residual.
    """
    solved = dict(solved)
    half = (tf.float16, tf.bfloat16)  # which JSON, NumPy or both do not know
    outputs = {
        name: tf.cast(output, tf.float32) if output.dtype in half else output
        for name, output in outputs.items()
    }
    finite = tf.fill(tf.shape(solved["status"]), True)
    for output in outputs.values():
        if output.dtype.is_floating:
            finite &= tf.reduce_all(tf.math.is_finite(output), axis=range(1, output.shape.rank))
    solved["residual"] = tf.where(finite, solved["residual"], tf.float32.max)
    solved["status"] = tf.where(finite, solved["status"], int(Status.NON_FINITE))

    def shown(output):
        row = tf.reshape(finite, tf.concat([[-1], tf.ones([tf.rank(output) - 1], tf.int32)], 0))
        return tf.where(row, output, tf.zeros_like(output)) if output.dtype.is_floating else output

    return {**{name: shown(output) for name, output in outputs.items()}, **solved}

"""What every served signature has in common, and the signatures of any Keras model with a `DEQLayer`."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq import DEQLayer, Solution, SolveScope, Status, describe
from tfdeq.serving.signatures import served_names

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
_EQUILIBRIUM = "equilibrium"
_AUTOMATIC = re.compile(r"(keras_tensor|input_layer)(_\d+)?")


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
    own = [layer.solver.max_steps for layer in _solving_layers(model)]
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
    layers = _solving_layers(model)
    found: dict[str, Any] = {"max_steps_limit": solving.max_steps_limit}
    for setting in ("tolerance", "max_steps"):
        own = {layer.name: getattr(layer.solver, setting) for layer in layers}
        found[f"own_{setting}"] = own if len(own) > 1 else next(iter(own.values()), None)
    return found


def _solving_layers(model: keras.Model) -> list[DEQLayer]:
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
    """Residual, steps and status of a model's solves: the largest, all of them, the worst."""
    found = list(solutions.values())
    residual, steps, status = found[0].residual, found[0].steps, found[0].status
    for solution in found[1:]:
        residual = tf.maximum(residual, solution.residual)
        steps += solution.steps
        status = tf.maximum(status, solution.status)
    return {"residual": residual, "steps": steps, "status": status}


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


def keras_signatures(
    model: keras.Model,
    inputs: Any = None,
    *,
    jit_compile: bool = False,
    compaction: bool = True,
    max_steps_limit: int | None = None,
) -> dict[str, Signature]:
    """Traces `serving_default`, `encode` and `step` of a Keras model with at least one `DEQLayer`.

    All take the model's inputs by name and, for each example, `tolerance` and `max_steps`; all
    return, for each example, `residual`, `steps` and `status`. `serving_default` returns the model's
    outputs (by name where the model returns a dict, else output_0, output_1, …; a dict's nest by its
    path: {"head": {"mean": …}} is served as head_mean). `encode` returns the
    equilibrium. `step` is for streams: it takes the last equilibrium as start and returns outputs and
    the new one; an example whose start is not finite begins as usual.

    Args:
        model: built; called with training=False.
        inputs: nest of tf.TensorSpec like the model's input, batch first. None: a functional
            model's own.
        jit_compile: compile with XLA; the server must allow it, and compiles for each batch size.
        compaction: whether examples that are done leave the batch, where not compiled.
        max_steps_limit: see `solving_of`.

    Returns:
        Name -> `Signature`.

    Raises:
        ValueError: a model that makes no solve, has no inputs to read, names that clash, or a limit
            below the model's own steps.
    """
    solving = solving_of(model, max_steps_limit, compaction)
    structure, names = input_structure(model, inputs)
    leaves = keras.tree.flatten(structure)
    specs = {
        name: tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, name)
        for name, spec in zip(names, leaves, strict=True)
    }
    layout: dict[str, Any] = {}  # solve -> its state's structure; known once the model was called

    def call(given, starts=None):
        x = keras.tree.pack_sequence_as(structure, [given[name] for name in names])
        with scope(given, solving, starts) as solves:
            outputs = model(x, training=False)
        if not solves.solutions:
            raise ValueError(
                f"The model {model.name!r} calls no tfdeq.DEQLayer, so there is nothing whose "
                "tolerance a request could choose. Use Keras's own model.export."
            )
        layout.update({name: solution.z for name, solution in solves.solutions.items()})
        return named_outputs(outputs), solves.solutions

    def serving_default(**given):
        outputs, solutions = call(given)
        return answered(outputs, convergence(solutions))

    def encode(**given):
        _, solutions = call(given)
        return answered(equilibria(solutions), convergence(solutions))

    def step(**given):
        outputs, solutions = call(given, starts_of(layout, given))
        found = {**outputs, **equilibria(solutions)}
        return answered(found, convergence(solutions))

    _require_distinct([*names, *SETTINGS])
    settings = {**specs, **SETTING_SPECS}
    encoded = trace(encode, settings, jit_compile)
    states = {
        name: tf.TensorSpec(output.shape, tf.float32, name)
        for name, output in encoded.structured_outputs.items()
        if name not in CONVERGENCE
    }
    default = trace(serving_default, settings, jit_compile)
    _require_distinct([*names, *SETTINGS, *states])
    _require_distinct([*default.structured_outputs, *states])
    of_model = f"of the Keras model {model.name!r}"
    meaning = {**dict.fromkeys(names, f"input {of_model}"), **SETTINGS}
    outputs = {**dict.fromkeys(default.structured_outputs, f"output {of_model}"), **CONVERGENCE}
    state = dict.fromkeys(states, "the equilibrium z* = f(z*, x)")
    start = dict.fromkeys(states, "where to start: the last equilibrium; not finite: as usual")
    return {
        "serving_default": Signature(default, meaning, outputs),
        "encode": Signature(encoded, meaning, {**state, **CONVERGENCE}),
        "step": Signature(
            trace(step, {**settings, **states}, jit_compile),
            {**meaning, **start},
            {**outputs, **state},
        ),
    }


def input_structure(model: keras.Model, inputs: Any = None) -> tuple[Any, list[str]]:
    """Returns a model's input as a nest of tf.TensorSpec, and the names of its leaves.

    Args:
        model, inputs: see `keras_signatures`.
    """
    if inputs is None:
        try:
            # A Sequential has its single input in a list.
            given = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
            inputs = keras.tree.map_structure(_spec_of, given)
        except (AttributeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"The inputs of the model {model.name!r} cannot be read from it, as it is no "
                "functional model. Name them: inputs=tf.TensorSpec([None, ...], dtype, name), or a "
                "nest of those."
            ) from error
    leaves = keras.tree.flatten(inputs)
    # Keras numbers inputs without a name anew in every process; a served name must stay.
    return inputs, [
        f"input_{index}" if not spec.name or _AUTOMATIC.fullmatch(spec.name) else spec.name
        for index, spec in enumerate(leaves)
    ]


def _spec_of(tensor: keras.KerasTensor) -> tf.TensorSpec:
    # The layer's name is kept when a model is saved; the tensor's is not.
    return tf.TensorSpec(tensor.shape, tensor.dtype, tensor._keras_history.operation.name)


def _require_distinct(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"These names stand for two tensors of a signature: {', '.join(twice)}. Rename the model's."
        )


def named_outputs(outputs: Any) -> dict[str, tf.Tensor]:
    """Returns a model's outputs by the names that they are served under."""
    if not isinstance(outputs, Mapping):
        outputs = {f"output_{i}": leaf for i, leaf in enumerate(keras.tree.flatten(outputs))}
    named = served_names.leaves(outputs)
    _require_distinct([*(name for name, _ in named), *CONVERGENCE])
    return dict(named)


def equilibria(solutions: Mapping[str, Solution]) -> dict[str, tf.Tensor]:
    """Returns the states that solves found by the names that they are served under."""
    states = {solve: solution.z for solve, solution in solutions.items()}
    return {
        name: tf.cast(leaf, tf.float32)
        for solve, names in _leaf_names(states).items()
        for name, leaf in zip(names, tf.nest.flatten(states[solve]), strict=True)
    }


def starts_of(layout: Mapping[str, Any], given: Mapping[str, tf.Tensor]) -> dict[str, Any]:
    """Returns solve -> start, from tensors named as `equilibria` names them.

    Args:
        layout: solve -> a state of its structure. given: name -> tensor.
    """
    return {
        solve: tf.nest.pack_sequence_as(layout[solve], [given[name] for name in names])
        for solve, names in _leaf_names(layout).items()
    }


def _leaf_names(layout: Mapping[str, Any]) -> dict[str, list[str]]:
    """The name of each tensor of each solve's state."""
    names = {}
    for solve, z in layout.items():
        name = _EQUILIBRIUM if len(layout) == 1 else f"{_EQUILIBRIUM}_{solve}"
        count = len(tf.nest.flatten(z))
        names[solve] = [name] if count == 1 else [f"{name}_{index}" for index in range(count)]
    return names

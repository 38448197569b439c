"""The signatures of any Keras model with a `DEQLayer`: `serving_default`, `encode` and `step`."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdeq import Solution
from tfdeq.serving.signatures import certificates, served_names
from tfdeq.serving.signatures.served_names import CERTIFIED_RADIUS
from tfdeq.serving.signatures.signature import (
    CONVERGENCE,
    SETTING_SPECS,
    SETTINGS,
    Signature,
    Solving,
    answered,
    convergence,
    nothing_to_solve,
    scope,
    solving_layers,
    solving_of,
    trace,
)

_EQUILIBRIUM = "equilibrium"
_AUTOMATIC = re.compile(r"(keras_tensor|input_layer)(_\d+)?")


def keras_signatures(
    model: keras.Model,
    inputs: Any = None,
    *,
    jit_compile: bool = False,
    compaction: bool = True,
    max_steps_limit: int | None = None,
    explicit: bool = False,
    only: Collection[str] | None = None,
) -> dict[str, Signature]:
    """Traces `serving_default`, `encode` and `step` of a Keras model with at least one `DEQLayer`.

    All take the model's inputs by name and, for each example, `tolerance` and `max_steps`; all return,
    for each example, `residual`, `steps` and `status`. `serving_default` returns the model's outputs
    (by name if the model returns a dict, else output_0, output_1, …; a nested dict by its path:
    {"head": {"mean": …}} is served as head_mean); of a model for which `tfdeq.certified_radius` has a
    value it also returns that: `certified_radius`. `encode` returns the equilibrium. `step` is for
    streams: it takes the last equilibrium as the start, and returns outputs and the new equilibrium. An
    example whose start is not finite starts as usual.

    Args:
        model: a built model; called with training=False.
        inputs: nest of tf.TensorSpec like the model's input, batch first. None: a functional
            model's own.
        jit_compile: whether to compile with XLA; the server must allow it, and compiles for each batch
            size.
        compaction: whether examples that are done leave the batch, if not compiled.
        max_steps_limit: see `solving_of`.
        explicit: whether the model may lack a `DEQLayer`. Then there is only `serving_default`, whose
            answers have residual 0, no steps and the status CONVERGED.
        only: names of the signatures that are needed; `serving_default` is always traced. None: all.

    Returns:
        Name -> `Signature`.

    Raises:
        ValueError: for a model without a solve or without declared inputs, for names that clash, or for
            a limit below the model's own steps.
    """
    call = _Call(model, inputs, solving_of(model, max_steps_limit, compaction), explicit)
    certified = certificates.certified_output(model, list(call.specs.values()), jit_compile)

    def serving_default(**given):
        outputs, solutions = call(given)
        solved = convergence(solutions) or nothing_to_solve(given["max_steps"])
        if certified is not None:
            _require_distinct([*outputs, CERTIFIED_RADIUS])
            outputs[CERTIFIED_RADIUS] = certified(call.inputs_of(given), solutions)
        return answered(outputs, solved, call.inputs_of(given))

    def encode(**given):
        _, solutions = call(given)
        return answered(equilibria(solutions), convergence(solutions), call.inputs_of(given))

    def step(**given):
        outputs, solutions = call(given, starts_of(call.layout, given))
        found = {**outputs, **equilibria(solutions)}
        return answered(found, convergence(solutions), call.inputs_of(given))

    _require_distinct([*call.names, *SETTINGS])
    settings = {**call.specs, **SETTING_SPECS}
    of_model = f"of the Keras model {model.name!r}"
    meaning = {**dict.fromkeys(call.specs, f"input {of_model}"), **SETTINGS}
    default = trace(serving_default, settings, jit_compile)
    outputs = {**dict.fromkeys(default.structured_outputs, f"output {of_model}"), **CONVERGENCE}
    if certified is not None:
        outputs[CERTIFIED_RADIUS] = certificates.MEANING
    found = {"serving_default": Signature(default, meaning, outputs)}
    further = [name for name in names_of(model)[1:] if only is None or name in only]
    if not further:
        return found
    encoded = trace(encode, settings, jit_compile)
    states = {
        name: tf.TensorSpec(output.shape, tf.float32, name)
        for name, output in encoded.structured_outputs.items()
        if name not in CONVERGENCE
    }
    _require_distinct([*call.names, *SETTINGS, *states])
    _require_distinct([*default.structured_outputs, *states])
    state = dict.fromkeys(states, "the equilibrium z* = f(z*, x)")
    start = dict.fromkeys(states, "where to start: the last equilibrium; not finite: as usual")
    if "encode" in further:
        found["encode"] = Signature(encoded, meaning, {**state, **CONVERGENCE})
    if "step" in further:
        stepped = trace(step, {**settings, **states}, jit_compile)
        found["step"] = Signature(stepped, {**meaning, **start}, {**outputs, **state})
    return found


def names_of(model: keras.Model) -> list[str]:
    """Returns the names of a model's signatures, `serving_default` first."""
    return ["serving_default", *(["encode", "step"] if solving_layers(model) else [])]


class _Call:
    """A model as a function of named tensors.

    Attributes:
        names: names of the inputs, in the model's order.
        specs: specs of the inputs, with any number of rows.
        layout: solve -> the structure of its state; known after the model was called.
    """

    def __init__(self, model: keras.Model, inputs: Any, solving: Solving, explicit: bool):
        self._model, self._solving, self._explicit = model, solving, explicit
        self._structure, self.names = input_structure(model, inputs)
        leaves = keras.tree.flatten(self._structure)
        self.specs = {
            name: tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, name)
            for name, spec in zip(self.names, leaves, strict=True)
        }
        self.layout: dict[str, Any] = {}

    def __call__(
        self, given: Mapping[str, tf.Tensor], starts: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, tf.Tensor], dict[str, Solution]]:
        leaves = self.inputs_of(given)
        x = keras.tree.pack_sequence_as(self._structure, leaves)
        with scope(given, self._solving, starts) as solves:
            outputs = self._model(x, training=False)
        if not solves.solutions and not self._explicit:
            raise ValueError(
                f"The model {self._model.name!r} calls no tfdeq.DEQLayer, so there is nothing whose "
                "tolerance a request could choose. Use Keras's own model.export."
            )
        self.layout.update({name: solution.z for name, solution in solves.solutions.items()})
        return named_outputs(outputs), solves.solutions

    def inputs_of(self, given: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
        """Returns the model's inputs in a request."""
        return [given[name] for name in self.names]


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
    # Keras numbers unnamed inputs anew in every process, but a served name must not change.
    return inputs, [
        f"input_{index}" if not spec.name or _AUTOMATIC.fullmatch(spec.name) else spec.name
        for index, spec in enumerate(leaves)
    ]


def _spec_of(tensor: keras.KerasTensor) -> tf.TensorSpec:
    # Saving a model keeps the layer's name, but not the tensor's.
    return tf.TensorSpec(tensor.shape, tensor.dtype, tensor._keras_history.operation.name)


def _require_distinct(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"These names stand for two tensors of a signature: {', '.join(twice)}. Rename the model's."
        )


def named_outputs(outputs: Any) -> dict[str, tf.Tensor]:
    """Returns a model's outputs by their served names."""
    if not isinstance(outputs, Mapping):
        outputs = {f"output_{i}": leaf for i, leaf in enumerate(keras.tree.flatten(outputs))}
    named = served_names.leaves(outputs)
    _require_distinct([*(name for name, _ in named), *CONVERGENCE])
    return dict(named)


def equilibria(solutions: Mapping[str, Solution]) -> dict[str, tf.Tensor]:
    """Returns the equilibria of the solves by their served names."""
    states = {solve: solution.z for solve, solution in solutions.items()}
    return {
        name: tf.cast(leaf, tf.float32)
        for solve, names in _leaf_names(states).items()
        for name, leaf in zip(names, tf.nest.flatten(states[solve]), strict=True)
    }


def starts_of(layout: Mapping[str, Any], given: Mapping[str, tf.Tensor]) -> dict[str, Any]:
    """Returns solve -> start, from tensors named as `equilibria` names them.

    Args:
        layout: solve -> the structure of its state. given: name -> tensor.
    """
    return {
        solve: tf.nest.pack_sequence_as(layout[solve], [given[name] for name in names])
        for solve, names in _leaf_names(layout).items()
    }


def _leaf_names(layout: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the name of each tensor in each solve's state."""
    names = {}
    for solve, z in layout.items():
        name = _EQUILIBRIUM if len(layout) == 1 else f"{_EQUILIBRIUM}_{solve}"
        count = len(tf.nest.flatten(z))
        names[solve] = [name] if count == 1 else [f"{name}_{index}" for index in range(count)]
    return names

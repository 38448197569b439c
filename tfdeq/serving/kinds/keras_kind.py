"""Any Keras model with a `DEQLayer`, alone or with examples and targets."""

from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np

from tfdeq.runs.measures import Measure
from tfdeq.serving.kinds.kind import Kind
from tfdeq.serving.signatures.keras_signatures import input_structure, keras_signatures, names_of
from tfdeq.serving.signatures.signature import Signature, solving_layers
from tfdeq.serving.verification import checks, keras_checks, quality, quality_checks
from tfdeq.serving.verification.questions import Questions

_ROWS, _UNKNOWN_SIZE = 2, 3


class KerasKind(Kind):
    """A Keras model that calls a `DEQLayer`.

    Args:
        model: a built model.
        inputs: nest of tf.TensorSpec like the model's input; None: a functional model's own.
        examples: input name -> [N, …] real inputs; None: no examples.
        targets: targets of the examples, [N, …] or a dict of these.
        measures: name -> measure of (targets, outputs); used with targets.
        explicit: whether the model may lack a `DEQLayer`, like a baseline.
    """

    def __init__(
        self,
        model: keras.Model,
        inputs: Any = None,
        examples: Mapping[str, np.ndarray] | None = None,
        targets: Any = None,
        measures: Mapping[str, Measure] | None = None,
        explicit: bool = False,
    ):
        super().__init__(model)
        self._inputs, self._examples = inputs, examples
        self._targets, self._measures, self._explicit = targets, measures or {}, explicit

    @property
    def solves(self) -> bool:
        return any(not layer.explicit_steps for layer in solving_layers(self.model))

    def signature_names(self) -> list[str]:
        return names_of(self.model)

    def traced(self, only: Collection[str] | None = None, **settings: Any) -> dict[str, Signature]:
        return keras_signatures(
            self.model, self._inputs, explicit=self._explicit, only=only, **settings
        )

    def warm_up(self) -> Mapping[str, np.ndarray] | None:
        return self._examples

    def quality(self) -> quality.Table | None:
        if not self._measures or self._examples is None:
            return None
        return quality.ExampleTable(self._examples, self._targets, self._measures, self.solves)

    def call_inputs(self) -> Any:
        try:
            structure, names = input_structure(self.model, self._inputs)
        except ValueError:
            return None
        specs = keras.tree.flatten(structure)
        if self._examples is not None and all(name in self._examples for name in names):
            given = [np.asarray(self._examples[name])[:_ROWS] for name in names]
        else:
            generator = np.random.default_rng(0)
            given = [_random(generator, spec) for spec in specs]
        tensors = [
            keras.ops.convert_to_tensor(value, dtype=keras.backend.standardize_dtype(spec.dtype))
            for value, spec in zip(given, specs, strict=True)
        ]
        return keras.tree.pack_sequence_as(structure, tensors)

    def questions(self, card: Mapping[str, Any]) -> Questions:
        model, inputs = self.model, self._inputs
        layers = solving_layers(model)
        names = [name for name in names_of(model) if name in card["signatures"]]
        limit = card.get("max_steps_limit") or 1
        probe = keras_checks.probe_of(model, inputs, self._examples)
        batches = keras_checks.batch_requests(probe, names)
        batches += keras_checks.settings_requests(probe, names, limit)
        references = keras_checks.references(model, inputs, batches, limit)
        return Questions(
            batches,
            [checks.comparable(*pair, limit) for pair in zip(batches, references, strict=True)],
            keras_checks.neighbour_cases(probe, names),
            keras_checks.dial_request(probe),
            # The largest tolerance, because with smaller ones rounding may change where a row
            # stops.
            tolerance=max((layer.solver.tolerance for layer in layers), default=0.0),
            explicit=not self.solves,
            quality=quality_checks.Quality(self.quality(), card.get("quality_by_tolerance")),
        )


def _random(generator: np.random.Generator, spec: Any) -> np.ndarray:
    shape = [_ROWS, *(size or _UNKNOWN_SIZE for size in spec.shape[1:])]
    dtype = keras.backend.standardize_dtype(spec.dtype)
    if dtype == "string":
        return np.full(shape, "a", dtype=object)
    if "float" in dtype:
        return generator.normal(size=shape)
    return generator.integers(0, 2, shape)

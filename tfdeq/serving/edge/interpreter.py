"""Answers of LiteRT files in this process, by LiteRT's own interpreter."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np


class Interpreter:
    """Runs the signatures of a LiteRT file.

    It uses the package ai-edge-litert if it is installed, otherwise the interpreter in TensorFlow.

    Args:
        path: the file.
        threads: number of threads.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorFlow announces the other package
            self._interpreter = _class()(model_path=os.fspath(path), num_threads=threads)
        self.signatures: dict[str, Any] = self._interpreter.get_signature_list()
        self._runners: dict[str, Any] = {}

    def answer(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns the outputs [N, …] of a signature for inputs [N, …], of any number of rows.

        Args:
            inputs: name -> values. tolerance and max_steps may be missing: they are then the model's own.

        Raises:
            ValueError: for names or shapes that differ from the file's.
        """
        details = self._runner(signature).get_input_details()
        arrays = {
            name: np.asarray(value, details[name]["dtype"])
            for name, value in inputs.items()
            if name in details
        }
        rows = len(next(iter(arrays.values()), []))
        for setting in {"tolerance", "max_steps"} & (set(details) - set(arrays)):
            arrays[setting] = np.zeros([rows], details[setting]["dtype"])
        for name, detail in details.items():
            expected = tuple(detail["shape"][1:].tolist())
            found = arrays[name].shape if name in arrays else None
            if found is None or found[:1] != (rows,) or found[1:] != expected:
                raise ValueError(
                    f"The signature {signature!r} takes {name!r} as {('N', *expected)}, with N = {rows} "
                    f"as in the first input; received {'nothing' if found is None else found}."
                )
        size = int(next(iter(details.values()))["shape"][0])
        parts = [self._call(signature, arrays, first, size) for first in range(0, rows, size)]
        return {name: np.concatenate([part[name] for part in parts])[:rows] for name in parts[0]}

    def _call(
        self, signature: str, arrays: Mapping[str, np.ndarray], first: int, size: int
    ) -> dict[str, np.ndarray]:
        # A batch that is not full is filled with copies of its last row.
        part = {name: value[first : first + size] for name, value in arrays.items()}
        full = {
            name: np.concatenate([value, *[value[-1:]] * (size - len(value))])
            for name, value in part.items()
        }
        return {name: np.array(value) for name, value in self._runner(signature)(**full).items()}

    def _runner(self, signature: str) -> Any:
        if signature not in self.signatures:
            raise ValueError(
                f"The file has no signature {signature!r}. It has: {', '.join(self.signatures)}."
            )
        if signature not in self._runners:
            self._runners[signature] = self._interpreter.get_signature_runner(signature)
        return self._runners[signature]


def _class() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter as found
    except ImportError:
        import tensorflow as tf

        found = tf.lite.Interpreter
    return found

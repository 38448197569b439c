"""Answers of converted files in this process, by LiteRT's own interpreter or by ONNX Runtime."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdeq.serving.edge.converted import format_of
from tfdeq.serving.edge.runtimes import Input, LiteRT, OnnxRuntime, Runtime


class Interpreter:
    """Runs the signatures of a LiteRT file, or the one signature of an ONNX file (.onnx).

    LiteRT files run by the package ai-edge-litert if it is installed, otherwise by the interpreter in
    TensorFlow; ONNX files by the package onnxruntime, on the CPU.

    Args:
        path: the file.
        threads: number of threads.

    Raises:
        ImportError: for an ONNX file without the package onnxruntime.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1):
        runtime = OnnxRuntime if format_of(path) == "onnx" else LiteRT
        self._runtime: Runtime = runtime(path, threads)
        self.signatures: dict[str, Any] = dict(self._runtime.signatures)

    def answer(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns the outputs [N, …] of a signature for inputs [N, …], of any number of rows.

        Args:
            inputs: name -> values. tolerance and max_steps may be missing: they are then the model's own.

        Raises:
            ValueError: for names or shapes that differ from the file's.
        """
        expected = self._inputs(signature)
        arrays = {
            name: np.asarray(value, expected[name].dtype)
            for name, value in inputs.items()
            if name in expected
        }
        rows = len(next(iter(arrays.values()), []))
        for setting in {"tolerance", "max_steps"} & (set(expected) - set(arrays)):
            arrays[setting] = np.zeros([rows], expected[setting].dtype)
        for name, (shape, _) in expected.items():
            found = arrays[name].shape if name in arrays else None
            if found is None or found[:1] != (rows,) or found[1:] != shape[1:]:
                raise ValueError(
                    f"The signature {signature!r} takes {name!r} as {('N', *shape[1:])}, with N = {rows} "
                    f"as in the first input; received {'nothing' if found is None else found}."
                )
        size = next(iter(expected.values())).shape[0]
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
        return self._runtime.run(signature, full)

    def _inputs(self, signature: str) -> Mapping[str, Input]:
        if signature not in self.signatures:
            raise ValueError(
                f"The file has no signature {signature!r}. It has: {', '.join(self.signatures)}."
            )
        return self._runtime.inputs(signature)

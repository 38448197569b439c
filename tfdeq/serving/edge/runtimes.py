"""The runtimes of converted files: LiteRT's interpreter and ONNX Runtime, asked in the same way."""

import os
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np


class Input(NamedTuple):
    """An input of a signature."""

    shape: tuple[int, ...]  # batch first
    dtype: np.dtype


class Runtime(Protocol):
    """A loaded file."""

    signatures: Mapping[str, Mapping[str, list[str]]]  # name -> "inputs" and "outputs" -> names

    def inputs(self, signature: str) -> Mapping[str, Input]:
        """Returns the inputs of a signature."""

    def run(self, signature: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs for one full batch."""


class LiteRT:
    """The package ai-edge-litert if it is installed, otherwise the interpreter in TensorFlow."""

    def __init__(self, path: str | os.PathLike, threads: int):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorFlow announces the other package
            self.interpreter = _litert_class()(model_path=os.fspath(path), num_threads=threads)
        self.signatures = self.interpreter.get_signature_list()
        self._runners: dict[str, Any] = {}

    def inputs(self, signature: str) -> Mapping[str, Input]:
        details = self._runner(signature).get_input_details()
        return {
            name: Input(tuple(detail["shape"].tolist()), np.dtype(detail["dtype"]))
            for name, detail in details.items()
        }

    def run(self, signature: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._runner(signature)(**arrays)
        return {name: np.array(value) for name, value in outputs.items()}

    def _runner(self, signature: str) -> Any:
        if signature not in self._runners:
            self._runners[signature] = self.interpreter.get_signature_runner(signature)
        return self._runners[signature]


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    # Added to the name of an output that is named like an input, which ONNX does not permit.
    OUTPUT = "_out"

    def __init__(self, path: str | os.PathLike, threads: int):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "ONNX files need the package onnxruntime. Install it: pip install 'tfdeq[onnx]'. "
                f"Python said: {error}"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors: its warnings are about weights that it moves
        self._session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {
            given.name: Input(tuple(given.shape), _dtype(given.type))
            for given in self._session.get_inputs()
        }
        self._outputs = {
            self._named(found.name): found.name for found in self._session.get_outputs()
        }
        names = {"inputs": list(self._inputs), "outputs": list(self._outputs)}
        self.signatures = {self._session.get_modelmeta().graph_name: names}

    def inputs(self, signature: str) -> Mapping[str, Input]:
        return self._inputs

    def run(self, signature: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self._session.run(list(self._outputs.values()), dict(arrays))
        return dict(zip(self._outputs, found, strict=True))

    def _named(self, output: str) -> str:
        name = output.removesuffix(self.OUTPUT)
        return name if name in self._inputs else output


def _dtype(described: str) -> np.dtype:
    """Returns the type that ONNX Runtime describes, for example as tensor(float)."""
    name = described.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def _litert_class() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter as found
    except ImportError:
        import tensorflow as tf

        found = tf.lite.Interpreter
    return found

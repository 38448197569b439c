"""A SavedModel in TensorFlow's C++ runtime, which TensorFlow Serving embeds.

It uses the C API of the libraries in the tensorflow wheel. It imports neither TensorFlow's Python
package nor this project: the file can run alone, by its path, with NumPy.
"""

import contextlib
import ctypes
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# Imported before the libraries, whose global symbols would interfere with NumPy's random extension.
import numpy as np
import numpy.random

# TensorFlow's DataType numbers (types.proto) for the dtypes that NumPy also has.
_DTYPES = {
    1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 5: np.int16, 6: np.int8, 9: np.int64,
    10: np.bool_, 17: np.uint16, 19: np.float16, 22: np.uint32, 23: np.uint64,
}  # fmt: skip
_STRING, _STRING_BYTES = 7, 24  # TensorFlow's number, and the size of a TF_TString
_NUMBERS = {np.dtype(dtype): number for number, dtype in _DTYPES.items()}


class TensorInfo(NamedTuple):
    """The place of a signature's named tensor in the graph."""

    tensor: str  # "operation:index"
    dtype: int  # TensorFlow's number


class Signature(NamedTuple):
    """Inputs and outputs of a signature by name."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


class _Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    )


class Runtime:
    """A loaded version: `run` feeds and fetches NumPy arrays by signature.

    Args:
        path: a version folder, with saved_model.pb in it.
        libraries: folder of libtensorflow_cc.so.2 and libtensorflow_framework.so.2. None: the
            tensorflow package's, found on sys.path without importing it.

    Raises:
        FileNotFoundError: if there is no model, or no libraries.
        RuntimeError: the runtime's own errors, in its words.
    """

    def __init__(self, path: str | os.PathLike, libraries: str | os.PathLike | None = None):
        self.signatures = read_signatures(path)
        self._library = _load_libraries(pathlib.Path(libraries) if libraries else _find_libraries())
        self._graph = self._library.TF_NewGraph()
        options = self._library.TF_NewSessionOptions()
        tags = (ctypes.c_char_p * 1)(b"serve")
        with self._status(f"load {os.fspath(path)!r}") as status:
            self._session = self._library.TF_LoadSessionFromSavedModel(
                options, None, os.fsencode(path), tags, 1, self._graph, None, status
            )
            self._library.TF_DeleteSessionOptions(options)

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns a signature's outputs by name; several threads may call it at the same time.

        Raises:
            ValueError: for an unknown signature, inputs that it does not take, or another dtype.
            RuntimeError: the runtime's own errors, in its words.
        """
        if signature not in self.signatures:
            raise ValueError(f"No signature {signature!r}; there are {sorted(self.signatures)}.")
        takes, gives = self.signatures[signature]
        if inputs.keys() != takes.keys():
            raise ValueError(f"{signature} takes {sorted(takes)}; received {sorted(inputs)}.")
        names = sorted(gives)
        feeds = (_Output * len(takes))(*(self._output(takes[name].tensor) for name in takes))
        fetches = (_Output * len(gives))(*(self._output(gives[name].tensor) for name in names))
        fetched = (ctypes.c_void_p * len(gives))()
        fed = (ctypes.c_void_p * len(takes))()
        try:
            for place, (name, info) in enumerate(takes.items()):
                fed[place] = self._to_tensor(name, inputs[name], info)
            with self._status(f"run {signature}") as status:
                self._library.TF_SessionRun(
                    self._session, None, feeds, fed, len(takes), fetches, fetched, len(gives),
                    None, 0, None, status,
                )  # fmt: skip
            return {
                name: self._to_array(tensor) for name, tensor in zip(names, fetched, strict=True)
            }
        finally:
            for tensor in [*fed, *fetched]:
                if tensor:
                    self._library.TF_DeleteTensor(tensor)

    def close(self) -> None:
        """Frees the session and the graph; `run` cannot be called afterwards."""
        with self._status("close the session") as status:
            self._library.TF_CloseSession(self._session, status)
            self._library.TF_DeleteSession(self._session, status)
        self._library.TF_DeleteGraph(self._graph)

    def _output(self, tensor: str) -> _Output:
        name, _, index = tensor.partition(":")
        operation = self._library.TF_GraphOperationByName(self._graph, name.encode())
        if not operation:
            raise RuntimeError(f"The graph has no operation {name!r}, which a signature names.")
        return _Output(operation, int(index or 0))

    def _to_tensor(self, name: str, value: np.ndarray, info: TensorInfo) -> int:
        array = np.ascontiguousarray(value)
        if info.dtype == _STRING and array.dtype == object:
            return self._to_strings(array)
        if _NUMBERS.get(array.dtype) != info.dtype:
            wanted = np.dtype(_DTYPES[info.dtype]).name if info.dtype in _DTYPES else info.dtype
            raise ValueError(f"{name} must be of dtype {wanted}; received {array.dtype.name}.")
        shape = (ctypes.c_int64 * array.ndim)(*np.shape(value))
        tensor = self._library.TF_AllocateTensor(info.dtype, shape, array.ndim, array.nbytes)
        ctypes.memmove(self._library.TF_TensorData(tensor), array.ctypes.data, array.nbytes)
        return tensor

    def _to_strings(self, array: np.ndarray) -> int:
        """Returns a tensor that refers to the array's bytes objects, which must outlive it."""
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        size = array.size * _STRING_BYTES
        tensor = self._library.TF_AllocateTensor(_STRING, shape, array.ndim, size)
        for place, text in enumerate(array.ravel()):
            string = self._library.TF_TensorData(tensor) + place * _STRING_BYTES
            self._library.TF_StringInit(string)
            self._library.TF_StringAssignView(string, text, len(text))
        return tensor

    def _to_array(self, tensor: int) -> np.ndarray:
        number = self._library.TF_TensorType(tensor)
        if number not in _DTYPES:
            raise ValueError(f"An output is of TensorFlow's dtype {number}, which is not numeric.")
        axes = range(self._library.TF_NumDims(tensor))
        array = np.empty([self._library.TF_Dim(tensor, axis) for axis in axes], _DTYPES[number])
        ctypes.memmove(array.ctypes.data, self._library.TF_TensorData(tensor), array.nbytes)
        return array

    @contextlib.contextmanager
    def _status(self, attempt: str) -> Iterator[int]:
        """A context with a status for one call; raises the error that the runtime wrote into it."""
        status = self._library.TF_NewStatus()
        try:
            yield status
            if self._library.TF_GetCode(status):
                message = self._library.TF_Message(status).decode(errors="replace")
                raise RuntimeError(f"TensorFlow's runtime could not {attempt}: {message}")
        finally:
            self._library.TF_DeleteStatus(status)


def runnable_ops(libraries: str | os.PathLike | None = None) -> set[str]:
    """Returns the names of the ops for which the runtime has a CPU kernel; see `Runtime`."""
    library = _load_libraries(pathlib.Path(libraries) if libraries else _find_libraries())
    status = library.TF_NewStatus()
    buffer = library.TF_GetAllRegisteredKernels(status)
    message = ctypes.string_at(buffer.contents.data, buffer.contents.length)
    library.TF_DeleteBuffer(buffer)
    library.TF_DeleteStatus(status)
    # Field numbers: kernel_def.proto.
    names = set()
    for kernel in _values(message, 1):
        (op,), (device,) = _values(kernel, 1), _values(kernel, 2)
        if bytes(device) in (b"CPU", b"DEFAULT"):
            names.add(bytes(op).decode())
    return names


def read_signatures(path: str | os.PathLike) -> dict[str, Signature]:
    """Reads the signatures of a version's saved_model.pb, without TensorFlow's protos.

    Raises:
        FileNotFoundError: if there is no saved_model.pb.
        ValueError: for a file that is truncated or not a SavedModel.
    """
    file = pathlib.Path(path, "saved_model.pb")
    if not file.is_file():
        raise FileNotFoundError(f"No SavedModel: {str(file)!r} is missing. Name OUTPUT/VERSION.")
    # Field numbers: saved_model.proto, meta_graph.proto. A map's entries are pairs (key 1, value 2).
    try:
        signatures = {}
        for graph in _values(file.read_bytes(), 2):
            for entry in _values(graph, 5):
                (name,), (definition,) = _values(entry, 1), _values(entry, 2)
                # The initialisation of the graph is also a signature, without a tensor to fetch.
                if not bytes(name).startswith(b"__"):
                    signatures[bytes(name).decode()] = Signature(
                        _tensor_infos(definition, 1), _tensor_infos(definition, 2)
                    )
    except (IndexError, ValueError) as error:
        raise ValueError(f"{str(file)!r} is no readable SavedModel: {error}.") from error
    return signatures


def read_ops(path: str | os.PathLike) -> set[str]:
    """Reads the names of all ops that a version's graph and its functions use.

    Raises:
        FileNotFoundError, ValueError: as for `read_signatures`.
    """
    file = pathlib.Path(path, "saved_model.pb")
    if not file.is_file():
        raise FileNotFoundError(f"No SavedModel: {str(file)!r} is missing. Name OUTPUT/VERSION.")
    # Field numbers: meta_graph.proto, graph.proto, function.proto, node_def.proto.
    try:
        ops, functions = set(), set()
        for meta_graph in _values(file.read_bytes(), 2):
            for graph in _values(meta_graph, 2):
                nodes = _values(graph, 1)
                for library in _values(graph, 2):
                    for function in _values(library, 1):
                        (signature,) = _values(function, 1)
                        functions.update(bytes(name).decode() for name in _values(signature, 1))
                        nodes += _values(function, 3)
                ops.update(bytes(op).decode() for node in nodes for op in _values(node, 2))
    except (IndexError, ValueError) as error:
        raise ValueError(f"{str(file)!r} is no readable SavedModel: {error}.") from error
    return ops - functions  # a call of a function has its name


def _tensor_infos(definition: memoryview, field: int) -> dict[str, TensorInfo]:
    infos = {}
    for entry in _values(definition, field):
        (key,), (info,) = _values(entry, 1), _values(entry, 2)
        (tensor,), (dtype,) = _values(info, 1), _values(info, 2)
        infos[bytes(key).decode()] = TensorInfo(bytes(tensor).decode(), dtype)
    return dict(sorted(infos.items()))


def _values(message: bytes | memoryview, field: int) -> list:
    return [value for number, value in _fields(memoryview(message)) if number == field]


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields (field number, value) of a message in protobuf's wire format."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(message, place)
        else:
            size, place = _varint(message, place) if kind == 2 else ({1: 8, 5: 4}.get(kind), place)
            if size is None or place + size > len(message):
                raise ValueError("its fields do not end where they should")
            value, place = message[place : place + size], place + size
        yield key >> 3, value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _find_libraries() -> pathlib.Path:
    for folder in sys.path:
        found = pathlib.Path(folder or ".", "tensorflow")
        if (found / "libtensorflow_cc.so.2").is_file():
            return found
    raise FileNotFoundError(
        "No tensorflow/libtensorflow_cc.so.2 on sys.path. Install the tensorflow package for Linux, "
        "or name its folder."
    )


def _load_libraries(folder: pathlib.Path) -> ctypes.CDLL:
    ctypes.CDLL(str(folder / "libtensorflow_framework.so.2"), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"), ctypes.RTLD_GLOBAL)
    pointer, integer, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    for name, result, arguments in (
        ("TF_NewStatus", pointer, []),
        ("TF_DeleteStatus", None, [pointer]),
        ("TF_GetCode", integer, [pointer]),
        ("TF_Message", text, [pointer]),
        ("TF_NewGraph", pointer, []),
        ("TF_DeleteGraph", None, [pointer]),
        ("TF_NewSessionOptions", pointer, []),
        ("TF_DeleteSessionOptions", None, [pointer]),
        ("TF_LoadSessionFromSavedModel", pointer,
         [pointer, pointer, text, pointer, integer, pointer, pointer, pointer]),
        ("TF_CloseSession", None, [pointer, pointer]),
        ("TF_DeleteSession", None, [pointer, pointer]),
        ("TF_GraphOperationByName", pointer, [pointer, text]),
        ("TF_GetAllRegisteredKernels", ctypes.POINTER(_Buffer), [pointer]),
        ("TF_DeleteBuffer", None, [ctypes.POINTER(_Buffer)]),
        ("TF_SessionRun", None,
         [pointer, pointer, pointer, pointer, integer, pointer, pointer, integer, pointer,
          integer, pointer, pointer]),
        ("TF_AllocateTensor", pointer, [integer, pointer, integer, ctypes.c_size_t]),
        ("TF_DeleteTensor", None, [pointer]),
        ("TF_TensorData", pointer, [pointer]),
        ("TF_StringInit", None, [pointer]),
        ("TF_StringAssignView", None, [pointer, text, ctypes.c_size_t]),
        ("TF_TensorType", integer, [pointer]),
        ("TF_NumDims", integer, [pointer]),
        ("TF_Dim", ctypes.c_int64, [pointer, integer]),
    ):  # fmt: skip
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library

"""Versions that differ from what was exported: each function makes one change in a version in place.

Changes other than damaged files rewrite the manifest ("resealed") so that its hashes fit. Such a
version must be found by its card and answers.
"""

import json
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.support.verified_run import LENGTH, language_model
from tfdeq.serving.versions import manifest, warm_up

# Names of the checks that must find a mutant.
FILES = "files are whole"
ANSWERS = "c: equal to the Keras model"
CARD = "the card says what the model says"
RUN = "the card says what the run says"
WORDS = "the words are the run's"
QUALITY = "c: the card's quality by tolerance"
RECORDS = "warm-up records are those of the card"
LOADED = "the Keras model of the version"
INVALID = "c: invalid rows are marked"

# Symbols that the test text does not have.
RARE = np.arange(200, 210)


class Mutant(NamedTuple):
    """A change, and the check that must find it."""

    change: Callable[[pathlib.Path], None]
    found_by: str
    asks: bool = True  # whether it is found by the version's answers
    resealed: bool = True

    def make(self, version: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
        """Copies a version and changes the copy."""
        path = pathlib.Path(shutil.copytree(version, folder / "1"))
        self.change(path)
        if self.resealed:
            manifest.write(path)
        return path


def _weights(path: pathlib.Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Rewrites the variables; change: modifies them in place, by their index in the model's list."""
    prefix = str(path / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    change(tensors)
    names = sorted(tensors)
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(tensors[name]) for name in names],
    )


def _key(place: int) -> str:
    return f"weights/{place}/.ATTRIBUTES/VARIABLE_VALUE"


def _place(part: str) -> int:
    """Returns the index of the weight whose path contains a text."""
    paths = [variable.path for variable in language_model().variables]
    (found,) = [place for place, name in enumerate(paths) if re.search(part, name)]
    return found


def weight(
    part: str, rows: Any, factor: float, more: float = 0.0
) -> Callable[[pathlib.Path], None]:
    """Multiplies a part of one weight, and adds to it."""

    def change(path):
        def multiply(tensors):
            value = np.array(tensors[_key(_place(part))])
            value[rows] = factor * value[rows] + more
            tensors[_key(_place(part))] = value

        _weights(path, multiply)

    return change


def another_training(path: pathlib.Path) -> None:
    def change(tensors):
        for place, variable in enumerate(language_model(seed=4).variables):
            tensors[_key(place)] = variable.numpy()

    _weights(path, change)


def cut(name: str) -> Callable[[pathlib.Path], None]:
    def change(path):
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: len(content) // 2])

    return change


def one_more_file(path: pathlib.Path) -> None:
    (path / "assets.extra" / "notes.txt").write_text("not of the version")


def without(name: str) -> Callable[[pathlib.Path], None]:
    return lambda path: (path / name).unlink()


def _json(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[pathlib.Path], None]:
    def rewrite(path):
        file = path / "assets.extra" / name
        value = json.loads(file.read_text())
        change(value)
        file.write_text(json.dumps(value, indent=1))

    return rewrite


def card(*keys: Any, value: Any) -> Callable[[pathlib.Path], None]:
    """Sets one entry of the card."""

    def change(entries):
        *outer, last = keys
        for key in outer:
            entries = entries[key]
        assert entries[last] != value
        entries[last] = value

    return _json("model_card.json", change)


def _swapped_places(index: dict[str, Any]) -> None:
    """Two weights of the same shape, which load_model exchanges."""
    kept = [one for values in index["variables"].values() for one in values.values()]
    first, second = [one for one in kept if one["shape"] == [16, 48]]
    first["weight"], second["weight"] = second["weight"], first["weight"]


swapped_state = _json("keras_state/index.json", _swapped_places)


def other_solver(path: pathlib.Path) -> None:
    """The solver from load_model stops after another number of steps."""
    file = path / "assets.extra" / "keras_model.json"
    text = file.read_text()
    assert '"max_steps": 40' in text
    file.write_text(text.replace('"max_steps": 40', '"max_steps": 7'))


def records(
    keep: Callable[[str, Mapping[str, np.ndarray]], bool],
) -> Callable[[pathlib.Path], None]:
    def change(path):
        kept = [record for record in warm_up.read(path) if keep(*record)]
        warm_up.write(path, "name", kept)

    return change


def swapped_words(path: pathlib.Path) -> None:
    file = path / "assets.extra" / "vocabulary.txt"
    words = file.read_text().splitlines()
    words[3], words[7] = words[7], words[3]
    file.write_text("\n".join(words) + "\n")


def _graph(path: pathlib.Path, name: str, change: Callable[[Any], None]) -> None:
    """Rewrites the functions of a signature in the graph that answer a batch."""
    file = path / "saved_model.pb"
    graph = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    (meta_graph,) = graph.meta_graphs
    found = [
        function
        for function in meta_graph.graph_def.library.function
        if re.fullmatch(rf"__inference_{name}_\d+", function.signature.name)
    ]
    assert found, name
    for function in found:
        change(function)
    file.write_bytes(graph.SerializeToString())


def _node(function: Any, name: str, op: str, inputs: list[str], dtype: tf.DType) -> str:
    node = function.node_def.add(name=name, op=op, input=inputs)
    node.attr["T"].type = dtype.as_datatype_enum
    return f"{name}:{'y' if op == 'ZerosLike' else 'z'}:0"


def argument(
    functions: str, name: str, value: int = 0, real: bool = False
) -> Callable[[pathlib.Path], None]:
    """Signatures that read one number instead of an argument."""
    dtype = tf.float32 if real else tf.int32

    def replace(function):
        assert name in [each.name for each in function.signature.input_arg]
        number = function.node_def.add(name="mutant_number", op="Const")
        number.attr["dtype"].type = dtype.as_datatype_enum
        number.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, dtype))
        zeros = _node(function, "mutant_zeros", "ZerosLike", [name], dtype)
        instead = _node(function, "mutant", "AddV2", [zeros, "mutant_number:output:0"], dtype)
        count = 0
        for node in function.node_def:
            for place, given in enumerate(node.input):
                if given == name and node.name != "mutant_zeros":
                    node.input[place], count = instead, count + 1
        assert count, name

    return lambda path: _graph(path, functions, replace)


def always_converged(path: pathlib.Path) -> None:
    def change(function):
        # Outputs are sorted: log_probabilities, residual, status, steps.
        status = function.ret["identity_2"]
        function.ret["identity_2"] = _node(function, "mutant", "ZerosLike", [status], tf.int32)

    _graph(path, "serving_default", change)


def score_of_other_weights(path: pathlib.Path) -> None:
    """`score` of a model in which two matrices are exchanged."""

    def change(function):
        inputs = [each.name for each in function.signature.input_arg]
        # Those of the injection and of query, key and value, which have the same shape.
        first, second = (name for name in inputs if re.search("injection|identity_1_read", name))
        for node in function.node_def:
            for place, given in enumerate(node.input):
                if given in (first, second):
                    node.input[place] = second if given == first else first

    _graph(path, "score", change)


MUTANTS = {
    # Damage of files.
    "weights cut": Mutant(
        cut("variables/variables.data-00000-of-00001"), FILES, asks=False, resealed=False
    ),
    "graph cut": Mutant(cut("saved_model.pb"), FILES, asks=False, resealed=False),
    "one more file": Mutant(one_more_file, FILES, asks=False, resealed=False),
    "a file is missing": Mutant(
        without("assets.extra/tf_serving_warmup_requests"), FILES, asks=False, resealed=False
    ),
    "weights of another training": Mutant(another_training, FILES, asks=False, resealed=False),
    # Weights.
    "weights of another training, resealed": Mutant(another_training, ANSWERS),
    "rare symbols": Mutant(weight("embedding/embeddings$", RARE, -50.0), ANSWERS),
    "a rare output": Mutant(weight("readout/kernel$", (slice(None), 205), -50.0), ANSWERS),
    "one distance": Mutant(weight("^table/embeddings$", LENGTH - 1, 1.0, more=3.0), ANSWERS),
    "a weight of the cell": Mutant(
        weight("attention_output/kernel$", (0, 0), 1.0, more=0.5), ANSWERS
    ),
    # What the card says.
    "own tolerance": Mutant(card("own_tolerance", value=1e-6), CARD, asks=False),
    "limit": Mutant(card("max_steps_limit", value=1000), CARD, asks=False),
    "parameters": Mutant(card("parameters", value=7), CARD, asks=False),
    "a dtype": Mutant(
        card("signatures", "score", "inputs", "tokens", "dtype", value="int64"), CARD, asks=False
    ),
    "a meaning": Mutant(
        card("signatures", "encode", "outputs", "steps", "meaning", value="free"), CARD, asks=False
    ),
    "a status": Mutant(card("status", "1", value="converged"), CARD, asks=False),
    "batching": Mutant(card("batching", "threads", value=64), CARD, asks=False),
    "vocabulary's size": Mutant(card("vocabulary", "size", value=300), CARD, asks=False),
    "metrics": Mutant(card("metrics", value={"test": {"bits_per_byte": 0.1}}), RUN, asks=False),
    "quality": Mutant(card("quality_by_tolerance", 4, "bits_per_token", value=1.0), QUALITY),
    "request's size": Mutant(
        lambda path: [
            card("signatures", name, "max_request_values", value=2**23)(path)
            for name in ("serving_default", "score", "encode", "step", "generate")
        ],
        "c: the limit of a request's size",
    ),
    # Warm-up records, words, and what load_model reads.
    "no records": Mutant(records(lambda name, inputs: False), RECORDS, asks=False),
    "a signature's records": Mutant(
        records(lambda name, inputs: name != "step"), RECORDS, asks=False
    ),
    "a size's records": Mutant(
        records(lambda name, inputs: len(inputs["lengths"]) == 1), RECORDS, asks=False
    ),
    "two words": Mutant(swapped_words, WORDS, asks=False),
    "state": Mutant(swapped_state, LOADED, asks=False),
    "solver": Mutant(other_solver, LOADED, asks=False),
    # The graph.
    "tolerance ignored": Mutant(argument("serving_default", "tolerance", real=True), ANSWERS),
    "max_steps ignored": Mutant(argument("encode", "max_steps"), ANSWERS),
    "start ignored": Mutant(argument("step", "equilibrium_lengths"), ANSWERS),
    "lengths ignored": Mutant(argument("score", "lengths", LENGTH), INVALID),
    "temperature ignored": Mutant(argument("generate", "temperature", real=True), ANSWERS),
    "top_k ignored": Mutant(argument("generate", "top_k"), ANSWERS),
    "top_p ignored": Mutant(argument("generate", "top_p", real=True), ANSWERS),
    "seed ignored": Mutant(argument("generate", "seed", 5), ANSWERS),
    "stop_token ignored": Mutant(argument("generate", "stop_token", -1), ANSWERS),
    "max_new_tokens ignored": Mutant(argument("generate", "max_new_tokens", 6), ANSWERS),
    "always converged": Mutant(always_converged, ANSWERS),
    "score of other weights": Mutant(score_of_other_weights, ANSWERS),
}

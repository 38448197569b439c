"""The flags of models that read tokens, and of texts."""

from typing import Any

from absl import flags

from tfdeq.data.text.registry import DATASETS, takers
from tfdeq.training.flags import flag_uses
from tfdeq.training.flags.flag_uses import CELL, EQUILIBRIUM, GIVEN, NOT_GIVEN
from tfdeq.training.flags.shared import at_least, bound, define

CELLS = ("transformer", "trellis")
# Explicit networks of --depth layers; only those of trellisnet share their weights.
BASELINES = ("transformer", "lstm", "gru", "tcn", "trellisnet")
MODELS = ("deq", *BASELINES)

_TRANSFORMER_CELL = {**CELL, "cell": ("transformer",)}
_ATTENTION = [_TRANSFORMER_CELL, {"model": ("transformer",)}]
_TRELLIS = [{**CELL, "cell": ("trellis",)}, {"model": ("trellisnet",)}]
_MODEL_USES: dict[str, list[dict[str, Any]]] = {
    "cell": [CELL],
    "heads": _ATTENTION,
    "feedforward": _ATTENTION,
    "attention_span": _ATTENTION,
    "distance_slope": [_TRANSFORMER_CELL],
    "norm": [_TRANSFORMER_CELL],
    "locked_dropout": [_TRANSFORMER_CELL],
    "query_key_norm": [_TRANSFORMER_CELL],
    "kernel_size": [*_TRELLIS, {"model": ("tcn",)}],
    "weight_dropout": _TRELLIS,
    "normalization": [CELL],
    "recurrent_scale": [CELL],
    "cutoff_factor": [{"cutoffs": GIVEN}],
    "loss_chunk": [{"cutoffs": NOT_GIVEN}],
    "correction_steps": [EQUILIBRIUM],
    "correction_weight": [{**EQUILIBRIUM, "correction_steps": GIVEN}],
}
_TEXT_USES: dict[str, list[dict[str, Any]]] = {
    "files": [{"dataset": tuple(takers("files"))}],
    "data_dir": [{"dataset": tuple(takers("data_dir"))}],
    "evaluation_windows": [{"carry_memory": (False,)}],
    "test_windows": [{"carry_memory": (False,)}],
    "evaluation_rows": [{"carry_memory": (True,)}],
}


flag_uses.add({**_MODEL_USES, **_TEXT_USES})


def define_model_flags(**defaults: Any) -> list[str]:
    """Defines the model's flags and returns their names; defaults override those below."""
    definitions = [
        (flags.DEFINE_integer, "sequence_length", 128, "Tokens per example."),
        (flags.DEFINE_enum, "model", "deq", "deq: an equilibrium, or --depth applications, of --cell. Or an explicit network of --depth layers: an untied transformer, lstm, gru, tcn (weight-normalised dilated convolutions), or trellisnet (weight-tied).", MODELS),
        (flags.DEFINE_enum, "cell", "transformer", "Cell of the equilibrium, or of its applications.", CELLS),
        (flags.DEFINE_integer, "width", 128, "Size of the state per token."),
        (flags.DEFINE_integer, "embedding_width", 0, "Size of the embedding; 0: --width, which a transformer requires."),
        (flags.DEFINE_integer, "heads", 4, "Number of attention heads; it must divide --width."),
        (flags.DEFINE_integer, "feedforward", 512, "Hidden size of the MLP."),
        (flags.DEFINE_integer, "attention_span", 0, "Number of positions that attention sees, including its own; 0: the whole window, without a memory of earlier windows."),
        (flags.DEFINE_float, "distance_slope", 1.0, "How strongly attention prefers near positions at the start of training; 0: not at all."),
        (flags.DEFINE_enum, "norm", "pre", "Place of the norms in a transformer cell.", ["pre", "post"]),
        (flags.DEFINE_integer, "kernel_size", 2, "Positions that a convolution sees."),
        (flags.DEFINE_float, "dropout", 0.0, "Dropout rate in the cell, in [0, 1)."),
        (flags.DEFINE_bool, "locked_dropout", False, "Whether the dropout masks of a transformer cell are the same at all positions; those of all other layers always are."),
        (flags.DEFINE_bool, "query_key_norm", False, "Whether a transformer cell normalises queries and keys, which bounds the logits of attention."),
        (flags.DEFINE_float, "weight_dropout", 0.0, "Dropout rate on the weights of the state, in [0, 1)."),
        (flags.DEFINE_float, "input_dropout", 0.0, "Dropout rate on the embeddings, in [0, 1)."),
        (flags.DEFINE_float, "output_dropout", 0.0, "Dropout rate on the input of the readout, in [0, 1)."),
        (flags.DEFINE_enum, "normalization", "none", "Reparameterisation of the cell's weights.", ["none", "weight", "spectral"]),
        (flags.DEFINE_float, "recurrent_scale", 0.0, "Initial scale of the weights of the state; with 0, the first equilibrium is one application of the cell."),
        (flags.DEFINE_bool, "tied_output", False, "Whether the output matrix is the matrix of the embedding."),
        (flags.DEFINE_list, "cutoffs", [], "For words: the ranks at which a new, narrower cluster of the vocabulary begins, most frequent words first, for example 2000,10000; none: one matrix."),
        (flags.DEFINE_integer, "cutoff_factor", 4, "How much narrower each cluster is than the one before."),
        (flags.DEFINE_integer, "loss_chunk", 0, "Number of positions whose logits are in memory at a time. It costs four products with the output matrix instead of three; 0: all positions."),
        (flags.DEFINE_list, "correction_steps", [], "Fixed-point correction: numbers of evaluations, for example 2,4, after which the loss is computed too; none: only at the end of the solve."),
        (flags.DEFINE_float, "correction_weight", 0.3, "Weight of each of those losses in the mean; the loss at the end has weight 1."),
    ]  # fmt: skip
    names = define(definitions, defaults)
    sizes = ("width", "heads", "feedforward", "kernel_size", "cutoff_factor", "sequence_length")
    at_least(1, *sizes)
    for name in ("dropout", "weight_dropout", "input_dropout", "output_dropout"):
        bound(name, lambda value: 0 <= value < 1, "must be in [0, 1)")
    at_least(
        0, "recurrent_scale", "embedding_width", "attention_span", "correction_weight", "loss_chunk"
    )
    for name in ("cutoffs", "correction_steps"):
        bound(
            name,
            lambda value: all(one.isdigit() and int(one) for one in value),
            "must be whole numbers, at least 1",
        )
    flags.register_multi_flags_validator(
        ["model", "depth"],
        lambda values: values["model"] == "deq" or values["depth"] >= 1,
        "Explicit networks want --depth, how many layers they have.",
    )
    return names


def define_text_flags() -> list[str]:
    """Defines the flags that select a text, and returns their names."""
    definitions = [
        (flags.DEFINE_enum, "dataset", "python_stdlib", "Data set.", sorted(DATASETS)),
        (flags.DEFINE_string, "files", None, "Glob patterns of text files, separated by commas; ** includes subfolders."),
        (flags.DEFINE_string, "data_dir", None, "Folder with the data set's original files."),
        (flags.DEFINE_string, "prepared_dir", None, "Where TFDS keeps prepared copies. Default: TFDS_DATA_DIR, or ~/tensorflow_datasets."),
    ]  # fmt: skip
    return define(definitions, {})


def define_reading_flags() -> list[str]:
    """Defines the flags for reading a text, and returns their names."""
    flags.DEFINE_integer(
        "evaluation_windows",
        64,
        "Windows of the validation text in each evaluation during training, spread evenly over it. "
        "Default: 64.",
    )
    bound("evaluation_windows", lambda value: value >= 1, "must be at least 1")
    flags.DEFINE_integer(
        "test_windows",
        0,
        "Windows of the test text in the test after training, spread evenly over it; 0: all of the "
        "text. Default: 0.",
    )
    bound("test_windows", lambda value: value >= 0, "must be at least 0")
    flags.DEFINE_bool(
        "carry_memory",
        False,
        "Read the text in its order, --batch_size rows side by side, and hand the model's memory on "
        "from segment to segment, in training and evaluation; every evaluation then reads all of its "
        "text. A transformer needs --attention_span. Default: false.",
    )
    flags.DEFINE_integer(
        "evaluation_rows",
        8,
        "Rows that validation and test are read in with --carry_memory. Default: 8.",
    )
    bound("evaluation_rows", lambda value: value >= 1, "must be at least 1")
    return ["evaluation_windows", "test_windows", "carry_memory", "evaluation_rows"]

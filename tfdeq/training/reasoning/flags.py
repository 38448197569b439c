"""The flags of models that solve puzzles, and of the puzzles."""

from typing import Any

from absl import flags

from tfdeq.data.puzzles import PUZZLES
from tfdeq.training.flags import flag_uses
from tfdeq.training.flags.flag_uses import EQUILIBRIUM, GIVEN, NOT_GIVEN
from tfdeq.training.flags.shared import at_least, bound, define
from tfdeq.training.reasoning.segments import HALTING

CELLS = ("convolution", "attention", "mixing")

flag_uses.add(
    {
        "attention_heads": [{"cell": ("attention",)}],
        "start_noise": [EQUILIBRIUM],
        "test_budget": [EQUILIBRIUM],
        "test_starts": [EQUILIBRIUM],
        "inner_steps": [{"recursion": (True,)}],
        "progressive_weight": [{**EQUILIBRIUM, "segments": NOT_GIVEN}],
        "segments": [EQUILIBRIUM],
        "halting": [{**EQUILIBRIUM, "segments": GIVEN}],
        "path_noise": [{**EQUILIBRIUM, "segments": GIVEN}],
        "block": [{**EQUILIBRIUM, "cell": ("convolution",)}],
    }
)


def define_reasoning_flags(**defaults: Any) -> list[str]:
    """Defines the flags and returns their names; defaults override those below."""
    definitions = [
        (flags.DEFINE_enum, "task", "prefix_sums", "Puzzles to learn.", sorted(PUZZLES)),
        (flags.DEFINE_integer, "size", 0, "Size of the puzzles in training; 0: the task's usual one."),
        (flags.DEFINE_string, "grade", "", "How hard the puzzles in training are, one of the task's grades; empty: its mixture."),
        (flags.DEFINE_enum, "cell", "convolution", "Cell of the equilibrium: convolution takes puzzles of any size; attention is within rows and columns, and within boxes where the puzzle has them; mixing is for boards of one size.", CELLS),
        (flags.DEFINE_integer, "layers", 1, "Cells, each with weights of its own, that one application passes through."),
        (flags.DEFINE_bool, "recursion", False, "An application updates a latent state --inner_steps times, then the answer, by one and the same cell."),
        (flags.DEFINE_integer, "inner_steps", 6, "Updates of the latent state before the answer's."),
        (flags.DEFINE_integer, "width", 32, "Size of the state at a place."),
        (flags.DEFINE_integer, "attention_heads", 6, "Heads; they divide --width."),
        (flags.DEFINE_float, "start_noise", 0.0, "Standard deviation of the noise that a solve in training starts from; 0: from zero."),
        (flags.DEFINE_float, "settling_penalty", 0.0, "Weight of how far a place moves in one more application, over its size and over all places, in the loss: few places are to move at a time. 0: none."),
        (flags.DEFINE_float, "progressive_weight", 0.0, "Share in [0, 1] of the progressive loss: of a state after a random number of applications without a gradient and a random number with one, together at most the step's budget. 1: nothing is solved in training. 0: none."),
        (flags.DEFINE_integer, "segments", 0, "Training steps that a puzzle stays in the batch, each going on from the state of the last. 0: each step is of new puzzles."),
        (flags.DEFINE_enum, "halting", "none", "What has a puzzle leave before its last segment: an answer that is right at every place, or a solve that has met the tolerance.", HALTING),
        (flags.DEFINE_float, "path_noise", 0.0, "Standard deviation of the noise that the state gets between the segments, over the state's root mean square. 0: none."),
        (flags.DEFINE_integer, "block", 0, "Places, along each dimension, of blocks that the trained model solves apart; 0: all places at once."),
        (flags.DEFINE_integer, "train_puzzles", 20000, "Different puzzles to train on; each is shown under random symmetries, where the task has some."),
        (flags.DEFINE_integer, "validation_puzzles", 256, "Other puzzles in each evaluation during training."),
        (flags.DEFINE_integer, "test_puzzles", 1000, "Further puzzles in the test after training, of each size and grade."),
        (flags.DEFINE_list, "test_sizes", [], "Other sizes that the trained model is tested on."),
        (flags.DEFINE_string, "test_set", "", "Public set to test on too, as far as --test_puzzles: Sudoku-Extreme's test.csv, or a folder with inputs.npy and solutions.npy of the published mazes or prefix sums. Empty: none."),
        (flags.DEFINE_float, "test_budget", 64.0, "The largest multiple of --max_steps in the test; smaller ones are its halves down to one half."),
        (flags.DEFINE_list, "test_starts", [], "Numbers of starts from which the trained model solves each test puzzle at the largest budget; the answer is chosen by residual and agreement."),
        (flags.DEFINE_string, "prepared_dir", None, "Where sets of puzzles are kept. Default: TFDS_DATA_DIR, or ~/tensorflow_datasets."),
    ]  # fmt: skip
    names = define(definitions, defaults)
    at_least(1, "layers", "inner_steps", "width", "attention_heads", "train_puzzles", "validation_puzzles", "test_puzzles",
             "test_budget")  # fmt: skip
    at_least(0, "size", "start_noise", "settling_penalty", "segments", "path_noise", "block")
    bound("progressive_weight", lambda value: 0 <= value <= 1, "must be in [0, 1]")
    for name in ("test_sizes", "test_starts"):
        bound(
            name,
            lambda value: all(one.isdigit() and int(one) for one in value),
            "must be whole numbers of at least 1",
        )
    return names

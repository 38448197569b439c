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
        (flags.DEFINE_string, "grade", "", "Difficulty of the puzzles in training, one of the task's grades; empty: the task's mixture."),
        (flags.DEFINE_enum, "cell", "convolution", "Cell of the equilibrium: convolution takes puzzles of any size; attention is within rows and columns, and within boxes where the puzzle has them; mixing is for boards of one size.", CELLS),
        (flags.DEFINE_integer, "layers", 1, "Number of cells in one application, each with its own weights."),
        (flags.DEFINE_bool, "recursion", False, "An application updates a latent state --inner_steps times and then the answer, with the same cell."),
        (flags.DEFINE_integer, "inner_steps", 6, "Number of updates of the latent state before the answer is updated."),
        (flags.DEFINE_integer, "width", 32, "Size of the state at a place."),
        (flags.DEFINE_integer, "attention_heads", 6, "Number of attention heads; it must divide --width."),
        (flags.DEFINE_float, "start_noise", 0.0, "Standard deviation of the noise from which a solve starts in training; 0: start from zero."),
        (flags.DEFINE_float, "settling_penalty", 0.0, "Weight of the settling penalty in the loss: the relative distance that a place moves in one more application, averaged over all places. 0: none."),
        (flags.DEFINE_float, "progressive_weight", 0.0, "Share in [0, 1] of the progressive loss: the loss of the state after a random number of applications without gradient and a random number with gradient, together at most the budget of the step. 1: training makes no solves. 0: none."),
        (flags.DEFINE_integer, "segments", 0, "Number of training steps that a puzzle stays in the batch; each continues from the state of the one before. 0: each step uses new puzzles."),
        (flags.DEFINE_enum, "halting", "none", "When a puzzle leaves the batch before its last segment: when its answer is right at every place, or when its solve has met the tolerance.", HALTING),
        (flags.DEFINE_float, "path_noise", 0.0, "Standard deviation of the noise added to the state between segments, relative to the state's root mean square. 0: none."),
        (flags.DEFINE_integer, "block", 0, "Size, along each dimension, of the blocks that the trained model solves separately; 0: all places at once."),
        (flags.DEFINE_integer, "train_puzzles", 20000, "Number of different puzzles to train on; each is shown under random symmetries if the task has any."),
        (flags.DEFINE_integer, "validation_puzzles", 256, "Number of other puzzles in each evaluation during training."),
        (flags.DEFINE_integer, "test_puzzles", 1000, "Number of further puzzles of each size and grade in the test after training."),
        (flags.DEFINE_list, "test_sizes", [], "Other sizes that the trained model is tested on."),
        (flags.DEFINE_string, "test_set", "", "Public data set that is also tested, up to --test_puzzles puzzles: Sudoku-Extreme's test.csv, or a folder with inputs.npy and solutions.npy of the published mazes or prefix sums. Empty: none."),
        (flags.DEFINE_float, "test_budget", 64.0, "Largest multiple of --max_steps in the test; the smaller ones are its halves, down to one half."),
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

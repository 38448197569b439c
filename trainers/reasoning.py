"""Trains a deep equilibrium model to solve puzzles: python -m trainers.reasoning --workdir=DIR --task=maze.

The model is trained on small puzzles, and tested on larger and harder ones with growing budgets.
"""

from absl import flags

from tfdeq.programs import program
from tfdeq.training import command
from tfdeq.training.flags.equilibrium import define_equilibrium_flags
from tfdeq.training.flags.shared import define_run_flags
from tfdeq.training.reasoning import recipes
from tfdeq.training.reasoning.experiment import make_experiment
from tfdeq.training.reasoning.flags import define_reasoning_flags

FLAGS = flags.FLAGS
CONFIGURATION_FLAGS = [
    *define_run_flags(**recipes.RUN),
    *define_equilibrium_flags(**recipes.EQUILIBRIUM),
    *define_reasoning_flags(),
]


def main() -> None:
    recipes.apply(FLAGS)
    command.train(lambda config: make_experiment(config, FLAGS.prepared_dir), CONFIGURATION_FLAGS)


def run() -> None:
    """Entry point of the console script."""
    program.run(main, resumable=True)


if __name__ == "__main__":
    run()

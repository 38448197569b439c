"""Trains a deep equilibrium model to classify pictures: python -m trainers.image_classifier --workdir=DIR.

--dataset names the pictures, --cell the equilibrium; --model=resnet --depth=6 trains an explicit residual
network of as many parameters.
"""

from absl import flags

from tfdeq.data.images.stand_in import stand_in
from tfdeq.programs import program
from tfdeq.training import command
from tfdeq.training.flags.equilibrium import define_equilibrium_flags
from tfdeq.training.flags.shared import apply_recipe, define_run_flags
from tfdeq.training.images import recipes
from tfdeq.training.images.experiment import load_data, make_experiment
from tfdeq.training.images.flags import define_image_flags

FLAGS = flags.FLAGS
CONFIGURATION_FLAGS = [
    *define_run_flags(**recipes.RUN),
    *define_equilibrium_flags(**recipes.EQUILIBRIUM),
    *define_image_flags(),
]


def _data(config):
    """The pictures; of a dry run without a folder made-up ones, so that nothing is downloaded."""
    if FLAGS.dry_run and FLAGS.data_dir is None:
        print(f"A dry run without --data_dir: made-up pictures stand in for {FLAGS.dataset}.")
        return stand_in(FLAGS.dataset, FLAGS.image_size)
    return load_data(config, FLAGS.prepared_dir)


def main() -> None:
    apply_recipe(FLAGS, recipes.RECIPES[FLAGS.cell])
    command.train(lambda config: make_experiment(config, _data(config)), CONFIGURATION_FLAGS)


def run() -> None:
    """Entry point of the console script."""
    program.run(main, resumable=True)


if __name__ == "__main__":
    run()

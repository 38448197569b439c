"""Trains a deep equilibrium language model: python -m trainers.language_model --workdir=DIR."""

from absl import flags

from tfdeq.data.text.registry import load, stand_in
from tfdeq.data.token_data import TokenData
from tfdeq.programs import program
from tfdeq.training import experiment
from tfdeq.training.devices.strategies import several_workers
from tfdeq.training.flags.equilibrium import define_equilibrium_flags
from tfdeq.training.flags.shared import check_uses, configuration, define_run_flags, set_up_process
from tfdeq.training.report.last_lines import last_lines
from tfdeq.training.text.language_model import (
    make_experiment,
    train,
    train_with_baselines,
)
from tfdeq.training.text.model_flags import (
    define_model_flags,
    define_reading_flags,
    define_text_flags,
)

FLAGS = flags.FLAGS


def _define_flags() -> list[str]:
    names = [
        *define_run_flags(),
        *define_equilibrium_flags(),
        *define_text_flags(),
        *define_reading_flags(),
        *define_model_flags(),
    ]
    flags.DEFINE_bool(
        "baseline",
        False,
        "Also train one explicit application of the same cell for as many steps, with and without "
        "the penalty, under WORKDIR/baselines. Default: false.",
    )
    return names


def _data() -> TokenData:
    """Returns the data set in the flags."""
    return load(
        FLAGS.dataset, data_dir=FLAGS.data_dir, files=FLAGS.files, prepared_dir=FLAGS.prepared_dir
    )


def data_of_a_dry_run() -> TokenData:
    """Returns the same, or random tokens of its sizes if a data set needs --data_dir and it is not given."""
    data = stand_in(FLAGS.dataset) if FLAGS.data_dir is None else None
    if data is None:
        return _data()
    print(f"No --data_dir: {data.vocabulary_size:,} types of made-up tokens stand in for the data.")
    return data


CONFIGURATION_FLAGS = _define_flags()


def main() -> None:
    check_uses()
    # Before anything else is computed, because it sets up the devices.
    strategy = set_up_process()
    config = configuration(CONFIGURATION_FLAGS)
    if FLAGS.dry_run:
        data = data_of_a_dry_run()
        lines = experiment.dry_run(lambda: make_experiment(config, data), config, strategy)
        print("\n".join(lines))
        return
    data = _data()
    if FLAGS.baseline:
        if FLAGS.model != "deq" or FLAGS.depth:
            raise ValueError(
                "--baseline trains one application of the equilibrium's cell beside it; leave it out "
                f"with --model={FLAGS.model} --depth={FLAGS.depth}."
            )
        if several_workers(strategy):
            raise ValueError("--baseline trains on one machine; leave it out with several workers.")
        names = ("prepared_dir", "tpu", "keep_freed_memory")
        program_flags = {name: FLAGS[name].value for name in names}
        metrics = train_with_baselines(
            config, FLAGS.workdir, data, "trainers.language_model", program_flags, strategy
        )
    else:
        metrics = train(config, FLAGS.workdir, data, strategy)
    if metrics:
        print("\n".join(last_lines(metrics, FLAGS.workdir)))


def run() -> None:
    """Entry point of the console script."""
    program.run(main, resumable=True)


if __name__ == "__main__":
    run()

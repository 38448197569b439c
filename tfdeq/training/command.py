"""The main function of trainers: makes a run, or a dry run of it, from flags."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from tfdeq.training import experiment
from tfdeq.training.flags.shared import check_uses, configuration, set_up_process
from tfdeq.training.report.last_lines import last_lines

FLAGS = flags.FLAGS


def train(
    make_experiment: Callable[[Mapping[str, Any]], experiment.Experiment],
    names: Sequence[str],
) -> None:
    """Trains as configured by the flags, resumes a run in --workdir, and prints the results.

    Args:
        make_experiment: (configuration) -> the experiment, with its untrained model.
        names: names of the flags that are the run's configuration.
    """
    check_uses()
    # Before anything else is computed, because it sets up the devices.
    strategy = set_up_process()
    config = configuration(list(names))
    if FLAGS.dry_run:
        lines = experiment.dry_run(lambda: make_experiment(config), config, strategy)
        print("\n".join(lines))
        return
    metrics = experiment.train(lambda: make_experiment(config), config, FLAGS.workdir, strategy)
    if metrics:
        print("\n".join(last_lines(metrics, FLAGS.workdir)))

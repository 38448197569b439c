"""Writes a trained model as a SavedModel version that TensorFlow Serving loads.

python -m export.saved_model --workdir=runs/quickstart --output=runs/quickstart/export
"""

import shlex

from absl import flags

from tfdeq.programs import commands, program
from tfdeq.programs.workdir import read_json
from tfdeq.serving.edge import edge_flags
from tfdeq.serving.kinds import runs
from tfdeq.serving.signatures.batching import SIZES as BATCH_SIZES
from tfdeq.serving.signatures.batching import THREADS, TIMEOUT_MICROS
from tfdeq.serving.versions import model_card, publishing
from tfdeq.serving.versions.existing import already_exported
from tfdeq.serving.versions.saved_model import export_kind

FLAGS = flags.FLAGS


def main() -> None:
    there = already_exported(FLAGS.output, FLAGS.version, FLAGS.workdir)
    if FLAGS.skip_existing and there:
        print(there)
        return
    publishing.check_free(FLAGS.output, FLAGS.version)  # before the model is loaded
    run = runs.read(FLAGS.workdir, FLAGS.prepared_dir, data=FLAGS.data)
    if run.note:
        print(f"{run.note} The card's quality table is of this text.")
    path = export_kind(
        run.kind,
        FLAGS.output,
        version=FLAGS.version,
        jit_compile=FLAGS.jit_compile,
        batch_sizes=[int(size) for size in FLAGS.batch_sizes],
        batch_threads=FLAGS.batch_threads,
        batch_timeout_micros=FLAGS.batch_timeout_micros,
        card=run.card,
        max_steps_limit=FLAGS.max_steps_limit,
        max_request_values=FLAGS.max_request_values,
        gradients=FLAGS.gradients,
        edge=edge_flags.converted(run.kind, FLAGS),
        only=FLAGS.signatures or None,
        with_costs=True,
    )
    print(f"Exported {path}.")
    written = read_json(path / model_card.FOLDER / model_card.NAME) or {}
    for line in model_card.lines(written):
        print(f"  {line}")
    arguments = shlex.join([f"--workdir={FLAGS.workdir}", f"--model={path}"])
    print(f"Verify it: {commands.command('export.verify')} {arguments}")


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder that a trainer wrote.")
    flags.DEFINE_string("output", None, "Folder of the versions; it is created if it is missing.")
    flags.DEFINE_integer(
        "version", None, "Version number. Default: the highest existing one + 1.", lower_bound=0
    )
    flags.DEFINE_bool(
        "skip_existing", False, "With --version: succeed without writing if the version exists."
    )
    flags.DEFINE_bool(
        "jit_compile",
        False,
        "Compile with XLA. The stock server then needs --xla_cpu_compilation_enabled, and compiles "
        "for each batch size and length.",
    )
    flags.DEFINE_bool(
        "data",
        True,
        "Use the run's test data: for the card's table of quality by tolerance and for the "
        "warm-up records. Without them the version has neither.",
    )
    flags.DEFINE_alias("text", "data")  # its name in older releases
    flags.DEFINE_string("prepared_dir", None, "Folder of TFDS. Default: as in the trainer.")
    _define_request_flags()
    _define_batching_flags()
    edge_flags.define()
    flags.mark_flags_as_required(["workdir", "output"])
    flags.register_multi_flags_validator(
        ["version", "skip_existing"],
        lambda values: values["version"] is not None or not values["skip_existing"],
        "--skip_existing needs --version: which one may be there already?",
    )


def _define_request_flags() -> None:
    flags.DEFINE_list(
        "signatures",
        [],
        "Names of the signatures to write, separated by commas; serving_default is always written, "
        "encode with step, generate_first with generate_next. Default: all that the model has.",
    )
    flags.DEFINE_integer(
        "max_steps_limit",
        None,
        "Largest number of evaluations that a request can ask for, and the budget of a request with a "
        "tolerance alone. Default: 100, or the model's own, if that is more.",
        lower_bound=1,
    )
    flags.DEFINE_bool(
        "gradients",
        False,
        "Also write the implicit gradients, for training the loaded version without tfdeq.",
    )
    flags.DEFINE_integer(
        "max_request_values",
        None,
        "Largest number of values in a request and its answer together. Default: 2^24, or those of the "
        "largest batch, if they are more.",
        lower_bound=1,
    )


def _define_batching_flags() -> None:
    flags.DEFINE_list(
        "batch_sizes",
        [str(size) for size in BATCH_SIZES],
        "Allowed batch sizes when requests are joined: a warm-up record for each, of every "
        "signature.",
    )
    flags.DEFINE_integer(
        "batch_threads", THREADS, "Batches that run at once; 0: no joining.", lower_bound=0
    )
    flags.DEFINE_integer(
        "batch_timeout_micros",
        TIMEOUT_MICROS,
        "How long a batch that is not full waits for more requests, in µs.",
        lower_bound=0,
    )
    flags.register_validator(
        "batch_sizes",
        lambda sizes: all(size.isdigit() and int(size) > 0 for size in sizes) and sizes,
        "must be positive integers, separated by commas",
    )


def run() -> None:
    """Entry point of the console script."""
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()

"""Writes a trained model as a preset, a folder that `from_preset` loads.

python -m export.preset --workdir=runs/quickstart --output=presets/mine
"""

from absl import flags

from tfdeq.programs import program
from tfdeq.serving.kinds.run_preset import preset_from_run

FLAGS = flags.FLAGS


def main() -> None:
    preset_from_run(FLAGS.workdir, FLAGS.output, overwrite=FLAGS.overwrite)
    print(
        f"Wrote {FLAGS.output}. Load it: tfdeq.models.LanguageModel.from_preset({FLAGS.output!r})"
    )


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder that a trainer wrote.")
    flags.DEFINE_string("output", None, "Folder of the preset.")
    flags.DEFINE_bool("overwrite", False, "Replace a preset that is there.")
    flags.mark_flags_as_required(["workdir", "output"])


def run() -> None:
    """Entry point of the console script."""
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()

"""Prints how much of the validation and test text consists of lines that also occur in the training text.

python -m trainers.overlap --dataset=python_stdlib

A model may have memorised what it read in training. Such lines make test figures better than they would be
on new text. Short lines such as `return None` or `else:` occur in any program, so the
share is also printed for longer lines only, and for passages of several lines.
"""

from absl import flags

from tfdeq.data.text.overlap import report
from tfdeq.data.text.registry import load
from tfdeq.programs import program
from tfdeq.training.text.model_flags import define_text_flags

FLAGS = flags.FLAGS


def main() -> None:
    data = load(
        FLAGS.dataset, data_dir=FLAGS.data_dir, files=FLAGS.files, prepared_dir=FLAGS.prepared_dir
    )
    print("\n".join(report(FLAGS.dataset, data)))


def run() -> None:
    """Entry point of the program."""
    define_text_flags()
    program.run(main)


if __name__ == "__main__":
    run()

"""Says how much of validation and test stands in lines that the training text has too.

python -m trainers.overlap --dataset=python_stdlib

What a model has read in training, it may know by heart: such lines make test figures look better than
they are on new text. Short lines, `return None` or `else:`, stand in any text of their kind; so the
share is also given for longer ones alone, and for passages of several lines.
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

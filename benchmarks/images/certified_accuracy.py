"""Certified accuracy of a monotone classifier, and an attack that must not succeed inside a radius.

python -m benchmarks.images.certified_accuracy --workdir=runs/mnist_monotone

For each of some test pictures: the answer, its certified radius (see `tfdeq.certified_radius`), and whether
projected gradient steps on the picture change the answer, within that radius and within each of --radii.
Steps follow the gradient of the margin between the answer and the best other class, through the
equilibrium (Madry et al., arXiv:1706.06083, in l2). They may leave [0, 1], as the certificate allows it.

The figures go to certified.json in --workdir. The program fails if an attack succeeds within a certified
radius.
"""

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfdeq
from tfdeq.data.images.encoded import scaled
from tfdeq.programs import program
from tfdeq.programs.workdir import read_json, write_json
from tfdeq.training.images.experiment import load_data

FLAGS = flags.FLAGS
FILE = "certified.json"
_STEP = 2.5  # the steps together are this many times the radius


class Attack:
    """Projected gradient steps on the pictures of a model, in l2.

    Args:
        model: pictures [B, H, W, C] to logits [B, classes].
        steps: number of gradient steps, >= 1. restarts: number of random starts, >= 1.
        seed: of the starts.
    """

    def __init__(self, model: keras.Model, steps: int, restarts: int, seed: int = 0):
        self._model, self._steps, self._restarts = model, steps, restarts
        self._random = np.random.default_rng(seed)

    def succeeds(self, pictures: np.ndarray, answers: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """Returns [B] bool: whether a picture within the radius [B] was found that gets another answer.

        Pictures with radius 0 are not attacked.
        """
        found = np.zeros(len(pictures), bool)
        for _ in range(self._restarts):
            (rows,) = np.nonzero(~found & (radius > 0))
            if len(rows):
                given = pictures[rows], answers[rows], radius[rows].astype("float32")
                found[rows] = self._once(*given, self._starts(pictures[rows].shape, radius[rows]))
        return found

    def _starts(self, shape: tuple[int, ...], radius: np.ndarray) -> tf.Tensor:
        """Random points of the ball, equally likely in direction and in distance."""
        shift = self._random.normal(size=(shape[0], int(np.prod(shape[1:]))))
        shift *= (radius * self._random.random(shape[0]) / np.linalg.norm(shift, axis=1))[:, None]
        return tf.constant(shift.reshape(shape), tf.float32)

    @tf.function(autograph=False, reduce_retracing=True)
    def _once(self, pictures, answers, radius, shift):
        def step(count, shift, found):
            with tf.GradientTape() as tape:
                tape.watch(shift)
                margin = self._margin(pictures + shift, answers)
            slope = tape.gradient(margin, shift)
            slope /= _length(slope) + 1e-20
            length = radius[:, None, None, None]
            shift -= _STEP / self._steps * length * slope
            shift *= tf.minimum(1.0, length / (_length(shift) + 1e-20))
            return count + 1, shift, found | (margin < 0)

        start = tf.constant(0), shift, tf.zeros(tf.shape(answers), tf.bool)
        _, shift, found = tf.while_loop(lambda count, *_: count < self._steps, step, start)
        return found | (self._margin(pictures + shift, answers) < 0)

    def _margin(self, pictures, answers):
        logits = self._model(pictures, training=False)
        own = tf.gather(logits, answers, batch_dims=1)
        others = logits - 1e9 * tf.one_hot(answers, logits.shape[-1])
        return own - tf.reduce_max(others, axis=1)


def _length(values: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.reduce_sum(values**2, axis=(1, 2, 3), keepdims=True))


def measure(
    model: keras.Model,
    pictures: np.ndarray,
    labels: np.ndarray,
    radii: Sequence[float],
    attack: Attack,
    batch_size: int = 100,
) -> dict[str, Any]:
    """Returns the figures of certified.json.

    Args:
        pictures: [N, H, W, C] float32 in [0, 1]. labels: [N] integers. radii: of the table, in l2.
        attack: how the pictures are attacked. batch_size: pictures at a time.

    Returns:
        `accuracy`; `certified`, radius -> the share with a right answer and a larger certified radius;
        `attacked`, radius -> the share with a right answer that the attack did not change within it;
        `attacks_inside_the_radius`, the number of answers changed within their own certified radius;
        `median_radius` and `pictures`, the number N.
    """
    answers, certified, broken, inside = [], [], [], 0
    for first in range(0, len(pictures), batch_size):
        x = pictures[first : first + batch_size]
        radius = tfdeq.certified_radius(model, x).numpy()
        answer = np.argmax(model(x, training=False), axis=1)
        inside += int(attack.succeeds(x, answer, radius).sum())
        at = [attack.succeeds(x, answer, np.full(len(x), r)) for r in radii]
        answers.append(answer)
        certified.append(radius)
        broken.append(np.stack(at) if at else np.zeros((0, len(x)), bool))
        print(f"{first + len(x)} of {len(pictures)} pictures", flush=True)
    radius, right = np.concatenate(certified), np.concatenate(answers) == labels
    unbroken = ~np.concatenate(broken, axis=1)
    return {
        "pictures": len(pictures),
        "accuracy": float(right.mean()),
        "median_radius": float(np.median(radius)),
        "certified": {f"{r:g}": float(np.mean(right & (radius > r))) for r in radii},
        "attacked": {
            f"{r:g}": float(np.mean(right & row)) for r, row in zip(radii, unbroken, strict=True)
        },
        "attacks_inside_the_radius": inside,
    }


def main() -> None:
    config = read_json(os.path.join(FLAGS.workdir, "config.json"))
    if config is None:
        raise FileNotFoundError(f"{FLAGS.workdir} holds no config.json: it is not a run's folder.")
    config = {**config, "data_dir": FLAGS.data_dir or config["data_dir"]}
    pictures, labels = load_data(config, FLAGS.prepared_dir).examples.test
    chosen = slice(FLAGS.pictures)
    x = scaled(tf.constant(pictures[chosen])).numpy()
    model = keras.saving.load_model(os.path.join(FLAGS.workdir, "model.keras"))
    attack = Attack(model, FLAGS.attack_steps, FLAGS.restarts)
    with tfdeq.SolveScope(tolerance=FLAGS.tolerance, max_steps=FLAGS.max_steps):
        found = measure(
            model,
            x,
            np.ravel(labels[chosen]),
            [float(r) for r in FLAGS.radii],
            attack,
            FLAGS.batch_size,
        )
    found |= {
        "attack_steps": FLAGS.attack_steps,
        "restarts": FLAGS.restarts,
        "tolerance": FLAGS.tolerance,
    }
    write_json(os.path.join(FLAGS.workdir, FILE), found)
    print(f"{found['pictures']} test pictures: accuracy {found['accuracy']:.3f}")
    for radius, share in found["certified"].items():
        print(
            f"radius {radius}: certified {share:.3f}, under attack {found['attacked'][radius]:.3f}"
        )
    print(f"attacks that succeeded within a certified radius: {found['attacks_inside_the_radius']}")
    if found["attacks_inside_the_radius"]:
        raise AssertionError(
            "An attack succeeded within a certified radius: the certificate is wrong."
        )


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of a finished run of trainers.image_classifier --cell=monotone or monotone_multiscale.",
    )
    flags.DEFINE_string("data_dir", None, "Folder of the pictures. Default: the run's.")
    flags.DEFINE_string("prepared_dir", None, "Folder of prepared data. Default: the trainers'.")
    flags.DEFINE_integer("pictures", 1000, "Number of test pictures, the first ones.")
    flags.DEFINE_list(
        "radii", ["0.1", "0.5", "1.0"], "Radii in l2, for pictures with values in [0, 1]."
    )
    flags.DEFINE_integer("attack_steps", 100, "Gradient steps of the attack.")
    flags.DEFINE_integer("restarts", 10, "Random starts of the attack.")
    flags.DEFINE_float("tolerance", 1e-5, "Relative residual of the solves.")
    flags.DEFINE_integer("max_steps", 200, "Largest number of evaluations of a solve.")
    flags.DEFINE_integer("batch_size", 100, "Pictures at a time.")
    flags.mark_flag_as_required("workdir")


if __name__ == "__main__":
    define_flags()
    program.run(main)

"""A time series: a recurrent network, solved for all points at once.

A recurrent network computes h_t = g(x_t, h_{t-1}) one point after the other. All its states together are
the equilibrium of one cell that does this for every point at once,

    z = f(z, x)     with f(z, x)_t = g(x_t, z_{t-1}),

here with Keras's gated recurrent unit as g. Plain iteration finds it in at most as many evaluations as
there are points, and in far fewer if the unit forgets: a state is right once everything that it remembers
is. (Lim et al., arXiv:2309.12252, solve recurrences in this way by Newton's method.) The implicit gradient
is that of backpropagation through time.

The series is that of Mackey and Glass (Science 197, 1977), a chaotic one, with noise: from all points so
far, predict the one 12 steps later. Training takes the whole series in every step, so each solve starts
from the last one's states. The explicit model is the same unit in `keras.layers.GRU`, trained for
the same time.

Run: python examples/time_series.py [folder for the picture]
"""

import pathlib
import sys
import time

import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf
from keras import ops

import tfdeq

POINTS, TRAINED, AHEAD, UNITS, STEPS = 6000, 4096, 12, 32, 400


def mackey_glass(points, delay=17, substeps=10):
    """x' = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x by Euler's method, without its start."""
    delay *= substeps
    x = np.full((points + 500) * substeps, 1.2)
    for i in range(delay, len(x)):
        past = x[i - delay]
        x[i] = x[i - 1] + (0.2 * past / (1 + past**10) - 0.1 * x[i - 1]) / substeps
    series = x[500 * substeps :: substeps]
    return (series - series.mean()) / series.std()


class Recurrence(keras.layers.Layer):
    """One application of a recurrent unit at every point; the first point's past is zero."""

    def __init__(self, units):
        super().__init__()
        self.unit = keras.layers.GRUCell(units)

    def build(self, z_shape, x_shape):
        self.unit.build((None, x_shape[-1]))

    def initial_state(self, x):
        return ops.zeros((*ops.shape(x)[:2], self.unit.units))

    def call(self, z, x):
        past = ops.pad(z[:, :-1], [[0, 0], [1, 0], [0, 0]])
        rows = ops.reshape(x, (-1, x.shape[-1])), [ops.reshape(past, (-1, self.unit.units))]
        return ops.reshape(self.unit(*rows)[0], ops.shape(z))


def train(states, weights, head, x, y, steps=None, seconds=None):
    """Trains on the whole series for a number of steps, or for a time, while the rate falls to 0.

    states(x, last step's states) -> (states, evaluations). Returns seconds, evaluations of each step.
    """
    optimizer = keras.optimizers.Adam(global_clipnorm=1.0)

    @tf.function
    def update(last):
        with tf.GradientTape() as tape:
            z, evaluations = states(x, last)
            loss = tf.reduce_mean((head(z) - y) ** 2)
        optimizer.apply(tape.gradient(loss, weights), weights)
        return loss, z, evaluations

    progress, counts, z = 0.0, [], tf.zeros([1, x.shape[1], UNITS])
    while progress < 1:
        optimizer.learning_rate = 1e-2 * min(1, 20 * progress) * (1 + np.cos(np.pi * progress)) / 2
        loss, z, evaluations = update(z)
        counts.append(int(evaluations))
        if len(counts) == 1:  # which also made the graph
            start = time.perf_counter()
        if len(counts) % 50 == 0:
            print(f"step {len(counts)}: loss {loss.numpy():.4f}")
        spent = time.perf_counter() - start
        progress = len(counts) / steps if steps else spent / seconds
    return spent, counts


def main(folder="."):
    keras.utils.set_random_seed(0)
    clean = mackey_glass(POINTS + AHEAD)
    noisy = clean + 0.1 * np.random.default_rng(0).normal(size=len(clean))
    x, y = (tf.constant(part[None, :, None], "float32") for part in (noisy[:POINTS], noisy[AHEAD:]))
    learned = x[:, :TRAINED], y[:, :TRAINED]

    solvers = [tfdeq.FixedPointIteration(max_steps=POINTS, tolerance=t) for t in (1e-4, 1e-3)]
    layer = tfdeq.DEQLayer(Recurrence(UNITS), solvers[0], tfdeq.Implicit(solvers[1]))
    gru = keras.layers.GRU(UNITS, return_sequences=True)
    head, gru_head = keras.layers.Dense(1), keras.layers.Dense(1)
    head(layer(x)), gru_head(gru(x))  # makes the weights
    gru.set_weights(layer.cell.unit.get_weights())
    gru_head.set_weights(head.get_weights())

    def equilibrium(x, last):
        solution = layer(x, z0=last, return_solution=True)
        return solution.z, solution.steps[0]

    def recurrent(x, _):
        return gru(x), 0

    weights = layer.trainable_variables + head.trainable_variables
    seconds, counts = train(equilibrium, weights, head, *learned, steps=STEPS)
    weights = gru.trainable_variables + gru_head.trainable_variables
    _, gru_counts = train(recurrent, weights, gru_head, *learned, seconds=seconds)
    solution = layer(x, tolerance=1e-6, return_solution=True)
    predicted = [part.numpy()[0, TRAINED:, 0] for part in (head(solution.z), gru_head(gru(x)))]
    errors = [float(np.sqrt(np.mean((part - clean[AHEAD + TRAINED :]) ** 2))) for part in predicted]
    gru.set_weights(layer.cell.unit.get_weights())
    apart, evaluations = float(np.max(np.abs(gru(x) - solution.z))), int(solution.steps[0])
    print(f"{POINTS:,} points: {evaluations} evaluations, at most {apart:.0e} from point by point")
    print(f"evaluations in training: {np.mean(counts):.0f} on average, {counts[-1]} in the last")
    print(f"equilibrium, {len(counts)} steps: error {errors[0]:.3f} of the standard deviation")
    draw(noisy[AHEAD + TRAINED :][:400], predicted[0][:400], counts, folder)
    text = f"{seconds:.0f} s: {len(gru_counts)} steps, error {errors[1]:.3f}."
    print(f"The same unit as keras.layers.GRU, trained for the same {text}")
    return {"errors": errors, "apart": apart, "evaluations": evaluations, "last": counts[-1]}


def draw(series, predicted, counts, folder):
    figure = matplotlib.figure.Figure(figsize=(7, 4.5), layout="constrained")
    above, below = figure.subplots(2)
    above.plot(series, ".", color="0.7", label="the series with its noise")
    above.plot(predicted, label=f"predicted {AHEAD} points before")
    above.set(xlabel="point after the training's", ylim=(-3.5, 2.5))
    above.legend(loc="lower right", ncols=2)
    below.plot(counts, ".")
    below.set(xlabel="training step", ylabel="evaluations")
    figure.savefig(pathlib.Path(folder, "time_series.png"), dpi=100)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")

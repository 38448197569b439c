"""Prefix sums: learn on strings of 32 bits, solve strings of 2,048.

For each position of a string of bits: is the number of ones so far odd? The answer at the end depends on
every bit. The cell sees a position and its two neighbours (Bansal et al., arXiv:2202.05826, section 3.1,
whose data these are),

    z = x + D gelu(C norm(z) + U x + b)     with C and U over the three neighbouring positions,

so information travels one position per application and the equilibrium is there when it has arrived
everywhere. Nothing in the cell depends on the length. A longer string is a longer solve.

Training starts with 20 explicit applications and ordinary backpropagation, then continues with the
equilibrium and its implicit gradient. Nothing may end a solve early: the residual stays level while the
answer travels. When the solve has converged, its residual is evidence that the answer is complete. At the
end, a convolutional network that sees 253 positions trains for the same time.

Run: python examples/prefix_sums.py [folder for the picture]
"""

import pathlib
import sys
import time

import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf

import tfdeq

TRAINED, STEPS, LENGTHS = 32, 600, (32, 64, 128, 512, 2048)


def strings(count, length, seed):
    """Random bits [count, length], and whether the number of ones up to each is odd."""
    bits = np.random.default_rng(seed).integers(0, 2, (count, length), "int32")
    return bits, np.cumsum(bits, axis=1, dtype="int32") % 2


def equilibrium_model():
    backward = tfdeq.FixedPointIteration(max_steps=30, tolerance=1e-2)
    return tfdeq.models.Reasoner(
        tokens=2,
        classes=2,
        cell=tfdeq.cells.RecallConvolution(32, rank=1),
        solver=tfdeq.FixedPointIteration(max_steps=40, tolerance=1e-3),
        adjoint=tfdeq.Implicit(backward),
        jacobian_penalty=0.1,  # on an eighth of the batch: keeps the equilibrium stable
        jacobian_penalty_fraction=0.125,
        jacobian_penalty_power_steps=1,
        block=64,  # long strings are solved where something still changes
    )


def explicit_model():
    """Six residual blocks of dilated convolutions that see 126 positions on both sides."""
    inputs = keras.Input((None,), dtype="int32")
    h = keras.layers.Embedding(2, 32)(inputs)
    for block in range(6):
        inner = keras.layers.LayerNormalization()(h)
        for _ in range(2):
            convolution = keras.layers.Conv1D(32, 3, dilation_rate=2**block, padding="same")
            inner = keras.layers.Activation("gelu")(convolution(inner))
        h = keras.layers.Add()([h, inner])
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.LayerNormalization()(h)))


def train(model, steps=None, seconds=None, shallow_steps=0):
    """Trains for a number of steps, or for a time, while the rate falls to 0; returns the seconds.

    In the first shallow_steps steps the cell is applied 20 times instead of a solve.
    """
    optimizer = keras.optimizers.Adam(global_clipnorm=1.0)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def update(bits, answers, **settings):
        with tf.GradientTape() as tape:
            logits = model(bits, training=True, **settings)
            loss = cross_entropy(answers, logits)
            total = loss + sum(model.losses)  # the Jacobian penalty
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(total, weights), weights)
        return loss

    step, progress = 0, 0.0
    while progress < 1:
        optimizer.learning_rate = 2e-3 * min(1, 10 * progress) * (1 + np.cos(np.pi * progress)) / 2
        settings = {"explicit_steps": 20} if step < shallow_steps else {}
        loss = update(*map(tf.constant, strings(64, TRAINED, seed=step)), **settings).numpy()
        step += 1
        if step == 1:  # which also made the graph
            start = time.perf_counter()
        if steps and step % 100 == 0:
            print(f"step {step}: loss {loss:.4f}")
        spent = time.perf_counter() - start
        progress = step / steps if steps else spent / seconds
    return spent


def solved(logits, answers):
    """The share of strings of which every answer is right."""
    return float(np.mean(np.all(np.argmax(logits, axis=-1) == answers, axis=1)))


def main(folder="."):
    keras.utils.set_random_seed(0)
    model, explicit = equilibrium_model(), explicit_model()
    model.build((None, None))
    seconds = train(model, steps=STEPS, shallow_steps=round(0.3 * STEPS))
    train(explicit, seconds=seconds)
    result, shares = {}, {}
    for length in LENGTHS:
        bits, answers = strings(20, length, seed=1_000_000)
        logits, solution = model(bits, max_steps=3 * length, return_solution=True)
        result[length] = solved(logits, answers)
        shares[length] = solved(explicit(bits), answers)
        print(
            f"{length:5} bits: {result[length]:4.0%} of 20 strings solved, largest residual "
            f"{np.max(solution.residual):.0e}, mean evaluations {np.mean(solution.steps):.0f}"
        )
    bits, answers = strings(1, 128, seed=1_000_001)
    budgets = range(8, 193, 8)
    right = [np.argmax(model(bits, max_steps=k), -1)[0] == answers[0] for k in budgets]
    figure = matplotlib.figure.Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(right, aspect="auto", cmap="Blues", extent=(0, 128, 196, 4), vmin=-0.5, vmax=1.2)
    axes.set(xlabel="position", ylabel="evaluations", title="dark: right answers of a string")
    figure.savefig(pathlib.Path(folder, "prefix_sums.png"), dpi=100)
    text = ", ".join(f"{shares[length]:.0%} of {length:,} bits" for length in LENGTHS)
    print(f"A convolutional network, trained for the same {seconds:.0f} s: {text}.")
    return {"equilibrium": result, "explicit": shares}


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")

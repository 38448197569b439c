"""Mazes: learn on 9 × 9, solve larger ones.

Which places are on the only way from the start to the goal? (Schwarzschild et al., arXiv:2106.04537,
section 3.2, whose data these are.) The cell sees a place and the four beside it,

    z = x + D gelu(C norm(z) + U x + b)     with C and U over these five places,

so a larger maze is a longer solve. Each training step draws its budget of evaluations at random and starts
from noise, so the answer does not depend on the way to it (Anil et al., arXiv:2211.09961); a small penalty
keeps places still that have their answer. The gradient goes through the last eight evaluations. A
convolutional network that sees 62 places in each direction trains at the same time. Each has one core.

Run: python examples/mazes.py [folder for the picture]
"""

import sys
import threading
import time

import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf

import tfdeq
import tfdeq.data

MAZES = tfdeq.data.puzzles.get("maze")
TRAINED, COUNT, STEPS, BATCH = 9, 20_000, 1200, 32
SIZES = {9: 160, 15: 240, 33: 640}  # size -> evaluations at most


def equilibrium_model():
    return tfdeq.models.Reasoner(
        tokens=4,
        classes=2,
        cell=tfdeq.cells.RecallConvolution(64, rank=2),
        solver=tfdeq.FixedPointIteration(max_steps=104, tolerance=1e-3),
        adjoint=tfdeq.Unrolled(8),
        start_noise=1.0,
    )


def explicit_model():
    """Five residual blocks of dilated convolutions."""
    inputs = keras.Input((None, None), dtype="int32")
    h = keras.layers.Embedding(4, 64)(inputs)
    same = {"padding": "same", "activation": "gelu"}
    for block in range(5):
        inner = keras.layers.LayerNormalization()(h)
        for _ in range(2):
            inner = keras.layers.Conv2D(64, 3, dilation_rate=2**block, **same)(inner)
        h = keras.layers.Add()([h, inner])
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.LayerNormalization()(h)))


def cross_entropy(logits, paths):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)(paths, logits)


def equilibrium_loss(model, mazes, paths):
    """Cross-entropy after a random number of evaluations, and a tenth of how far places still move."""
    budget = tf.random.uniform([], 8, 105, tf.int32)
    logits, solution = model(mazes, training=True, max_steps=budget, return_solution=True)
    after = model.applied(solution.z, mazes)
    length = tf.stop_gradient(tf.norm(after, axis=-1)) + 1e-6
    moved = tf.norm(after - solution.z + 1e-9, axis=-1) / length
    return cross_entropy(logits, paths) + 0.1 * tf.reduce_mean(moved)


def train(model, loss_of, data, progress, steps=None):
    """Trains until progress[0] is 1, and lets the rate fall to 0; with steps, moves progress forward."""
    optimizer = keras.optimizers.Adam(global_clipnorm=1.0, use_ema=True, ema_momentum=0.99)

    @tf.function
    def update(mazes, paths):
        with tf.GradientTape() as tape:
            loss = loss_of(model, mazes, paths)
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    losses = []
    for step, batch in enumerate(data):
        warmup, cosine = min(1, 10 * progress[0]), 1 + np.cos(np.pi * progress[0])
        optimizer.learning_rate = 7.5e-4 * warmup * cosine
        losses.append(update(*batch).numpy())
        if steps:
            progress[0] = (step + 1) / steps
        if steps and step % 250 == 249:
            print(f"step {step + 1}: loss {np.mean(losses[-250:]):.4f}")
        if progress[0] >= 1:
            break
    optimizer.finalize_variable_values(model.trainable_variables)


def batches():
    seeds = tf.data.Dataset.random(seed=1).batch(2).map(lambda seed: tf.cast(seed, tf.int32))
    data = tf.data.Dataset.from_tensor_slices(MAZES.make(COUNT, TRAINED, seed=0))
    data = tf.data.Dataset.zip(data.shuffle(COUNT, seed=0).repeat().batch(BATCH), seeds)
    return data.map(lambda batch, seed: MAZES.augment(*batch, seed))


def solved(logits, paths):
    return np.all(np.argmax(logits, axis=-1) == paths, axis=(1, 2))


def draw(model, file):
    inputs, _ = MAZES.make(1, 33, seed=5)
    figure = matplotlib.figure.Figure(figsize=(10, 3.1), layout="constrained")
    for axes, budget in zip(figure.subplots(1, 4), (8, 32, 96, 640), strict=True):
        logits, solution = model(inputs, max_steps=budget, return_solution=True)
        found = np.argmax(logits, axis=-1)[0] == 1
        axes.imshow(np.where(found, 1, 2.0 * (inputs[0] > 0)), cmap="inferno")
        steps, residual = solution.steps.numpy()[0], solution.residual.numpy()[0]
        axes.set(title=f"{steps} evaluations\nresidual {residual:.0e}", xticks=[], yticks=[])
    figure.savefig(file, dpi=100)


def main(folder="."):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    model, explicit = equilibrium_model(), explicit_model()
    model.build((None, None, None))
    data, progress, start = batches(), [0.0], time.perf_counter()
    arguments = (explicit, lambda model, x, y: cross_entropy(model(x), y), data, progress)
    other = threading.Thread(target=train, args=arguments, daemon=True)
    other.start()
    train(model, equilibrium_loss, data, progress, steps=STEPS)
    other.join()
    seconds = time.perf_counter() - start
    result, shares = {}, {}
    for size, most in SIZES.items():
        inputs, paths = MAZES.make(50, size, seed=1_000_000)
        logits, solution = model(inputs, max_steps=most, return_solution=True)
        right, settled = solved(logits, paths), solution.residual.numpy() <= 1e-3
        result[size] = float(right.mean())
        shares[size] = float(solved(explicit(inputs), paths).mean())
        print(
            f"{size} × {size}: {right.mean():.0%} of 50 mazes solved, {settled.mean():.0%} settled, of "
            f"these {right[settled].mean():.1%} solved; mean evaluations {np.mean(solution.steps):.0f}"
        )
    draw(model, f"{folder}/mazes.png")
    text = ", ".join(f"{shares[size]:.0%} of {size} × {size}" for size in SIZES)
    print(f"A convolutional network, trained for the same {seconds:.0f} s: {text}.")
    return {"equilibrium": result, "explicit": shares}


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")

"""Deblurring: a learned denoiser in the place of a classical one, at equilibrium.

A picture z was blurred by A, with noise: y = A z + noise. Proximal gradient methods find z as an
equilibrium (DE-Prox of Gilton, Ongie, Willett, arXiv:2102.07944)

    z = R(z + η Aᵀ(y - A z)):

a step towards the data, then a denoiser R. With total variation as R this is the classical
method. Here R is a small convolutional network, trained through the equilibrium, so it learns to
do well where the iteration ends, not after a number of steps that was fixed in training.

R(v) = 0.9 v + 0.1 A v + N(v), where N starts at zero: R weakens what the blur removes, and the
step keeps the rest near the data, so the first f is a contraction. At the end the same network,
unrolled for five steps, trains for the same time. Pictures and total variation are from
scikit-image: pip install scikit-image.

Run: python examples/deblurring.py [folder for the picture]
"""

import pathlib
import sys
import time

import keras
import matplotlib.figure
import numpy as np
import skimage
import tensorflow as tf

import tfdeq

TRAINING = ("astronaut", "coffee", "chelsea", "rocket", "coins", "immunohistochemistry")
HELD_OUT, NOISE, STEPS = ("camera", "moon"), 0.03, 700
GAUSS = np.exp(-0.5 * (np.arange(-3, 4) / 1.2) ** 2)
KERNEL = (np.outer(GAUSS, GAUSS) / GAUSS.sum() ** 2).astype("float32")[:, :, None, None]


def blur(z):
    """A z for pictures [B, H, W, 1]. The kernel is symmetric, so Aᵀ = A, and ‖A‖ <= 1."""
    return keras.ops.conv(z, KERNEL, padding="same")


def load(names):
    """Grey pictures [H, W] between -0.5 and 0.5."""
    found = [skimage.util.img_as_float(getattr(skimage.data, name)()) for name in names]
    return [(skimage.color.rgb2gray(p) if p.ndim == 3 else p) - 0.5 for p in found]


def crops(pictures, count, size, seed):
    """Random crops z [count, size, size, 1], and their blurred and noisy y."""
    random, z = np.random.default_rng(seed), []
    for index in range(count):
        picture = pictures[index % len(pictures)]
        row, column = (random.integers(0, length - size + 1) for length in picture.shape)
        crop = picture[row : row + size, column : column + size, None]
        z.append(crop.transpose(1, 0, 2) if random.random() < 0.5 else crop)
    z = np.array(z, "float32")
    return z, np.array(blur(z)) + random.normal(0, NOISE, z.shape).astype("float32")


def proximal_step():
    """The cell f(z, y) = R(z + Aᵀ(y - A z)), with η = 1."""
    z, y = keras.Input((None, None, 1)), keras.Input((None, None, 1))
    v = z + blur(y - blur(z))
    hidden = v
    for rate in (1, 2, 3, 2):
        layer = keras.layers.Conv2D(24, 3, padding="same", dilation_rate=rate, activation="relu")
        hidden = layer(hidden)
    change = keras.layers.Conv2D(1, 3, padding="same", kernel_initializer="zeros")(hidden)
    return keras.Model([z, y], 0.9 * v + 0.1 * blur(v) + change)


def restorer(explicit_steps=0):
    inputs = keras.Input((None, None, 1))
    solver, rough = (tfdeq.Anderson(15, tolerance, memory=5) for tolerance in (1e-3, 1e-2))
    layer = tfdeq.DEQLayer(proximal_step(), solver, adjoint=tfdeq.Implicit(rough),
                           jacobian_penalty=0.0 if explicit_steps else 1e-4,
                           explicit_steps=explicit_steps, name="restored")  # fmt: skip
    return keras.Model(inputs, layer(inputs))


def train(model, pictures, seconds=None):
    """Trains for STEPS steps, or for a time; returns the seconds."""
    model.compile(keras.optimizers.Adam(global_clipnorm=1.0), "mse", jit_compile=False)
    step, progress = 0, 0.0
    while progress < 1:
        model.optimizer.learning_rate = 2e-3 * (1 + np.cos(np.pi * progress)) / 2
        z, y = crops(pictures, 12, 40, seed=step)
        model.train_on_batch(y, z)
        step += 1
        if step == 1:  # which also made the graph
            start = time.perf_counter()
        spent = time.perf_counter() - start
        progress = spent / seconds if seconds else step / STEPS
    return spent


def total_variation(y, weight, steps=30):
    """The equilibrium with total variation as R, by plain iteration."""
    z = y
    for _ in range(steps):
        v = np.array(z + blur(y - blur(z)))
        z = np.stack([skimage.restoration.denoise_tv_chambolle(image, weight) for image in v])
    return z


def psnr(restored, z):
    """The mean peak signal-to-noise ratio of pictures, in decibels; the peak is 1."""
    return float(np.mean(-10 * np.log10(np.mean((np.array(restored) - z) ** 2, axis=(1, 2, 3)))))


def main(folder="."):
    keras.utils.set_random_seed(0)
    pictures, held_out = load(TRAINING), load(HELD_OUT)
    model, unrolled, longer = restorer(), restorer(explicit_steps=5), restorer(explicit_steps=25)
    seconds = train(model, pictures)
    train(unrolled, pictures, seconds=seconds)
    longer.set_weights(unrolled.get_weights())
    z, y = crops(pictures, 6, 96, seed=1_000_000)
    weights = (0.002, 0.004, 0.008, 0.016, 0.032)
    best = max(weights, key=lambda weight: psnr(total_variation(y, weight), z))
    z, y = crops(held_out, 16, 96, seed=1_000_001)
    with tfdeq.SolveScope(tolerance=1e-4, max_steps=100) as scope:
        restored = model(y)
    residual = float(tf.reduce_max(scope.solutions["restored"].residual))
    shown = {"picture": z, "blurred": y, "total variation": total_variation(y, best)}
    shown["equilibrium"] = restored
    result = {name: psnr(found, z) for name, found in shown.items() if name != "picture"}
    for name, figure in result.items():
        print(f"{name:>16}: {figure:.2f} dB on held-out pictures")
    print(
        f"largest residual {residual:.0e}; weight of total variation, by training pictures, {best}"
    )
    figure = matplotlib.figure.Figure(figsize=(8, 4.2), layout="constrained")
    sharpest = np.argsort(-z.std(axis=(1, 2, 3)))[:2]
    for row, index in zip(figure.subplots(2, 4), sharpest, strict=True):
        for axes, (name, found) in zip(row, shown.items(), strict=True):
            axes.imshow(np.array(found)[index, ..., 0], cmap="gray", vmin=-0.5, vmax=0.5)
            axes.set(title=name, xticks=[], yticks=[])
    figure.savefig(pathlib.Path(folder, "deblurring.png"), dpi=100)
    result |= {"residual": residual, "unrolled": psnr(unrolled(y), z), "longer": psnr(longer(y), z)}
    print(f"Unrolled for five steps, trained for the same {seconds:.0f} s: "
          f"{result['unrolled']:.2f} dB; applied 25 times: {result['longer']:.2f} dB.")  # fmt: skip
    return result


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")

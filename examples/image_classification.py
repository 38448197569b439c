"""Classify clothes: an equilibrium at two resolutions at once, trained by model.fit.

Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv:1708.07747) is 70,000 grey pictures of ten kinds of clothes. A
multiscale equilibrium (Bai, Koltun, Kolter, arXiv:2006.08656) has one state at two resolutions: a residual
block at each, and paths that fuse them. The network is one such cell, solved until it stands still. So one
training gives models of several depths: the budget of evaluations is chosen afterwards, for each answer, and
the residual says how far the answer is from the equilibrium.

The first equilibrium is one application of the cell (recurrent_scale=0), and training makes it deeper. The
Jacobian penalty keeps solves short. At the end a residual network of two blocks, each with weights of its
own, trains for the same time.

Keras downloads the pictures. To use files that you have, name the folder of the four original ones
(train-images-idx3-ubyte.gz, ...) in the environment variable FASHION_MNIST.

Run: python examples/image_classification.py [folder for the picture]
"""

import os
import pathlib
import sys
import time

import keras
import matplotlib.figure
import numpy as np

import tfdeq

CLASSES = [
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]
BATCH, BUDGETS = 128, (2, 3, 4, 8)


def pictures(data_dir):
    """Training and test pictures [N, 28, 28, 1] of bytes, each with their classes [N]."""
    if data_dir:
        splits = tfdeq.data.images.load("fashion_mnist", data_dir=data_dir).examples
        return splits.train, splits.test
    splits = keras.datasets.fashion_mnist.load_data()
    return [(images[..., None], classes) for images, classes in splits]


def classifier(explicit=False):
    x = images = keras.Input((28, 28, 1))
    x = keras.layers.Rescaling(1 / 90, offset=-0.8)(x)  # about standardised
    for filters in (16, 32):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    if explicit:
        x = tfdeq.baselines.ResidualNetwork(32, depth=2)(x)
        return keras.Model(images, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))
    cell = tfdeq.cells.MultiscaleCell([32, 32], expansion=2, skip="input", recurrent_scale=0.0)
    solver = tfdeq.Anderson(max_steps=8, tolerance=1e-2)
    layer = tfdeq.DEQLayer(cell, solver, tfdeq.PhantomGradient(2), jacobian_penalty=0.3,
                           training_max_steps=4, name="equilibrium")  # fmt: skip
    return keras.Model(images, tfdeq.models.ClassificationHead(10, [8, 8])(layer(x)))


def train(model, images, classes, epochs):
    """Plain model.fit; returns the seconds. On CPUs, XLA's convolutions are slow: no jit_compile."""
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * -(-len(images) // BATCH))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=False)
    start = time.perf_counter()
    model.fit(images, classes, BATCH, epochs=epochs, verbose=2)
    return time.perf_counter() - start


def accuracy(logits, classes):
    return float(np.mean(np.argmax(logits, axis=1) == classes))


def by_budget(model, images, classes):
    """Returns {budget: (accuracy, mean residual)}; a budget is the number of evaluations of the cell."""
    found = {}
    for budget in BUDGETS:
        logits, residuals = [], []
        for start in range(0, len(images), 2500):
            with tfdeq.SolveScope(tolerance=1e-6, max_steps=budget) as scope:
                logits.append(model(images[start : start + 2500], training=False))
            residuals.append(scope.solutions["equilibrium"].residual)
        found[budget] = accuracy(np.concatenate(logits), classes), float(np.mean(residuals))
    return found


def draw(model, images, classes, path):
    """The first test pictures, with the answers of the model and the residuals of their solves."""
    with tfdeq.SolveScope() as scope:
        answers = np.argmax(model(images, training=False), axis=1)
    residuals = scope.solutions["equilibrium"].residual.numpy()
    figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
    for place, axes in enumerate(figure.subplots(3, 6).flat):
        axes.imshow(images[place, ..., 0], cmap="gray")
        right = answers[place] == classes[place]
        title = f"{CLASSES[answers[place]]}\nresidual {residuals[place]:.0e}"
        axes.set_title(title, fontsize=8, color="black" if right else "red")
        axes.set_axis_off()
    figure.savefig(path, dpi=100)


def main(folder=".", epochs=2):
    keras.utils.set_random_seed(0)
    (images, classes), (test_images, test_classes) = pictures(os.environ.get("FASHION_MNIST"))
    model, network = classifier(), classifier(explicit=True)
    print(f"parameters: {model.count_params():,}, residual network {network.count_params():,}")
    seconds = train(model, images, classes, epochs)
    result = {"accuracy": accuracy(model.predict(test_images, verbose=0), test_classes)}
    result["by_budget"] = by_budget(model, test_images, test_classes)
    for budget, (right, residual) in result["by_budget"].items():
        print(f"{budget:>3} evaluations: accuracy {right:.4f}, mean residual {residual:.1e}")
    draw(model, test_images[:18], test_classes, pathlib.Path(folder, "image_classification.png"))
    one_epoch = train(classifier(explicit=True), images, classes, 1)
    train(network, images, classes, max(1, round(seconds / one_epoch)))
    result["network"] = accuracy(network.predict(test_images, verbose=0), test_classes)
    print(f"test accuracy: {result['accuracy']:.4f}. A residual network of two blocks, trained for the "
          f"same {seconds:.0f} s: {result['network']:.4f}.")  # fmt: skip
    return result


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")

"""A cell of your own, and its tests: learn how firms in a market respond to one another.

Ten firms sell goods that partly replace each other. Each one sells what is best for it given what the
others sell. With linear demand that is (Cournot competition; Vives, Oligopoly Pricing, 1999)

    z_i = max(0, x_i + b - Σ_j G_ij z_j),   G_ii = 0,

where x are the firms' conditions and G says who takes sales from whom. What one observes is the Nash
equilibrium, where every firm's choice fits all the others': z* = f(z*, x). The process that made the data
is an equilibrium, so `DEQLayer` learns it from pairs (x, z*) without ever seeing a firm respond. There is
exactly one equilibrium if the absolute values of each row of G sum to less than 1; a constraint keeps it so.

A cell is a Keras layer with `call(z, x)`. Three tests show what to check of a new one. After training, the
model is compared with a network that trained for the same time, also under conditions that are new.

Run: python examples/custom_cell.py [folder for the picture]
"""

import pathlib
import sys
import time

import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf

import tfdeq

FIRMS = 10


@keras.saving.register_keras_serializable(package="examples")
class Competition(keras.constraints.Constraint):
    """No firm competes with itself, and the absolute values of each row of G sum to at most 0.95."""

    def __call__(self, g):
        g = g * (1.0 - keras.ops.eye(FIRMS, dtype=g.dtype))
        return g * keras.ops.minimum(1.0, 0.95 / (keras.ops.sum(abs(g), 1, keepdims=True) + 1e-7))


@keras.saving.register_keras_serializable(package="examples")
class BestResponse(keras.layers.Layer):
    """f(z, x) = max(0, x + b - G z): every firm's best response to the others. z, x: [B, firms]."""

    def build(self, z_shape):
        initial = keras.initializers.RandomUniform(0.0, 0.1)
        self.g = self.add_weight((FIRMS, FIRMS), initial, constraint=Competition(), name="g")
        self.b = self.add_weight((), "zeros", name="b")

    def call(self, z, x):
        return keras.ops.relu(x + self.b - z @ keras.ops.transpose(self.g))


def market(tolerance=1e-6):
    """A model from conditions x [B, firms] to the equilibrium [B, firms]."""
    inputs = keras.Input((FIRMS,))
    solver = tfdeq.Anderson(max_steps=60, tolerance=tolerance)
    return keras.Model(inputs, tfdeq.DEQLayer(BestResponse(), solver, name="market")(inputs))


def test_shape():
    assert BestResponse()(tf.zeros([3, FIRMS]), tf.ones([3, FIRMS])).shape == (3, FIRMS)
    assert market()(tf.ones([3, FIRMS])).shape == (3, FIRMS)


def test_gradient():
    keras.config.set_dtype_policy("float64")
    model, x, values = market(1e-13), tf.ones([2, FIRMS], "float64"), []
    keras.config.set_dtype_policy("float32")
    g = model.get_layer("market").cell.g
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x) ** 3)
    direction = tf.random.normal(g.shape, dtype="float64", seed=0)
    slope = tf.reduce_sum(tape.gradient(loss, g.value) * direction)
    for step in (1e-6, -2e-6):
        g.assign_add(step * direction)
        values.append(tf.reduce_sum(model(x) ** 3))
    assert abs((values[0] - values[1]) / 2e-6 / slope - 1) < 1e-6  # as finite differences say


def test_saving(folder):
    model, x = market(), np.random.default_rng(0).random((4, FIRMS), "float32")
    model.save(f"{folder}/market.keras")
    np.testing.assert_array_equal(keras.models.load_model(f"{folder}/market.keras")(x), model(x))


def observations(count, g, highest, seed):
    """Conditions x and the equilibria [count, firms] of a market, by a long plain iteration."""
    x = np.random.default_rng(seed).uniform(0, highest, (count, FIRMS)).astype("float32")
    z = np.zeros_like(x)
    for _ in range(500):  # 0.9^500 is 1e-23
        z = np.maximum(0, x + 0.1 - z @ g.T)
    return x, z.astype("float32")


def train(model, x, z, rate, epochs=None, seconds=None):
    """Trains for some epochs, or for a time, while the rate falls to 0; returns the seconds."""
    model.compile(keras.optimizers.Adam(), "mse", jit_compile=False)
    epoch, progress = 0, 0.0
    while progress < 1:
        model.optimizer.learning_rate = rate * (1 + np.cos(np.pi * progress)) / 2
        model.fit(x, z, batch_size=32, verbose=0)
        epoch += 1
        if epoch == 1:  # which also made the graph
            start = time.perf_counter()
        spent = time.perf_counter() - start
        progress = epoch / epochs if epochs else spent / seconds
    return spent


def error(model, x, z):
    """The root mean square error, relative to the size of z."""
    return float(np.sqrt(np.mean((model.predict(x, verbose=0) - z) ** 2) / np.mean(z**2)))


def main(folder="."):
    keras.utils.set_random_seed(0)
    test_shape()
    test_gradient()
    test_saving(folder)
    random = np.random.default_rng(0)
    g = random.random((FIRMS, FIRMS)) * (random.random((FIRMS, FIRMS)) < 0.4) * (1 - np.eye(FIRMS))
    g *= 0.9 / np.maximum(g.sum(axis=1, keepdims=True), 0.9)
    data = observations(512, g, highest=1, seed=1)
    hidden = [keras.layers.Dense(64, "relu") for _ in range(2)]
    network = keras.Sequential([keras.Input((FIRMS,)), *hidden, keras.layers.Dense(FIRMS)])
    model = market()
    seconds = train(model, *data, rate=0.02, epochs=60)
    train(network, *data, rate=0.003, seconds=seconds)
    learned = np.array(model.get_layer("market").cell.g)
    result = {"g": float(np.abs(learned - g).max())}
    print(f"largest error of G: {result['g']:.4f}, where its largest entry is {g.max():.2f}")
    for name, highest in (("same", 1), ("larger", 4)):
        tests = observations(512, g, highest, seed=2)
        result[name], result[f"{name}, network"] = error(model, *tests), error(network, *tests)
    print(f"error {result['same']:.3%}; conditions up to 4 times as large: {result['larger']:.3%}")
    figure = matplotlib.figure.Figure(figsize=(7, 3.4), layout="constrained")
    drawn = {"true": g, "learned": learned}
    for axes, (title, matrix) in zip(figure.subplots(1, 2), drawn.items(), strict=True):
        axes.imshow(matrix, cmap="Oranges", vmin=0, vmax=g.max())
        axes.set(title=f"{title} G", xlabel="firm j", ylabel="firm i")
    figure.savefig(pathlib.Path(folder, "custom_cell.png"), dpi=100)
    print(f"A network of two hidden layers, trained for the same {seconds:.0f} s: "
          f"{result['same, network']:.2%} and {result['larger, network']:.2%}.")  # fmt: skip
    return result


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")

"""Implicit graph network: every node of a chain learns what stands at its far end.

A graph network of K layers passes messages over K edges, so a node knows nothing of what is further
away. An implicit graph network (Gu et al., arXiv:2009.06211, section 4) takes the equilibrium of its
one layer instead,

    Z = relu(A Z W + X B),

which has heard from every node, however far. A is the adjacency matrix with rows that sum to at most 1: each
node takes the mean of those with an edge to it. There is exactly one equilibrium if the absolute weights of
each unit of W sum to at most κ < 1: f is then a contraction. As in the paper, a projection keeps them there.

The task is after the paper's chains: only the first node of a chain has features, edges lead from each
node to the next, and every node is to say the class of the features. We train on chains of 50 nodes and
test on up to 200. At the end, an ordinary graph network of eight layers trains for the same time.

Run: python examples/implicit_graph_network.py [folder for the picture]
"""

import pathlib
import sys
import time

import keras
import matplotlib.figure
import numpy as np

import tfdeq

FEATURES, LENGTHS, KAPPA = 8, (50, 100, 200), 0.999


def chains(count, length, seed):
    """Features [count, length, FEATURES], adjacency [count, length, length], class of each node."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    features = np.zeros((count, length, FEATURES), "float32")
    features[:, 0] = random.normal(0.5 * (2 * labels - 1)[:, None], 0.5, (count, FEATURES))
    adjacency = np.repeat(np.eye(length, k=-1, dtype="float32")[None], count, axis=0)
    graphs = {"features": features, "adjacency": adjacency}
    return graphs, np.repeat(labels[:, None, None], length, axis=1).astype("float32")


@keras.saving.register_keras_serializable(package="examples")
class RowSums(keras.constraints.Constraint):
    """Projects each unit's weights to absolute values that sum to at most κ (Duchi et al., 2008)."""

    def __call__(self, w):
        largest_first = -keras.ops.sort(-abs(w), axis=0)
        counts = keras.ops.arange(1, w.shape[0] + 1, dtype=w.dtype)[:, None]
        excess = (keras.ops.cumsum(largest_first, axis=0) - KAPPA) / counts
        threshold = keras.ops.relu(keras.ops.max(excess, axis=0))
        return keras.ops.sign(w) * keras.ops.relu(abs(w) - threshold)


@keras.saving.register_keras_serializable(package="examples")
class GraphCell(keras.layers.Layer):
    """f(Z, X) = relu(A Z W + X B), for a batch of graphs."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.recurrent = keras.layers.Dense(
            units,
            use_bias=False,
            kernel_initializer=keras.initializers.Identity(),  # at first a node repeats what it hears
            kernel_constraint=RowSums(),
        )
        self.injection = keras.layers.Dense(units, use_bias=False)

    def inject(self, x):  # once per solve: what does not depend on Z
        return {"input": self.injection(x["features"]), "adjacency": x["adjacency"]}

    def initial_state(self, x):
        return keras.ops.zeros((*keras.ops.shape(x["features"])[:2], self.units))

    def call(self, z, x):
        return keras.ops.relu(x["adjacency"] @ self.recurrent(z) + x["input"])

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def graph_inputs():
    return {
        "features": keras.Input((None, FEATURES), name="features"),
        "adjacency": keras.Input((None, None), name="adjacency"),
    }


def implicit_network():
    inputs = graph_inputs()
    # A message needs one step for each edge, so the budget is above the longest chain.
    solver = tfdeq.FixedPointIteration(max_steps=400, tolerance=1e-6)
    z = tfdeq.DEQLayer(GraphCell(16), solver, name="equilibrium")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, "sigmoid", use_bias=False)(z))


def explicit_network(layers=8):
    inputs = graph_inputs()
    h, adjacency = keras.layers.Dense(16)(inputs["features"]), inputs["adjacency"]
    for _ in range(layers):  # with residual connections, which help depth
        messages = keras.layers.Dot(axes=(2, 1))([adjacency, h])
        h = keras.layers.Add()([h, keras.layers.Dense(16, "relu")(messages)])
    return keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(h))


def train(model, steps=None, seconds=None):
    """Trains for a number of steps, or for a time, while the rate falls to 0; returns the seconds."""
    model.compile(keras.optimizers.Adam(), "binary_crossentropy", jit_compile=False)
    step, progress = 0, 0.0
    while progress < 1:
        model.optimizer.learning_rate = 0.01 * (1 + np.cos(np.pi * progress)) / 2
        model.train_on_batch(*chains(32, LENGTHS[0], seed=step))
        step += 1
        if step == 1:  # which also made the graph
            start = time.perf_counter()
        spent = time.perf_counter() - start
        progress = step / steps if steps else spent / seconds
    return spent


def accuracy(model, length):
    """The share of nodes whose class is right, at each distance from the first node."""
    graphs, labels = chains(100, length, seed=1_000_000)
    return np.mean((model.predict_on_batch(graphs) > 0.5) == labels, axis=(0, 2))


def main(folder="."):
    keras.utils.set_random_seed(0)
    implicit, explicit = implicit_network(), explicit_network()
    seconds = train(implicit, steps=200)
    train(explicit, seconds=seconds)
    found = {}
    for length in LENGTHS:
        found[length] = accuracy(implicit, length), accuracy(explicit, length)
        print(f"{length:3} nodes: implicit {found[length][0].mean():.1%} of the nodes right")
    figure = matplotlib.figure.Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(100 * np.transpose(found[LENGTHS[-1]]), label=("equilibrium", "eight layers"))
    axes.set(xlabel="distance from the node with features", ylabel="right nodes (%)")
    axes.legend()
    figure.savefig(pathlib.Path(folder, "implicit_graph_network.png"), dpi=100)
    shares = ", ".join(f"{found[length][1].mean():.1%} of {length}" for length in LENGTHS)
    print(f"Eight explicit layers, trained for the same {seconds:.0f} s: {shares} nodes.")
    return {length: [float(a.mean()) for a in pair] for length, pair in found.items()}


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")

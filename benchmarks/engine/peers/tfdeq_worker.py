"""tfdeq, and a lower bound and explicit layers in the same TensorFlow, with or without XLA."""

import importlib.metadata
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

import tfdeq
from benchmarks.engine.engine_cases import INJECTION_WEIGHTS, NORM_EPSILON
from benchmarks.engine.peers import protocol

# Effectively no tolerance: a float32 residual does not reach it.
_UNREACHABLE = 1e-30
# Suffix of a solver's name if tf.function runs it as a graph without XLA.
_GRAPH = ", graph"
_SOLVERS = {
    "fixed_point_iteration": tfdeq.FixedPointIteration,
    "anderson": tfdeq.Anderson,
    "broyden": tfdeq.Broyden,
}


def inject(kind: str, weights: dict[str, tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """Returns the terms of the input that are the same in every evaluation."""
    if kind == "convolution":
        return tf.nn.conv2d(x, weights["U"], 1, "SAME")
    return tf.matmul(x, weights["U"])


def apply_cell(case: dict[str, Any], z, injected, x, weights: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns f(z) for the kind of the case; see `benchmarks.engine.engine_cases`."""
    if case["kind"] == "dense":
        return tf.tanh(tf.matmul(z, weights["W"]) + injected + weights["b"])
    if case["kind"] == "convolution":
        hidden = tf.nn.relu(tf.nn.conv2d(z, weights["W"], 1, "SAME") + injected)
        return tf.tanh(tf.nn.conv2d(hidden, weights["C"], 1, "SAME") + x)
    attended = _attention(tf.matmul(_norm(z), weights["W"]) + injected, case["heads"])
    a = x + tf.matmul(attended, weights["O"])
    hidden = tf.nn.gelu(tf.matmul(_norm(a), weights["E"]), approximate=True)
    return a + tf.matmul(hidden, weights["C"])


def _norm(z: tf.Tensor) -> tf.Tensor:
    return z * tf.math.rsqrt(tf.reduce_mean(z * z, axis=-1, keepdims=True) + NORM_EPSILON)


def _attention(projected: tf.Tensor, heads: int) -> tf.Tensor:
    length, width = projected.shape[1:]
    width //= 3
    split = tf.reshape(projected, [-1, length, 3, heads, width // heads])
    query, key, value = tf.unstack(tf.transpose(split, [2, 0, 3, 1, 4]))
    logits = tf.matmul(query, key, transpose_b=True) * (width // heads) ** -0.5
    attended = tf.matmul(tf.nn.softmax(logits), value)
    return tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), [-1, length, width])


class TfdeqWorker(protocol.Worker):
    name = "tfdeq"
    solvers: ClassVar = {
        f"{name}{mode}": ("fixed", "tolerance") for name in _SOLVERS for mode in ("", _GRAPH)
    }

    def __init__(self):
        super().__init__()
        tf.config.threading.set_intra_op_parallelism_threads(protocol.threads())

    def versions(self):
        return {"tfdeq": tfdeq.__version__, "tensorflow": importlib.metadata.version("tensorflow")}

    def load(self):
        self._x = tf.constant(self.arrays["x"])
        self._target = tf.constant(self.arrays["target"])
        self._weights = {
            name[2:]: tf.constant(value)
            for name, value in self.arrays.items()
            if name.startswith("w/")
        }
        self._zero = tf.zeros_like(self._x)

    def build(self, variant):
        step = _compiled(self._training_step(variant), variant)

        def run():
            result = step(self._x, self._weights, None)
            return tf.nest.map_structure(lambda tensor: tensor.numpy(), result["loss"])

        return run

    def probe(self, variant):
        step = _compiled(self._training_step(variant), variant)
        return {
            name: value.numpy() for name, value in step(self._x, self._weights, self._zero).items()
        }

    def count(self, variant):
        counts = [0, 0]
        step = tf.function(self._training_step(variant, _counted(counts)))
        step(self._x, self._weights, None)
        return counts[0], counts[1]

    def image_and_product(self, z, u):
        @tf.function(jit_compile=True)
        def compute(z, u):
            injected = inject(self.case["kind"], self._weights, self._x)
            with tf.GradientTape() as tape:
                tape.watch(z)
                image = apply_cell(self.case, z, injected, self._x, self._weights)
            return image, tape.gradient(image, z, output_gradients=u)

        image, product = compute(tf.constant(z), tf.constant(u))
        return image.numpy(), product.numpy()

    def _training_step(self, variant, enter: Callable[[tf.Tensor], tf.Tensor] = tf.identity):
        """Returns step(x, weights, e) -> results; enter is called with every state that f is evaluated at."""

        def cell(z, injected, x, weights, *e):
            image = apply_cell(self.case, enter(z), injected, x, weights)
            return tf.add_n([image, *e]) if e else image

        equilibrium = {"bound": _bound, "explicit": _explicit}.get(_name(variant), _solve)

        def step(x, weights, e):
            recurrent = {k: v for k, v in weights.items() if k not in INJECTION_WEIGHTS}
            with tf.GradientTape() as tape:
                tape.watch([x, weights])
                if e is not None:
                    tape.watch(e)
                injected = inject(self.case["kind"], weights, x)
                args = (injected, x, recurrent, *([] if e is None else [e]))
                z = equilibrium(cell, tf.zeros_like(x), args, variant)
                loss = 0.5 * tf.reduce_sum((z - self._target) ** 2)
            sources = {"d/x": x, **{f"d/{name}": value for name, value in weights.items()}}
            if e is not None:
                sources["u"] = e
            return {"loss": loss, "z": z, **tape.gradient(loss, sources)}

        return step


def _name(variant) -> str:
    return variant["solver"].removesuffix(_GRAPH)


def _compiled(step: Callable[..., Any], variant) -> Callable[..., Any]:
    return tf.function(step, jit_compile=not variant["solver"].endswith(_GRAPH))


def _solve(cell, z0, args, variant):
    """Returns z* from tfdeq, with the variant's solver forward and backward."""
    kind = _SOLVERS[_name(variant)]
    tolerance = variant["tolerance"] or _UNREACHABLE
    solver = kind(max_steps=variant["forward_steps"], tolerance=tolerance)
    backward = kind(max_steps=variant["backward_steps"], tolerance=tolerance)
    return tfdeq.fixed_point(cell, z0, args, solver, tfdeq.Implicit(backward)).z


def _explicit(cell, z, args, variant):
    """Returns the output of forward_steps unrolled layers, differentiated by backpropagation."""
    for _ in range(variant["forward_steps"]):
        z = cell(z, *args)
    return z


def _bound(cell, z0, args, variant):
    """Makes only the evaluations, one linearisation and the products that an implicit gradient needs."""
    leaves = tf.nest.flatten(args)

    @tf.custom_gradient
    def solve(*leaves):
        arguments = tf.nest.pack_sequence_as(args, leaves)
        _, z = tf.while_loop(
            lambda k, _: k < variant["forward_steps"],
            lambda k, z: (k + 1, cell(z, *arguments)),
            (tf.constant(0), z0),
        )
        z = tf.stop_gradient(z)

        def gradient(d_z):
            # The second tape does not watch z, so its gradient is not a product with the Jacobian.
            with tf.GradientTape(persistent=True) as tape, tf.GradientTape() as last_tape:
                tape.watch(z)
                last_tape.watch(leaves)
                image = cell(z, *arguments)
            _, u = tf.while_loop(
                lambda k, _: k < variant["backward_steps"],
                lambda k, u: (k + 1, tape.gradient(image, z, output_gradients=u) + d_z),
                (tf.constant(0), d_z),
            )
            return last_tape.gradient(image, list(leaves), output_gradients=u)

        return z, gradient

    return solve(*leaves)


def _counted(counts: list[int]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns an identity function that counts its calls in counts[0] and its gradients in counts[1]."""

    def passing(index: int, z: tf.Tensor) -> tf.Tensor:
        def add(value: np.ndarray) -> np.ndarray:
            counts[index] += 1
            return value

        result = tf.numpy_function(add, [z], z.dtype)
        result.set_shape(z.shape)
        return result

    @tf.custom_gradient
    def counted(z):
        return passing(0, z), lambda d_z: passing(1, d_z)

    return counted


if __name__ == "__main__":
    protocol.serve(TfdeqWorker)

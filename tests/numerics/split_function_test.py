"""Tests of tfdeq.numerics.split_function: splittings on the state's matrix."""

import numpy as np
import tensorflow as tf

import tfdeq
from tests.support.split_cases import monotone_case
from tfdeq.compaction import BoundFunction
from tfdeq.numerics.split_function import evaluate_split, prepared_splitting
from tfdeq.numerics.state_layout import StateLayout


def test_a_state_of_several_tensors():
    """The solve is the same for a state of one tensor or two."""
    f, (w, x), exact = monotone_case()
    parts = lambda z: {"a": z[:, :2, None], "b": z[:, 2:]}  # noqa: E731
    whole = lambda z: tf.concat([z["a"][..., 0], z["b"]], 1)  # noqa: E731

    class Nested:
        def __call__(self, z, w, x):
            return parts(f(whole(z), w, x))

        def splitting(self, w, x):
            one = f.splitting(w, x)
            nested = lambda function: lambda z: parts(function(whole(z)))  # noqa: E731
            return one._replace(
                affine=nested(one.affine),
                projection=nested(one.projection),
                resolvent=lambda step: nested(one.resolvent(step)),
            )

    z0 = tf.zeros_like(x)
    for kind in (tfdeq.ForwardBackward, tfdeq.PeacemanRachford):
        solver = kind(5000, 1e-11)
        solve = tf.function(tfdeq.fixed_point, autograph=False)
        solution = solve(Nested(), parts(z0), (w, x), solver)
        np.testing.assert_allclose(whole(solution.z), exact, atol=1e-8)
        plain = solve(f, z0, (w, x), solver)
        np.testing.assert_array_equal(solution.steps, plain.steps)


def test_what_is_evaluated_is_f():
    f, args, _ = monotone_case()
    bound, z = BoundFunction(f, args), tf.random.normal([4, 6], dtype=tf.float64)
    layout = StateLayout(z)
    prepared = prepared_splitting(bound, layout, tfdeq.PeacemanRachford(step_size=0.5))
    f_z, affine_z = evaluate_split(bound, layout, z, prepared)
    np.testing.assert_array_equal(f_z, f(z, *args))
    np.testing.assert_array_equal(affine_z, f.affine(z, *args))
    assert float(prepared.step_size) == 0.5
    assert prepared_splitting(bound, layout, tfdeq.Anderson()) is None
    assert prepared_splitting(lambda z: z, layout, tfdeq.ForwardBackward()) is None

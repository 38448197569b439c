"""Tests of tfdeq.numerics.xla."""

import pytest
import tensorflow as tf

from tests.support.cases import EVERY_MODE, in_mode
from tfdeq.numerics.xla import compiles_with_xla


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_it_knows_who_compiles(mode):
    def both():
        inner = tf.while_loop(lambda k: k < 1, lambda k: [k + int(compiles_with_xla()) + 1], [0])
        return tf.constant(compiles_with_xla()), tf.convert_to_tensor(inner[0] - 1)

    outside, inside = in_mode(both, mode)()
    assert bool(outside) == bool(int(inside)) == (mode == "xla")

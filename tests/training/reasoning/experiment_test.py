"""What the trainer measures of a puzzle's equilibrium."""

import numpy as np
import pytest
import tensorflow as tf

from tests.training.reasoning.models_test import CONFIG
from tfdeq.data.puzzles import get
from tfdeq.training.reasoning.experiment import _radius_of
from tfdeq.training.reasoning.models import make_model


@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"recursion": True}, marks=pytest.mark.slow)]
)
def test_the_spectral_radius_is_the_largest_eigenvalue(settings):
    """Also of a cell without `inject`, whose inner cell has it."""
    model = make_model({**CONFIG, **settings, "max_steps": 30}, get("prefix_sums"))
    inputs = tf.constant(np.random.default_rng(0).integers(0, 2, [2, 5]), tf.int32)
    found = _radius_of(model)((inputs, inputs))
    x, _ = model.embed(inputs)
    z = model.equilibrium(x, training=False)
    with tf.GradientTape() as tape:
        tape.watch(z)
        image = model.applied(z, inputs)
    jacobian = tape.batch_jacobian(image, z).numpy().reshape(2, z[0].shape.num_elements(), -1)
    expected = np.abs(np.linalg.eigvals(jacobian)).max(axis=1)
    # A power iteration of a few products: between the radius and the norm of a step.
    np.testing.assert_allclose(found, expected, rtol=0.05)

"""TokenMixing: its formula, and the sizes that it refuses."""

import keras
import numpy as np
import pytest

from tfdeq.cells import TokenMixing


def _floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_one_application():
    """The formula in the docstring, in NumPy."""
    cell = TokenMixing(3, places=4)
    z, x = _floats(2, 2, 2, 3), _floats(2, 2, 2, 3, seed=1)
    result = cell(z, cell.inject(x))

    def norm(v):
        return v / np.sqrt((v**2).mean(-1, keepdims=True) + 1e-5)

    def gelu(v):
        return 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))

    m, n, back, expand, contract = (
        getattr(cell, name).kernel.numpy()
        for name in ("recurrent", "injection", "unmix", "expand", "contract")
    )
    flat_z, flat_x = norm(z).reshape(2, 4, 3), x.reshape(2, 4, 3)
    mixed = gelu(np.einsum("bpd,pm->bmd", flat_z, m) + np.einsum("bpd,pm->bmd", flat_x, n))
    a = flat_x + np.einsum("bmd,mp->bpd", mixed, back)
    expected = a + gelu(norm(a) @ expand) @ contract
    np.testing.assert_allclose(result, expected.reshape(2, 2, 2, 3), atol=5e-6)  # float32


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, None, 3)])
def test_another_number_of_places(shape):
    with pytest.raises(ValueError, match=r"A cell of 4 places takes \[batch, places, 3\]"):
        TokenMixing(3, places=4).inject(keras.KerasTensor(shape))


def test_bad_settings():
    with pytest.raises(ValueError, match="places must be"):
        TokenMixing(3, places=0)

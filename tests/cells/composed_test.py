"""ComposedCell: one application applies the cells in sequence."""

import keras
import numpy as np
import pytest

import tfdeq
from tfdeq.cells import ComposedCell, RecallConvolution


def _cells(count=2):
    return [RecallConvolution(4, rank=1, hidden=3 + place) for place in range(count)]


def test_one_application():
    cells = _cells()
    x = keras.random.normal((2, 5, 4), seed=0)
    z = keras.random.normal((2, 5, 4), seed=1)
    cell = ComposedCell(cells)
    first, second = cells
    expected = second(first(z, first.inject(x)), second.inject(x))
    np.testing.assert_array_equal(cell(z, cell.inject(x)), expected)


def test_cells_without_inject_receive_the_input():
    class Plain(keras.layers.Layer):
        width = 3

        def call(self, z, x):
            return 0.5 * z + x

    layer = tfdeq.DEQLayer(ComposedCell([Plain(), Plain()]), explicit_steps=2)
    x = keras.ops.ones((1, 3))
    # Four times z / 2 + 1 from zero.
    np.testing.assert_allclose(layer(x), np.full((1, 3), 1.875), rtol=1e-6)


def test_saved_and_loaded(tmp_path):
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, tfdeq.DEQLayer(ComposedCell(_cells()), explicit_steps=1)(inputs))
    model.save(tmp_path / "model.keras")
    x = keras.random.normal((2, 5, 4), seed=0)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))


@pytest.mark.parametrize("cells", [[], [RecallConvolution(4), RecallConvolution(5)]])
def test_bad_cells(cells):
    with pytest.raises(ValueError, match="cells must be at least one, all of one width"):
        ComposedCell(cells)

"""Models of pictures from a configuration."""

import numpy as np
import pytest

import tfdeq
from tests.support.cases import fast
from tfdeq.cells import MonotoneConvolution, MonotoneMultiscaleConvolution, MultiscaleCell
from tfdeq.training.images.flags import MONOTONE_CELLS
from tfdeq.training.images.models import make_model

CONFIG = {
    "model": "deq", "cell": "multiscale", "branches": ["4", "8"], "filters": 4, "expansion": 2,
    "groups": 2, "block_dropout": 0.1, "weight_normalization": True, "skip": "input",
    "recurrent_scale": 0.0, "monotonicity": 1.0, "stem_stride": 2, "pooling": 2, "head_channels": [],
    "head_features": 6, "depth": 0, "precision": "float32",
    "solver": "fixed_point_iteration", "max_steps": 4, "tolerance": 1e-3,
    "adjoint": "jacobian_free",
    "jacobian_penalty": 0.0, "jacobian_penalty_fraction": 0.25, "jacobian_penalty_power_steps": 0,
}  # fmt: skip
SHAPE = (9, 8, 1)
PICTURES = np.random.default_rng(0).random((3, *SHAPE)).astype("float32")


def made(**changes):
    return make_model({**CONFIG, **changes}, SHAPE, 5, mean=0.4, deviation=0.3)


@pytest.mark.parametrize(
    ("changes", "kind", "states"),
    [
        ({}, MultiscaleCell, [(5, 4, 4), (3, 2, 8)]),
        pytest.param(
            {"cell": "residual", "stem_stride": 1},
            MultiscaleCell,
            [(9, 8, 4)],
            marks=pytest.mark.slow,
        ),
        ({"cell": "residual", "stem_stride": 4}, MultiscaleCell, [(3, 2, 4)]),
        ({"cell": "monotone"}, MonotoneConvolution, [(7, 6, 4)]),
        ({"cell": "monotone", "stem_stride": 1}, MonotoneConvolution, [(11, 10, 4)]),
        # 5 × 4 places, and two around, or three.
        (
            {"cell": "monotone_multiscale"},
            MonotoneMultiscaleConvolution,
            [(10, 8, 4), (5, 4, 8)],
        ),
        pytest.param(
            {"cell": "monotone_multiscale", "stem_stride": 1, "branches": ["2", "3", "4"]},
            MonotoneMultiscaleConvolution,
            [(20, 16, 2), (10, 8, 3), (5, 4, 4)],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_cells(changes, kind, states):
    model = made(**changes)
    layer = model.get_layer("equilibrium")
    assert isinstance(layer.cell, kind)
    with tfdeq.SolveScope() as scope:
        logits = model(PICTURES)
    assert logits.shape == (3, 5)
    (solution,) = scope.solutions.values()
    z = solution.z if isinstance(solution.z, list) else [solution.z]
    assert [part.shape[1:] for part in z] == states


def test_pictures_are_standardised():
    model = made(cell="monotone")
    found = model.get_layer("standardized")(np.array([0.4, 0.7], "float32"))
    np.testing.assert_allclose(found, [0.0, 1.0], atol=1e-6)


@pytest.mark.parametrize("cell", MONOTONE_CELLS)
def test_an_untrained_monotone_model_says_how_far_its_answers_hold(cell):
    model = made(cell=cell, recurrent_scale=0.5, solver="peaceman_rachford", max_steps=40)
    with tfdeq.SolveScope(tolerance=1e-6):
        radius = tfdeq.certified_radius(model, PICTURES)
    assert (radius.numpy() > 0).all()


@pytest.mark.parametrize(
    ("changes", "depth"),
    fast(
        [({"cell": "monotone"}, 4)],
        [
            (changes, depth)
            for changes in ({}, {"cell": "monotone"}, {"stem_stride": 8})
            for depth in (1, 4)
        ],
    ),
)
def test_a_residual_network_is_as_large_as_it_may_be(changes, depth):
    # Large enough that there are networks of its size.
    changes = {"branches": ["16", "16"], "filters": 40, "groups": 4, **changes}
    equilibrium = made(**changes).count_params()
    network = made(**changes, model="resnet", depth=depth)
    assert network(PICTURES).shape == (3, 5)
    width = network.get_layer("network").width
    assert network.count_params() <= equilibrium
    # The next one would be too large: sizes grow with the square of the width.
    assert network.count_params() * ((width + 1) / width) ** 2 > equilibrium


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match="one number for each of the 2 branches"):
        made(head_channels=["4"])
    with pytest.raises(ValueError, match="--pooling=9 is more than"):
        made(cell="monotone", pooling=9)
    with pytest.raises(
        ValueError, match="--pooling=9 is more than the equilibrium's 10 rows and 8 col"
    ):
        made(cell="monotone_multiscale", pooling=9)
    with pytest.raises(ValueError, match="--depth=200 blocks has at least"):
        made(model="resnet", cell="monotone", depth=200)

"""The example of clothes, if the pictures are here."""

import os
import pathlib

import pytest

from tests.support.run_example import run_example

FOLDER = os.environ.get("FASHION_MNIST")
FILES = ("train-images-idx3-", "train-labels-idx1-", "t10k-images-idx3-", "t10k-labels-idx1-")


@pytest.mark.slow
@pytest.mark.skipif(
    FOLDER is None or not all(list(pathlib.Path(FOLDER).glob(f"{name}ubyte*")) for name in FILES),
    reason="the environment variable FASHION_MNIST names no folder with Fashion-MNIST's files",
)
def test_the_equilibrium_knows_clothes_and_settles(tmp_path):
    result = run_example("examples.image_classification", tmp_path)
    assert result["accuracy"] > 0.88
    accuracies, residuals = zip(*result["by_budget"].values(), strict=True)
    assert list(residuals) == sorted(residuals, reverse=True)
    # At twice its budget the model answers as it does at its own.
    assert abs(accuracies[-1] - accuracies[-2]) < 0.005
    assert 0 < result["network"] < 1

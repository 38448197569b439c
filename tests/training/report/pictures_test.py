import pytest
import tensorflow as tf

from tfdeq.training.report import pictures

CONFIG = {
    "shallow_share": 0.5,
    "train_steps": 40,
    "max_steps": 6,
    "tolerance": 1e-3,
    "depth": 0,
}
CURVES = {
    "step": [10, 20, 20, 30, 40, 40],
    "loss": [3.0, 2.5, None, 2.2, 2.0, None],
    "validation_bits_per_byte": [None, None, 3.7, None, None, 3.0],
    "validation_residual": [None, None, 1e-2, None, None, 5e-3],
    "residual": [None, None, None, 2e-2, 1e-2, None],
    "steps": [None, None, None, 6.0, 5.5, None],
}
TRACE = {"steps": [1, 2, 4], "residual": [[1.0, 0.9], [0.1, 0.2], [0.01, 0.02]]}


def images_in(folder):
    names = []
    for path in folder.iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            names += [value.tag for value in event.summary.value]
    return names


def test_draws_every_picture_and_shows_it_in_tensorboard(tmp_path):
    writer = tf.summary.create_file_writer(str(tmp_path / "logs"))
    metrics = {"train": CURVES, "config": CONFIG, "test": {"bits_per_byte": 3.0}}
    residuals = {"before": TRACE, "after": TRACE}
    paths = pictures.draw_all(str(tmp_path), metrics, {"shallow": CURVES}, residuals, writer)
    writer.close()
    assert len(paths) == 3
    for path in paths:
        image = tf.io.decode_png(tf.io.read_file(path), channels=3).numpy()
        assert image.shape[0] >= 400
        # Something besides the white page was drawn.
        assert (image != 255).mean() > 0.01
    assert sorted(images_in(tmp_path / "logs")) == [
        "convergence",
        "quality",
        "residual_by_solver_steps",
    ]
    assert not list(tmp_path.glob(".partial-*"))
    assert pictures.draw_again(str(tmp_path), metrics, {}, residuals) == paths
    assert len(images_in(tmp_path / "tensorboard")) == 3


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    metrics = {"train": CURVES, "config": CONFIG, "test": {"bits_per_byte": 3.0}}
    (tmp_path / "quality.png").mkdir()
    with pytest.raises(OSError, match=r"quality\.png cannot be written: Is a directory"):
        pictures.draw_all(str(tmp_path), metrics, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["quality.png"]


@pytest.mark.parametrize("depth", [1, 4])
def test_an_explicit_model_has_no_convergence_to_draw(tmp_path, depth):
    curves = {key: CURVES[key] for key in ("step", "loss", "validation_bits_per_byte")}
    metrics = {"train": curves, "config": {**CONFIG, "depth": depth}, "test": {"bits_per_byte": 3}}
    paths = pictures.draw_all(str(tmp_path), metrics, {}, {})
    assert [path.rsplit("/", 1)[-1] for path in paths] == ["quality.png"]

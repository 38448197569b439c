"""A version can be trained further: without tfdeq, and as the restored Keras model."""

import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import contracting_language_model
from tests.support.verified_run import language_model as verified_run_model
from tfdeq import serving
from tfdeq.cells import TransformerCell
from tfdeq.models import LanguageModel
from tfdeq.serving.versions import loading, manifest, saved_model

VOCABULARY, LENGTH = 17, 12


@pytest.fixture(scope="module")
def model():
    return contracting_language_model(
        VOCABULARY, LENGTH, tfdeq.Anderson(max_steps=60, tolerance=1e-6)
    )


@pytest.fixture(scope="module")
def version(model, tmp_path_factory):
    return saved_model.export(model, tmp_path_factory.mktemp("output"), gradients=True)


TOKENS = np.random.default_rng(5).integers(0, VOCABULARY, (4, LENGTH)).astype(np.int32)

FINE_TUNING = """
import json, sys
import numpy as np
sys.modules["tfdeq"] = sys.modules["export"] = None  # importing them fails
import tensorflow as tf

path, tokens = sys.argv[1], np.array(json.loads(sys.argv[2]), np.int32)
loaded = tf.saved_model.load(path)
score = loaded.signatures["score"]
inputs = {
    "tokens": tf.constant(tokens),
    "lengths": tf.fill([len(tokens)], tokens.shape[1]),
    "tolerance": tf.zeros([len(tokens)]),
    "max_steps": tf.zeros([len(tokens)], tf.int32),
}

def loss():
    return -tf.reduce_mean(score(**inputs)["log_likelihood"])

with tf.GradientTape() as tape:
    value = loss()
gradients = [tf.convert_to_tensor(g) for g in tape.gradient(value, list(loaded.trainable_weights))]
losses = [float(value)]
for _ in range(5):
    with tf.GradientTape() as tape:
        value = loss()
    weights = list(loaded.trainable_weights)
    for weight, gradient in zip(weights, tape.gradient(value, weights)):
        weight.assign_sub(0.05 * tf.convert_to_tensor(gradient))
    losses.append(float(loss()))
np.savez(sys.argv[3], *[gradient.numpy() for gradient in gradients])
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_fine_tuning_in_a_process_without_tfdeq(model, version, tmp_path):
    target = tmp_path / "gradients.npz"
    finished = subprocess.run(
        [sys.executable, "-c", FINE_TUNING, str(version), json.dumps(TOKENS.tolist()), str(target)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=58,
    )
    assert finished.returncode == 0, finished.stderr
    losses = json.loads(finished.stdout.splitlines()[-1])
    assert (np.diff(losses) < 0).all()
    with tf.GradientTape() as tape:
        logits = model(TOKENS)
        nats = tf.nn.sparse_softmax_cross_entropy_with_logits(TOKENS[:, 1:], logits[:, :-1])
        loss = tf.reduce_sum(nats) / TOKENS.size  # position 0 scores nothing
    expected = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    np.testing.assert_allclose(losses[0], loss, rtol=1e-5)
    with np.load(target) as found:
        for name, gradient in zip(found.files, expected, strict=True):
            gradient = tf.convert_to_tensor(gradient)
            # The backward solves agree to their tolerance, 1e-6 relative, and float32 rounding.
            scale = float(tf.reduce_max(tf.abs(gradient)))
            np.testing.assert_allclose(found[name], gradient, atol=1e-4 * scale)


@pytest.mark.slow
def test_a_version_without_gradients_refuses_to_give_them(model, tmp_path):
    version = saved_model.export(model, tmp_path / "output")
    finished = subprocess.run(
        [sys.executable, "-c", FINE_TUNING, str(version), json.dumps(TOKENS.tolist()), "unused"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=58,
    )
    assert finished.returncode == 1
    assert "LookupError: No gradient defined" in finished.stderr


@pytest.mark.slow
def test_load_model_gives_back_the_keras_model(model, version, tmp_path):
    loaded = serving.load_model(version)
    assert isinstance(loaded, LanguageModel)
    assert loaded.equilibrium.solver.tolerance == 1e-6
    np.testing.assert_array_equal(loaded(TOKENS), model(TOKENS))
    # It is trained further, and becomes the next version.
    loaded.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = loaded.evaluate(TOKENS[:, :-1], TOKENS[:, 1:], verbose=0)
    loaded.fit(TOKENS[:, :-1], TOKENS[:, 1:], epochs=8, verbose=0)
    assert loaded.evaluate(TOKENS[:, :-1], TOKENS[:, 1:], verbose=0) < before
    path = saved_model.export(loaded, version.parent)
    assert int(path.name) == int(version.name) + 1
    np.testing.assert_array_equal(serving.load_model(path)(TOKENS), loaded(TOKENS))


@keras.saving.register_keras_serializable(package="export_loading_test")
class Cell(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.Orthogonal(0.5))

    def call(self, z, x):
        return keras.ops.tanh(self.dense(z) + x)


@pytest.mark.slow
def test_a_functional_model_comes_back(tmp_path):
    x = keras.Input((3,), name="x")
    h = keras.layers.BatchNormalization()(x)
    model = keras.Model(x, keras.layers.Dense(2)(tfdeq.DEQLayer(Cell())(h)))
    path = saved_model.export(model, tmp_path)
    given = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(serving.load_model(path)(given), model(given))


def test_what_was_exported_comes_back(verified_run):
    loaded = serving.load_model(verified_run / "export" / "1")
    assert isinstance(loaded, LanguageModel)
    np.testing.assert_array_equal(loaded(TOKENS), verified_run_model()(TOKENS))


@pytest.mark.slow
def test_what_is_no_version_of_ours(tmp_path, verified_run):
    with pytest.raises(FileNotFoundError, match="manifest.json.* was not written by"):
        serving.load_model(tmp_path)
    # Weights of another model with this one's description.
    other = LanguageModel(256, LENGTH, TransformerCell(8, 2, LENGTH))
    other.build((None, LENGTH))
    path = shutil.copytree(verified_run / "export" / "1", tmp_path / "1")
    (path / "assets.extra" / loading.NAME).write_text(loading.to_json(other))
    with pytest.raises(
        manifest.ChangedVersionError, match="changed: assets.extra/keras_model.json"
    ):
        serving.load_model(path)
    manifest.write(path)
    with pytest.raises(ValueError, match="shapes of its weights differ"):
        serving.load_model(path)
    (path / "assets.extra" / loading.NAME).unlink()
    manifest.write(path)
    with pytest.raises(FileNotFoundError, match="keras_model.json.*keras_model=False"):
        serving.load_model(path)

"""Layers with state that is not a weight, or that is computed from weights, are restored from a version.

Each model is compared with the exported one and with the one restored from Keras's own .keras file.
"""

import random
import shutil
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast
from tfdeq import serving
from tfdeq.serving.verification import verify
from tfdeq.serving.versions import loading, manifest, restored_model, saved_model

WIDTH = 4
GENERATOR = np.random.default_rng(0)
NUMBERS = GENERATOR.normal(5, 3, (8, WIDTH)).astype(np.float32)
CODES = GENERATOR.integers(10, 15, (8, WIDTH))
WORDS = np.array([["solve"], ["residual"], ["step"], ["unknown"]], dtype=object)


def equilibrium(width, layer=None):
    """A DEQLayer whose cell is a contraction that contains another layer."""
    z, h = keras.Input((width,)), keras.Input((width,))
    dense = layer or keras.layers.Dense(
        width, kernel_initializer=keras.initializers.Orthogonal(0.4)
    )
    cell = keras.Model([z, h], keras.ops.tanh(dense(z) + h))
    return tfdeq.DEQLayer(cell, tfdeq.FixedPointIteration(40, 1e-5))


def model_of(before, x, shape=(WIDTH,), dtype="float32", after=None, solves=False):
    """Returns (model, inputs): layers, optionally before an equilibrium; `after` is applied to the model."""
    keras.utils.set_random_seed(1)
    given = keras.Input(shape, dtype=dtype, name="x")
    h = given
    for layer in before:
        h = layer(h)
    h = keras.layers.Flatten()(h)
    h = equilibrium(h.shape[-1])(h) if solves else h
    model = keras.Model(given, keras.layers.Dense(3)(h))
    if after is not None:
        after(model)
    return model, x


def normalization():
    layer = keras.layers.Normalization()
    layer.adapt(NUMBERS)
    return model_of([layer], NUMBERS)


def normalization_given():
    return model_of([keras.layers.Normalization(mean=5.0, variance=9.0)], NUMBERS)


def denormalization():
    layer = keras.layers.Normalization(invert=True)
    layer.adapt(NUMBERS / 10)
    return model_of([layer], NUMBERS / 100)


def normalization_in_the_cell():
    layer = keras.layers.Normalization()
    layer.adapt(NUMBERS)
    given = keras.Input((WIDTH,), name="x")
    z, h = keras.Input((WIDTH,)), keras.Input((WIDTH,))
    cell = keras.Model([z, h], keras.ops.tanh(0.3 * z + layer(h)))
    return keras.Model(given, tfdeq.DEQLayer(cell)(given)), NUMBERS


def discretization():
    layer = keras.layers.Discretization(num_bins=4, output_mode="one_hot")
    layer.adapt(NUMBERS)
    return model_of([layer], NUMBERS)


def discretization_given():
    layer = keras.layers.Discretization(bin_boundaries=[3.0, 5.0, 7.0])
    return model_of([layer, keras.layers.Embedding(4, 3)], NUMBERS)


def integer_lookup(solves=False):
    layer = keras.layers.IntegerLookup()
    layer.adapt(CODES[:, :2])
    return model_of([layer, keras.layers.Embedding(8, 3)], CODES, dtype="int64", solves=solves)


def integer_lookup_given():
    layer = keras.layers.IntegerLookup(vocabulary=[10, 12, 13], output_mode="multi_hot")
    return model_of([layer], CODES, dtype="int64")


def string_lookup(solves=False):
    layer = keras.layers.StringLookup()
    layer.adapt(WORDS[:3])
    return model_of([layer, keras.layers.Embedding(5, 3)], WORDS, (1,), "string", None, solves)


def string_lookup_tf_idf():
    layer = keras.layers.StringLookup(output_mode="tf_idf")
    layer.adapt(WORDS[[0, 0, 1, 2]])
    return model_of([layer], WORDS, (1,), "string")


def text_vectorization():
    layer = keras.layers.TextVectorization(output_sequence_length=3)
    layer.adapt(["solve the residual", "step by step"])
    texts = np.array([["solve step"], ["the residual of a step"]], dtype=object)
    return model_of([layer, keras.layers.Embedding(9, 3)], texts, (1,), "string")


def hashing():
    return model_of(
        [keras.layers.Hashing(num_bins=6), keras.layers.Embedding(6, 3)], CODES, dtype="int64"
    )


def category_encoding():
    layer = keras.layers.CategoryEncoding(num_tokens=16, output_mode="count")
    return model_of([layer], CODES, dtype="int64")


def batch_normalization():
    layer = keras.layers.BatchNormalization()
    model, x = model_of([layer], NUMBERS)
    layer(NUMBERS, training=True)
    return model, x


def spectral_normalization():
    layer = keras.layers.SpectralNormalization(keras.layers.Dense(WIDTH))
    model, x = model_of([layer], NUMBERS)
    layer(NUMBERS, training=True)
    return model, x


def quantised(mode, solves=False):
    def after(model):
        with warnings.catch_warnings():  # of layers without weights, which it leaves as they are
            warnings.simplefilter("ignore")
            model.quantize(mode)

    return lambda: model_of([keras.layers.Dense(8)], NUMBERS, after=after, solves=solves)


def with_lora(model):
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dense):
            layer.enable_lora(2)
            layer.lora_kernel_b.assign(0.1 * np.ones(layer.lora_kernel_b.shape))


def lora(solves=False):
    return model_of([keras.layers.Dense(8)], NUMBERS, after=with_lora, solves=solves)


def lora_of_embedding():
    def after(model):
        model.layers[1].enable_lora(2)
        model.layers[1].lora_embeddings_b.assign(np.ones([2, 3]))

    return model_of([keras.layers.Embedding(16, 3)], CODES, dtype="int64", after=after)


def compiled():
    model, x = normalization()
    model.compile("adam", "mse")
    model.fit(x, np.zeros([len(x), 3]), epochs=1, verbose=0)
    return model, x


MODELS = {
    "Normalization": normalization,
    "Normalization, given": normalization_given,
    "Normalization, inverse": denormalization,
    "Discretization": discretization,
    "Discretization, given": discretization_given,
    "IntegerLookup": integer_lookup,
    "IntegerLookup, given": integer_lookup_given,
    "StringLookup": string_lookup,
    "StringLookup, tf-idf": string_lookup_tf_idf,
    "TextVectorization": text_vectorization,
    "Hashing": hashing,
    "CategoryEncoding": category_encoding,
    "BatchNormalization": batch_normalization,
    "SpectralNormalization": spectral_normalization,
    "int8": quantised("int8"),
    "int4": quantised("int4"),
    "LoRA": lora,
    "LoRA, of an embedding": lora_of_embedding,
    "compiled and trained": compiled,
}


def plain_signature(model):
    """Faster to trace than those of an equilibrium."""
    function = tf.function(lambda x: {"output_0": model(x, training=False)}, autograph=False)
    spec = tf.TensorSpec([None, *model.input.shape[1:]], model.input.dtype, "x")
    return {"serving_default": function.get_concrete_function(spec)}


def check_it_comes_back(model, x, folder, signatures=None, settings=(), from_keras=True, only=None):
    """Compares it with the models from a version and a .keras file, and with the served answers."""
    x = tf.constant(x)
    path = saved_model.export(model, folder / "output", signatures, only=only)
    loaded = serving.load_model(path)
    expected = np.asarray(model(x))
    # A merged LoRA kernel is rounded differently, and a solve ends at a tolerance of 1e-5.
    np.testing.assert_allclose(loaded(x), expected, atol=5e-5)
    assert getattr(loaded, "optimizer", None) is None
    if from_keras:
        model.save(folder / "model.keras")
        of_keras = keras.models.load_model(folder / "model.keras", compile=False)
        np.testing.assert_allclose(loaded(x), of_keras(x), atol=5e-5)
    # The served answer is also the model's, including tables.
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    np.testing.assert_allclose(served(x=x, **dict(settings))["output_0"], expected, atol=5e-5)
    return loaded


@pytest.mark.parametrize(
    "name",
    fast(
        ["Normalization", "TextVectorization", "int8", "LoRA"],
        MODELS,
    ),
)
def test_a_model_comes_back_as_it_was(name, tmp_path):
    model, x = MODELS[name]()
    loaded = check_it_comes_back(model, x, tmp_path, plain_signature(model))
    # As the next version.
    check_it_comes_back(loaded, x, tmp_path, plain_signature(loaded), from_keras=False)


SOLVING = {
    "Normalization, in the cell": normalization_in_the_cell,
    "IntegerLookup": lambda: integer_lookup(solves=True),
    "StringLookup": lambda: string_lookup(solves=True),
    "int8": lambda: quantised("int8", solves=True)(),
    "LoRA": lambda: lora(solves=True),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "IntegerLookup" else pytest.mark.slow)
        for name in SOLVING
    ],
)
def test_an_equilibrium_with_such_layers_comes_back(name, tmp_path):
    model, x = SOLVING[name]()
    settings = {"tolerance": tf.zeros([len(x)]), "max_steps": tf.zeros([len(x)], tf.int32)}
    check_it_comes_back(model, x, tmp_path, settings=settings, only=[])


@pytest.mark.slow
def test_both_runtimes_look_up_what_the_model_does(tmp_path):
    model, x = integer_lookup(solves=True)
    path = saved_model.export(model, tmp_path, examples={"x": x}, batch_sizes=[1, 2])
    checks, _ = verify.verify(model, path, {"x": x})
    assert [check for check in checks if not check.passed] == []


def test_texts_are_not_verified(tmp_path):
    model, x = string_lookup()
    with pytest.raises(ValueError, match="inputs x are text; only numbers are asked"):
        verify.verify(model, tmp_path, {"x": x})


def test_seeds_and_statistics_that_no_layer_saves_come_back(tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((WIDTH,), name="x")
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.Dropout(0.5)(x)))
    model(NUMBERS, training=True)
    loaded = serving.load_model(saved_model.export(model, tmp_path, plain_signature(model)))
    np.testing.assert_array_equal(model(NUMBERS, training=True), loaded(NUMBERS, training=True))


def test_weights_are_written_once(tmp_path):
    model, _ = normalization()
    path = saved_model.export(model, tmp_path, plain_signature(model))
    state = path / "assets.extra" / "keras_state"
    assert [file.name for file in state.iterdir()] == ["index.json"]
    model, _ = lora()
    path = saved_model.export(model, tmp_path, plain_signature(model))
    state = path / "assets.extra" / "keras_state"
    assert (state / "arrays.npz").stat().st_size < 4000  # two small merged kernels


@keras.saving.register_keras_serializable(package="export_loading_layers_test")
class Scale(keras.layers.Layer):
    """Forgets its factor in get_config."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return keras.layers.Layer.get_config(self)


@keras.saving.register_keras_serializable(package="export_loading_layers_test")
class Forgetful(keras.layers.Layer):
    """Does not save one of its weights."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return self.scale * x

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass


@keras.saving.register_keras_serializable(package="export_loading_layers_test")
class Drops(Forgetful):
    """Saves its weight, and does not load it."""

    def save_own_variables(self, store):
        store["scale"] = self.scale


@keras.saving.register_keras_serializable(package="export_loading_layers_test")
class Odd(Forgetful):
    """Saves a value that is not a number."""

    def save_own_variables(self, store):
        store["scale"] = object()


def test_a_model_that_would_come_back_as_another_is_refused(tmp_path):
    def refused(layer, text):
        model, _ = model_of([layer], NUMBERS)
        if hasattr(layer, "scale"):
            layer.scale.assign(3.0)
        with pytest.raises(ValueError, match=text):
            saved_model.export(model, tmp_path / "output", plain_signature(model))
        assert not (tmp_path / "output").exists() or not any((tmp_path / "output").iterdir())
        return model

    model = refused(
        Scale(2.0), r"would not restore the model .* answers .* differ.*keras_model=False"
    )
    refused(Scale(1.001), r"would not restore the model .* answers .* differ")
    refused(Drops(), r"'layers/drops/scale' is not the same after loading it")
    refused(Odd(), r"layers/odd/scale.*save_own_variables.*keras_model=False")
    # It can still be exported for serving alone.
    path = saved_model.export(model, tmp_path / "output", plain_signature(model), keras_model=False)
    with pytest.raises(FileNotFoundError, match="keras_model=False"):
        serving.load_model(path)


def test_a_weight_that_its_layer_does_not_save_comes_back(tmp_path):
    layer = Forgetful()
    model, x = model_of([layer], NUMBERS)
    layer.scale.assign(3.0)
    path = saved_model.export(model, tmp_path, plain_signature(model))
    np.testing.assert_allclose(serving.load_model(path)(x), model(x), atol=5e-5)


def test_a_vocabulary_that_its_file_does_not_hold_is_refused(tmp_path):
    layer = keras.layers.StringLookup()
    layer.adapt([["a\nb"], ["c"]])  # Keras writes one word per line
    model, _ = model_of([layer, keras.layers.Embedding(5, 3)], WORDS, (1,), "string")
    with pytest.raises(ValueError, match="would not restore the model"):
        saved_model.export(model, tmp_path, plain_signature(model))


def test_a_class_that_is_not_registered_needs_custom_objects(tmp_path):
    class Plain(keras.layers.Layer):
        def call(self, x):
            return 2.0 * x

    model, x = model_of([Plain()], NUMBERS)
    path = saved_model.export(model, tmp_path, plain_signature(model))
    with pytest.raises(TypeError, match="Plain"):
        serving.load_model(path)
    loaded = serving.load_model(path, custom_objects={"Plain": Plain})
    np.testing.assert_allclose(loaded(x), model(x), atol=5e-5)


@keras.saving.register_keras_serializable(package="export_loading_layers_test")
class Noise(keras.layers.Layer):
    """Adds noise in inference too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


@pytest.mark.parametrize("noisy", [False, True])
def test_the_check_leaves_random_numbers_and_the_model_alone(noisy):
    model, x = model_of([Noise()], NUMBERS) if noisy else normalization()
    random.seed(3)
    expected = random.random()
    before = [variable.numpy().tobytes() for variable in model.variables]
    random.seed(3)
    restored_model.check(model, loading.describe(model))
    assert random.random() == expected
    assert [variable.numpy().tobytes() for variable in model.variables] == before
    assert np.array_equal(model(x), model(x)) is not noisy


def test_a_version_that_is_not_whole(tmp_path):
    model, _ = normalization()
    path = saved_model.export(model, tmp_path, plain_signature(model))
    shutil.rmtree(path / "assets.extra" / "keras_state")
    with pytest.raises(manifest.ChangedVersionError, match="missing: assets.extra/keras_state"):
        serving.load_model(path)
    # An older release stored no state of layers, and wrote no manifest.
    (path / "assets.extra" / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"older release.*Export the model again"):
        serving.load_model(path)


def test_a_table_that_no_layer_holds_is_refused(tmp_path):
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1]), tf.constant([1.0, 2.0])), 0.0
    )
    model, _ = model_of([], NUMBERS)
    function = tf.function(
        lambda x: {"y": model(x) * table.lookup(tf.constant([0]))}, autograph=False
    )
    traced = function.get_concrete_function(tf.TensorSpec([None, WIDTH], tf.float32, "x"))
    with pytest.raises(ValueError, match=r"an attribute of a layer.*Make it an attribute"):
        saved_model.export(model, tmp_path, {"serving_default": traced})
    assert not any(tmp_path.iterdir())

"""How each class in keras.layers is created and called inside a cell; see cell_layers_test.py."""

import inspect

import keras
from keras import layers, ops

VECTOR, SEQUENCE, IMAGE, VOLUME = (6,), (5, 4), (8, 8, 3), (4, 4, 4, 2)
PICTURES = (4, 6, 6, 2)  # a sequence of images


def _small():
    return keras.initializers.RandomNormal(stddev=0.2, seed=3)


# How a layer is called with the state z and the input x.
def on_z(layer, z, x, **settings):
    return layer(z, **settings)


def on_x(layer, z, x, **settings):
    return layer(x, **settings)


def on_both(layer, z, x, **settings):
    return layer([z, x], **settings)


def as_arguments(layer, z, x, **settings):
    return layer(z, x, **settings)


def as_recurrent_cell(layer, z, x, **settings):
    sizes = keras.tree.flatten(layer.state_size)
    return layer(x, [z] * len(sizes), **settings)[0]


def on_tokens(layer, z, x, **settings):
    """Calls the layer on integers 0 to 3, to which the input x is rounded."""
    tokens = ops.cast(ops.clip(ops.floor(2.0 + x), 0, 3), "int32")
    return layer(tokens, **settings)


def on_pairs_of_tokens(layer, z, x, **settings):
    tokens = ops.cast(ops.clip(ops.floor(2.0 + x), 0, 3), "int32")[:, :1]
    return layer((tokens, tokens + 1), **settings)


def on_one_token(layer, z, x, **settings):
    return on_tokens(layer, z, x[:, :1], **settings)


@keras.saving.register_keras_serializable(package="tfdeq_tests")
def sine(x):
    return ops.sin(x)


STYLES = {
    style.__name__: style
    for style in (
        on_z,
        on_x,
        on_both,
        as_arguments,
        as_recurrent_cell,
        on_tokens,
        on_pairs_of_tokens,
        on_one_token,
    )
}

_CONVOLUTION = {"padding": "same", "kernel_initializer": _small}
_RECURRENT = {"kernel_initializer": _small, "recurrent_initializer": _small}


def _made(kind, *args, **settings):
    """Returns a function that makes the layer, with new initialisers each time."""
    return lambda: kind(*args, **{k: v() if v is _small else v for k, v in settings.items()})


def _table():
    one = {
        name: (VECTOR, "on_z", _made(getattr(layers, name)))
        for name in [
            "ActivityRegularization",
            "ELU",
            "Identity",
            "LeakyReLU",
            "PReLU",
            "ReLU",
            "Softmax",
            "UnitNormalization",
            "LayerNormalization",
            "RMSNormalization",
            "Flatten",
            "BatchNormalization",
        ]
    }
    pairs = {
        name: (VECTOR, "on_both", _made(getattr(layers, name)))
        for name in ["Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract"]
    }
    pooled = {}
    for rank, shape in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME)):
        for kind in ("Average", "Max"):
            pooled[f"{kind}Pooling{rank}D"] = (shape, "on_z", {"pool_size": 2})
            pooled[f"Global{kind}Pooling{rank}D"] = (shape, "on_z", {})
            pooled[f"Adaptive{kind}Pooling{rank}D"] = (shape, "on_z", {"output_size": 2})
        pooled[f"Cropping{rank}D"] = (shape, "on_z", {"cropping": 1})
        pooled[f"ZeroPadding{rank}D"] = (shape, "on_z", {})
        pooled[f"UpSampling{rank}D"] = (shape, "on_z", {"size": 2})
        pooled[f"SpatialDropout{rank}D"] = (shape, "on_z", {"rate": 0.3, "seed": 1})
        for kind in (f"Conv{rank}D", f"Conv{rank}DTranspose"):
            settings = {"filters": shape[-1], "kernel_size": 3, **_CONVOLUTION}
            pooled[kind] = (shape, "on_z", settings)
    pooled = {
        name: (shape, style, _made(getattr(layers, name), **settings))
        for name, (shape, style, settings) in pooled.items()
    }
    return {**one, **pairs, **pooled, **_others(), **_images()}


def _others():
    dense = lambda: layers.Dense(4, kernel_initializer=_small())  # noqa: E731
    return {
        "Activation": (VECTOR, "on_z", lambda: layers.Activation("tanh")),
        "AdditiveAttention": (SEQUENCE, "on_both", layers.AdditiveAttention),
        "AlphaDropout": (VECTOR, "on_z", lambda: layers.AlphaDropout(0.3, seed=1)),
        "Attention": (SEQUENCE, "on_both", lambda: layers.Attention(use_scale=True)),
        "Bidirectional": (
            SEQUENCE,
            "on_z",
            lambda: layers.Bidirectional(
                _made(layers.GRU, 2, **_RECURRENT, return_sequences=True)()
            ),
        ),
        "CategoryEncoding": (VECTOR, "on_tokens", lambda: layers.CategoryEncoding(4)),
        "ConvLSTM1D": (
            (3, 6, 2),
            "on_z",
            _made(layers.ConvLSTM1D, 2, 3, padding="same", **_RECURRENT),
        ),
        "ConvLSTM2D": (
            PICTURES,
            "on_z",
            _made(layers.ConvLSTM2D, 2, 3, padding="same", **_RECURRENT),
        ),
        "ConvLSTM3D": (
            (2, 3, 3, 3, 2),
            "on_z",
            _made(layers.ConvLSTM3D, 2, 3, padding="same", **_RECURRENT),
        ),
        "Dense": (VECTOR, "on_z", _made(layers.Dense, 6, kernel_initializer=_small)),
        "DepthwiseConv1D": (
            SEQUENCE,
            "on_z",
            _made(layers.DepthwiseConv1D, 3, padding="same", depthwise_initializer=_small),
        ),
        "DepthwiseConv2D": (
            IMAGE,
            "on_z",
            _made(layers.DepthwiseConv2D, 3, padding="same", depthwise_initializer=_small),
        ),
        "Discretization": (VECTOR, "on_x", lambda: layers.Discretization([-1.0, 0.0, 1.0])),
        "Dot": (VECTOR, "on_both", lambda: layers.Dot(1)),
        "Dropout": (VECTOR, "on_z", lambda: layers.Dropout(0.3, seed=1)),
        "EinsumDense": (
            SEQUENCE,
            "on_z",
            _made(layers.EinsumDense, "btc,cd->btd", (5, 4), kernel_initializer=_small),
        ),
        "Embedding": (VECTOR, "on_tokens", lambda: layers.Embedding(4, 3)),
        "GaussianDropout": (VECTOR, "on_z", lambda: layers.GaussianDropout(0.3, seed=1)),
        "GaussianNoise": (VECTOR, "on_z", lambda: layers.GaussianNoise(0.3, seed=1)),
        "GroupNormalization": (VECTOR, "on_z", lambda: layers.GroupNormalization(2)),
        "GroupedQueryAttention": (
            SEQUENCE,
            "as_arguments",
            _made(layers.GroupQueryAttention, 2, 2, 1, dropout=0.1, kernel_initializer=_small),
        ),
        "GRU": (SEQUENCE, "on_z", _made(layers.GRU, 4, return_sequences=True, **_RECURRENT)),
        "GRUCell": (VECTOR, "as_recurrent_cell", _made(layers.GRUCell, 6, **_RECURRENT)),
        "HashedCrossing": (VECTOR, "on_pairs_of_tokens", lambda: layers.HashedCrossing(4)),
        "Hashing": (VECTOR, "on_tokens", lambda: layers.Hashing(4)),
        "IntegerLookup": (
            VECTOR,
            "on_tokens",
            lambda: layers.IntegerLookup(vocabulary=[0, 1, 2], num_oov_indices=1),
        ),
        "Lambda": (VECTOR, "on_z", lambda: layers.Lambda(sine, output_shape=(6,))),
        "LSTM": (SEQUENCE, "on_z", _made(layers.LSTM, 4, return_sequences=True, **_RECURRENT)),
        "LSTMCell": (VECTOR, "as_recurrent_cell", _made(layers.LSTMCell, 6, **_RECURRENT)),
        "Masking": (SEQUENCE, "on_x", layers.Masking),
        "MelSpectrogram": (
            (64,),
            "on_x",
            lambda: layers.MelSpectrogram(fft_length=16, sequence_stride=8, num_mel_bins=4),
        ),
        "MultiHeadAttention": (
            SEQUENCE,
            "as_arguments",
            _made(layers.MultiHeadAttention, 2, 2, dropout=0.1, kernel_initializer=_small),
        ),
        "Normalization": (
            VECTOR,
            "on_z",
            lambda: layers.Normalization(mean=0.1, variance=2.0),
        ),
        "Permute": (SEQUENCE, "on_z", lambda: layers.Permute((2, 1))),
        "RepeatVector": (VECTOR, "on_z", lambda: layers.RepeatVector(2)),
        "Rescaling": (VECTOR, "on_z", lambda: layers.Rescaling(0.5, 0.1)),
        "Reshape": (VECTOR, "on_z", lambda: layers.Reshape((2, 3))),
        "ReversibleEmbedding": (VECTOR, "on_tokens", lambda: layers.ReversibleEmbedding(4, 3)),
        "RNN": (
            SEQUENCE,
            "on_z",
            lambda: layers.RNN(
                _made(layers.SimpleRNNCell, 4, **_RECURRENT)(), return_sequences=True
            ),
        ),
        "SeparableConv1D": (
            SEQUENCE,
            "on_z",
            _made(layers.SeparableConv1D, 4, 3, padding="same", pointwise_initializer=_small),
        ),
        "SeparableConv2D": (
            IMAGE,
            "on_z",
            _made(layers.SeparableConv2D, 3, 3, padding="same", pointwise_initializer=_small),
        ),
        "SimpleRNN": (
            SEQUENCE,
            "on_z",
            _made(layers.SimpleRNN, 4, return_sequences=True, dropout=0.2, **_RECURRENT),
        ),
        "SimpleRNNCell": (
            VECTOR,
            "as_recurrent_cell",
            _made(layers.SimpleRNNCell, 6, **_RECURRENT),
        ),
        "SpectralNormalization": (
            SEQUENCE,
            "on_z",
            lambda: layers.SpectralNormalization(layers.Dense(4)),
        ),
        "StackedRNNCells": (
            VECTOR,
            "as_recurrent_cell",
            lambda: layers.StackedRNNCells(
                [_made(layers.SimpleRNNCell, 6, **_RECURRENT)() for _ in range(2)]
            ),
        ),
        "STFTSpectrogram": (
            (64, 1),
            "on_x",
            lambda: layers.STFTSpectrogram(frame_length=16, frame_step=8, fft_length=16),
        ),
        "TimeDistributed": (SEQUENCE, "on_z", lambda: layers.TimeDistributed(dense())),
    }


def _images():
    """Layers that change images, for which they are applied to the input x."""
    settings = {
        "AutoContrast": {"value_range": (-3, 3)},
        "CenterCrop": {"height": 4, "width": 4},
        "ContrastLimitedAdaptiveHistogramEqualization": {"value_range": (-3, 3)},
        "Equalization": {"value_range": (-3, 3)},
        "RandAugment": {"value_range": (-3, 3), "seed": 1},
        "RandomBrightness": {"factor": 0.3, "value_range": (-3, 3), "seed": 1},
        "RandomColorDegeneration": {"factor": 0.3, "value_range": (-3, 3), "seed": 1},
        "RandomColorJitter": {
            "value_range": (-3, 3),
            "brightness_factor": 0.3,
            "seed": 1,
        },
        "RandomContrast": {"factor": 0.3, "value_range": (-3, 3), "seed": 1},
        "RandomCrop": {"height": 4, "width": 4, "seed": 1},
        "RandomElasticTransform": {"value_range": (-3, 3), "seed": 1},
        "RandomErasing": {"value_range": (-3, 3), "seed": 1},
        "RandomFlip": {"seed": 1},
        "RandomGaussianBlur": {"value_range": (-3, 3), "seed": 1},
        "RandomGrayscale": {"factor": 0.5, "seed": 1},
        "RandomHue": {"factor": 0.3, "value_range": (-3, 3), "seed": 1},
        "RandomInvert": {"value_range": (-3, 3), "seed": 1},
        "RandomPerspective": {"seed": 1},
        "RandomPosterization": {"factor": 4, "value_range": (-3, 3), "seed": 1},
        "RandomRotation": {"factor": 0.2, "seed": 1},
        "RandomSaturation": {"factor": 0.3, "value_range": (-3, 3), "seed": 1},
        "RandomSharpness": {"factor": 0.3, "value_range": (-3, 3), "seed": 1},
        "RandomShear": {"x_factor": 0.2, "seed": 1},
        "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2, "seed": 1},
        "RandomZoom": {"height_factor": 0.2, "seed": 1},
        "Resizing": {"height": 4, "width": 4},
        "Solarization": {"value_range": (-3, 3), "seed": 1},
    }
    table = {
        name: (IMAGE, "on_x", _made(getattr(layers, name), **values))
        for name, values in settings.items()
    }
    table["Pipeline"] = (VECTOR, "on_z", lambda: layers.Pipeline([layers.Rescaling(0.5)]))
    return table


CASES = _table()

# Layers that cannot be part of a cell, and why.
EXCLUDED = {
    "AugMix": "draws from Python's random module, anew in every application",
    "CutMix": "mixes images with their labels: wants a dict of both",
    "FlaxLayer": "wants the JAX backend",
    "InputLayer": "stands for an input and computes nothing",
    "JaxLayer": "wants the JAX backend",
    "Layer": "is the base class",
    "MaxNumBoundingBoxes": "changes lists of bounding boxes, a dict",
    "MixUp": "mixes images with their labels: wants a dict of both",
    "StringLookup": "takes strings, and a solve's input is of numbers",
    "TextVectorization": "takes strings, and a solve's input is of numbers",
    "TFSMLayer": "is a SavedModel, whose variables Keras does not hand out",
    "TorchModuleWrapper": "wants the Torch backend",
    "Wrapper": "is the base class of wrappers",
}

# Layers that plain Keras cannot load from a .keras file either, and why.
NOT_LOADED = {"RandomShear": "its own get_config has factors that its constructor refuses"}

# The fast part of the test: a layer with statistics, and one with a seed.
QUICK = ["BatchNormalization", "Dropout"]


def layer_classes() -> dict[str, type]:
    """Every class in keras.layers, once, by its own name."""
    found = [getattr(layers, name) for name in dir(layers)]
    kinds = [one for one in found if inspect.isclass(one) and issubclass(one, layers.Layer)]
    return {kind.__name__: kind for kind in kinds}

"""Language models with a carried memory, and requests to them, for several tests of the export."""

import functools

import keras
import numpy as np
import tensorflow as tf

import tfdeq
from tfdeq.baselines import Recurrent, TemporalConvolution, TransformerStack, TrellisNetwork
from tfdeq.cells import TransformerCell, TrellisCell
from tfdeq.models import ExplicitLanguageModel, LanguageModel
from tfdeq.serving.signatures.language_model_signatures import language_model_signatures
from tfdeq.serving.signatures.signature import solving_of
from tfdeq.serving.signatures.text.continue_text import ContinueText, empty_memory

VOCABULARY, LENGTH, WIDTH = 17, 10, 16


def training_step(model):
    """Returns (tokens, memory) -> (loss, memory, gradients) of a model that predicts its own tokens."""

    def step(tokens, memory):
        with tf.GradientTape() as tape:
            losses, after = model(tokens, targets=tokens, memory=memory, training=True)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        return loss, after, [tf.convert_to_tensor(gradient) for gradient in gradients]

    return step


def equilibrium(**settings):
    keras.utils.set_random_seed(3)
    solver = tfdeq.Anderson(max_steps=80, tolerance=1e-6)
    span, dtype = settings.pop("span", None), settings.get("dtype")
    if "cell" not in settings:
        settings["cell"] = TransformerCell(
            WIDTH, 2, LENGTH, recurrent_scale=0.4, span=span, dtype=dtype
        )
    model = LanguageModel(VOCABULARY, LENGTH, **{"width": WIDTH, "solver": solver, **settings})
    model.build((None, LENGTH))
    return model


def explicit(network):
    keras.utils.set_random_seed(3)
    model = ExplicitLanguageModel(VOCABULARY, LENGTH, WIDTH, network)
    model.build((None, LENGTH))
    return model


def trellis(**settings):
    return equilibrium(cell=TrellisCell(WIDTH, 3, recurrent_scale=0.5), **settings)


MODELS = {
    "span": lambda: equilibrium(span=4),
    "long span, cutoffs": lambda: equilibrium(
        cell=TransformerCell(WIDTH, 2, LENGTH, span=15, recurrent_scale=0.4, query_key_norm=True),
        cutoffs=[5],
        tied_output=True,
    ),
    "trellis": trellis,
    "lstm": lambda: explicit(Recurrent(WIDTH, layers=2)),
    "tcn": lambda: explicit(TemporalConvolution(WIDTH, layers=2)),
    "transformer": lambda: explicit(TransformerStack(WIDTH, 2, LENGTH, layers=2, span=4)),
    "trellisnet": lambda: explicit(TrellisNetwork(WIDTH, layers=3)),
}


class Served:
    """A model and its `continue_text`."""

    def __init__(self, model, jit_compile=False):
        self.model = model
        self.signature = ContinueText().traced(model, solving_of(model), jit_compile)

    @functools.cached_property
    def functions(self):
        """All signatures; traced once for all tests."""
        return {
            name: signature.function
            for name, signature in language_model_signatures(self.model).items()
        }

    def __call__(self, tokens, lengths, memory=None):
        batch = len(tokens)
        memory = empty_memory(self.model, batch) if memory is None else memory
        found = self.signature.function(
            tokens=tf.constant(tokens, tf.int32),
            lengths=tf.constant(lengths, tf.int32),
            tolerance=tf.zeros([batch]),
            max_steps=tf.zeros([batch], tf.int32),
            **{name: tf.constant(value) for name, value in memory.items()},
        )
        return {name: value.numpy() for name, value in found.items()}


def memory_in(outputs):
    return {name: value for name, value in outputs.items() if name.startswith("memory_")}


TEXT = np.random.default_rng(5).integers(0, VOCABULARY, (3, 34)).astype(np.int32)


def segments(texts, calls, padding=-7):
    """The tokens [B, T] of each call."""
    places = np.zeros(len(texts), int)
    for lengths in calls:
        tokens = np.full([len(texts), lengths.max()], padding, np.int32)
        for row, length in enumerate(lengths):
            tokens[row, :length] = texts[row, places[row] : places[row] + length]
        places += lengths
        yield tokens


def converse(served, texts, calls):
    """Returns the log likelihoods of each text after its first token, and the last answer."""
    parts, answer = [[] for _ in texts], None
    for tokens, lengths in zip(segments(texts, calls), calls, strict=True):
        last = answer
        answer = served(tokens, lengths, None if last is None else memory_in(last))
        for row, length in enumerate(lengths):
            part = answer["log_likelihood"][row, :length].copy()
            assert part[0] == 0
            if last is not None:
                part[0] = last["log_probabilities"][row, tokens[row, 0]]
            parts[row].append(part)
    return [np.concatenate(part)[1:] for part in parts], answer

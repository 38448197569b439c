"""The signature `serve_encoded` of models of pictures: `serving_default` from PNG and JPEG files."""

import tensorflow as tf

from tfdeq.data.images.encoded import MOST_PIXELS, read_batch
from tfdeq.serving.signatures.signature import (
    INVALID,
    SETTING_SPECS,
    SETTINGS,
    STATUS_TEXTS,
    Signature,
    input_specs,
    trace,
)

SERVE_ENCODED = "serve_encoded"
ENCODED = "encoded"
_MEANING = (
    "[B] string: the bytes of a PNG or JPEG file of at most "
    f"{MOST_PIXELS:,} pixels. It is decoded without its transparency, scaled to the model's rows and columns "
    "without regard to its proportions, and divided by 255, as in the training data."
)
PICTURE_STATUS_TEXTS = {
    **STATUS_TEXTS,
    str(INVALID): (
        f"invalid: the bytes are not a PNG or JPEG file, they are broken, or the picture has more than "
        f"{MOST_PIXELS:,} pixels. steps is 0, residual the largest float32, everything else is 0. Other "
        "examples of the batch are not affected."
    ),
}
# What an example that cannot be read gets, instead of 0.
INVALID_ANSWER = {"residual": tf.float32.max, "status": INVALID}


def encoded_signature(default: Signature) -> Signature:
    """Traces `serve_encoded`: the answers of `serving_default` to pictures in files.

    A file that cannot be read gets the status INVALID; the others of its batch are answered as usual.

    Args:
        default: `serving_default` of a model whose only input are pictures [B, H, W, 1 or 3] in [0, 1], of
            one size.
    """
    (image,) = [name for name in input_specs(default.function) if name not in SETTINGS]
    shape = input_specs(default.function)[image].shape[1:].as_list()

    def serve_encoded(**given):
        pictures, readable = read_batch(given[ENCODED], shape)
        settings = {name: given[name] for name in SETTINGS}
        found = default.function(**{image: pictures}, **settings)
        return {name: _where(readable, value, name) for name, value in found.items()}

    specs = {ENCODED: tf.TensorSpec([None], tf.string, ENCODED), **SETTING_SPECS}
    return Signature(trace(serve_encoded, specs), {ENCODED: _MEANING, **SETTINGS}, default.outputs)


def _where(readable: tf.Tensor, value: tf.Tensor, name: str) -> tf.Tensor:
    row = tf.reshape(readable, tf.concat([[-1], tf.ones([tf.rank(value) - 1], tf.int32)], 0))
    return tf.where(row, value, tf.cast(INVALID_ANSWER.get(name, 0), value.dtype))

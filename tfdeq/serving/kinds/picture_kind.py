"""A model that says what pictures show, with `serve_encoded` for PNG and JPEG files."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.data.images.encoded import decoded, resized, scaled
from tfdeq.serving.kinds.keras_kind import KerasKind
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.signatures.encoded_signature import (
    ENCODED,
    INVALID_ANSWER,
    PICTURE_STATUS_TEXTS,
    SERVE_ENCODED,
    encoded_signature,
)
from tfdeq.serving.signatures.signature import Signature
from tfdeq.serving.verification import checks, keras_checks
from tfdeq.serving.verification.questions import Questions


class PictureKind(KerasKind):
    """A Keras model whose only input are pictures [B, H, W, 1 or 3] in [0, 1], of one size."""

    def signature_names(self) -> list[str]:
        return [*super().signature_names(), SERVE_ENCODED]

    def traced(self, only: Collection[str] | None = None, **settings: Any) -> dict[str, Signature]:
        found = super().traced(only, **settings)
        if only is not None and SERVE_ENCODED not in only:
            return found
        return {**found, SERVE_ENCODED: encoded_signature(found["serving_default"])}

    def warm_up(self) -> Mapping[str, np.ndarray] | None:
        if self._examples is None:
            return None
        (pictures,) = self._examples.values()
        return {**self._examples, ENCODED: _strings([_png(_bytes(each)) for each in pictures])}

    def card(self, max_steps_limit: int | None) -> dict[str, Any]:
        return {**super().card(max_steps_limit), "status": PICTURE_STATUS_TEXTS}

    def questions(self, card: Mapping[str, Any]) -> Questions:
        found = super().questions(card)
        if SERVE_ENCODED not in card["signatures"]:
            return found
        limit = card.get("max_steps_limit") or 1
        (name,) = self._examples
        requests = encoded_requests(self._examples[name])
        references = [self._references(name, request, limit) for request in requests]
        return found._replace(
            batches=[*found.batches, *requests], references=[*found.references, *references]
        )

    def _references(self, name: str, request: Request, limit: int) -> list[checks.Outputs]:
        """Returns the model's answers to files that are read as training data is."""
        files = request.inputs[ENCODED]
        shape = self.model.input_shape[1:]
        pictures = [_read(content, shape) for content in files]
        given = {key: value for key, value in request.inputs.items() if key != ENCODED}
        blank = np.zeros(shape, np.float32)
        given[name] = np.stack([blank if one is None else one for one in pictures])
        asked = Request(request.name, "serving_default", given)
        (rows,) = keras_checks.references(self.model, self._inputs, [asked], limit)
        return [
            _invalid(row) if one is None else row for one, row in zip(pictures, rows, strict=True)
        ]


def encoded_requests(pictures: np.ndarray) -> list[Request]:
    """Returns requests for `serve_encoded`: PNG and JPEG files, other sizes, and broken files.

    Args:
        pictures: [N, H, W, C] in [0, 1], N >= 3.
    """
    one, two, three = (_bytes(each) for each in pictures[:3])
    grey, colour = one[..., :1], np.repeat(one[..., :1], 3, axis=-1)
    larger = np.kron(two, np.ones((2, 3, 1), np.uint8))
    png, jpeg = _png(one), tf.io.encode_jpeg(two).numpy()
    return [
        _request("PNG", [png, _png(two), _png(three)]),
        _request("JPEG", [jpeg, tf.io.encode_jpeg(three).numpy()]),
        _request("other sizes and channels", [_png(larger), _png(grey), _png(colour)]),
        _request(
            "broken files", [png, b"", jpeg[: len(jpeg) // 2], png[:-20], b"no picture", jpeg]
        ),
    ]


def _request(name: str, files: Sequence[bytes]) -> Request:
    rows = len(files)
    inputs = {
        ENCODED: _strings(files),
        "tolerance": np.zeros([rows], np.float32),
        "max_steps": np.zeros([rows], np.int32),
    }
    return Request(name, SERVE_ENCODED, inputs)


def _read(content: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns a file's picture, read as by the training data's loader; None if that refuses it."""
    try:
        return scaled(resized(decoded(content), shape)).numpy()
    except tf.errors.InvalidArgumentError:
        return None


def _invalid(row: checks.Outputs) -> dict[str, np.ndarray]:
    return {name: np.full_like(value, INVALID_ANSWER.get(name, 0)) for name, value in row.items()}


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.round(255 * picture).astype(np.uint8)


def _png(picture: np.ndarray) -> bytes:
    return tf.io.encode_png(picture).numpy()


def _strings(files: Sequence[bytes]) -> np.ndarray:
    found = np.empty([len(files)], object)
    found[:] = files
    return found

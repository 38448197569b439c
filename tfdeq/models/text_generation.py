"""Text from a language model that knows its tokenizer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.models.generation import can_generate, generate, refusal
from tfdeq.models.token_model import TokenModel

_DTYPES = {
    "max_new_tokens": tf.int32,
    "temperature": tf.float32,
    "top_k": tf.int32,
    "top_p": tf.float32,
    "stop_token": tf.int32,
    "seed": tf.int32,
    "tolerance": tf.float32,
    "max_steps": tf.int32,
}


class TextGenerator:
    """`generate` from text to text, traced once for prompts of all lengths and for all settings.

    It holds a `tf.function`. As an attribute of the model itself that would be part of its SavedModels.

    Args:
        model: built.

    Raises:
        ValueError: a model that cannot generate.
    """

    def __init__(self, model: TokenModel):
        if not can_generate(model):
            raise ValueError(refusal(model))
        self._model = model
        self._generate = tf.function(
            lambda tokens, lengths, settings: generate(model, tokens, lengths, **settings),
            input_signature=[
                tf.TensorSpec([None, None], tf.int32),
                tf.TensorSpec([None], tf.int32),
                {name: tf.TensorSpec([None], dtype) for name, dtype in _DTYPES.items()},
            ],
        )

    def __call__(
        self, prompts: str | Sequence[str], strip_prompt: bool, settings: dict[str, Any]
    ) -> str | list[str]:
        """Returns the texts; arguments and errors as of `LanguageModel.generate`."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(
                f"prompts must be a text or a list of texts; received {prompts!r:.100}. For token ids use "
                "tfdeq.models.generate."
            )
        if not texts:
            return []
        tokenizer = self._model.tokenizer
        if tokenizer is None:
            raise ValueError(
                f"{self._model.name!r} has no tokenizer, so it cannot read text. Set its attribute "
                "`tokenizer`, for example to tfdeq.models.ByteTokenizer()."
            )
        tokens, lengths = self._encoded(texts)
        settings = {
            name: tf.broadcast_to(tf.cast(value, _DTYPES[name]), [len(texts)])
            for name, value in settings.items()
        }
        found = self._generate(tokens, lengths, settings)
        rows = zip(found.tokens.numpy(), found.lengths.numpy(), strict=True)
        answers = [tokenizer.decode(ids[:length]) for ids, length in rows]
        if not strip_prompt:
            answers = [tokenizer.joined(*pair) for pair in zip(texts, answers, strict=True)]
        return answers[0] if isinstance(prompts, str) else answers

    def _encoded(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [B, T], and their lengths [B]."""
        rows = [self._model.tokenizer.encode(text) for text in texts]
        longest = self._model.sequence_length
        for text, ids in zip(texts, rows, strict=True):
            if not 1 <= len(ids) < longest:
                raise ValueError(
                    f"A prompt must have 1 … {longest - 1} tokens, so that one more fits into the model's "
                    f"sequence_length, {longest}; received {len(ids)}: {text[:40]!r}. "
                    + ("Shorten it." if len(ids) else "Give a text that is not empty.")
                )
        lengths = np.array([len(ids) for ids in rows], np.int32)
        tokens = np.zeros([len(rows), lengths.max()], np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return tokens, lengths

"""Text from a served language model, in one call or in segments, and its tokens."""

import codecs
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tfdeq.serving.client.client_calls import NoSignatureError

# Values of `finish`; other ones are the server's -1, for a text that it cannot read.
FINISH = {
    0: "the stop token",
    1: "max_new_tokens",
    2: "the model's sequence_length",
}
_GOES_ON = 3
_STATE = "state_"  # the names of the carried state begin with it

Predict = Callable[[Mapping[str, Any], str], dict[str, np.ndarray]]  # inputs, signature


class Segment(NamedTuple):
    """New tokens of a text, from one call or from all of them."""

    text: str  # of a prompt of token ids: ""
    tokens: np.ndarray  # [N] int32, the new tokens
    finish: (
        int | None
    )  # 0: stop token, 1: max_new_tokens, 2: sequence_length; None: the text goes on
    residual: float  # the largest of its solves
    steps: int  # applications of the cell, of all its solves together
    prompt_steps: int  # those of `steps` that were on the prompt
    status: int  # the worst of its solves; see tfdeq.describe


def segments(
    predict: Predict,
    prompt: str | Any,
    vocabulary: list[str] | None,
    first_tokens: int,
    segment_tokens: int,
    settings: Mapping[str, Any],
) -> Iterator[Segment]:
    """Yields a text's new tokens, a call of the server for each segment; see `Client.segments`.

    Args:
        predict: asks the server.
        settings: the inputs of `generate`, except the text.
    """
    is_text = isinstance(prompt, str)
    text = encode_text(prompt, vocabulary) if is_text else _token_ids(prompt)
    decoder = _Decoder(vocabulary)
    sampling = {name: np.asarray([value]) for name, value in settings.items()}
    state: dict[str, np.ndarray] = {}
    drawn, finish = 0, None
    while finish is None:
        inputs = {"tokens": text[None], "lengths": np.array([len(text)], np.int32), **sampling}
        if state:
            inputs.update(state, drawn=[drawn], segment_tokens=[segment_tokens])
            answer = predict(inputs, "generate_next")
        else:
            answer = _first(predict, inputs, first_tokens)
        found = _segment(answer)
        drawn += len(found.tokens)
        text = np.concatenate([text, found.tokens])
        state = {name: value for name, value in answer.items() if name.startswith(_STATE)}
        finish = found.finish
        new = decoder.text(found.tokens, finish is not None) if is_text else ""
        yield found._replace(text=new)


def together(parts: list[Segment]) -> Segment:
    """Returns all segments of a text as one."""
    return Segment(
        "".join(part.text for part in parts),
        np.concatenate([part.tokens for part in parts]),
        parts[-1].finish,
        max(part.residual for part in parts),
        sum(part.steps for part in parts),
        sum(part.prompt_steps for part in parts),
        max(part.status for part in parts),
    )


def _first(predict: Predict, inputs: Mapping[str, Any], first_tokens: int) -> dict[str, np.ndarray]:
    try:
        return predict({**inputs, "segment_tokens": [first_tokens]}, "generate_first")
    except NoSignatureError:
        # A version that was exported before there were segments.
        return predict(inputs, "generate")


def _segment(answer: Mapping[str, np.ndarray]) -> Segment:
    """Returns the only row of an answer, without its text."""
    status, finish = int(answer["status"][0]), int(answer["finish"][0])
    if status < 0:
        raise ValueError(
            "The server rejected the text: it has more tokens than the model can read, or tokens that "
            "the model does not know. Shorten the text, or give the model's vocabulary (--vocabulary). "
            "If it rejects a text that it began, it has loaded another version since: ask again."
        )
    return Segment(
        "",
        answer["tokens"][0, : answer["lengths"][0]],
        None if finish == _GOES_ON else finish,
        float(answer["residual"][0]),
        int(answer["steps"][0]),
        int(answer["prompt_steps"][0]) if "prompt_steps" in answer else 0,
        status,
    )


def _token_ids(prompt: Any) -> np.ndarray:
    ids = np.asarray(prompt)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(
            "prompt must be a text, or token ids [T], T >= 1; received "
            f"{f'the shape {list(ids.shape)}' if ids.dtype.kind in 'iu' else repr(prompt)[:100]}."
        )
    return ids


class _Decoder:
    """Text of tokens that come in segments, which may divide the bytes of a character."""

    def __init__(self, vocabulary: list[str] | None):
        self._vocabulary = vocabulary
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def text(self, tokens: np.ndarray, last: bool) -> str:
        """Returns the text that is complete with these tokens; after the last ones, all of it."""
        if self._vocabulary is not None:
            return decode_text(tokens, self._vocabulary) if len(tokens) else ""
        _require_known(tokens, None)
        return self._bytes.decode(tokens.astype(np.uint8).tobytes(), last)


def encode_text(text: str, vocabulary: list[str] | None) -> np.ndarray:
    """Returns token ids: bytes, or words of a vocabulary.

    Raises:
        ValueError: for an empty text, or a word that is not in a vocabulary without <unk>.
    """
    if not text.strip():
        raise ValueError("The text (--text) must hold at least one character that is no space.")
    if vocabulary is None:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    ids = {word: index for index, word in enumerate(vocabulary)}
    unknown = ids.get("<unk>")
    missing = [word for word in text.split() if word not in ids]
    if missing and unknown is None:
        raise ValueError(f"Words that the vocabulary lacks: {', '.join(missing)}.")
    return np.array([ids.get(word, unknown) for word in text.split()], np.int32)


def decode_text(tokens: np.ndarray, vocabulary: list[str] | None) -> str:
    """Returns the text of token ids.

    Raises:
        ValueError: for an id that is not a byte or not in the vocabulary.
    """
    _require_known(tokens, vocabulary)
    if vocabulary is None:
        return bytes(tokens.astype(np.uint8)).decode(errors="replace")
    return " " + " ".join(vocabulary[token] for token in tokens)


def _require_known(tokens: np.ndarray, vocabulary: list[str] | None) -> None:
    size = 256 if vocabulary is None else len(vocabulary)
    beyond = [int(token) for token in tokens if not 0 <= token < size]
    if beyond:
        last = "a byte" if vocabulary is None else "the last line of --vocabulary"
        raise ValueError(
            f"The answer has the token {beyond[0]}, and {last} is {size - 1}. Name the model's "
            "--vocabulary: assets.extra/vocabulary.txt of its version."
        )

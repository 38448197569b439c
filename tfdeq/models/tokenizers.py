"""Tokenizers: from text to the token ids of a language model, and back."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

_VOCABULARY = "vocabulary.txt"
_UNKNOWN, _END_OF_LINE = "<unk>", "<eos>"


class Tokenizer(abc.ABC):
    """From text to token ids, and back.

    A preset has its configuration, `get_config`, in tokenizer.json, and its files in assets/tokenizer/. A
    class of your own is registered with `keras.saving.register_keras_serializable`.
    """

    ASSETS: ClassVar[tuple[str, ...]] = ()  # names of its files

    @property
    @abc.abstractmethod
    def vocabulary_size(self) -> int:
        """Token ids are 0 … vocabulary_size − 1."""

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Returns the token ids of a text, [T] int32.

        Raises:
            ValueError: the text has what no token stands for.
        """

    @abc.abstractmethod
    def decode(self, tokens: Any) -> str:
        """Returns the text of token ids [T].

        Raises:
            ValueError: an id outside 0 … vocabulary_size − 1.
        """

    def joined(self, text: str, continuation: str) -> str:
        """Returns a text and what `decode` gave for the tokens that follow it."""
        return text + continuation

    def assets(self) -> dict[str, str]:
        """Returns name -> text of the files that hold what the configuration does not: those of ASSETS."""
        return {}

    def restore(self, assets: Mapping[str, str]) -> None:
        """Takes what `assets` returned.

        Raises:
            ValueError: other files than those of ASSETS.
        """
        if set(assets) != set(self.ASSETS):
            raise ValueError(
                f"{type(self).__name__} has the files {list(self.ASSETS)}; received {sorted(assets)}."
            )

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def _checked(self, tokens: Any) -> np.ndarray:
        tokens = np.asarray(tokens, np.int64).reshape(-1)
        beyond = tokens[(tokens < 0) | (tokens >= self.vocabulary_size)]
        if len(beyond):
            raise ValueError(
                f"Token ids must be 0 … {self.vocabulary_size - 1}; received {int(beyond[0])}. Use the "
                "tokenizer of the model that the ids come from."
            )
        return tokens


@keras.saving.register_keras_serializable(package="tfdeq")
class ByteTokenizer(Tokenizer):
    """A token is a byte of the text's UTF-8 form; its id is its value.

    `decode` writes U+FFFD where the bytes are no UTF-8, for example where a character is cut.

    Example:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.encode("def").tolist()
        [100, 101, 102]
        >>> tokenizer.decode([100, 101, 102])
        'def'
    """

    vocabulary_size = 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: Any) -> str:
        return bytes(self._checked(tokens).astype(np.uint8)).decode(errors="replace")


@keras.saving.register_keras_serializable(package="tfdeq")
class WordTokenizer(Tokenizer):
    """A token is a word between spaces, with the id of its place in the vocabulary.

    If the vocabulary has `<eos>`, it stands for the end of a line. If it has `<unk>`, that stands for
    words that it lacks.

    Args:
        vocabulary: the words by id. None: `restore` gives them, as `from_preset` does.

    Raises:
        ValueError: a word with spaces in it, an empty word, or the same word twice.

    Example:
        >>> tokenizer = WordTokenizer(["the", "cat", "<unk>"])
        >>> tokenizer.encode("the dog").tolist()
        [0, 2]
        >>> tokenizer.decode([0, 1])
        'the cat'
    """

    ASSETS = (_VOCABULARY,)

    def __init__(self, vocabulary: Sequence[str] | None = None):
        self._set(vocabulary or ())

    def _set(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        self._ids = {word: index for index, word in enumerate(self.vocabulary)}
        wrong = [word for word in self.vocabulary if _words(word) != [word]]
        if wrong:
            raise ValueError(f"A word must be text without spaces; received {wrong[0]!r}.")
        if len(self._ids) != len(self.vocabulary):
            twice = next(w for i, w in enumerate(self.vocabulary) if self._ids[w] != i)
            raise ValueError(f"Each word must be in the vocabulary once; {twice!r} is there twice.")

    @property
    def vocabulary_size(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> np.ndarray:
        if _END_OF_LINE in self._ids:
            text = text.replace("\n", f" {_END_OF_LINE} ")
        words = _words(text)
        unknown = self._ids.get(_UNKNOWN)
        missing = [word for word in words if word not in self._ids]
        if missing and unknown is None:
            raise ValueError(
                f"The vocabulary lacks these words, and has no {_UNKNOWN} for them: "
                f"{', '.join(missing[:10])}. Use words that it has."
            )
        return np.array([self._ids.get(word, unknown) for word in words], np.int32)

    def decode(self, tokens: Any) -> str:
        words = [self.vocabulary[token] for token in self._checked(tokens)]
        lines = " ".join("\n" if word == _END_OF_LINE else word for word in words)
        return lines.replace(" \n", "\n").replace("\n ", "\n")

    def joined(self, text: str, continuation: str) -> str:
        apart = not continuation or continuation[0].isspace() or text[-1:].isspace()
        return f"{text}{'' if apart else ' '}{continuation}"

    def assets(self) -> dict[str, str]:
        return {_VOCABULARY: "".join(f"{word}\n" for word in self.vocabulary)}

    def restore(self, assets: Mapping[str, str]) -> None:
        super().restore(assets)
        self._set(_words(assets[_VOCABULARY]))


def _words(text: str) -> list[str]:
    """The words of a text as the data sets split it: by ASCII's spaces alone."""
    return [word.decode() for word in text.encode().split()]

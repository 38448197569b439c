"""The language models of `tfdeq.models`, alone or with their test text."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from tfdeq.data.windows import spread_windows
from tfdeq.models.token_model import TokenModel
from tfdeq.models.tokenizers import ByteTokenizer, Tokenizer, WordTokenizer
from tfdeq.runs.kind import VOCABULARY
from tfdeq.serving.kinds.kind import Kind
from tfdeq.serving.signatures import language_model_signatures as signatures
from tfdeq.serving.signatures.signature import Signature
from tfdeq.serving.signatures.text_requests import LANGUAGE_STATUS_TEXTS, is_equilibrium
from tfdeq.serving.verification import (
    checks,
    conversation_checks,
    language_model_checks,
    language_model_options,
    quality,
    quality_checks,
)
from tfdeq.serving.verification.questions import Questions


class LanguageModelKind(Kind):
    """A `tfdeq.models.LanguageModel` or `ExplicitLanguageModel`.

    Args:
        model: a built model.
        windows: [N, T] int32 token ids of the test text, for the table of quality and the warm-up
            records; None: without both.
        stream: [M] token ids of that text, for verification.
        trained_on: whether the text belongs to the data that the model was trained on; a verification
            cannot check the table of another text.
        vocabulary: text of a file with the words by id, one per line; None: tokens are bytes, or the
            words are unknown.

    Raises:
        ValueError: for a vocabulary of another size than the model's.
    """

    def __init__(
        self,
        model: TokenModel,
        windows: np.ndarray | None = None,
        stream: np.ndarray | None = None,
        vocabulary: str | None = None,
        trained_on: bool = True,
    ):
        super().__init__(model)
        words = None if vocabulary is None else len(vocabulary.splitlines())
        if words is not None and words != model.vocabulary_size:
            raise ValueError(
                f"The vocabulary has {words:,} lines; the model has {model.vocabulary_size:,} token "
                f"ids. Give the {VOCABULARY} of the run that trained the model."
            )
        self.text_length = model.sequence_length
        self._windows, self._stream, self._vocabulary = windows, stream, vocabulary
        self._trained_on = trained_on

    @property
    def solves(self) -> bool:
        return is_equilibrium(self.model)

    def signature_names(self) -> list[str]:
        return signatures.signature_names(self.model)

    def traced(self, only: Collection[str] | None = None, **settings: Any) -> dict[str, Signature]:
        return signatures.language_model_signatures(self.model, only=only, **settings)

    def warm_up(self) -> Mapping[str, np.ndarray] | None:
        return None if self._windows is None else signatures.examples(self._windows, self.model)

    def quality(self) -> quality.Table | None:
        if self._windows is None or not len(self._windows):
            return None
        return quality.TextTable(self._windows, self.solves)

    def call_inputs(self) -> Any:
        length = min(self.model.sequence_length, 8)
        return np.arange(length, dtype=np.int32)[None] % self.model.vocabulary_size

    def files(self) -> dict[str, str]:
        return {} if self._vocabulary is None else {VOCABULARY: self._vocabulary}

    def tokenizer(self) -> Tokenizer | None:
        if self._vocabulary is not None:
            return WordTokenizer(self._vocabulary.split("\n")[:-1])
        tokenizer = ByteTokenizer()
        return tokenizer if self.model.vocabulary_size == tokenizer.vocabulary_size else None

    def card(self, max_steps_limit: int | None) -> dict[str, Any]:
        file = None if self._vocabulary is None else VOCABULARY
        return {
            **super().card(max_steps_limit),
            "status": LANGUAGE_STATUS_TEXTS,
            "sequence_length": self.model.sequence_length,
            "vocabulary": {"size": self.model.vocabulary_size, "file": file},
        }

    def expected(self, card: Mapping[str, Any]) -> dict[str, Any]:
        # The version's words are compared with the run's, if there is a run.
        named = card.get("vocabulary") or {}
        found = super().expected(card)
        return {**found, "vocabulary": {**found["vocabulary"], "file": named.get("file")}}

    def questions(self, card: Mapping[str, Any]) -> Questions:
        model, limit, served = self.model, card.get("max_steps_limit") or 1, card["signatures"]
        asked = spread_windows(self._stream, model.sequence_length, max(checks.BATCHES))
        keras_model = language_model_checks.KerasModel(model, limit)
        batches = [
            *language_model_checks.batch_requests(model, asked),
            *language_model_options.every_token_requests(model),
            *language_model_options.settings_requests(model, asked, limit),
            *language_model_options.generate_requests(model, asked, keras_model),
        ]
        batches = [each for each in batches if each.signature in served]
        references = keras_model.references(batches)
        return Questions(
            batches,
            [checks.comparable(*pair, limit) for pair in zip(batches, references, strict=True)],
            [
                case
                for case in language_model_checks.neighbour_cases(model, asked)
                if case.request.signature in served
            ],
            language_model_checks.dial_request(model, asked),
            tolerance=model.equilibrium.solver.tolerance if self.solves else 0.0,
            explicit=not self.solves,
            invalid=[
                each
                for each in language_model_options.invalid_requests(model, asked)
                if each.signature in served
            ],
            conversation=(
                conversation_checks.Conversation(model, self._stream)
                if conversation_checks.SIGNATURE in served
                else None
            ),
            quality=(
                quality_checks.Quality(
                    self.quality() if self._trained_on else None, card.get("quality_by_tolerance")
                )
                if quality.TextTable.signature in served
                else None
            ),
        )

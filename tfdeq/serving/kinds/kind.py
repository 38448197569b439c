"""The base class of kinds, which exports and verifications use."""

import abc
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np

from tfdeq.models.tokenizers import Tokenizer
from tfdeq.serving.signatures import request_checks
from tfdeq.serving.signatures.batching import Batching
from tfdeq.serving.signatures.signature import STATUS_TEXTS, Signature, own_settings, solving_of
from tfdeq.serving.verification import quality
from tfdeq.serving.verification.questions import Questions
from tfdeq.serving.versions import model_card

BATCHING = Batching()
DEFAULT = "serving_default"  # the signature that every version has
# The card's entry with the names of signatures that the export was asked to leave out.
LEFT_OUT = "signatures_left_out"
# signature -> the one that returns the state which it takes.
_FIRST = {"step": "encode", "generate_next": "generate_first"}


class Kind(abc.ABC):
    """A model, with everything that exporting and verifying a version of it depends on.

    Args:
        model: a built model.

    Attributes:
        text_length: the longest text of a request; None if requests are not texts.
    """

    text_length: int | None = None

    def __init__(self, model: keras.Model):
        self.model = model

    @property
    @abc.abstractmethod
    def solves(self) -> bool:
        """Whether the model makes solves, so that a tolerance has an effect."""

    @abc.abstractmethod
    def signature_names(self) -> list[str]:
        """Returns the names of all signatures that the model can be served with."""

    @abc.abstractmethod
    def traced(
        self,
        *,
        jit_compile: bool,
        compaction: bool,
        max_steps_limit: int | None,
        only: Collection[str] | None = None,
    ) -> dict[str, Signature]:
        """Returns name -> signature, without checks of requests.

        Args:
            only: names of those that are needed; others may then be missing. None: all.
        """

    @abc.abstractmethod
    def questions(self, card: Mapping[str, Any]) -> Questions:
        """Returns the requests for a version with a given card, and the model's own answers."""

    def warm_up(self) -> Mapping[str, np.ndarray] | None:
        """Returns real inputs [N, …] by name, for the warm-up records; None if there are none."""
        return None

    def quality(self) -> quality.Table | None:
        """Returns the measurement of quality by tolerance; None if its data are not available."""
        return None

    def call_inputs(self) -> Any:
        """Returns some inputs, as the nest that the model is called with; None if none are known."""
        return None

    def files(self) -> dict[str, str]:
        """Returns name -> text of a version's additional files."""
        return {}

    def tokenizer(self) -> Tokenizer | None:
        """Returns what makes tokens of text; None: requests are no texts, or it is not known."""
        return None

    def card(self, max_steps_limit: int | None) -> dict[str, Any]:
        """Returns the card's entries about the model and about requests without settings."""
        own: dict[str, Any] = {"max_steps_limit": None}
        if self.solves:
            own = own_settings(self.model, solving_of(self.model, max_steps_limit))
        return {"status": STATUS_TEXTS, "parameters": self.model.count_params(), **own}

    def signatures(
        self,
        *,
        jit_compile: bool = False,
        compaction: bool = True,
        max_steps_limit: int | None = None,
        max_request_values: int | None = None,
        batching: Batching | None = BATCHING,
        only: Collection[str] | None = None,
    ) -> dict[str, Signature]:
        """Returns the signatures to serve, with checks of requests.

        Args:
            only: names of those to return. `serving_default` is always returned, and so is the signature
                whose results another one continues: `encode` with `step`, `generate_first` with
                `generate_next`. None: all.

        Raises:
            ValueError: for the name of a signature that the model does not have.
        """
        names = self.signature_names()
        if only is not None:
            unknown = sorted(set(only) - set(names))
            if unknown:
                raise ValueError(
                    f"The model has no signature {', '.join(unknown)}. It can be served with: "
                    f"{', '.join(names)}."
                )
            needed = {DEFAULT, *only, *(_FIRST[name] for name in only if name in _FIRST)}
            names = [name for name in names if name in needed]
        found = self.traced(
            jit_compile=jit_compile,
            compaction=compaction,
            max_steps_limit=max_steps_limit,
            only=names,
        )
        return request_checks.guard_all(
            {name: found[name] for name in names},
            batching,
            text_length=self.text_length,
            jit_compile=jit_compile,
            max_request_values=max_request_values,
        )

    def expected(self, card: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the entries that a version's card must have, given the settings in it.

        Raises:
            Exception: for settings with which the model cannot be exported.
        """
        joined = card.get("batching")
        batching = (
            None if joined is None else Batching(**{**joined, "sizes": tuple(joined["sizes"])})
        )
        said = {signature.get("max_request_values") for signature in card["signatures"].values()}
        limit = card.get("max_steps_limit")
        left_out = card.get(LEFT_OUT) or []
        signatures = self.signatures(
            only=[name for name in self.signature_names() if name not in left_out],
            jit_compile=bool(card.get("jit_compile")),
            max_steps_limit=limit,
            max_request_values=said.pop() if len(said) == 1 else None,
            batching=batching,
        )
        return {"signatures": model_card.signature_card(signatures), **self.card(limit)}

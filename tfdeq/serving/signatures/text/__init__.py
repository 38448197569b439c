"""The served signatures of the language models, one class per file."""

from tfdeq.models.token_model import TokenModel
from tfdeq.serving.signatures.text.continue_text import ContinueText
from tfdeq.serving.signatures.text.encode import Encode
from tfdeq.serving.signatures.text.generate import Generate
from tfdeq.serving.signatures.text.generate_first import GenerateFirst
from tfdeq.serving.signatures.text.generate_next import GenerateNext
from tfdeq.serving.signatures.text.score import Score
from tfdeq.serving.signatures.text.serving_default import ServingDefault
from tfdeq.serving.signatures.text.step import Step
from tfdeq.serving.signatures.text.text_signature import TextSignature

# In the order of cards and documents.
REGISTRY: dict[str, TextSignature] = {
    signature.name: signature
    for signature in (
        ServingDefault(),
        Score(),
        Encode(),
        Step(),
        Generate(),
        GenerateFirst(),
        GenerateNext(),
        ContinueText(),
    )
}


def get(name: str) -> TextSignature:
    """Returns the signature with a name.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if name not in REGISTRY:
        known = ", ".join(REGISTRY)
        raise ValueError(f"Unknown signature {name!r} of a language model. Known ones: {known}.")
    return REGISTRY[name]


def of(model: TokenModel) -> list[TextSignature]:
    """Returns the signatures of a model, in order."""
    return [signature for signature in REGISTRY.values() if signature.fits(model)]

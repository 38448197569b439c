"""The card's table of quality by tolerance, compared with the written version."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import contracting_language_model
from tfdeq import Status
from tfdeq.serving.kinds.language_model_kind import LanguageModelKind
from tfdeq.serving.signatures import text
from tfdeq.serving.signatures.text import Score, ServingDefault
from tfdeq.serving.versions import model_card, saved_model

LIMIT = 9


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, 17, (8, 12)).astype(np.int32)


@pytest.fixture(scope="module")
def version(windows, tmp_path_factory):
    model = contracting_language_model(17, 12, tfdeq.Anderson(4, 1e-1))
    kind = LanguageModelKind(model, windows)
    # The table is made from the model, and compared with `score`; the others take long to trace.
    fewer = {name: text.REGISTRY[name] for name in (ServingDefault.name, Score.name)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "REGISTRY", fewer)
        output = tmp_path_factory.mktemp("output")
        return saved_model.export_kind(kind, output, max_steps_limit=LIMIT)


@pytest.mark.slow
def test_the_table_is_what_requests_with_a_tolerance_get(version, windows):
    card = json.loads((version / model_card.FOLDER / model_card.NAME).read_text())
    assert (card["max_steps_limit"], card["own_max_steps"]) == (LIMIT, 4)
    score = tf.saved_model.load(str(version)).signatures["score"]
    shares = []
    for row in card["quality_by_tolerance"]:
        batch = len(windows)
        found = score(
            tokens=tf.constant(windows),
            lengths=tf.fill([batch], windows.shape[1]),
            tolerance=tf.fill([batch], row["tolerance"]),
            max_steps=tf.zeros([batch], tf.int32),
        )
        converged = found["status"].numpy() == Status.CONVERGED
        assert converged.mean() == row["converged"]
        assert found["steps"].numpy().mean() == pytest.approx(row["steps"], abs=1 / batch)
        assert found["residual"].numpy().max() == pytest.approx(row["largest_residual"], rel=1e-2)
        # Solves that the limit ended report it.
        assert (found["status"].numpy()[~converged] == Status.MAX_STEPS).all()
        assert (found["steps"].numpy()[~converged] == LIMIT).all()
        shares.append(row["converged"])
    assert shares[0] == 1.0, "more than the model's own four steps"
    assert shares[-1] < 1.0, "the limit ends the smallest tolerance"

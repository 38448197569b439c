"""Batches that are larger than `max_batch_size` are sent in parts."""

import numpy as np
import pytest

from tests.support.server_cases import metadata
from tfdeq.serving.client import client_values
from tfdeq.serving.client.client_calls import NotNow
from tfdeq.serving.client.model_client import Client, ServerError


class Transport:
    """A server that doubles the first column; `fails`: the number of a request -> its error."""

    def __init__(self, fails=None):
        self.sizes, self.settings, self.fails = [], [], fails or {}

    def signatures(self, deadline):
        return metadata()

    def predict(self, values, signature, served, deadline):
        self.sizes.append(len(values["x"]))
        self.settings.append((values["tolerance"].tolist(), values["max_steps"].tolist()))
        if len(self.sizes) in self.fails:
            raise self.fails[len(self.sizes)]
        zeros = np.zeros(len(values["x"]), np.int32)
        y = 2 * values["x"][:, 0]
        return {"y": y, "residual": y, "steps": zeros, "status": zeros}


def client(transport, **settings):
    found = Client("127.0.0.1:9", "model", **settings)
    found._transport.close()
    found._transport = transport
    return found


def batch(count):
    return {"x": np.stack([np.arange(count), np.zeros(count)], axis=1)}


@pytest.mark.parametrize(("count", "sizes"), [(100, [32, 32, 32, 4]), (64, [32, 32]), (32, [32])])
def test_answers_are_in_order(count, sizes):
    transport = Transport()
    tolerances = np.linspace(0.1, 0.2, count, dtype=np.float32)
    found = client(transport, max_batch_size=32).predict(
        batch(count), tolerance=tolerances, max_steps=7
    )
    assert transport.sizes == sizes
    np.testing.assert_array_equal(found["y"], 2 * np.arange(count))
    sent = np.concatenate([tolerance for tolerance, _ in transport.settings])
    np.testing.assert_array_equal(np.float32(sent), tolerances)
    assert {steps for _, given in transport.settings for steps in given} == {7}


def test_without_a_limit_a_batch_is_one_request():
    transport = Transport()
    client(transport).predict(batch(100))
    assert transport.sizes == [100]


def test_an_error_names_the_part():
    transport = Transport({3: ServerError("refused")})
    with pytest.raises(ServerError, match="^Examples 64 to 95 of 100: refused$"):
        client(transport, max_batch_size=32).predict(batch(100))
    transport = Transport({4: NotNow("full", "Wait.")})
    with pytest.raises(ServerError, match="^Examples 96 to 99 of 100: No answer .*full"):
        client(transport, max_batch_size=32, attempts=1).predict(batch(100))
    wrong = batch(40)["x"].tolist()
    wrong[35][0] = "a"
    with pytest.raises(ValueError, match="^Examples 32 to 39 of 40: The input 'x' is float32"):
        client(Transport(), max_batch_size=32).predict({"x": np.array(wrong, object)})


def test_settings_that_fit_no_batch():
    with pytest.raises(ValueError, match="one for each of the 40 examples"):
        client(Transport(), max_batch_size=32).predict(batch(40), tolerance=[0.1] * 32)
    with pytest.raises(ValueError, match="max_batch_size must be >= 1 or None; received 0"):
        Client("127.0.0.1:9", "model", max_batch_size=0)


def test_answers_that_cannot_be_joined():
    parts = [{"y": np.zeros([2, 3])}, {"y": np.zeros([2, 4])}]
    with pytest.raises(ServerError, match="'y' has the shapes"):
        client_values.joined(parts)

"""The program `export.client`, with a server on the loopback device."""

import io
import json
import types

import numpy as np
import pytest

from export import client as client_program
from tests.support.server_cases import ANSWER, json_page, metadata, peers, rest  # noqa: F401
from tfdeq.serving.client import client_flags, client_text, model_client

STATES = {
    "model_version_status": [
        {"version": "4", "state": "LOADING", "status": {"error_message": ""}},
        {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK"}},
    ]
}
FLAGS = {
    **{"model_name": "model", "rest": True, "timeout": 20.0, "attempts": 1, "model_version": None},
    **{"max_answer_bytes": 10**6, "max_batch_size": None, "header": ["X-Team: blue"]},
    **{"token_file": None, "certificate_authority": None, "client_certificate": None},
    **{"tolerance": 0.0, "max_steps": 0, "inputs": None, "signature": "serving_default"},
    **{"text": None, "vocabulary": None, "max_new_tokens": 40, "temperature": 0.0, "top_k": 0},
    **{"top_p": 0.0, "seed": 0, "segment_tokens": 16},
}


@pytest.fixture
def call(monkeypatch):
    """Runs the program with arguments and flags."""

    def call(*arguments, **settings):
        flags = types.SimpleNamespace(**{**FLAGS, **settings})
        monkeypatch.setattr(client_program, "FLAGS", flags)
        client_program.main(list(arguments))

    return call


@pytest.fixture
def address(peers):  # noqa: F811
    return peers(rest(json_page({"outputs": ANSWER}), metadata())).address


def test_health_and_models(call, capsys, peers, monkeypatch):  # noqa: F811
    address = peers(rest(json_page(STATES))).address
    call("health", address=address)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["model version 4: LOADING", "model version 3: AVAILABLE"]
    found = metadata()
    signature = model_client.served_signature(found, "serving_default")
    monkeypatch.setattr(model_client.Client, "signatures", lambda _: {"serving_default": signature})
    call("models", address=address)
    text = capsys.readouterr().out
    assert (
        "serving_default\n  takes    max_steps int32 [B], tolerance float32 [B], x float32 [B, 2]"
        in text
    )
    assert "returns  residual float32 [B], status int32 [B]" in text


def test_health_of_a_model_that_answers_nothing(call, peers):  # noqa: F811
    states = {"model_version_status": [STATES["model_version_status"][0]]}
    address = peers(rest(json_page(states))).address
    with pytest.raises(SystemExit, match="No version answers requests"):
        call("health", address=address)


@pytest.mark.parametrize("arguments", [[], ["predict"]])
def test_predict_reads_json_and_prints_it(call, address, tmp_path, capsys, monkeypatch, arguments):
    file = tmp_path / "inputs.json"
    file.write_text('{"x": [[1, 2], [3, 4]]}')
    call(*arguments, address=address, inputs=str(file))
    assert json.loads(capsys.readouterr().out) == ANSWER
    monkeypatch.setattr("sys.stdin", io.StringIO(file.read_text()))
    call("predict", address=address, inputs="-")
    assert json.loads(capsys.readouterr().out) == ANSWER
    for text, match in {
        '{"x": [[1, "a"], [3, 4]]}': "'x' is float32",
        '{"y": [[1, 2], [3, 4]]}': "unknown: y; missing: x",
        "{": "is no JSON",
        "[]": "must hold",
    }.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=match):
            call(*arguments, address=address, inputs=str(file))


@pytest.mark.parametrize("arguments", [[], ["generate"], ["stream"]])
def test_generate_and_stream_print_the_text(call, capsys, monkeypatch, arguments):
    asked = []

    def segments(self, prompt, deadline=None, **settings):
        asked.append((prompt, settings))
        for text, finish in (("ab", None), ("c", 1)):
            yield client_text.Segment(text, np.arange(len(text)), finish, 0.5, 3, 2, 1)

    monkeypatch.setattr(model_client.Client, "_segments", segments)
    call(*arguments, address="127.0.0.1:9", text="so ", temperature=0.5, tolerance=1e-2)
    said = capsys.readouterr()
    assert said.out == "so abc\n"
    assert "3 tokens, 6 steps (4 of them for the prompt)" in said.err
    assert "MAX_STEPS; ended by max_new_tokens" in said.err
    ((prompt, settings),) = asked
    assert prompt == "so "
    assert (settings["temperature"], settings["tolerance"], settings["max_steps"]) == (
        0.5,
        1e-2,
        None,
    )


@pytest.mark.parametrize(
    ("arguments", "settings", "match"),
    [
        ([], {}, "Name one command: health, models, predict, generate, stream"),
        ([], {"text": "a", "inputs": "b"}, "and not both"),
        (["ask"], {}, "Received ask"),
        (["health", "models"], {}, "Received health models"),
        (["stream"], {}, "stream needs --text"),
        (["predict"], {"text": "a"}, "predict needs --inputs"),
        (["health"], {"header": ["blue"]}, "--header takes NAME:VALUE; received 'blue'"),
    ],
)
def test_wrong_commands(call, arguments, settings, match):
    with pytest.raises(ValueError, match=match):
        call(*arguments, address="127.0.0.1:9", **settings)


def test_a_token_and_certificates_reach_the_client(monkeypatch, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    given = {}
    monkeypatch.setattr(client_flags, "Client", lambda *_, **settings: given.update(settings))
    flags = {
        **{**FLAGS, "address": "https://a:1", "token_file": str(tmp_path / "token")},
        **{"client_certificate": ["a.pem", "a.key"], "max_batch_size": 8, "model_version": "3"},
    }
    client_flags.client_of(types.SimpleNamespace(**flags))
    assert given["token"] == "secret"
    assert given["headers"] == {"X-Team": "blue"}
    assert given["client_certificate"] == ("a.pem", "a.key")
    assert (given["max_batch_size"], given["version"]) == (8, 3)
    client_flags.client_of(types.SimpleNamespace(**{**flags, "model_version": "stable"}))
    assert given["version"] == "stable"

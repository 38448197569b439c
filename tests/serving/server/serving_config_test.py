"""The server's configuration, parsed with its protos, and the compose file."""

import json
import pathlib
import shutil
import subprocess

import jsonschema
import pytest
import tensorflow as tf
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tests.support.serving_files import checked_compose, run_program, write_version
from tfdeq.serving.server import serving_config


@pytest.fixture
def program(monkeypatch, tmp_path):
    def call(
        models,
        folder="serving",
        image=serving_config.IMAGE,
        address="127.0.0.1",
        labels=(),
        command=(),
    ):
        run_program(
            monkeypatch,
            tmp_path / folder,
            command,
            models=models,
            image=image,
            bind_address=address,
            labels=list(labels),
        )
        return tmp_path / folder

    return call


def compose_of(folder):
    """Returns the service as compose reads it: YAML, then `$$` for `$`."""
    text = (folder / "compose.yaml").read_text(encoding="utf-8")
    assert "$" not in text.replace("$$", ""), "a variable"
    return json.loads(json.dumps(checked_compose(text)).replace("$$", "$"))["services"]["serving"]


def test_the_files_are_what_the_server_reads(program, tmp_path):
    write_version(tmp_path / "a", 1)
    write_version(tmp_path / "a", 2)
    write_version(tmp_path / "b", 1, jit_compile=True)
    folder = program([f"one={tmp_path / 'a'}", f"two={tmp_path / 'b'}"])
    config = text_format.Parse(
        (folder / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    models = config.model_config_list.config
    assert [(model.name, model.base_path) for model in models] == [
        ("one", "/models/one"),
        ("two", "/models/two"),
    ]
    assert all(model.model_platform == "tensorflow" for model in models)
    assert all(model.model_version_policy.latest.num_versions == 2 for model in models)

    compose = compose_of(folder)
    assert compose["image"] == serving_config.IMAGE
    assert compose["ports"] == [
        {"target": 8500, "published": "8500", "host_ip": "127.0.0.1"},
        {"target": 8501, "published": "8501", "host_ip": "127.0.0.1"},
    ]
    assert "--xla_cpu_compilation_enabled=true" in compose["command"]
    # The server's own batching would join unchecked requests.
    assert not any("batching" in part for part in [*compose["command"], *compose["entrypoint"]])
    mounted = {mount["target"]: mount["source"] for mount in compose["volumes"]}
    assert mounted == {
        "/config": str(folder),
        "/models/one": str(tmp_path / "a"),
        "/models/two": str(tmp_path / "b"),
    }
    named = [part.partition("=")[2] for part in compose["command"] if "/config/" in part]
    assert all((folder / pathlib.Path(name).name).is_file() for name in named)
    assert "/monitoring/prometheus/metrics" in (folder / "monitoring.config").read_text()


def test_without_a_compiled_model_xla_stays_off(program, tmp_path):
    write_version(tmp_path / "a", 1)
    assert "xla" not in (program([f"one={tmp_path / 'a'}"]) / "compose.yaml").read_text()


ODD = (
    "a b",
    "a: b # c",
    "'\"quoted\"'",
    "line\nbreak: x",
    "tab\tand\rmore\x7f",
    "${HOME} $x $$",
    "- [a, {b}] & *c !d |",
    "ü✓ \U0001f600\u2028",
    "back\\slash \\u0041",
    "a=b",
    "comma, comma",
    "-rf",
)


@pytest.mark.parametrize("name", ODD)
def test_odd_paths_are_read_back(program, tmp_path, name):
    write_version(tmp_path / name, 1)
    folder = program([f"one={tmp_path / name}"], folder=f"{name} config")
    mounted = {mount["target"]: mount["source"] for mount in compose_of(folder)["volumes"]}
    assert mounted == {"/config": str(folder), "/models/one": str(tmp_path / name)}
    assert compose_of(folder).keys() == {
        *("image", "ports", "volumes", "entrypoint", "command", "restart")
    }


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("image", ["tensorflow/serving"]),
        ("images", "tensorflow/serving"),
        ("restart", True),
        ("command", {"port": 8500}),
        ("volumes", [{"source": "/a", "target": "/models"}]),
        ("volumes", [{"type": "bind", "sources": "/a"}]),
        ("ports", [{"target": 8500.5}]),
        ("ports", [{"target": 8500, "host": "127.0.0.1"}]),
    ],
)
def test_the_schema_refuses_another_compose_file(program, tmp_path, path, wrong):
    write_version(tmp_path / "a", 1)
    content = yaml.safe_load((program([f"one={tmp_path / 'a'}"]) / "compose.yaml").read_text())
    checked_compose(yaml.safe_dump(content))
    content["services"]["serving"][path] = wrong
    with pytest.raises(jsonschema.ValidationError):
        checked_compose(yaml.safe_dump(content))


def _has_compose():
    found = shutil.which("docker")
    return (
        found
        and not subprocess.run(
            [found, "compose", "version"], capture_output=True, check=False, timeout=60
        ).returncode
    )


def test_docker_compose_reads_the_file(program, tmp_path):
    if not _has_compose():
        pytest.skip("docker compose is not installed")
    name = "a: b # $HOME ü '\"\\"
    write_version(tmp_path / name, 1)
    folder = program([f"one={tmp_path / name}"])
    finished = subprocess.run(
        ["docker", "compose", "--file", folder / "compose.yaml", "config", "--format=json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    # What it prints is a compose file again, with `$$` for `$`.
    content = json.loads(finished.stdout.replace("$$", "$"))["services"]["serving"]
    ours = compose_of(folder)
    assert [mount["source"] for mount in content["volumes"]] == [str(folder), str(tmp_path / name)]
    for key in ("image", "entrypoint", "command", "restart"):
        assert content[key] == ours[key]


@pytest.mark.parametrize(
    "name",
    [
        *("", " one", "one two", "one/two", "..", ".", ".one", "-one", "one:two", "one\ntwo"),
        *('one"', "one'", "one$HOME", "${one}", "ünö", "one?x", "one#", "one%2f", "{one}", "one\\"),
    ],
)
def test_names_that_stand_in_no_url_are_refused(program, tmp_path, name):
    write_version(tmp_path / "a", 1)
    with pytest.raises(ValueError, match="A name stands in URLs.*of ASCII only"):
        program([f"{name}={tmp_path / 'a'}"])
    assert not (tmp_path / "serving").exists()


@pytest.mark.parametrize("name", ["one", "ONE_2.x-y", "1", "a.b"])
def test_names_that_are_taken_over(program, tmp_path, name):
    write_version(tmp_path / "a", 1)
    folder = program([f"{name}={tmp_path / 'a'}"])
    config = text_format.Parse(
        (folder / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path) == (name, f"/models/{name}")
    assert compose_of(folder)["volumes"][1]["target"] == f"/models/{name}"


def test_a_path_that_is_no_text(program, tmp_path):
    folder = tmp_path / "a\udcff"
    try:
        write_version(folder, 1)
    except (OSError, UnicodeEncodeError):
        pytest.skip("the file system takes Unicode only")
    with pytest.raises(ValueError, match="no Unicode text"):
        program([f"one={folder}"])
    assert not (tmp_path / "serving").exists()


def test_the_home_folder(program, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_version(tmp_path / "a", 1)
    assert compose_of(program(["one=~/a"]))["volumes"][1]["source"] == str(tmp_path / "a")


def test_commands_that_are_printed_are_quoted(program, tmp_path, capsys):
    write_version(tmp_path / "a", 1)
    folder = program([f"one={tmp_path / 'a'}"], folder="my $folder")
    assert f"--file '{folder}/compose.yaml' up" in capsys.readouterr().out


@pytest.mark.parametrize("address", ["0.0.0.0", "::1", "192.168.1.7"])
def test_another_address(program, tmp_path, address, capsys):
    write_version(tmp_path / "a", 1)
    folder = program([f"one={tmp_path / 'a'}"], address=address)
    assert {port["host_ip"] for port in compose_of(folder)["ports"]} == {address}
    assert f"open on {address}. The server accepts" in capsys.readouterr().out


# Tags of tensorflow/serving that, according to public documents and repositories, were pulled and
# run; see docs/serving.md. A release of TensorFlow appears there months later.
DOCUMENTED = {"2.18.0", "2.19.0", "2.19.1", "2.20.0", "2.21.0"}


def test_the_image_is_one_that_is_documented():
    name, tag = serving_config.IMAGE.split(":")
    assert name == "tensorflow/serving"
    assert tag in DOCUMENTED
    # A server of an older release may lack ops of a version's graph.
    assert tag.split(".")[:2] == tf.__version__.split(".")[:2]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("bind_address", value) for value in ("", "localhost", "1.2.3", "127.0.0.1:80", "x\ny")),
        *(("image", value) for value in ("", " ", "a b", "$IMAGE", "a\nports: []", "-a", '"a"')),
    ],
)
def test_settings_that_compose_cannot_take(flag, value):
    assert not serving_config.SETTINGS[flag](value)


def test_what_cannot_be_served(program, tmp_path):
    write_version(tmp_path / "a", 1)
    with pytest.raises(ValueError, match="NAME=FOLDER pairs of different names; received 'one'"):
        program(["one"])
    with pytest.raises(ValueError, match="different names"):
        program([f"one={tmp_path / 'a'}", f"one={tmp_path / 'b'}"])
    with pytest.raises(FileNotFoundError, match=r"no version with a model card.*saved_model"):
        program([f"one={tmp_path / 'nothing'}"])
    assert not (tmp_path / "serving").exists()


def config_of(folder):
    """Returns the versions that the server loads, and its labels."""
    config = text_format.Parse(
        (folder / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = config.model_config_list.config
    return list(model.model_version_policy.specific.versions), dict(model.version_labels)


def test_a_canary_is_promoted_and_rolled_back(program, tmp_path):
    for number in (3, 4, 5):
        write_version(tmp_path / "a", number)
    folder = program([f"one={tmp_path / 'a'}"], labels=["stable:3"])
    assert config_of(folder) == ([3], {"stable": 3})
    flag = "--allow_version_labels_for_unavailable_models=true"
    assert flag in compose_of(folder)["command"]
    # The server does not know a version that has no label yet.
    with pytest.raises(ValueError, match="Give it a new label first, such as --labels=canary:4"):
        program(None, labels=["stable:4"], command=["labels"])
    program(None, labels=["canary:4"], command=["labels"])
    assert config_of(folder) == ([3, 4], {"stable": 3, "canary": 4})
    program(None, labels=["stable:4", "canary:"], command=["labels"])
    assert config_of(folder) == ([3, 4], {"stable": 4})
    program(None, command=["rollback"])
    assert config_of(folder) == ([3, 4], {"stable": 3, "canary": 4})
    program(None, command=["rollback"])
    assert config_of(folder) == ([3], {"stable": 3})
    with pytest.raises(ValueError, match="no earlier labels"):
        program(None, command=["rollback"])
    assert config_of(folder) == ([3], {"stable": 3})


def test_wrong_labels_and_commands_change_nothing(program, tmp_path):
    write_version(tmp_path / "a", 3)
    write_version(tmp_path / "b", 1)
    both = [f"one={tmp_path / 'a'}", f"two={tmp_path / 'b'}"]
    for label in ("stable", "stable:x", ":3", "stable:3", "three/stable:3", "one/2nd:3"):
        with pytest.raises(ValueError, match="MODEL/LABEL:VERSION"):
            program(both, labels=[label])
    with pytest.raises(ValueError, match="'two' has no version 3; there are 1 in"):
        program(both, labels=["two/stable:3"])
    with pytest.raises(FileNotFoundError, match="Write the configuration first"):
        program(None, command=["rollback"])
    with pytest.raises(ValueError, match="Name one command of labels, rollback"):
        program(both, command=["promote"])
    with pytest.raises(ValueError, match="--models is missing"):
        program(None)
    assert not (tmp_path / "serving").exists()
    folder = program(both, labels=["one/stable:3"])
    models = text_format.Parse(
        (folder / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config
    assert dict(models[0].version_labels) == {"stable": 3}
    assert models[1].model_version_policy.latest.num_versions == 2


def test_labels_of_compiled_versions_need_a_server_with_xla(program, tmp_path):
    write_version(tmp_path / "a", 1, jit_compile=True)
    for number in (2, 3):
        write_version(tmp_path / "a", number)
    write_version(tmp_path / "a", 4, jit_compile=True)
    model = f"one={tmp_path / 'a'}"
    (tmp_path / "a" / "4").rename(tmp_path / "4")
    # Version 1 is older than those that are kept.
    folder = program([model], labels=["old:1"])
    assert "--xla_cpu_compilation_enabled=true" in compose_of(folder)["command"]
    folder = program([model], labels=["stable:3"])
    assert "xla" not in (folder / "compose.yaml").read_text()
    (tmp_path / "4").rename(tmp_path / "a" / "4")
    with pytest.raises(
        ValueError, match="Version 4 of 'one' is compiled by XLA, and the server is"
    ):
        program(None, labels=["canary:4"], command=["labels"])
    assert config_of(folder) == ([3], {"stable": 3})
    folder = program([model], labels=["stable:3", "canary:4"])
    assert "--xla_cpu_compilation_enabled=true" in compose_of(folder)["command"]

"""The server's configuration, parsed with its protos, and the compose file."""

import json
import pathlib
import types

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tensorflow_serving.config import model_server_config_pb2

from export import serving_config


def message_type(name, fields):
    """A message class from (name, number, type, label) rows, under a package of its own."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package="serving_config_test", syntax="proto3"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    message = file.message_type.add(name=name)
    for field, number, kind in fields:
        row = message.field.add(name=field, number=number, label=kinds.LABEL_OPTIONAL)
        if kind.endswith("Value"):
            row.type, row.type_name = kinds.TYPE_MESSAGE, f".google.protobuf.{kind}"
        else:
            row.type = getattr(kinds, f"TYPE_{kind.removeprefix('repeated ').upper()}")
        if kind.startswith("repeated"):
            row.label = kinds.LABEL_REPEATED
    file.dependency.append("google/protobuf/wrappers.proto")
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"serving_config_test.{name}")
    )


def write_version(folder, number, sizes=(1, 4, 8), jit_compile=False):
    extra = folder / str(number) / "assets.extra"
    extra.mkdir(parents=True)
    card = {"allowed_batch_sizes": list(sizes), "jit_compile": jit_compile}
    (extra / "model_card.json").write_text(json.dumps(card))


@pytest.fixture
def program(monkeypatch, tmp_path):
    def call(models):
        flags = types.SimpleNamespace(
            models=models,
            output=str(tmp_path / "serving"),
            image=serving_config.IMAGE,
            keep_versions=2,
            batch_timeout_micros=2000,
            batch_threads=3,
        )
        monkeypatch.setattr(serving_config, "FLAGS", flags)
        serving_config.main()
        return tmp_path / "serving"

    return call


def test_the_files_are_what_the_server_reads(program, tmp_path):
    write_version(tmp_path / "a", 1, sizes=[64])
    write_version(tmp_path / "a", 2)  # the newest card counts
    write_version(tmp_path / "b", 1, sizes=[8, 4, 16], jit_compile=True)
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

    # Field names and numbers as in the server's session_bundle_config.proto, which its Python
    # package leaves out.
    parameters = message_type(
        "BatchingParameters",
        [
            ("max_batch_size", 1, "Int64Value"),
            ("batch_timeout_micros", 2, "Int64Value"),
            ("max_enqueued_batches", 3, "Int64Value"),
            ("num_batch_threads", 4, "Int64Value"),
            ("thread_pool_name", 5, "StringValue"),
            ("allowed_batch_sizes", 6, "repeated int64"),
            ("pad_variable_length_inputs", 7, "bool"),
        ],
    )
    batching = text_format.Parse((folder / "batching.config").read_text(), parameters())
    assert list(batching.allowed_batch_sizes) == [4, 8]
    assert batching.max_batch_size.value == 8  # the server wants it to be the last one
    assert batching.pad_variable_length_inputs
    assert batching.num_batch_threads.value == 3

    compose = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["serving"]
    assert "--xla_cpu_compilation_enabled=true" in compose["command"]
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


def test_what_cannot_be_served(program, tmp_path):
    write_version(tmp_path / "a", 1, sizes=[1, 2])
    write_version(tmp_path / "b", 1, sizes=[3])
    with pytest.raises(ValueError, match="NAME=FOLDER pairs of different names; received 'one'"):
        program(["one"])
    with pytest.raises(ValueError, match="different names"):
        program([f"one={tmp_path / 'a'}", f"one={tmp_path / 'b'}"])
    with pytest.raises(ValueError, match="no allowed batch size in common"):
        program([f"one={tmp_path / 'a'}", f"two={tmp_path / 'b'}"])
    with pytest.raises(FileNotFoundError, match=r"no version with a model card.*saved_model"):
        program([f"one={tmp_path / 'nothing'}"])
    assert not (tmp_path / "serving").exists()

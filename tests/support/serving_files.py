"""The files of export.serving_config, made without a process of their own, and their published schemas."""

import json
import types

import jsonschema
import kubernetes_validate
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

from export import serving_config as config_program
from tfdeq.serving.server import serving_config

# Of Kubernetes, the oldest and the newest version whose schemas are checked; see docs/serving.md.
KUBERNETES_VERSIONS = ("1.30", "1.37")
DEFAULTS = {
    "models": None,
    "image": serving_config.IMAGE,
    "bind_address": serving_config.LOOPBACK,
    "keep_versions": 2,
    "labels": [],
    "kubernetes_claim": None,
    "kubernetes_name": None,
    "kubernetes_replicas": 1,
    "kubernetes_requests": [],
}


def write_version(folder, number, jit_compile=False):
    """Writes as much of a version as the program reads."""
    extra = folder / str(number) / "assets.extra"
    extra.mkdir(parents=True)
    card = {"jit_compile": jit_compile}
    (extra / "model_card.json").write_text(json.dumps(card))


def run_program(monkeypatch, output, command=(), **given):
    """Runs the program with the given flags, and the defaults of the others."""
    assert given.keys() <= DEFAULTS.keys()
    flags = types.SimpleNamespace(**{**DEFAULTS, **given, "output": str(output)})
    monkeypatch.setattr(config_program, "FLAGS", flags)
    config_program.main(list(command))


def checked_compose(text):
    """Returns a compose file's content, which must be as the Compose Specification says."""
    content = yaml.safe_load(text)
    schema = get_builtin_schema("vendor.compose-spec")
    jsonschema.validators.validator_for(schema)(schema).validate(content)
    return content


def checked_kubernetes(text):
    """Returns kind -> object of a manifest, which must be as the schemas say and have no unknown keys."""
    objects = list(yaml.safe_load_all(text))
    for item in objects:
        for version in KUBERNETES_VERSIONS:
            checked = kubernetes_validate.validate(item, version, strict=True)
            assert checked == version, "an older schema stood in for this version's"
    found = {item["kind"]: item for item in objects}
    assert len(found) == len(objects)
    return found

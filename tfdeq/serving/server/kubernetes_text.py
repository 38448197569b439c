"""The manifest with which Kubernetes runs the stock TensorFlow Serving image."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tfdeq.serving.server import yaml_text
from tfdeq.serving.server.serving_config import (
    CONFIG_FOLDER,
    ENTRY_POINT,
    METRICS_PATH,
    MODELS_FOLDER,
    PORTS,
    monitoring_config,
    server_flags,
)

NAME = "kubernetes.yaml"
_USER = 1000  # any but root: the image names no user
_PORT_NAMES = ("grpc", "rest")
_HEADER = """\
# Written by export.serving_config, whose commands labels and rollback write it again. Keep changes of
# your own elsewhere, such as in an overlay of Kustomize.
"""
# A name of a Service, the strictest of the three: RFC 1035.
_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_PART = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_PART}(\.{_PART})*")  # RFC 1123
_QUANTITIES = {
    "cpu": re.compile(r"[0-9]+(\.[0-9]{1,3})?|[0-9]+m"),
    "memory": re.compile(r"[0-9]+(\.[0-9]+)?([KMGT]i|[kMGT])"),
}


class Settings(NamedTuple):
    """What the manifest says beside the configuration of the models."""

    claim: str  # a PersistentVolumeClaim; its folders, by model name, hold the versions
    name: str  # of the Deployment, the Service and the ConfigMap
    replicas: int
    requests: dict[str, str]  # "cpu", "memory" -> quantity
    image: str
    xla: bool  # whether a model is jit-compiled


def manifest(models: Sequence[str], models_text: str, settings: Settings) -> str:
    """Returns the text of a manifest: a ConfigMap, a Deployment and a Service.

    Args:
        models: names of the models. models_text: the text of models.config.
        settings: names are valid, as those of `name_of` and `checked_claim`.
    """
    documents = (
        _config_map(models_text, settings),
        _deployment(models, settings),
        _service(settings),
    )
    return _HEADER + "---\n".join(map(yaml_text.document, documents))


def name_of(models: Sequence[str], given: str | None) -> str:
    """Returns the name of the Kubernetes objects: the given one, or one made of the first model's name.

    Raises:
        ValueError: for a name that Kubernetes refuses for a Service.
    """
    name = given
    if given is None:
        name = re.sub(r"[^a-z0-9]+", "-", models[0].lower()).strip("-")
        name = name if name[0].isalpha() else f"model-{name}"
    if not _LABEL.fullmatch(name):
        received = f"--kubernetes_name={name!r}"
        if given is None:
            received = f"{name!r}, made of the model's name; give another as --kubernetes_name"
        raise ValueError(
            "Names of Kubernetes Services begin with a lower-case letter, have lower-case letters, "
            f"digits and '-', end with a letter or digit, and are at most 63 long; received {received}."
        )
    return name


def checked_claim(name: str) -> str:
    """Returns the name of a PersistentVolumeClaim.

    Raises:
        ValueError: for a name that Kubernetes refuses.
    """
    if not _SUBDOMAIN.fullmatch(name) or len(name) > 253:
        raise ValueError(
            "--kubernetes_claim is the name of a PersistentVolumeClaim: parts of lower-case letters, "
            "digits and '-', which begin and end with a letter or digit, joined by '.', at most 253 "
            f"long; received {name!r}."
        )
    return name


def parse_requests(texts: Sequence[str]) -> dict[str, str]:
    """Returns resource -> quantity from texts RESOURCE=QUANTITY.

    Raises:
        ValueError: for another resource or form, a quantity of 0, or a resource that occurs twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        resource, _, quantity = text.partition("=")
        form = _QUANTITIES.get(resource)
        if (
            form is None
            or resource in found
            or not form.fullmatch(quantity)
            or not re.search("[1-9]", quantity)
        ):
            raise ValueError(
                "--kubernetes_requests takes cpu=QUANTITY and memory=QUANTITY, once each, such as "
                f"cpu=2 or cpu=500m, and memory=4Gi; received {text!r}."
            )
        found[resource] = quantity
    return found


def _metadata(settings: Settings) -> dict[str, Any]:
    return {"name": settings.name, "labels": _labels(settings)}


def _labels(settings: Settings) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "tensorflow-serving",
        "app.kubernetes.io/instance": settings.name,
    }


def _config_map(models_text: str, settings: Settings) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(settings),
        "data": {"models.config": models_text, "monitoring.config": monitoring_config()},
    }


def _deployment(models: Sequence[str], settings: Settings) -> dict[str, Any]:
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(PORTS[1]),
        "prometheus.io/path": METRICS_PATH,
    }
    volumes = [
        {"name": "config", "configMap": {"name": settings.name}},
        {"name": "models", "persistentVolumeClaim": {"claimName": settings.claim}},
    ]
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(models, settings)],
        "volumes": volumes,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(settings),
        "spec": {
            "replicas": settings.replicas,
            "selector": {"matchLabels": _labels(settings)},
            "template": {
                "metadata": {"labels": _labels(settings), "annotations": annotations},
                "spec": pod,
            },
        },
    }


def _container(models: Sequence[str], settings: Settings) -> dict[str, Any]:
    ports = zip(_PORT_NAMES, PORTS, strict=True)
    resources = {"resources": {"requests": settings.requests}} if settings.requests else {}
    return {
        "name": "serving",
        "image": settings.image,
        "command": list(ENTRY_POINT),
        "args": server_flags(settings.xla),
        "ports": [{"name": name, "containerPort": port} for name, port in ports],
        **_probes(models),
        **resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        # The whole folder of the ConfigMap: a file mounted alone (subPath) would never be updated.
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            {"name": "models", "mountPath": MODELS_FOLDER, "readOnly": True},
        ],
    }


def _probes(models: Sequence[str]) -> dict[str, Any]:
    """Returns the probes of a container.

    A model's status answers 200 as soon as the server knows any version, even one that still loads or
    has failed; a model's metadata only while a version can answer. A server opens its ports when every
    model has a version that can answer (tensorflow/serving issues 979 and 1175). So the status of one
    model says that the server runs, and that all models were ready once. With one model, the pod
    receives requests while this model's metadata answers. With several, which a probe cannot ask
    together, it receives them while the server runs: one model whose versions are deleted should not take
    the others out of the Service.
    """
    status = f"/v1/models/{models[0]}"
    ready = f"{status}/metadata" if len(models) == 1 else status
    return {
        # Half an hour to read the versions, compile them and answer their warm-up records.
        "startupProbe": _probe(status, period=10, timeout=5, failures=180),
        "readinessProbe": _probe(ready, period=10, timeout=5, failures=3),
        # Patient, because a server that is only busy should not be restarted.
        "livenessProbe": _probe(status, period=20, timeout=10, failures=6),
    }


def _probe(path: str, period: int, timeout: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": _PORT_NAMES[1]},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def _service(settings: Settings) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(settings),
        "spec": {
            "selector": _labels(settings),
            "ports": [
                {"name": name, "port": port, "targetPort": name}
                for name, port in zip(_PORT_NAMES, PORTS, strict=True)
            ],
        },
    }

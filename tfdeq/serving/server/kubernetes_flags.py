"""The flags of `export.serving_config` for Kubernetes, and what they say together."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from tfdeq.serving.server import kubernetes_text


def define_kubernetes_flags() -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "kubernetes_claim",
        None,
        "Name of the PersistentVolumeClaim that holds the versions as MODEL/VERSION. With it, "
        f"{kubernetes_text.NAME} is written too.",
    )
    flags.DEFINE_string(
        "kubernetes_name",
        None,
        "Name of the Deployment, Service and ConfigMap. Default: made of the first model's name.",
    )
    flags.DEFINE_integer("kubernetes_replicas", 1, "Number of pods.", lower_bound=1)
    flags.DEFINE_list(
        "kubernetes_requests",
        [],
        "CPU and memory that a pod requests: cpu=2,memory=4Gi. Default: none, because they depend on the "
        "models and their load; Kubernetes evicts pods without requests first.",
    )


def settings_of(values: Any, models: Sequence[str], xla: bool) -> kubernetes_text.Settings | None:
    """Returns what the flags say, or None if nothing is to be written for Kubernetes.

    Args:
        values: the flags. models: names of the models. xla: whether one is jit-compiled.

    Raises:
        ValueError: for a value that Kubernetes refuses, or other flags without --kubernetes_claim.
    """
    name, replicas = values.kubernetes_name, values.kubernetes_replicas
    if values.kubernetes_claim is None:
        if name is not None or replicas != 1 or values.kubernetes_requests:
            raise ValueError(
                "--kubernetes_name, --kubernetes_replicas and --kubernetes_requests need "
                "--kubernetes_claim=NAME, the PersistentVolumeClaim that holds the versions."
            )
        return None
    return kubernetes_text.Settings(
        claim=kubernetes_text.checked_claim(values.kubernetes_claim),
        name=kubernetes_text.name_of(models, name),
        replicas=replicas,
        requests=kubernetes_text.parse_requests(values.kubernetes_requests),
        image=values.image,
        xla=xla,
    )

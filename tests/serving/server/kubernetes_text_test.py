"""kubernetes.yaml: its content, its published schemas, and what is refused."""

import copy
import json
import pathlib
import re
import shutil
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from tests.support.serving_files import (
    KUBERNETES_VERSIONS,
    checked_compose,
    checked_kubernetes,
    run_program,
    write_version,
)
from tfdeq.serving.server import kubernetes_text, serving_config

ROOT = pathlib.Path(__file__).absolute().parents[3]


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Returns a function that writes the files, of a model `one` by default, and returns their folder."""
    write_version(tmp_path / "a", 1)
    write_version(tmp_path / "a", 2)

    def call(**given):
        given = {"models": [f"one={tmp_path / 'a'}"], "kubernetes_claim": "models", **given}
        run_program(monkeypatch, tmp_path / "serving", **given)
        return tmp_path / "serving"

    return call


def text_of(folder):
    return (folder / "kubernetes.yaml").read_text(encoding="utf-8")


def pod_of(objects):
    """Returns the pod's specification, and its only container."""
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def test_the_objects_belong_together(program):
    objects = checked_kubernetes(text_of(program(kubernetes_replicas=3)))
    assert objects.keys() == {"ConfigMap", "Deployment", "Service"}
    assert {item["metadata"]["name"] for item in objects.values()} == {"one"}
    deployment, service = objects["Deployment"]["spec"], objects["Service"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == service["selector"] == labels
    assert deployment["replicas"] == 3
    pod, container = pod_of(objects)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    assert {p["targetPort"]: p["port"] for p in service["ports"]} == ports
    sources = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert sources == {
        "config": {"configMap": {"name": "one"}},
        "models": {"persistentVolumeClaim": {"claimName": "models"}},
    }
    # A subPath would never be updated.
    assert container["volumeMounts"] == [
        {"name": "config", "mountPath": "/config", "readOnly": True},
        {"name": "models", "mountPath": "/models", "readOnly": True},
    ]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_is_the_server_of_the_compose_file(program, tmp_path, jit_compile):
    write_version(tmp_path / "a", 3, jit_compile)
    folder = program(image="registry.example.com:5000/serving:1")
    compose = checked_compose((folder / "compose.yaml").read_text())["services"]["serving"]
    objects = checked_kubernetes(text_of(folder))
    _, container = pod_of(objects)
    assert container["image"] == compose["image"] == "registry.example.com:5000/serving:1"
    assert container["command"] == compose["entrypoint"]
    assert container["args"] == compose["command"]
    assert any("xla" in flag for flag in container["args"]) == jit_compile
    files = {name: (folder / name).read_text() for name in ("models.config", "monitoring.config")}
    assert objects["ConfigMap"]["data"] == files
    named = [flag.partition("=")[2] for flag in container["args"] if "/config/" in flag]
    assert {pathlib.PurePosixPath(name).name for name in named} == files.keys()


def test_the_probes_of_one_model_and_of_several(program, tmp_path):
    def probed(objects):
        _, container = pod_of(objects)
        probes = [
            container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")
        ]
        assert {probe["port"] for probe in probes} == {"rest"}
        return [probe["path"] for probe in probes]

    status = "/v1/models/one"
    objects = checked_kubernetes(text_of(program()))
    # Only the metadata need a version that can answer.
    assert probed(objects) == [status, f"{status}/metadata", status]
    models = [f"one={tmp_path / 'a'}", f"Two_2.b={tmp_path / 'a'}"]
    objects = checked_kubernetes(text_of(program(models=models)))
    assert probed(objects) == [status, status, status]
    _, container = pod_of(objects)
    limits = {
        kind: container[f"{kind}Probe"]["periodSeconds"]
        * container[f"{kind}Probe"]["failureThreshold"]
        for kind in ("startup", "readiness", "liveness")
    }
    assert limits["startup"] > limits["liveness"] > limits["readiness"]


def test_security_and_metrics(program):
    objects = checked_kubernetes(text_of(program()))
    pod, container = pod_of(objects)
    # What the Pod Security Standard "restricted" asks for.
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not pod["automountServiceAccountToken"]
    metadata = objects["Deployment"]["spec"]["template"]["metadata"]
    assert metadata["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "8501",
        "prometheus.io/path": serving_config.METRICS_PATH,
    }


def test_requests(program):
    _, container = pod_of(checked_kubernetes(text_of(program())))
    assert "resources" not in container
    given = ["memory=1.5Gi", "cpu=500m"]
    _, container = pod_of(checked_kubernetes(text_of(program(kubernetes_requests=given))))
    assert container["resources"] == {"requests": {"memory": "1.5Gi", "cpu": "500m"}}
    for text in (
        *(
            "cpu",
            "cpu=",
            "cpu=0",
            "cpu=0m",
            "cpu=-1",
            "cpu=2Gi",
            "cpu=1.2345",
            "memory=4",
            "memory=0Gi",
        ),
        *("memory=4GB", "memory=400m", "memory= 4Gi", "disk=4Gi", "=2", "cpu=2\n", "cpu: 2"),
    ):
        with pytest.raises(ValueError, match="takes cpu=QUANTITY and memory=QUANTITY"):
            kubernetes_text.parse_requests([text])
    with pytest.raises(ValueError, match="once each"):
        kubernetes_text.parse_requests(["cpu=1", "cpu=2"])


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("one", "one"),
        ("language_model", "language-model"),
        ("ONE_2.x-y", "one-2-x-y"),
        ("a__b.", "a-b"),
        ("1", "model-1"),
        ("a" * 63, "a" * 63),
    ],
)
def test_names_made_of_a_models_name(program, tmp_path, model, name):
    folder = program(models=[f"{model}={tmp_path / 'a'}"])
    objects = checked_kubernetes(text_of(folder))
    assert {item["metadata"]["name"] for item in objects.values()} == {name}
    assert f'"/models/{model}"' in objects["ConfigMap"]["data"]["models.config"]


@pytest.mark.parametrize(
    "name",
    [
        *("", "One", "language_model", "1one", "-one", "one-", "one.two", "ünö", "one\n", "one: x"),
        "a" * 64,
    ],
)
def test_names_that_kubernetes_refuses(program, tmp_path, name):
    with pytest.raises(
        ValueError, match="begin with a lower-case letter.*received --kubernetes_name="
    ):
        program(kubernetes_name=name)
    assert not (tmp_path / "serving").exists()


def test_a_models_name_that_is_too_long(program, tmp_path):
    models = [f"{'a' * 64}={tmp_path / 'a'}"]
    with pytest.raises(ValueError, match="made of the model's name; give another"):
        program(models=models)
    objects = checked_kubernetes(text_of(program(models=models, kubernetes_name="short")))
    assert objects["Service"]["metadata"]["name"] == "short"


@pytest.mark.parametrize("claim", ["models", "1", "team-1.models", "a" * 253])
def test_claims(program, claim):
    pod, _ = pod_of(checked_kubernetes(text_of(program(kubernetes_claim=claim))))
    assert pod["volumes"][1]["persistentVolumeClaim"]["claimName"] == claim


@pytest.mark.parametrize(
    "claim", ["", "Models", "my_models", "-a", "a-", "a..b", ".a", "a/b", "a b", "a\n", "a" * 254]
)
def test_claims_that_kubernetes_refuses(program, tmp_path, claim):
    with pytest.raises(ValueError, match="name of a PersistentVolumeClaim.*lower-case"):
        program(kubernetes_claim=claim)
    assert not (tmp_path / "serving").exists()


def test_odd_folders_are_of_no_matter(program, tmp_path):
    odd = tmp_path / "a: b # $HOME $(x) 'ü"
    write_version(odd, 1)
    text = text_of(program())
    assert text_of(program(models=[f"one={odd}"])) == text


def test_labels_and_rollback_write_it_again(program):
    def versions(folder):
        objects = checked_kubernetes(text_of(folder))
        config = objects["ConfigMap"]["data"]["models.config"]
        assert config == (folder / "models.config").read_text()
        return re.findall(r"versions: (\d)", config)

    folder = program(
        labels=["stable:1"],
        kubernetes_name="served",
        kubernetes_replicas=4,
        kubernetes_requests=["cpu=2"],
        image="serving:1",
    )
    before = text_of(folder)
    assert versions(folder) == ["1"]
    other = {"models": None, "kubernetes_claim": None}  # what was given before is kept
    program(**other, labels=["canary:2"], command=["labels"])
    assert versions(folder) == ["1", "2"]
    assert "canary" in text_of(folder)
    program(**other, command=["rollback"])
    assert versions(folder) == ["1"]
    assert text_of(folder) == before


def test_labels_say_how_they_reach_the_pods(program, capsys):
    folder = program(labels=["stable:1"])
    program(models=None, labels=["canary:2"], command=["labels"])
    said = capsys.readouterr().out
    assert said.count(f"kubectl apply --filename {folder}/kubernetes.yaml") == 2


def test_a_state_of_an_earlier_release(program, monkeypatch):
    folder = program(kubernetes_claim=None, labels=["stable:1"])
    state = json.loads((folder / "serving.json").read_text())
    del state["kubernetes"]
    (folder / "serving.json").write_text(json.dumps(state))
    program(models=None, labels=["canary:2"], command=["labels"])
    assert not (folder / "kubernetes.yaml").exists()


def test_a_manifest_that_would_be_wrong_later(program):
    folder = program()
    before = {path.name: path.read_text() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="no longer agree.*Name --kubernetes_claim again"):
        program(kubernetes_claim=None, labels=["stable:1"])
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "given",
    [{"kubernetes_name": "a"}, {"kubernetes_replicas": 2}, {"kubernetes_requests": ["cpu=1"]}],
)
def test_flags_that_need_a_claim(program, tmp_path, given):
    with pytest.raises(ValueError, match="need --kubernetes_claim=NAME"):
        program(kubernetes_claim=None, **given)
    assert not (tmp_path / "serving").exists()


@pytest.mark.slow
def test_no_pods_at_all(tmp_path):
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "export.serving_config", "--models=one=a"),
            *(
                f"--output={tmp_path / 'serving'}",
                "--kubernetes_claim=a",
                "--kubernetes_replicas=0",
            ),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode != 0
    assert "flag --kubernetes_replicas=0" in finished.stderr
    assert "Traceback" not in finished.stderr


# Path in a Deployment -> a value that its schema refuses; None: the key is missing.
WRONG = [
    ("replicas", "two"),
    ("replica", 2),
    ("selector", None),
    ("template.spec.containers", None),
    ("template.spec.containers", {}),
    ("template.spec.containers.0.name", None),
    ("template.spec.containers.0.args", "--port=8500"),
    ("template.spec.containers.0.entrypoint", ["tensorflow_model_server"]),
    ("template.spec.containers.0.ports.0.containerPort", "grpc"),
    ("template.spec.containers.0.readinessProbe.httpGet.port", None),
    ("template.spec.containers.0.readinessProbe.httpPath", "/"),
    ("template.spec.containers.0.livenessProbe.periodSeconds", "20s"),
    ("template.spec.containers.0.volumeMounts.0.mountPath", None),
    ("template.spec.volumes.1.persistentVolumeClaim.claim", "models"),
    ("template.spec.securityContext.runAsNonRoot", "yes"),
    ("template.metadata.annotations.port", 8501),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_the_schemas_refuse_another_manifest(program, path, value):
    objects = checked_kubernetes(text_of(program()))
    wrong = copy.deepcopy(objects["Deployment"])
    *folders, key = path.split(".")
    place = wrong["spec"]
    for folder in folders:
        place = place[int(folder) if folder.isdecimal() else folder]
    if value is None:
        del place[key]
    else:
        place[key] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        checked_kubernetes(yaml.safe_dump(wrong))


def test_the_schemas_refuse_another_config_map_and_service(program):
    objects = checked_kubernetes(text_of(program()))
    for path, value in (("ConfigMap.data.n", 1), ("Service.spec.port", 8500)):
        kind, place, key = path.split(".")
        wrong = copy.deepcopy(objects[kind])
        wrong[place][key] = value
        with pytest.raises(kubernetes_validate.ValidationError):
            checked_kubernetes(yaml.safe_dump(wrong))


def kubectl(*arguments, given):
    """Runs kubectl on a manifest, without a cluster."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    return subprocess.run(
        ["kubectl", "--kubeconfig=/dev/null", *arguments],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_kubectl_reads_the_deployment(program):
    # `apply --dry-run=client` asks a cluster which kinds there are. This command asks nothing, and reads
    # the object into Kubernetes's own types.
    command = ("set", "image", "--local", "--filename=-", "serving=other:1", "--output=json")
    deployment = checked_kubernetes(text_of(program(kubernetes_requests=["cpu=2"])))["Deployment"]
    finished = kubectl(*command, given=yaml.safe_dump(deployment))
    assert finished.returncode == 0, finished.stderr
    _, container = pod_of({"Deployment": deployment})
    container["image"] = "other:1"
    _, read = pod_of({"Deployment": json.loads(finished.stdout)})
    assert read == container
    container["resources"]["requests"]["cpu"] = "two"  # which the schemas do not see
    finished = kubectl(*command, given=yaml.safe_dump(deployment))
    assert finished.returncode != 0
    assert "quantities must match" in finished.stderr


def test_changes_of_ones_own_in_an_overlay(program, tmp_path):
    folder = program()
    (tmp_path / "kustomization.yaml").write_text(
        "resources: [serving/kubernetes.yaml]\nreplicas: [{name: one, count: 5}]\n"
    )
    finished = kubectl(
        "kustomize", str(tmp_path), "--load-restrictor=LoadRestrictionsNone", given=""
    )
    assert finished.returncode == 0, finished.stderr
    objects, ours = checked_kubernetes(finished.stdout), checked_kubernetes(text_of(folder))
    ours["Deployment"]["spec"]["replicas"] = 5
    assert objects == ours


def test_what_the_document_says():
    document = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    oldest, newest = KUBERNETES_VERSIONS
    assert f"schemas of Kubernetes {oldest} and {newest}" in " ".join(document.split())
    (manifest,) = re.findall(r"^```yaml\n(.*?)^```", document, re.M | re.S)
    objects = checked_kubernetes(manifest)
    claim, pod = objects["PersistentVolumeClaim"], objects["Pod"]["spec"]
    (volume,) = pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert f"--kubernetes_claim={claim['metadata']['name']}" in document
    assert pod["containers"][0]["image"] == serving_config.IMAGE

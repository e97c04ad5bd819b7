"""deploy/kubernetes: manifests that Kubernetes takes, that fit together, and that fit the processes they start."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kube_server
import kubernetes_validate
import pytest
import typer.main
import yaml
from provider_rigs import a_launch

from api import examples
from api.process import GRACE_S
from autoscaler import config
from autoscaler.providers import build
from batchline import cli
from batchline.settings import Settings, variable
from workers.leaving import GIVE_BACK_S

Json = dict[str, Any]
ROOT = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = ("autoscaler", "hpa", "keda")
FILES = sorted(path for path in ROOT.rglob("*.yaml") if path.name != "kustomization.yaml")


def documents(path: Path) -> list[Json]:
    return list(yaml.safe_load_all(path.read_text()))


def resources(folder: Path) -> Iterator[Json]:
    """What a kustomization is made of, ConfigMaps that it generates included."""
    found = yaml.safe_load((folder / "kustomization.yaml").read_text())
    for name in found["resources"]:
        path = (folder / name).resolve()
        yield from resources(path) if path.is_dir() else documents(path)
    for made in found.get("configMapGenerator", ()):
        data = {name: (folder / name).read_text() for name in made["files"]}
        yield {"kind": "ConfigMap", "metadata": {"name": made["name"]}, "data": data}


def of_kind(overlay: str, *kinds: str) -> list[Json]:
    return [found for found in resources(ROOT / overlay) if found["kind"] in kinds]


def pods(overlay: str) -> dict[str, Json]:
    """Pod specs by the name of what makes them."""
    found = of_kind(overlay, "Deployment", "Job")
    return {thing["metadata"]["name"]: thing["spec"]["template"]["spec"] for thing in found}


def container(overlay: str, name: str) -> Json:
    (only,) = pods(overlay)[name]["containers"]
    return only


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_kubernetes_takes_it(path: Path) -> None:
    """Every document by the API's own schema, unknown fields refused; KEDA's kinds are looked at below."""
    for document in documents(path):
        if not document["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(document, "1.34", strict=True)


def test_no_file_is_forgotten_and_none_is_named_twice() -> None:
    """All manifests are part of some kustomization; in none does a thing appear twice."""
    named = {
        (folder / name).resolve()
        for folder in (path.parent for path in ROOT.rglob("kustomization.yaml"))
        for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    }
    assert set(FILES) <= named
    assert all(path.exists() for path in named)
    for overlay in OVERLAYS:
        ids = [(found["kind"], found["metadata"]["name"]) for found in resources(ROOT / overlay)]
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_referred_to_is_there(overlay: str) -> None:
    """Selectors, accounts, ConfigMaps, ports, scale targets; of secrets only the one that the operator makes."""
    found = list(resources(ROOT / overlay))
    names = {(thing["kind"], thing["metadata"]["name"]) for thing in found}
    templates = [thing["spec"]["template"] for thing in of_kind(overlay, "Deployment")]
    labels = [template["metadata"]["labels"] for template in templates]
    assert "Secret" not in {kind for kind, _ in names}
    for thing in of_kind(overlay, "Deployment", "PodDisruptionBudget"):
        wanted = thing["spec"]["selector"]["matchLabels"].items()
        assert sum(wanted <= each.items() for each in labels) == 1, thing["metadata"]["name"]
    for service in of_kind(overlay, "Service"):
        (pod,) = (
            t["spec"] for t in templates if service["spec"]["selector"].items() <= t["metadata"]["labels"].items()
        )
        ports = {port["name"] for each in pod["containers"] for port in each["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for pod in pods(overlay).values():
        assert ("ServiceAccount", pod["serviceAccountName"]) in names
        assert {s["secret"]["secretName"] for s in pod["volumes"] if "secret" in s} == {"batchline"}
        maps = [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v]
        maps += [s["configMapRef"]["name"] for c in pod["containers"] for s in c["envFrom"]]
        assert {("ConfigMap", name) for name in maps} <= names
    for thing in of_kind(overlay, "HorizontalPodAutoscaler", "ScaledObject"):
        assert ("Deployment", thing["spec"]["scaleTargetRef"]["name"]) in names
    for thing in of_kind(overlay, "RoleBinding"):
        assert ("Role", thing["roleRef"]["name"]) in names
        assert all((subject["kind"], subject["name"]) in names for subject in thing["subjects"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_processes_understand_their_settings(overlay: str) -> None:
    """Commands that exist, variables that settings.py reads, files that are mounted, secrets as files."""
    known = {variable(field.name) for field in dataclasses.fields(Settings)}
    commands = set(typer.main.get_command(cli.app).commands)
    (shared,) = (m["data"] for m in of_kind(overlay, "ConfigMap") if m["metadata"]["name"] == "batchline")
    for name, pod in pods(overlay).items():
        (only,) = pod["containers"]
        assert only["args"][0] in commands
        given = shared | {entry["name"]: entry.get("value", "") for entry in only.get("env", [])}
        assert {key.removesuffix("_FILE") for key in given} <= known, name
        mounted = {mount["mountPath"]: mount["name"] for mount in only["volumeMounts"]}
        secret = next(volume["secret"] for volume in pod["volumes"] if volume["name"] == mounted["/secrets"])
        keys = {item["path"] for item in secret.get("items", [])} or {"database_url", "redis_url", "admin_key"}
        assert {Path(value).name for key, value in given.items() if key.endswith("_FILE")} <= keys
        assert ("admin_key" in keys) == (name == "batchline-migrate"), "only who registers it may read it"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_hardened(overlay: str) -> None:
    """What Kubernetes calls restricted, a root that cannot be written, memory bounded."""
    for pod in pods(overlay).values():
        (only,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert only["securityContext"]["readOnlyRootFilesystem"]
        assert not only["securityContext"]["allowPrivilegeEscalation"]
        assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in only["resources"]["limits"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_pod_writes_is_bounded(overlay: str) -> None:
    """Every emptyDir; the workers' holds the cache of models."""
    limits: dict[tuple[str, str], int] = {}
    for name, pod in pods(overlay).items():
        for volume in pod["volumes"]:
            if "emptyDir" in volume:
                number, unit = re.fullmatch(r"(\d+)([MG]i)", volume["emptyDir"]["sizeLimit"]).groups()  # type: ignore[union-attr]
                limits[name, volume["name"]] = int(number) * {"Mi": 2**20, "Gi": 2**30}[unit]
    assert limits["batchline-worker", "models"] > Settings.model_cache_bytes


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_talks_but_as_in_the_picture(overlay: str) -> None:
    """All is denied that no policy allows; every pod may reach what it needs, only clients and Prometheus come in."""
    policies = [found["spec"] for found in of_kind(overlay, "NetworkPolicy")]
    denied = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert denied in policies
    reached: dict[str, set[object]] = {}
    entered: dict[str, set[object]] = {}
    for thing in of_kind(overlay, "Deployment", "Job"):
        template = thing["spec"]["template"]
        ports = {port["name"] for port in template["spec"]["containers"][0].get("ports", [])}
        mine = [spec for spec in policies if spec != denied and _selects(spec["podSelector"], template["metadata"])]
        reached[thing["metadata"]["name"]] = {
            p["port"] for spec in mine for r in spec.get("egress", ()) for p in r["ports"]
        }
        rules = [rule for spec in mine for rule in spec.get("ingress", ())]
        entered[thing["metadata"]["name"]] = {p["port"] for rule in rules for p in rule["ports"]} & ports
        assert all("from" in rule for rule in rules if rule["ports"] != [{"port": "http"}])
    servers = {53, 5432, 6379, 443, 80}
    wanted = {"api": servers, "scheduler": servers, "worker": servers, "migrate": {53, 5432}}
    wanted |= {"autoscaler": {53, 5432, 443, 6443}} if overlay != "keda" else {}
    assert reached == {f"batchline-{name}": ports for name, ports in wanted.items()}
    assert entered.pop("batchline-api") == {"http", "metrics"}
    assert all(ports <= {"metrics"} for ports in entered.values())


def _selects(selector: Json, metadata: Json) -> bool:
    labels = metadata["labels"]
    return selector["matchLabels"].items() <= labels.items() and all(
        each["operator"] == "In" and labels[each["key"]] in each["values"]
        for each in selector.get("matchExpressions", ())
    )


def test_there_is_time_to_leave() -> None:
    """Kubernetes waits longer than the processes take to leave by themselves."""
    found = pods("autoscaler")
    assert found["batchline-worker"]["terminationGracePeriodSeconds"] > GIVE_BACK_S + 15
    assert found["batchline-api"]["terminationGracePeriodSeconds"] > 5 + 2 * GRACE_S + 10


def test_a_probe_of_life_does_not_ask_the_database() -> None:
    """Else an hour without Postgres would restart every process; readiness does ask."""
    for name in ("api", "worker", "scheduler", "autoscaler"):
        only = container("autoscaler", f"batchline-{name}")
        assert only["livenessProbe"]["httpGet"]["path"] in ("/livez", "/metrics")
        assert only["livenessProbe"]["httpGet"]["port"] in {port["name"] for port in only["ports"]}
        assert "startupProbe" in only
    assert container("autoscaler", "batchline-api")["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_applying_again_does_not_scale() -> None:
    """The workers' Deployment says no number: it is the scaler's."""
    (worker,) = (d for d in of_kind("autoscaler", "Deployment") if d["metadata"]["name"] == "batchline-worker")
    assert "replicas" not in worker["spec"]


def test_the_autoscaler_may_do_what_it_does_and_no_more(tmp_path: Path) -> None:
    """Its Role is enough for check, launch, list and end over the very Deployment; what is not used is not granted."""
    (role,) = of_kind("autoscaler", "Role")
    (worker,) = (d for d in of_kind("autoscaler", "Deployment") if d["metadata"]["name"] == "batchline-worker")
    chosen = config.load(ROOT / "autoscaler" / "autoscaler.toml").pools["cpu"]
    cluster = kube_server.Cluster()
    cluster.deployments[kube_server.DEPLOYMENT]["spec"] = worker["spec"] | {"replicas": 0}
    cluster.allowed = {(verb, thing) for rule in role["rules"] for thing in rule["resources"] for verb in rule["verbs"]}
    assert role["rules"][0]["resourceNames"] == [chosen.options["deployment"]]
    with kube_server.serving(cluster, tmp_path) as options:
        provider = build("kubernetes", "cpu", options | dict(chosen.options), stack="batchline")
        provider.check()
        (brought,) = provider.launch(a_launch())
        assert [f.instance.id for f in provider.list()] == [brought.id]
        provider.end([brought.id])
    asked = {
        ({"GET": "get" if re.search(r"deployments/.", path) else "list", "PATCH": "patch"}[method], path.split("/")[-1])
        for method, path in cluster.seen
        if method != "POST"
    }
    used = {(verb, re.sub(r"^batchline-worker$", "deployments", re.sub(r"^batchline-worker-.*", "pods", thing)))
            for verb, thing in asked}  # fmt: skip
    assert used == cluster.allowed


@pytest.mark.parametrize("overlay", ["autoscaler", "hpa"])
def test_the_autoscalers_configurations_are_sound(overlay: str) -> None:
    """They load; that of the HPA only advises."""
    pool = config.load(ROOT / overlay / "autoscaler.toml").pools["cpu"]
    assert (pool.provider, pool.policy.name) == ("kubernetes" if overlay == "autoscaler" else "none", "drain_time")


def test_keda_reads_a_number_that_is_there() -> None:
    """Fields that KEDA's metrics-api knows; the path leads to a number in what the API answers; a key of the secret."""
    (scaled,) = of_kind("keda", "ScaledObject")
    (authentication,) = of_kind("keda", "TriggerAuthentication")
    (trigger,) = scaled["spec"]["triggers"]
    about = trigger["metadata"]
    assert trigger["type"] == "metrics-api"
    assert set(about) <= {"url", "valueLocation", "format", "targetValue", "activationTargetValue", "authMode"}
    assert all(isinstance(value, str) for value in about.values())
    found: Any = examples.BACKLOG
    for name in about["valueLocation"].split("."):
        found = found[name]
    assert found == examples.BACKLOG["pools"]["cpu"]["unfinished_rows"]
    assert float(about["targetValue"]) > 0
    (service,) = of_kind("keda", "Service")
    assert f"//{service['metadata']['name']}.batchline.svc:{service['spec']['ports'][0]['port']}/" in about["url"]
    assert about["authMode"] == "bearer"
    assert authentication["spec"]["secretTargetRef"] == [
        {"parameter": "token", "name": "batchline-keda", "key": "api_key"}
    ], "a key of its own, not that of the operator"
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    assert set(scaled["spec"]) <= {"scaleTargetRef", "pollingInterval", "cooldownPeriod", "minReplicaCount",
                                   "maxReplicaCount", "advanced", "triggers"}  # fmt: skip


def test_keda_and_the_hpa_behave_alike() -> None:
    """Up at once, down slowly; the behaviour of both is one, and one that Kubernetes takes."""
    (scaled,), (hpa,) = of_kind("keda", "ScaledObject"), of_kind("hpa", "HorizontalPodAutoscaler")
    behaviour = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behaviour == hpa["spec"]["behavior"]
    assert behaviour["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert behaviour["scaleDown"]["stabilizationWindowSeconds"] == 300
    (metric,) = hpa["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == "batchline_autoscaler_desired_workers"

"""Whether a Deployment can be scaled by us: asked once at start, every fault told with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from autoscaler.providers.contract import ProviderError, Trouble
from autoscaler.providers.kube_api import Json, KubeApi, MissingError
from batchline.errors import SettingsError

NEEDS = (
    ("get", "apps", "deployments"),
    ("patch", "apps", "deployments"),
    ("list", "", "pods"),
    ("patch", "", "pods"),
)
"""(verb, group, resource): what the service account must be allowed in the namespace."""
_RBAC = "apply deploy/kubernetes/autoscaler, or give its service account the same role"


def check(api: KubeApi, namespace: str, deployment: str, pool: str) -> None:
    """Ask the API server.

    Raises:
        ProviderError: the server does not answer now, or is throttling.
        SettingsError: no cluster, a token that is refused, missing permissions, no such Deployment, pods that do not
            say who they are, another autoscaler on the same Deployment; every fault that can be seen, one a line.
    """
    try:
        faults = list(_forbidden(api, namespace, deployment))
        if not faults:
            faults = [*_of_deployment(api, namespace, deployment, pool), *_rivals(api, namespace, deployment)]
    except ProviderError as e:
        if e.trouble is not Trouble.REFUSED:
            raise
        raise SettingsError(
            f"{e.detail}; mend server, token_file and ca_file, or run the autoscaler in the cluster with"
            " the service account of deploy/kubernetes/autoscaler"
        ) from e
    if faults:
        raise SettingsError("\n".join(faults))


def _forbidden(api: KubeApi, namespace: str, deployment: str) -> Iterator[str]:
    """Permissions that are missing, by asking for each; whoever has a token may ask that."""
    missing = list[str]()
    for verb, group, resource in NEEDS:
        wanted = {"namespace": namespace, "verb": verb, "group": group, "resource": resource}
        wanted |= {"name": deployment} if resource == "deployments" else {}
        review: Json = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": wanted},
        }
        answer = api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review).body
        if not answer["status"]["allowed"]:
            missing.append(f"{verb} {resource}")
    if missing:
        yield f"not allowed in namespace {namespace}: {', '.join(missing)}; {_RBAC}"


def _of_deployment(api: KubeApi, namespace: str, deployment: str, pool: str) -> Iterator[str]:
    try:
        found = api.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}").body
    except MissingError:
        yield (
            f"there is no Deployment {deployment} in namespace {namespace}; apply deploy/kubernetes/base, or mend"
            f" pools.{pool}.kubernetes.deployment"
        )
        return
    if "matchExpressions" in found["spec"]["selector"]:
        yield f"{deployment} chooses its pods by matchExpressions; use matchLabels alone"
    containers = cast("list[Json]", found["spec"]["template"]["spec"]["containers"])
    told: dict[str, Any] = {entry["name"]: entry for c in containers for entry in c.get("env", [])}
    field = told.get("BATCHLINE_INSTANCE", {}).get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
    if field != "metadata.name":
        yield (
            f"the pods of {deployment} do not say who they are, so that none would ever count as started; set"
            " BATCHLINE_INSTANCE from the field metadata.name, as deploy/kubernetes/base does"
        )
    serves = told.get("BATCHLINE_POOL", {}).get("value", "cpu")
    if serves != pool:
        yield f"the workers of {deployment} serve the pool {serves}; set BATCHLINE_POOL, or name their own Deployment"


def _rivals(api: KubeApi, namespace: str, deployment: str) -> Iterator[str]:
    try:
        path = f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"
        items = cast("list[Json]", api.get(path).body.get("items") or [])
    except ProviderError:
        return  # not allowed to look: that is no fault
    for item in items:
        target = item["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) == ("Deployment", deployment):
            yield (
                f"the HorizontalPodAutoscaler {item['metadata']['name']} scales {deployment} too, against us; delete it"
                ' (or its ScaledObject), or set provider = "none" for this pool'
            )

"""Workers as the pods of a Deployment, which is scaled; chosen pods go first by their deletion cost.

Kubernetes is told totals and makes up the pods' names, so what belongs to a launch is read off the pods: those that
have come since are labelled with its id. All that is written follows from what is seen (replicas, pods, labels), under
the resourceVersion that was read: whatever is repeated, by whomever, has its effect once.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec

from autoscaler.providers.contract import Found, ProviderError, Trouble
from autoscaler.providers.kube_api import ConflictError, Json, KubeApi, MissingError
from autoscaler.providers.kube_check import check
from batchline.errors import SettingsError
from batchline.store.instance_contract import Launch, NewInstance

LAUNCH = "batchline/launch"
"""Label of a pod: the launch that brought it."""
ENDING = "batchline/ending"
"""Annotation of a pod that is to go: it is on its way, whoever asks again."""
COST = "controller.kubernetes.io/pod-deletion-cost"
_FIRST = "-2147483647"
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_SKEW = timedelta(seconds=5)
"""By how much the cluster's clock may be behind the database's."""
_POLL_S = 0.2
_TRIES = 10


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [pools.NAME.kubernetes]."""

    deployment: str
    """Of the pool's workers; nobody else may scale it."""
    namespace: str = ""
    """Empty: the one that this pod runs in."""
    server: str = "https://kubernetes.default.svc"
    token_file: str = f"{_ACCOUNT}/token"
    ca_file: str = f"{_ACCOUNT}/ca.crt"
    wait_s: Annotated[float, msgspec.Meta(gt=0, le=45)] = 10.0
    """How long a launch waits for its pods to appear (not to start)."""


@dataclass(frozen=True, slots=True)
class _Pod:
    name: str
    launch_id: uuid.UUID | None
    created_at: datetime
    version: str
    ending: bool
    """Marked by us to go."""
    deleted: bool
    over: bool

    @property
    def live(self) -> bool:
        """Counted among the replicas."""
        return not self.deleted and not self.over


@dataclass(frozen=True, slots=True)
class _Look:
    """The Deployment's scale, and then its pods."""

    replicas: int
    version: str
    pods: tuple[_Pod, ...]
    at: datetime

    @property
    def live(self) -> list[_Pod]:
        return [pod for pod in self.pods if pod.live]


class KubernetesProvider:
    """See `autoscaler.providers.contract.Provider`."""

    def __init__(self, pool: str, options: Options, *, stack: str = "") -> None:  # noqa: ARG002 - a Deployment is its own
        """Asks nobody anything yet."""
        self._pool = pool
        self._options = options
        self._api = KubeApi(options.server, Path(options.token_file), Path(options.ca_file))
        self._selector = ""

    @property
    def name(self) -> str:
        return "kubernetes"

    @property
    def stale_s(self) -> float:
        """Lists are read from the store itself, not from a cache."""
        return 0.0

    def check(self) -> None:
        """See the contract; also refuses a Deployment whose pods do not say who they are, or that an HPA scales."""
        try:
            namespace = self._namespace
        except ProviderError as e:
            raise SettingsError(f"pool {self._pool}: {e.detail}") from e
        check(self._api, namespace, self._options.deployment, self._pool)

    def launch(self, launch: Launch) -> Sequence[NewInstance]:
        until = time.monotonic() + self._options.wait_s
        before: frozenset[str] | None = None
        """The pods that were there when replicas were to be added."""
        added = False
        while True:
            try:
                look = self._look()
                own = self._claim(launch, look, before)
                coming = max(0, look.replicas - len(look.live))
                wanted = _total(launch, look, launch.count - len(own) - coming)
                if len(own) >= launch.count:
                    return [NewInstance(pod.name, kind="pod") for pod in own]
                if wanted > look.replicas:
                    before = before or frozenset(pod.name for pod in look.pods)
                    self._put(look, wanted)
                    added = True
                elif not coming:
                    return _brought(
                        own, f"{look.replicas} replicas are there already, and {launch.total} wanted in all"
                    )
                elif time.monotonic() > until:
                    return self._give_up(look, coming, own)
            except ConflictError as e:
                if time.monotonic() > until:
                    raise ProviderError(Trouble.UNKNOWN if added else Trouble.THROTTLED, e.detail) from e
            except ProviderError as e:
                if added and e.trouble in (Trouble.THROTTLED, Trouble.REFUSED):
                    raise ProviderError(Trouble.UNKNOWN, e.detail) from e
                raise
            time.sleep(random.uniform(_POLL_S / 2, _POLL_S))

    def list(self) -> Sequence[Found]:
        if not self._selector:
            return [self._found(pod, look.at) for look in (self._look(),) for pod in look.pods if not pod.over]
        pods, at = self._pods(self._selector)
        return [self._found(pod, at) for pod in pods if not pod.over]

    def end(self, instance_ids: Sequence[str]) -> None:
        """See the contract.

        The ReplicaSet takes pods that are not ready yet before any other, whatever their cost. They hold nothing; the
        chosen ones are still marked then, and go when they are asked for again.
        """
        names = set(instance_ids)
        for _ in range(_TRIES):
            look = self._look()
            for pod in look.live:
                if pod.name in names and not pod.ending:
                    self._mark(pod)
            live = look.live
            leaving = sum(pod.ending or pod.name in names for pod in live)
            wanted = min(look.replicas, len(live) - leaving)
            if not leaving or wanted == look.replicas:
                return
            try:
                self._put(look, wanted)
            except ConflictError:
                time.sleep(random.uniform(_POLL_S / 2, _POLL_S))
            else:
                return
        raise ProviderError(
            Trouble.THROTTLED, f"the Deployment {self._options.deployment} changes all the time; asked again later"
        )

    def _claim(self, launch: Launch, look: _Look, before: frozenset[str] | None) -> list[_Pod]:
        """The launch's pods: those that are labelled, and those without a label that have come since."""
        own = [pod for pod in look.live if pod.launch_id == launch.id]
        since = [
            pod
            for pod in look.live
            if pod.launch_id is None
            and not pod.ending
            and (pod.created_at >= launch.created_at - _SKEW or (before is not None and pod.name not in before))
        ]
        for pod in sorted(since, key=lambda p: (p.created_at, p.name), reverse=True)[: launch.count - len(own)]:
            label = {"resourceVersion": pod.version, "labels": {LAUNCH: str(launch.id)}}
            try:
                self._api.merge(self._path("pods", pod.name), {"metadata": label})
            except MissingError:
                continue
            own.append(pod)
        return own

    def _give_up(self, look: _Look, coming: int, own: Sequence[_Pod]) -> Sequence[NewInstance]:
        """The pods do not come: take the replicas back if Kubernetes says that they cannot."""
        found = self._api.get(self._path("deployments", self._options.deployment)).body
        conditions: list[Json] = found.get("status", {}).get("conditions", [])
        told = [c.get("message", "") for c in conditions if c["type"] == "ReplicaFailure" and c["status"] == "True"]
        if not told:
            raise ProviderError(
                Trouble.UNKNOWN,
                f"{coming} pods of {self._options.deployment} have not appeared within {self._options.wait_s:g} s",
            )
        self._put(look, look.replicas - coming)
        return _brought(own, told[0])

    def _mark(self, pod: _Pod) -> None:
        try:
            self._api.merge(self._path("pods", pod.name), {"metadata": {"annotations": {COST: _FIRST, ENDING: "true"}}})
        except MissingError:
            return

    def _look(self) -> _Look:
        try:
            scale = self._api.get(self._path("deployments", self._options.deployment) + "/scale").body
        except MissingError as e:
            raise ProviderError(
                Trouble.REFUSED, f"there is no Deployment {self._options.deployment} in {self._namespace} any more"
            ) from e
        self._selector = scale["status"]["selector"]
        pods, at = self._pods(self._selector)
        # 0 is left out of the JSON.
        return _Look(scale["spec"].get("replicas", 0), scale["metadata"]["resourceVersion"], pods, at)

    def _pods(self, selector: str) -> tuple[tuple[_Pod, ...], datetime]:
        answer = self._api.get(self._path("pods"), {"labelSelector": selector})
        items = cast("list[Json]", answer.body.get("items") or [])
        return tuple(_pod(item) for item in items), answer.at

    def _put(self, look: _Look, replicas: int) -> None:
        """Set the total, unless anything about the Deployment has changed since the look."""
        name = self._options.deployment
        about = {"name": name, "namespace": self._namespace, "resourceVersion": look.version}
        scale: Json = {"apiVersion": "autoscaling/v1", "kind": "Scale"}
        self._api.put(
            self._path("deployments", name) + "/scale", scale | {"metadata": about, "spec": {"replicas": replicas}}
        )

    def _path(self, resource: str, name: str = "") -> str:
        group = "/api/v1" if resource == "pods" else "/apis/apps/v1"
        return f"{group}/namespaces/{self._namespace}/{resource}" + (f"/{name}" if name else "")

    @property
    def _namespace(self) -> str:
        if self._options.namespace:
            return self._options.namespace
        path = Path(self._options.token_file).with_name("namespace")
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as e:
            raise ProviderError(
                Trouble.REFUSED, f"{path} cannot be read: run the autoscaler in the cluster, or name a namespace"
            ) from e

    def _found(self, pod: _Pod, at: datetime) -> Found:
        return Found(
            NewInstance(pod.name, kind="pod"),
            self._pool,
            pod.launch_id,
            pod.deleted,
            max(0.0, (at - pod.created_at).total_seconds()),
        )


def _total(launch: Launch, look: _Look, short: int) -> int:
    """Replicas to set so that `short` more pods come; never more than the launch may have in all."""
    most = launch.total + sum(pod.ending for pod in look.live)
    return max(look.replicas, min(look.replicas + short, most))


def _brought(own: Sequence[_Pod], why: str) -> Sequence[NewInstance]:
    if not own:
        raise ProviderError(Trouble.CAPACITY, f"Kubernetes makes no more pods: {why}")
    return [NewInstance(pod.name, kind="pod") for pod in own]


def _pod(item: dict[str, Any]) -> _Pod:
    about, phase = item["metadata"], item.get("status", {}).get("phase", "")
    try:
        launch_id = uuid.UUID(about.get("labels", {}).get(LAUNCH, ""))
    except ValueError:
        launch_id = None
    return _Pod(
        about["name"],
        launch_id,
        datetime.fromisoformat(about["creationTimestamp"]),
        about["resourceVersion"],
        ENDING in about.get("annotations", {}),
        "deletionTimestamp" in about,
        phase in ("Succeeded", "Failed"),
    )

"""Workers as the pods of a Deployment, which is scaled; chosen pods go first by their deletion cost.

Kubernetes is told totals and makes up the pods' names. So replicas are added together with a note of the launch, in one
change of the Deployment, and the pods that come after it are labelled with the launch. All that is written is written
under the resourceVersion that was read: whatever is repeated, by whomever, has its effect once.

The scale subresource would ask for less permission, but takes no note: a reply that is lost for long would be launched
again. Whoever may patch pods, as must be for deletion costs, may change their image anyway.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

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
LAUNCHES = "batchline/launches"
"""Annotation of the Deployment: the last launches that added replicas, how many each, and when."""
COST = "controller.kubernetes.io/pod-deletion-cost"
_FIRST = "-2147483647"
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_NOTED = 50
_POLL_S = 0.2
_TRIES = 10


class _Note(NamedTuple):
    """What a launch has done: it added so many replicas, after a moment of the cluster's clock."""

    added: int
    at: datetime


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

    def __post_init__(self) -> None:
        if not self.server.startswith("https://"):
            raise ValueError("server must begin with https://, since the token is sent there")


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
    """The Deployment, and then its pods."""

    replicas: int
    version: str
    notes: Mapping[str, _Note]
    failure: str
    """Why no pod can be made, if Kubernetes says so."""
    pods: tuple[_Pod, ...]
    at: datetime

    @property
    def live(self) -> list[_Pod]:
        return [pod for pod in self.pods if pod.live]

    @property
    def coming(self) -> int:
        """Pods that are to be made yet."""
        return max(0, self.replicas - len(self.live))


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
            raise SettingsError(e.detail) from e
        check(self._api, namespace, self._options.deployment, self._pool)

    def launch(self, launch: Launch) -> Sequence[NewInstance]:
        until = time.monotonic() + self._options.wait_s
        noted = False
        while True:
            try:
                look = self._look()
                note = look.notes.get(str(launch.id))
                noted = note is not None
                if note is None:
                    self._add(launch, look)
                    noted = True
                    continue
                own = self._claim(launch, note, look)
                if len(own) >= note.added or not look.coming:
                    return [NewInstance(pod.name, kind="pod") for pod in own]
                if time.monotonic() > until:
                    return self._give_up(launch, note, look, own)
            except ConflictError as e:
                if time.monotonic() > until:
                    raise ProviderError(Trouble.UNKNOWN if noted else Trouble.THROTTLED, e.detail) from e
            except ProviderError as e:
                if noted and e.trouble in (Trouble.THROTTLED, Trouble.REFUSED):
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
        for _ in range(_TRIES if names else 0):
            look = self._look()
            for pod in look.live:
                if pod.name in names and not pod.ending:
                    self._mark(pod)
            leaving = sum(pod.ending or pod.name in names for pod in look.live)
            wanted = min(look.replicas, len(look.live) - leaving)
            if not leaving or wanted == look.replicas:
                return
            try:
                self._scale(look, wanted)
            except ConflictError:
                time.sleep(random.uniform(_POLL_S / 2, _POLL_S))
            else:
                return
        if names:
            raise ProviderError(
                Trouble.THROTTLED, f"{self._options.deployment} changes all the time; asked again later"
            )

    def _add(self, launch: Launch, look: _Look) -> None:
        """Add the launch's replicas and note it, in one."""
        wanted = min(look.replicas + launch.count, launch.total)
        if wanted <= look.replicas:
            raise ProviderError(
                Trouble.CAPACITY,
                f"{self._options.deployment} has {look.replicas} replicas already, {launch.total} are wanted in all",
            )
        self._scale(look, wanted, {str(launch.id): _Note(wanted - look.replicas, look.at)})

    def _claim(self, launch: Launch, note: _Note, look: _Look) -> list[_Pod]:
        """The launch's pods: those that are labelled, and those without a label that have come since."""
        own = [pod for pod in look.pods if pod.launch_id == launch.id and not pod.over]
        since = [p for p in look.live if p.launch_id is None and not p.ending and p.created_at >= note.at]
        newest = sorted(since, key=lambda pod: (pod.created_at, pod.name), reverse=True)
        for pod in newest[: max(0, note.added - len(own))]:
            label = {"resourceVersion": pod.version, "labels": {LAUNCH: str(launch.id)}}
            try:
                self._api.merge(self._path("pods", pod.name), {"metadata": label})
            except MissingError:
                continue
            own.append(pod)
        return own

    def _give_up(self, launch: Launch, note: _Note, look: _Look, own: Sequence[_Pod]) -> Sequence[NewInstance]:
        """The pods do not come: take the replicas back if Kubernetes says that they cannot."""
        if not look.failure:
            raise ProviderError(
                Trouble.UNKNOWN,
                f"{look.coming} pods of {self._options.deployment} have not appeared in {self._options.wait_s:g} s",
            )
        self._scale(look, look.replicas - look.coming, {str(launch.id): note._replace(added=len(own))})
        if not own:
            raise ProviderError(Trouble.CAPACITY, f"Kubernetes makes no more pods: {look.failure}")
        return [NewInstance(pod.name, kind="pod") for pod in own]

    def _mark(self, pod: _Pod) -> None:
        marks = {"metadata": {"annotations": {COST: _FIRST, ENDING: "true"}}}
        try:
            self._api.merge(self._path("pods", pod.name), marks)
        except MissingError:
            return

    def _scale(self, look: _Look, replicas: int, noted: Mapping[str, _Note] | None = None) -> None:
        """Set the total, unless anything about the Deployment has changed since the look."""
        about: Json = {"resourceVersion": look.version}
        if noted:
            notes = list((dict(look.notes) | dict(noted)).items())[-_NOTED:]
            told = {id_: [note.added, note.at.isoformat()] for id_, note in notes}
            about["annotations"] = {LAUNCHES: json.dumps(told)}
        path = self._path("deployments", self._options.deployment)
        self._api.merge(path, {"metadata": about, "spec": {"replicas": replicas}})

    def _look(self) -> _Look:
        try:
            found = self._api.get(self._path("deployments", self._options.deployment)).body
        except MissingError as e:
            raise ProviderError(
                Trouble.REFUSED, f"there is no Deployment {self._options.deployment} in {self._namespace} any more"
            ) from e
        about, spec = found["metadata"], found["spec"]
        self._selector = ",".join(f"{key}={value}" for key, value in spec["selector"]["matchLabels"].items())
        pods, at = self._pods(self._selector)
        failures = [
            str(condition.get("message", ""))
            for condition in found.get("status", {}).get("conditions", [])
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True"
        ]
        notes = _notes(about.get("annotations", {}).get(LAUNCHES, "{}"))
        return _Look(spec.get("replicas", 1), about["resourceVersion"], notes, "; ".join(failures), pods, at)

    def _pods(self, selector: str) -> tuple[tuple[_Pod, ...], datetime]:
        answer = self._api.get(self._path("pods"), {"labelSelector": selector})
        items = cast("list[Json]", answer.body.get("items") or [])
        return tuple(_pod(item) for item in items), answer.at

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


def _notes(text: str) -> dict[str, _Note]:
    """The Deployment's annotation; what somebody has spoilt counts as empty."""
    try:
        told: dict[str, tuple[int, str]] = json.loads(text)
        return {id_: _Note(int(added), datetime.fromisoformat(at)) for id_, (added, at) in told.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


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

"""A fake Kubernetes API server on loopback: Deployments, their ReplicaSets' rules, TLS, tokens, RBAC, and faults.

Faithful in what the provider leans on: resourceVersions that move with every change (the Deployment's with its status
too), merge patches, names made up by the ReplicaSet, pods that come and go after the answer, and the order in which a
ReplicaSet takes pods away (not assigned, pending, not ready, deletion cost, newest).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import itertools
import json
import secrets
import ssl
import threading
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Json = dict[str, Any]
NAMESPACE, DEPLOYMENT, TOKEN = "batchline", "batchline-worker", "t0ken"
ALLOWED = {
    ("get", "deployments"), ("patch", "deployments"), ("list", "pods"), ("patch", "pods"),
    ("list", "horizontalpodautoscalers"),
}  # fmt: skip

Rule = Callable[[str, str], int | str | None]
"""(method, path) -> a status to answer with, `lost` (done, and no answer), or None."""


class StatusError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """What the API server keeps, and the controllers that act on it. One lock: requests come from threads."""

    def __init__(self, replicas: int = 0) -> None:
        self.lock = threading.RLock()
        self.versions = itertools.count(1000)
        self.deployments: dict[str, Json] = {}
        self.pods: dict[str, Json] = {}
        self.allowed = set(ALLOWED)
        self.hpas: list[Json] = []
        self.quota = 1000
        self.controlled = True
        """False: the ReplicaSets' controller is slow and has not acted yet."""
        self.hurried = False
        """True: between two requests pods start, and deleted ones go."""
        self.behind = dt.timedelta(0)
        """How far this clock is behind."""
        self.rule: Rule = lambda _method, _path: None
        self.seen: list[tuple[str, str]] = []
        self.peak = replicas
        self.deploy(DEPLOYMENT, replicas)
        self.run()
        for pod in self.pods.values():
            pod["metadata"]["creationTimestamp"] = stamp(self.now() - dt.timedelta(hours=1))

    def deploy(self, name: str, replicas: int = 0, pool: str = "cpu") -> None:
        """A Deployment as deploy/kubernetes makes it."""
        labels = {"app.kubernetes.io/name": name, "batchline/pool": pool}
        field = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}
        env = [{"name": "BATCHLINE_INSTANCE", "valueFrom": field}, {"name": "BATCHLINE_POOL", "value": pool}]
        with self.lock:
            self.deployments[name] = {
                "metadata": {"name": name, "resourceVersion": str(next(self.versions)), "annotations": {"by": "hand"}},
                "spec": {
                    "replicas": replicas,
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "w", "env": env}]}},
                },
                "status": {},
            }
            self.control()

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) - self.behind

    @property
    def replicas(self) -> int:
        return self.deployments[DEPLOYMENT]["spec"]["replicas"]

    def touch(self, thing: Json) -> None:
        thing["metadata"]["resourceVersion"] = str(next(self.versions))

    def active(self, name: str = DEPLOYMENT) -> list[Json]:
        labels = self.deployments[name]["spec"]["selector"]["matchLabels"]
        return [
            pod
            for pod in self.pods.values()
            if labels.items() <= pod["metadata"]["labels"].items()
            and "deletionTimestamp" not in pod["metadata"]
            and pod["status"]["phase"] not in ("Succeeded", "Failed")
        ]

    def names(self) -> set[str]:
        with self.lock:
            return {pod["metadata"]["name"] for pod in self.active()}

    def control(self) -> None:
        """What the ReplicaSets' controller does: pods up or down to `replicas`, the worst ones first."""
        for name, deployment in self.deployments.items() if self.controlled else ():
            replicas, before = deployment["spec"]["replicas"], self.active(name)
            room = self.quota - len(self.pods)
            made = [self._create(deployment) for _ in range(min(replicas - len(before), room))]
            surplus = sorted(before, key=self._rank)[: max(0, len(before) - replicas)]
            for pod in surplus:
                pod["metadata"]["deletionTimestamp"] = stamp(self.now())
                self.touch(pod)
            message = f'pods "{name}-x" is forbidden: exceeded quota: pods={self.quota}'
            denied = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
            deployment["status"] = {"conditions": [denied] if len(before) + len(made) < replicas else []}
            if made or surplus:
                self.touch(deployment)

    @staticmethod
    def _rank(pod: Json) -> tuple[Any, ...]:
        """Kubernetes's ActivePodsWithRanks, as far as one node shows it; the first is taken first."""
        cost = int(pod["metadata"].get("annotations", {}).get("controller.kubernetes.io/pod-deletion-cost", 0))
        made = dt.datetime.fromisoformat(pod["metadata"]["creationTimestamp"]).timestamp()
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
        return ("nodeName" in pod["spec"], pod["status"]["phase"] != "Pending", ready, cost, -made)

    def _create(self, deployment: Json) -> Json:
        name = f"{deployment['metadata']['name']}-7d9c{secrets.token_hex(3)}-{secrets.token_hex(3)[:5]}"
        labels = dict(deployment["spec"]["template"]["metadata"]["labels"])
        about = {"name": name, "labels": labels, "creationTimestamp": stamp(self.now())}
        self.pods[name] = {"metadata": about, "spec": {}, "status": {"phase": "Pending"}}
        self.touch(self.pods[name])
        return self.pods[name]

    def run(self) -> None:
        """What scheduler and kubelets do: pending pods run and are ready, deleted ones are gone."""
        with self.lock:
            before = {name: pod["metadata"]["resourceVersion"] for name, pod in self.pods.items()}
            for name, pod in list(self.pods.items()):
                if "deletionTimestamp" in pod["metadata"]:
                    del self.pods[name]
                elif pod["status"]["phase"] == "Pending":
                    pod["spec"]["nodeName"] = "node-1"
                    pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
                    self.touch(pod)
            if before != {name: pod["metadata"]["resourceVersion"] for name, pod in self.pods.items()}:
                for deployment in self.deployments.values():
                    self.touch(deployment)

    def lose(self, name: str) -> None:
        """A node dies: the pod is gone, the ReplicaSet makes another."""
        with self.lock:
            del self.pods[name]
            self.control()

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Json, media_type: str) -> Json:
        """One request, with the lock held."""
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            wanted = body["spec"]["resourceAttributes"]
            return body | {"status": {"allowed": (wanted["verb"], wanted["resource"]) in self.allowed}}
        for group in ("/api/v1/namespaces/", "/apis/apps/v1/namespaces/", "/apis/autoscaling/v2/namespaces/"):
            if path.startswith(group):
                namespace, resource, name = [*path.removeprefix(group).split("/"), ""][:3]
                verb = {"GET": "get" if name else "list", "PATCH": "patch"}.get(method, method.lower())
                if namespace != NAMESPACE or (verb, resource) not in self.allowed:
                    who = f'{resource} "{name}" is forbidden: User "system:serviceaccount:x:default"'
                    raise StatusError(403, f'{who} cannot {verb} resource "{resource}" in namespace "{namespace}"')
                if method == "PATCH":
                    return self._patch(resource, name, body, media_type)
                return self._get(resource, name, query)
        raise StatusError(404, "the server could not find the requested resource")

    def _get(self, resource: str, name: str, query: dict[str, list[str]]) -> Json:
        if resource == "horizontalpodautoscalers":
            return {"kind": "HorizontalPodAutoscalerList", "items": self.hpas}
        self.control()
        if resource == "deployments":
            return self._find(resource, name)
        wanted = dict(part.split("=") for part in query["labelSelector"][0].split(","))
        found = [pod for pod in self.pods.values() if wanted.items() <= pod["metadata"]["labels"].items()]
        return {"kind": "PodList", "metadata": {"resourceVersion": str(next(self.versions))}, "items": found}

    def _find(self, resource: str, name: str) -> Json:
        things = self.pods if resource == "pods" else self.deployments
        if name not in things:
            raise StatusError(404, f'{resource} "{name}" not found')
        return things[name]

    def _patch(self, resource: str, name: str, body: Json, media_type: str) -> Json:
        if media_type != "application/merge-patch+json":
            raise StatusError(415, "the body of the request was in an unknown format")
        thing, change = self._find(resource, name), body["metadata"]
        about = thing["metadata"]
        if change.get("resourceVersion", about["resourceVersion"]) != about["resourceVersion"]:
            raise StatusError(409, f'Operation cannot be fulfilled on {resource} "{name}": modified')
        for part in ("labels", "annotations"):
            about[part] = about.get(part, {}) | change.get(part, {})
        if resource == "deployments":
            thing["spec"] |= body.get("spec", {})
            self.peak = max(self.peak, thing["spec"]["replicas"])
        self.touch(thing)
        answer = json.loads(json.dumps(thing))
        self.control()
        return answer


def stamp(at: dt.datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fake cluster")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "ca.crt", folder / "server.key"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    return cert_file, key_file


@contextlib.contextmanager
def serving(cluster: Cluster, folder: Path) -> Generator[Json]:
    """Serve the cluster; yields what `[pools.cpu.kubernetes]` would say."""
    cert_file, key_file = certificate(folder)
    (folder / "token").write_text(TOKEN + "\n")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            with cluster.lock:
                cluster.seen.append((self.command, url.path))
                fate = cluster.rule(self.command, url.path)
                try:
                    if isinstance(fate, int):
                        raise StatusError(fate, "told to fail")
                    if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                        raise StatusError(401, "Unauthorized")
                    media_type = self.headers.get("Content-Type", "")
                    found = cluster.answer(
                        self.command, url.path, parse_qs(url.query), json.loads(body or b"{}"), media_type
                    )
                    status = 201 if self.command == "POST" else 200
                except StatusError as e:
                    status, found = e.status, {"kind": "Status", "code": e.status, "message": str(e)}
                data = json.dumps(found).encode()
                if cluster.hurried and self.command == "GET":
                    cluster.run()
            if fate == "lost":
                self.close_connection = True
                return
            self.send_response_only(status)
            self.send_header("Date", cluster.now().strftime("%a, %d %b %Y %H:%M:%S GMT"))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = _do  # noqa: N815 - http.server asks for these

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert_file, key_file)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield {
            "deployment": DEPLOYMENT,
            "namespace": NAMESPACE,
            "server": f"https://127.0.0.1:{server.server_port}",
            "token_file": str(folder / "token"),
            "ca_file": str(cert_file),
            "wait_s": 3.0,
        }
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

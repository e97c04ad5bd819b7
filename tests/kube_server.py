"""A fake Kubernetes API server on loopback: one Deployment, its ReplicaSet's rules, TLS, tokens, RBAC, and faults.

Faithful in what the provider leans on: resourceVersions that move with every change (the Deployment's with its status
too), `replicas: 0` left out, names made up by the ReplicaSet, pods that come and go after the answer, and the order in
which a ReplicaSet takes pods away (not assigned, pending, not ready, deletion cost, newest).
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
SELECTOR = {"app.kubernetes.io/name": "batchline", "batchline/pool": "cpu"}
ALLOWED = {
    ("get", "deployments", ""), ("get", "deployments", "scale"), ("update", "deployments", "scale"),
    ("list", "pods", ""), ("patch", "pods", ""), ("list", "horizontalpodautoscalers", ""),
}  # fmt: skip
ENV = [
    {"name": "BATCHLINE_INSTANCE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
    {"name": "BATCHLINE_POOL", "value": "cpu"},
]

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
        self.replicas, self.version = replicas, next(self.versions)
        self.pods: dict[str, Json] = {}
        self.allowed = set(ALLOWED)
        self.env: list[Json] = list(ENV)
        self.hpas: list[Json] = []
        self.exists = True
        self.quota = 1000
        self.controlled = True
        """False: the ReplicaSet's controller is slow and has not acted yet."""
        self.behind = dt.timedelta(0)
        """How far this clock is behind."""
        self.conditions: list[Json] = []
        self.rule: Rule = lambda _method, _path: None
        self.seen: list[tuple[str, str]] = []
        self.peak = replicas
        self.control()
        self.run()
        for pod in self.pods.values():
            pod["metadata"]["creationTimestamp"] = stamp(self.now() - dt.timedelta(hours=1))

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) - self.behind

    def active(self) -> list[Json]:
        return [
            pod
            for pod in self.pods.values()
            if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] not in ("Succeeded", "Failed")
        ]

    def control(self) -> None:
        """What the ReplicaSet's controller does: pods up or down to `replicas`, the worst ones first."""
        if not self.controlled:
            return
        active, before = self.active(), len(self.active())
        while len(active) < min(self.replicas, self.quota):
            active.append(self._create())
        for pod in sorted(active, key=self._rank)[: max(0, len(active) - self.replicas)]:
            pod["metadata"]["deletionTimestamp"] = stamp(self.now())
            pod["metadata"]["resourceVersion"] = str(next(self.versions))
        denied = self.replicas > self.quota >= len(active)
        message = f'pods "{DEPLOYMENT}-x" is forbidden: exceeded quota: pods={self.quota}'
        self.conditions = (
            [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}]
            if denied
            else []
        )
        if len(self.active()) != before:
            self.version = next(self.versions)  # the Deployment's status tells the number

    @staticmethod
    def _rank(pod: Json) -> tuple[Any, ...]:
        """Kubernetes's ActivePodsWithRanks, as far as one node shows it; the first is taken first."""
        cost = int(pod["metadata"].get("annotations", {}).get("controller.kubernetes.io/pod-deletion-cost", 0))
        made = dt.datetime.fromisoformat(pod["metadata"]["creationTimestamp"]).timestamp()
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
        return ("nodeName" in pod["spec"], pod["status"]["phase"] != "Pending", ready, cost, -made)

    def _create(self) -> Json:
        name = f"{DEPLOYMENT}-7d9c{secrets.token_hex(3)}-{secrets.token_hex(3)[:5]}"
        self.pods[name] = {
            "metadata": {
                "name": name,
                "uid": secrets.token_hex(8),
                "labels": SELECTOR | {"pod-template-hash": "7d9c"},
                "creationTimestamp": stamp(self.now()),
                "resourceVersion": str(next(self.versions)),
            },
            "spec": {},
            "status": {"phase": "Pending"},
        }
        return self.pods[name]

    def run(self) -> None:
        """What scheduler and kubelets do: pending pods run and are ready, deleted ones are gone."""
        with self.lock:
            for name, pod in list(self.pods.items()):
                if "deletionTimestamp" in pod["metadata"]:
                    del self.pods[name]
                elif pod["status"]["phase"] == "Pending":
                    pod["spec"]["nodeName"] = "node-1"
                    pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
                    pod["metadata"]["resourceVersion"] = str(next(self.versions))
            self.version = next(self.versions)

    def lose(self, name: str) -> None:
        """A node dies: the pod is gone, the ReplicaSet makes another."""
        with self.lock:
            del self.pods[name]
            self.control()

    def names(self) -> set[str]:
        with self.lock:
            return {pod["metadata"]["name"] for pod in self.active()}

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Json, media_type: str) -> Json:
        """One request, with the locks held."""
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            wanted = body["spec"]["resourceAttributes"]
            allowed = (wanted["verb"], wanted["resource"], wanted.get("subresource", "")) in self.allowed
            return body | {"status": {"allowed": allowed}}
        for group in ("/api/v1/namespaces/", "/apis/apps/v1/namespaces/", "/apis/autoscaling/v2/namespaces/"):
            if path.startswith(group):
                namespace, resource, name, sub = [*path.removeprefix(group).split("/"), "", ""][:4]
                self._allow(method, namespace, resource, name, sub)
                return self._resource(method, resource, name, sub, query, body, media_type)
        raise StatusError(404, "the server could not find the requested resource")

    def _allow(self, method: str, namespace: str, resource: str, name: str, sub: str) -> None:
        verb = {"GET": "get" if name else "list", "PUT": "update", "PATCH": "patch"}.get(method, method.lower())
        if namespace != NAMESPACE or (verb, resource, sub) not in self.allowed:
            what = f'{resource}{"/" if sub else ""}{sub} "{name}" is forbidden: User "system:serviceaccount:x:default"'
            raise StatusError(403, f'{what} cannot {verb} resource "{resource}" in the namespace "{namespace}"')

    def _resource(  # noqa: PLR0917 - a request is so many things
        self, method: str, resource: str, name: str, sub: str, query: dict[str, list[str]], body: Json, media_type: str
    ) -> Json:
        if resource == "horizontalpodautoscalers":
            return {"kind": "HorizontalPodAutoscalerList", "items": self.hpas}
        if resource == "pods":
            return self._patch(name, body, media_type) if method == "PATCH" else self._list(query["labelSelector"][0])
        if not self.exists or name != DEPLOYMENT:
            raise StatusError(404, f'deployments.apps "{name}" not found')
        if not sub:
            template = {"spec": {"containers": [{"name": "worker", "env": self.env}]}}
            spec = {"replicas": self.replicas, "template": template}
            return {"metadata": {"name": name}, "spec": spec, "status": {"conditions": self.conditions}}
        if method == "PUT":
            self._scale(body)
        replicas = {"replicas": self.replicas} if self.replicas else {}
        return {
            "kind": "Scale",
            "metadata": {"name": name, "namespace": NAMESPACE, "resourceVersion": str(self.version)},
            "spec": replicas,
            "status": {"replicas": len(self.active()), "selector": ",".join(f"{k}={v}" for k, v in SELECTOR.items())},
        }

    def _scale(self, body: Json) -> None:
        if body["metadata"].get("resourceVersion", str(self.version)) != str(self.version):
            raise StatusError(409, f'Operation cannot be fulfilled on deployments.apps "{DEPLOYMENT}": modified')
        self.replicas = body["spec"].get("replicas", 0)
        self.peak = max(self.peak, self.replicas)
        self.version = next(self.versions)
        self.control()

    def _list(self, selector: str) -> Json:
        self.control()
        wanted = dict(part.split("=") for part in selector.split(","))
        found = [pod for pod in self.pods.values() if wanted.items() <= pod["metadata"]["labels"].items()]
        return {"kind": "PodList", "metadata": {"resourceVersion": str(next(self.versions))}, "items": found}

    def _patch(self, name: str, body: Json, media_type: str) -> Json:
        if media_type != "application/merge-patch+json":
            raise StatusError(415, "the body of the request was in an unknown format")
        if name not in self.pods:
            raise StatusError(404, f'pods "{name}" not found')
        about, change = self.pods[name]["metadata"], body["metadata"]
        if change.get("resourceVersion", about["resourceVersion"]) != about["resourceVersion"]:
            raise StatusError(409, f'Operation cannot be fulfilled on pods "{name}": modified')
        for part in ("labels", "annotations"):
            about[part] = about.get(part, {}) | change.get(part, {})
        about["resourceVersion"] = str(next(self.versions))
        return self.pods[name]


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
            if fate == "lost":
                self.close_connection = True
                return
            self.send_response_only(status)
            self.send_header("Date", cluster.now().strftime("%a, %d %b %Y %H:%M:%S GMT"))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_PATCH = _do  # noqa: N815 - http.server asks for these

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

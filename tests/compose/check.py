"""What must hold of the system in containers: `check.py first|again FOLDER COMPOSE...`, run by tests/compose/run."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import yaml

from batchline.client import Client

sys.path.insert(0, "examples")
import digits

SERVICES = ("postgres", "redis", "api", "worker", "scheduler", "autoscaler", "flower")
HEALTHY_S = 180.0
DOCTOR_S = 30.0
JOB_S = 60.0
FLOWER_S = 20.0
API = f"http://127.0.0.1:{os.environ['BATCHLINE_PORT']}"
FLOWER = f"http://127.0.0.1:{os.environ['BATCHLINE_FLOWER_PORT']}"


class Compose:
    """The command that was given, with its configuration."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self.services = yaml.safe_load(self.run("config"))["services"]

    def run(self, *arguments: str, stdin: bytes = b"") -> str:
        done = subprocess.run([*self._command, *arguments], input=stdin, capture_output=True, check=False)
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace")
            raise SystemExit(f"`compose {' '.join(arguments)}` ended with {done.returncode}: {said}")
        return done.stdout.decode()

    def inside(self, service: str, *command: str, stdin: bytes = b"") -> str:
        """Run a command in a running container; what it printed, without empty lines at its ends."""
        return self.run("exec", "-T", service, *command, stdin=stdin).strip()

    def is_healthy(self, service: str) -> bool:
        """Run the service's own health check, since not every engine does so by itself."""
        return self.succeeds(service, *self.health_check(service))

    def health_check(self, service: str) -> list[str]:
        kind, *test = self.services[service]["healthcheck"]["test"]
        test = [part.replace("$$", "$") for part in test]
        return test if kind == "CMD" else ["sh", "-c", *test]

    def succeeds(self, service: str, *command: str) -> bool:
        """Whether a command in a running container ends with 0."""
        return self._try(service, *command).returncode == 0

    def said(self, service: str, *command: str) -> str:
        """What a command in a running container prints, whether it ends with 0 or not."""
        done = self._try(service, *command)
        return f"`{' '.join(command)}` in {service} ended with {done.returncode}: {done.stdout}{done.stderr}"

    def _try(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        whole = [*self._command, "exec", "-T", service, *command]
        return subprocess.run(whole, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def until(what: str, holds: Callable[[], bool], limit_s: float, seen: Callable[[], str] = str) -> None:
    """Wait, and end with what is `seen` instead when the time is up."""
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {limit_s:g} s: {what}. {seen()}")
        time.sleep(0.5)


def status(url: str, login: str | None = None) -> int:
    """The status of a GET, with a login as USER:PASSWORD or without."""
    return fetch(url, login)[0]


def fetch(url: str, login: str | None = None) -> tuple[int, bytes]:
    headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, b""


def check_health(compose: Compose) -> None:
    """Every service becomes healthy, by its own check."""
    for service in SERVICES:
        until(
            f"{service} is healthy",
            lambda service=service: compose.is_healthy(service),
            HEALTHY_S,
            lambda service=service: compose.said(service, *compose.health_check(service)),
        )


def check_first_job(compose: Compose, key: str, folder: Path) -> None:
    """A model comes in by one command, and a job from outside gives what ONNX Runtime gives."""
    rows = digits.build(folder).rows
    model = (folder / "model.onnx").read_bytes()
    script = "cat > /tmp/model.onnx && batchline models import digits /tmp/model.onnx"
    print(compose.inside("worker", "sh", "-c", script, stdin=model))

    with Client(API, key) as client:
        job = client.wait(client.submit("digits", rows), timeout_s=JOB_S)
        outputs = list(client.rows(job))
    labels, probabilities = onnxruntime.InferenceSession(model).run(["label", "probabilities"], {"pixels": rows})
    assert job.status == "succeeded", job
    assert [o["label"] for o in outputs] == list(labels)
    np.testing.assert_allclose([o["probabilities"] for o in outputs], probabilities, atol=1e-5)
    (folder / "job").write_text(json.dumps([job.id, [int(label) for label in labels]]))
    print(f"{job.id}: {len(rows)} rows, equal to ONNX Runtime within 1e-5")


def check_kept(key: str, folder: Path) -> None:
    """After `down` and `up` the key still holds, the old result is there, and the model still answers."""
    job_id, labels = json.loads((folder / "job").read_text())
    with Client(API, key) as client:
        assert [o["label"] for o in client.rows(job_id)] == labels
        fresh = client.wait(client.submit("digits", digits.held_out().rows[:3]), timeout_s=JOB_S)
        assert [o["label"] for o in client.rows(fresh)] == labels[:3]
    print(f"{job_id}: still there after down and up; a new job ran")


def check_logins(login: str, key: str) -> None:
    """Without a key the API, without a login Flower answer 401; with it Flower shows micro-batches.

    Jobs are submitted until it does: a worker that looked by itself before the nudge came ran the job outside Celery.
    """
    assert status(f"{API}/v1/jobs") == 401
    for path in ("/", "/workers", "/api/workers", "/api/tasks"):
        assert status(FLOWER + path) == 401, path
        assert status(FLOWER + path, login + "x") == 401, path
    assert status(f"{FLOWER}/", login) == 200

    def shown() -> bool:
        client.submit("digits", row)
        tasks: Mapping[str, Mapping[str, str]] = json.loads(fetch(f"{FLOWER}/api/tasks", login)[1])
        return any("digits@1" in str(task["result"]) and "%" not in task["worker"] for task in tasks.values())

    row = digits.held_out().rows[:1]
    with Client(API, key) as client:
        until("Flower shows a micro-batch", shown, FLOWER_S, lambda: repr(fetch(f"{FLOWER}/api/tasks", login)))
    print("API and Flower ask who is there; Flower shows micro-batches")


def check_ports(compose: Compose) -> None:
    """Only API and Flower are published, on loopback; this machine's other address refuses them."""
    published = {name: s["ports"] for name, s in compose.services.items() if s.get("ports")}
    assert set(published) == {"api", "flower"}, published
    for port in [port for ports in published.values() for port in ports]:
        host = port["host_ip"] if isinstance(port, dict) else port.split(":")[0]
        assert host == "127.0.0.1", port
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which address would be used
        except OSError:
            print("ports: this machine has no address but loopback to try")
            return
        address = probe.getsockname()[0]
    for port in (os.environ["BATCHLINE_PORT"], os.environ["BATCHLINE_FLOWER_PORT"]):
        with socket.socket() as client:
            client.settimeout(3.0)
            assert client.connect_ex((address, int(port))) != 0, f"{address}:{port} answers"
    print(f"ports answer on 127.0.0.1 and not on {address}")


def check_rights(compose: Compose) -> None:
    """No process is root's or has a capability or can gain one, and the root file system is read-only."""
    for service in SERVICES:
        told = compose.inside(service, "sh", "-c", "cat /proc/[0-9]*/status 2>/dev/null; grep ' / ' /proc/mounts")
        users = {int(uid) for line in re.findall(r"^Uid:\s+(.*)$", told, re.MULTILINE) for uid in line.split()}
        wanted = users - {0} if service in ("postgres", "redis") else {10001}
        assert users == wanted, (service, users)
        assert set(re.findall(r"^CapEff:\s+(\w+)$", told, re.MULTILINE)) == {"0" * 16}, service
        assert set(re.findall(r"^NoNewPrivs:\s+(\d)$", told, re.MULTILINE)) == {"1"}, service
        assert re.search(r"^\S+ / \S+ ro,", told, re.MULTILINE), service
    print("no root, no capabilities, nothing to gain, root file systems read-only")


def main() -> None:
    stage, folder, compose = sys.argv[1], Path(sys.argv[2]), Compose(sys.argv[3:])
    check_health(compose)
    print(f"healthy: {', '.join(SERVICES)}")
    doctor = ("api", "batchline", "doctor")
    until("doctor finds all well", lambda: compose.succeeds(*doctor), DOCTOR_S, lambda: compose.said(*doctor))
    key = compose.inside("api", "cat", "/secrets/admin_key")
    if stage == "first":
        check_first_job(compose, key, folder)
        check_logins(compose.inside("api", "cat", "/secrets/flower_basic_auth"), key)
        check_ports(compose)
        check_rights(compose)
    else:
        check_kept(key, folder)


if __name__ == "__main__":
    main()

"""What a new machine does by itself: cloud-init installs a worker of the pool and starts it as a systemd unit.

No secret is in it: user data can be read by whoever may describe instances. `python -m autoscaler.worker_start` on the
machine reads them with the machine's own role.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath

import msgspec

MOST_BYTES = 16 * 1024
"""EC2's limit, before base64."""
HOME = PurePosixPath("/opt/batchline")
"""The virtual environment."""
DATA = PurePosixPath("/var/lib/batchline")
SETTINGS = PurePosixPath("/etc/batchline/worker.env")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_SECRET_NAME = re.compile(r".*(SECRET_ACCESS_KEY|SESSION_TOKEN|PASSWORD)")
_SECRET_URL = re.compile(r"https?://[^/\s@]+@|://[^/\s@:]*:[^/\s@]+@")


class Worker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is installed and how it is set.

    Attributes:
        package: what pip installs, `batchline[worker-cpu,data]==X` or a URL; empty: the image has it in /opt/batchline.
        index_url: where pip looks; empty: its own default.
        python: the image's Python 3.11 or newer.
        environment: variables that are no secrets, BATCHLINE_BLOBS among them.
        parameters: a path of SSM Parameter Store: each parameter below it is a variable by its last part.
        secrets: ids of Secrets Manager: each a JSON object of variables.
        user: who runs the worker.
    """

    package: str = ""
    index_url: str = ""
    python: str = "python3"
    environment: dict[str, str] = {}
    parameters: str = ""
    secrets: tuple[str, ...] = ()
    user: str = "batchline"

    def __post_init__(self) -> None:
        if self.parameters and not self.parameters.startswith("/"):
            raise ValueError("parameters must be a path that begins with /")
        if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", self.user):
            raise ValueError(f"user {self.user!r} is no name of a user")
        for name, value in {"package": self.package, "index_url": self.index_url, **self.environment}.items():
            if _SECRET_NAME.fullmatch(name) or _SECRET_URL.search(value):
                raise ValueError(f"{name!r} has a secret in it, and many may read user data: put it elsewhere")
        for name, value in self.environment.items():
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"environment has {name!r}; a variable's name is in capitals")
            if any(ord(c) < 32 for c in value):
                raise ValueError(
                    f"environment {name} has line breaks or control characters; put it into Secrets Manager"
                )


def user_data(worker: Worker, *, pool: str, region: str) -> str:
    """The cloud-config of a pool's machines.

    Args:
        worker: what to install and start.
        pool: which the worker serves.
        region: of Parameter Store and Secrets Manager.

    Returns:
        `#cloud-config` and YAML (JSON, which is YAML).

    Raises:
        ValueError: it is longer than EC2 takes.
    """
    config = {
        "users": ["default", {"name": worker.user, "system": True, "shell": "/usr/sbin/nologin", "homedir": str(DATA)}],
        "write_files": [
            {"path": str(SETTINGS), "permissions": "0644", "content": settings(worker, pool=pool, region=region)},
            {"path": "/etc/systemd/system/batchline-worker.service", "permissions": "0644", "content": unit(worker)},
            {"path": "/usr/local/sbin/batchline-install", "permissions": "0755", "content": install(worker)},
        ],
        "runcmd": [["/usr/local/sbin/batchline-install"]],
    }
    text = f"#cloud-config\n{json.dumps(config, indent=1)}\n"
    if len(text.encode()) > MOST_BYTES:
        raise ValueError(f"user data has {len(text.encode())} bytes; EC2 takes {MOST_BYTES}: move environment to SSM")
    return text


def settings(worker: Worker, *, pool: str, region: str) -> str:
    """The unit's EnvironmentFile."""
    given: Mapping[str, str] = {
        "AWS_REGION": region,
        "BATCHLINE_POOL": pool,
        "BATCHLINE_MODELS": str(DATA / "models"),
        "BATCHLINE_SPOT_NOTICE": "imds",
        "BATCHLINE_START_PARAMETERS": worker.parameters,
        "BATCHLINE_START_SECRETS": " ".join(worker.secrets),
        **worker.environment,
    }
    return "".join(f"{name}={_quoted(value)}\n" for name, value in given.items() if value)


def _quoted(value: str) -> str:
    """As systemd reads it: in double quotes, nothing is expanded."""
    return '"' + re.sub(r'([\\"`$])', r"\\\1", value) + '"'


def unit(worker: Worker) -> str:
    """The systemd unit. A worker that has drained ends with 0: then the machine ends too, should nobody else end it."""
    return f"""[Unit]
Description=Batchline worker
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0
SuccessAction=poweroff

[Service]
User={worker.user}
EnvironmentFile={SETTINGS}
ExecStart={HOME}/bin/python -m autoscaler.worker_start
WorkingDirectory={DATA}
Restart=on-failure
RestartSec=5
KillSignal=SIGTERM
TimeoutStopSec=100
LimitNOFILE=65536
NoNewPrivileges=true
ProtectSystem=full
PrivateTmp=true

[Install]
WantedBy=multi-user.target
"""


def install(worker: Worker) -> str:
    """The script that cloud-init runs once: it may be run again."""
    index = f" --index-url {shlex.quote(worker.index_url)}" if worker.index_url else ""
    steps = f"""if [ ! -x {HOME}/bin/batchline ]; then
  {shlex.quote(worker.python)} -m venv {HOME}
  for try in 1 2 3 4 5; do
    {HOME}/bin/pip install --no-input --disable-pip-version-check{index} {shlex.quote(worker.package)} && break
    [ "$try" -lt 5 ] && sleep $((try * 5))
  done
fi
"""
    return f"""#!/bin/bash
set -euo pipefail
install -d -o {worker.user} -g {worker.user} {DATA} {DATA}/models
{steps if worker.package else ""}if [ ! -x {HOME}/bin/batchline ]; then
  echo "there is no {HOME}/bin/batchline: bake it into the image, or set worker.package" >&2
  exit 1
fi
systemctl daemon-reload
systemctl enable --now batchline-worker.service
"""

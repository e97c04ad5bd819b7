"""Which processes make the embedded system, and what each is told."""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from batchline import settings as settings_module
from batchline.errors import SettingsError
from batchline.local import children
from batchline.local.instances import Instances
from batchline.local.server import HOST, PortInUseError, Server, free_port, is_free, secret, write_private
from batchline.local.servers import PostgresServer, ValkeyServer
from batchline.local.supervisor import Part
from batchline.settings import Settings

_ANSWER_S = 0.5
_INSTANCE_GRACE_S = 15.0
"""As other parts have it."""
_SETTLE_S = 1.5
"""A process that listens nowhere counts as up after this time; importing takes most of it."""


@dataclass(frozen=True)
class Process:
    """One kind of Python process.

    Args:
        name: what `status` shows; numbered when there are several.
        arguments: of the interpreter. `-P` keeps a folder `api/` of the user's from being taken for ours.
        many: which option says how many there are; one when absent.
        once: it runs to its end before those after it start.
        ready_path: it listens, and is ready when a GET of this path is answered with a status below 500.
        metrics: it serves /metrics where BATCHLINE_METRICS_PORT says; each gets a port of its own.
    """

    name: str
    arguments: tuple[str, ...]
    many: Literal["apis", "workers"] | None = None
    once: bool = False
    ready_path: str | None = None
    metrics: bool = False


PROCESSES = (
    Process("migrate", ("-P", "-m", "batchline.store.migrations"), once=True),
    Process("api", ("-P", "-m", "api"), many="apis", ready_path="/readyz", metrics=True),
    Process("worker", ("-P", "-m", "workers"), many="workers", metrics=True),
    Process("scheduler", ("-P", "-m", "scheduler"), metrics=True),
    Process("autoscaler", ("-P", "-m", "autoscaler"), metrics=True),
    Process("flower", ("-P", "-m", "batchline.queue.flower"), ready_path="/"),
)
"""In the order of their start."""


@dataclass(frozen=True)
class Options:
    """What `up` was asked for; goes to the background process as JSON."""

    apis: int = 1
    workers: int = 1
    flower: bool = True
    processes: tuple[Process, ...] = PROCESSES
    max_workers: int | None = None
    """With those that the autoscaler adds; the number of cores, and 2 at least, when absent."""

    def __post_init__(self) -> None:
        if self.apis < 1 or self.workers < 0:
            raise SettingsError(f"{self.apis} APIs and {self.workers} workers make no system: at least 1 and 0.")

    def most_workers(self) -> int:
        """What the autoscaler may bring the workers to; never below `workers`, which it cannot stop."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return max(self.workers, self.max_workers or max(2, cores))


@dataclass(frozen=True)
class Addresses:
    """Where the system is; holds passwords, so it is kept in a file of mode 0600."""

    folder: Path
    api_urls: tuple[str, ...]
    flower_url: str | None
    database_url: str
    redis_url: str
    key_path: Path
    flower_credentials_path: Path
    already_running: bool = False
    models: Path | None = None
    """The model repository of its workers; None where an older release wrote the file."""


@dataclass
class Plan:
    """The stages for the supervisor; `addresses` may be asked once the servers are ready."""

    folder: Path
    stages: list[list[Part]]
    database_url: Callable[[], str]
    redis_url: Callable[[], str]
    host: str
    models: Path
    api_ports: list[int] = field(default_factory=list[int])
    flower_port: int | None = None
    metrics_port: int = 0
    """Of the next process that has metrics; 0: none has."""
    ports: dict[int, str] = field(default_factory=dict[int, str])
    """Whom each port of a process is meant for."""
    servers: list[Server] = field(default_factory=list[Server])

    def close(self) -> None:
        """Give the servers' folders back."""
        for server in self.servers:
            server.stop()

    def end_instances(self, hurry: Callable[[], bool]) -> int:
        """End the workers that the autoscaler has added; returns how many."""
        return Instances(self.folder).end_all(grace_s=_INSTANCE_GRACE_S, at_once=hurry)

    def addresses(self) -> Addresses:
        return Addresses(
            folder=self.folder,
            api_urls=tuple(f"http://{self.host}:{port}" for port in self.api_ports),
            flower_url=f"http://{HOST}:{self.flower_port}" if self.flower_port else None,
            database_url=self.database_url(),
            redis_url=self.redis_url(),
            key_path=self.folder / "key",
            flower_credentials_path=self.folder / "flower",
            models=self.models,
        )

    def take_port(self, name: str, variable: str, wanted: int) -> int:
        """A port for one process: the wanted one, or any free one for 0.

        Raises:
            PortInUseError: it is taken; the message names the variable that moves it.
        """
        port = wanted or free_port()
        if other := self.ports.get(port):
            raise PortInUseError(f"Port {port} is that of {other}; set {variable} to another for {name}.")
        if wanted and not is_free(wanted):
            raise PortInUseError(f"Port {wanted} is in use by another program; set {variable} to another for {name}.")
        self.ports[port] = name
        return port


def make_plan(folder: Path, options: Options, environ: Mapping[str, str]) -> Plan:
    """Decide servers, ports and processes; starts nothing.

    Args:
        folder: the stack's own, made already.
        options: how many of each.
        environ: DATABASE_URL or REDIS_URL here keep that server from being started; `BATCHLINE_PORT`,
            `BATCHLINE_FLOWER_PORT`, `BATCHLINE_POSTGRES_PORT` and `BATCHLINE_VALKEY_PORT` move ports (0: any free one);
            from `BATCHLINE_METRICS_PORT` on each process that has metrics gets one, in the order of their start.

    Raises:
        SettingsError: a variable is wrong.
        PortInUseError: a port is taken; the message names the variable that moves it.
    """
    settings = settings_module.load(environ, needs=())
    servers: list[Server] = []
    urls: dict[str, Callable[[], str]] = {}
    for name, given, kind in (
        ("pg", settings.database_url, PostgresServer),
        ("valkey", settings.redis_url, ValkeyServer),
    ):
        if given:
            urls[name] = lambda given=given: given
        else:
            port = _port(environ, kind.port_variable, 0) or None
            server = kind(folder / name, port, log=folder / "logs" / f"{kind.name}.log")
            servers.append(server)
            urls[name] = lambda server=server: server.url
    plan = Plan(folder, [], urls["pg"], urls["valkey"], settings.host, settings.models.resolve())
    plan.servers, plan.metrics_port = servers, settings.metrics_port
    if servers:
        plan.stages.append([_server_part(server) for server in servers])
    shared = dict(environ) | {
        "BATCHLINE_MODELS": str(plan.models),
        "BATCHLINE_ADMIN_KEY_FILE": str(folder / "key"),
        "BATCHLINE_FOLDER": str(folder),
        "BATCHLINE_METRICS_PORT": "0",
        "BATCHLINE_AUTOSCALER": settings.autoscaler or _scaling(folder, options, settings.pool),
        **_data_places(folder, settings),
    }
    secret(folder / "key", prefix="blk_")
    last: list[Part] = []
    for process in options.processes:
        if process.name == "flower" and not options.flower:
            continue
        parts = _process_parts(process, plan, options, settings.port, shared)
        if process.once:
            plan.stages.append(parts)
        else:
            last += parts
    plan.stages.append(last)
    return plan


def _scaling(folder: Path, options: Options, pool: str) -> str:
    """Write the autoscaler's configuration: workers of this machine, or advice where it may add none."""
    most = options.most_workers()
    path = folder / "run" / "autoscaler.toml"
    path.parent.mkdir(exist_ok=True)
    text = f"""# Written by `batchline up`. To change it, copy it and name the copy in BATCHLINE_AUTOSCALER.
[pools.{json.dumps(pool)}]
provider = "{"local" if most > options.workers and sys.platform == "linux" else "none"}"
min_workers = {options.workers}
max_workers = {most}
started_elsewhere = {options.workers}
start_s = 5.0
start_limit_s = 120.0
billing_s = 30.0
"""
    write_private(path, text)
    return str(path)


def _data_places(folder: Path, settings: Settings) -> dict[str, str]:
    """Where uploads are kept and which files batches may use: folders of the stack's own, unless the settings say."""
    blobs, roots = settings.blobs, settings.data_roots
    if blobs == Settings.blobs:
        blobs = f"file://{folder / 'blobs'}"
    elif blobs.startswith("file://"):
        blobs = f"file://{Path(blobs.removeprefix('file://')).resolve()}"
    if not roots:
        roots = str(folder / "data")
        (folder / "data").mkdir(exist_ok=True)
    return {"BATCHLINE_BLOBS": blobs, "BATCHLINE_DATA_ROOTS": roots}


def _server_part(server: Server) -> Part:
    return Part(
        server.name,
        spawn=server.spawn,
        ready=server.is_ready,
        port=lambda: server.port,
        log=server.log,
        stop_signal=server.fast_signal,
        grace_s=30.0,
    )


def _process_parts(
    process: Process, plan: Plan, options: Options, first_port: int, shared: Mapping[str, str]
) -> list[Part]:
    parts: list[Part] = []
    count: int = getattr(options, process.many) if process.many else 1
    for index in range(count):
        name = f"{process.name}-{index + 1}" if count > 1 else process.name
        extra: dict[str, str] = {}
        port = metrics_port = None
        if process.name == "flower":
            port = plan.flower_port = plan.take_port(
                "flower", "BATCHLINE_FLOWER_PORT", _port(shared, "BATCHLINE_FLOWER_PORT", 5555)
            )
            # Not on the command line, which everybody can read.
            extra = {
                "BATCHLINE_FLOWER_HOST": HOST,
                "BATCHLINE_FLOWER_PORT": str(port),
                "BATCHLINE_FLOWER_BASIC_AUTH": f"batchline:{secret(plan.folder / 'flower')}",
            }
        elif process.ready_path is not None:
            port = plan.take_port(name, "BATCHLINE_PORT", first_port + index if first_port else 0)
            plan.api_ports.append(port)
            extra = {"BATCHLINE_PORT": str(port)}
        if process.metrics and plan.metrics_port:
            metrics_port = plan.take_port(name, "BATCHLINE_METRICS_PORT", plan.metrics_port)
            plan.metrics_port += 1
            extra["BATCHLINE_METRICS_PORT"] = str(metrics_port)
        part = _python_part(name, process, plan, port, dict(shared) | extra)
        parts.append(replace(part, metrics_port=metrics_port))
    return parts


def _python_part(name: str, process: Process, plan: Plan, port: int | None, environ: Mapping[str, str]) -> Part:
    log = plan.folder / "logs" / f"{name}.log"

    def spawn() -> children.subprocess.Popen[bytes]:
        # The addresses are known only by now: an embedded server chooses its port when it starts.
        env = dict(environ) | {"DATABASE_URL": plan.database_url(), "REDIS_URL": plan.redis_url()}
        return children.spawn([sys.executable, *process.arguments], log=log, env=env)

    path = process.ready_path
    if port and path:
        return Part(name, spawn, ready=lambda: _answers(plan.host, port, path), port=lambda: port, log=log)
    after_stop = plan.end_instances if process.name == "autoscaler" else None
    return Part(name, spawn, settle_s=_SETTLE_S, once=process.once, log=log, after_stop=after_stop)


def _answers(host: str, port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST if host == "0.0.0.0" else host, port, timeout=_ANSWER_S)  # noqa: S104
    try:
        connection.request("GET", path)
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _port(environ: Mapping[str, str], variable: str, default: int) -> int:
    text = environ.get(variable, str(default))
    if not text.isdecimal() or int(text) > 65535:
        raise SettingsError(f"{variable} is {text!r}, which is no port.")
    return int(text)

"""Settings: read from the environment once, checked together, frozen.

Every variable is `BATCHLINE_<NAME>`, but for DATABASE_URL and REDIS_URL. Every one may also be given as a file
(`..._FILE`), which is how secrets arrive in containers.
"""

from __future__ import annotations

import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from batchline import webhook
from batchline.errors import SettingsError

_BARE = {"database_url", "redis_url"}


@dataclass(frozen=True)
class Settings:
    """One object for all four processes. Durations in seconds, sizes in bytes."""

    database_url: str = ""
    redis_url: str = ""

    host: str = "127.0.0.1"
    port: int = 8000
    metrics_port: int = 0
    metrics_host: str = "127.0.0.1"
    log_level: str = "INFO"

    admin_key: str = ""
    """Registered for the tenant `default` when the database is prepared."""
    flower_host: str = "127.0.0.1"
    flower_port: int = 5555
    flower_basic_auth: str = ""
    """USER:PASSWORD; Flower does not start without."""

    models: Path = Path("models")
    """The model repository: NAME/VERSION/model.onnx and model.toml."""

    pool: str = "cpu"
    """Which pool this worker serves."""
    instance: str = ""
    """The autoscaler's name of the machine or process that this worker runs on; whoever launches it sets it."""
    device: str = "cpu"
    """`cpu` or `cuda[:N]`; a silent fall-back from CUDA to CPU is an error."""
    concurrency: int = 3
    """Worker threads: one claims, one predicts, one writes."""
    intra_op_threads: int = 1
    models_limit_bytes: int = 4 * 2**30
    """Loaded models are unloaded, least recently used first, above this."""
    model_cache: str = ""
    """Where models are kept that were fetched from the blob store; empty: `.cache` in BATCHLINE_MODELS."""
    model_cache_bytes: int = 20 * 2**30
    """Those on disk are removed, least recently used first, above this."""

    spot_notice: str = ""
    """`imds` on a spot instance: leave when AWS is about to take it away. A URL asks there; empty asks nobody."""

    lease_s: float = 30.0
    heartbeat_s: float = 10.0
    sweep_s: float = 5.0
    """How often expired leases are looked for."""
    dispatch_s: float = 1.0
    idle_poll_s: float = 1.0
    """How often an idle worker asks Postgres by itself."""
    leader_lease_s: float = 10.0
    max_failures: int = 3
    """Failures of its own (errors, crashes while alone) after which a job is failed."""

    max_body_bytes: int = 10 * 2**20
    max_rows: int = 1000
    max_queued_rows_tenant: int = 1_000_000
    max_queued_rows: int = 5_000_000
    max_open_batches_tenant: int = 1000
    """Batches of one tenant that have not ended, paused ones too; more are refused."""
    group_wait_s: float = 2.0
    """The longest a submit waits for its group's commit before 503."""
    group_bytes: int = 64 * 2**20
    ttl_default_s: float = 0.0
    """Deadline of a job that names none; 0 is none."""

    results_kept_s: float = 7 * 86400.0
    jobs_kept_s: float = 30 * 86400.0
    idempotency_kept_s: float = 86400.0
    costs_kept_s: float = 92 * 86400.0
    """Of hours of workers' time, and of instances that are gone: what costs are counted from."""

    blobs: str = "file://blobs"
    """Where uploaded files and batch outputs are kept: file://FOLDER or s3://BUCKET/PREFIX."""
    data_roots: str = ""
    """Folders, separated by colons, below which file:// URIs of batches may be read and written."""
    databases: str = ""
    """SQL databases that batches may name: NAME=postgresql://… , separated by whitespace."""
    s3_endpoint_url: str = ""
    """An S3 of one's own; empty is AWS. Credentials and region come from AWS's own environment."""
    slice_rows: int = 100_000
    """About how many rows of a batch one worker takes at a time, and what its death costs."""
    bulk_ms: float = 20.0
    """The longest a micro-batch of a batch may hold the device while online work waits."""
    files_kept_s: float = 30 * 86400.0
    file_bytes: int = 512 * 2**20
    """Of one uploaded file."""

    webhook_allow: str = ""
    """Private places that webhooks may lead to: networks and host names, separated by commas. Empty: none."""

    autoscaler: str = ""
    """The autoscaler's configuration, a TOML file; without it the autoscaler only says what it would do."""

    connections: int = 6
    """Postgres connections that this process may hold at most."""

    def __post_init__(self) -> None:
        wrong = list(_cross_checks(self))
        if wrong:
            raise SettingsError("\n".join(wrong))


def _cross_checks(s: Settings) -> typing.Iterator[str]:
    for field in fields(s):
        value = getattr(s, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{variable(field.name)} is {value}; it must be a number."
    if s.heartbeat_s * 2 > s.lease_s:
        yield f"BATCHLINE_HEARTBEAT_S ({s.heartbeat_s}) must be at most half of BATCHLINE_LEASE_S ({s.lease_s})."
    if s.jobs_kept_s < s.results_kept_s:
        yield f"BATCHLINE_JOBS_KEPT_S ({s.jobs_kept_s}) is less than BATCHLINE_RESULTS_KEPT_S ({s.results_kept_s})."
    if s.device != "cpu" and not s.device.startswith("cuda"):
        yield f"BATCHLINE_DEVICE is {s.device!r}; it must be cpu, cuda or cuda:N."
    if s.spot_notice not in ("", "imds") and not s.spot_notice.startswith("http://"):
        yield f"BATCHLINE_SPOT_NOTICE is {s.spot_notice!r}; it must be imds, http://… or empty."
    if s.connections < 3:
        yield f"BATCHLINE_CONNECTIONS ({s.connections}) must be at least 3."
    try:
        webhook.parse_allowed(s.webhook_allow)
    except ValueError as e:
        yield f"{webhook.ALLOW_VARIABLE}: {e}."
    for name in ("lease_s", "heartbeat_s", "sweep_s", "dispatch_s", "idle_poll_s", "leader_lease_s", "group_wait_s"):
        if getattr(s, name) <= 0:
            yield f"BATCHLINE_{name.upper()} must be greater than 0."
    for name in ("concurrency", "intra_op_threads", "max_failures", "max_body_bytes", "max_rows", "slice_rows",
                 "max_open_batches_tenant"):  # fmt: skip
        if getattr(s, name) < 1:
            yield f"BATCHLINE_{name.upper()} must be at least 1."


def variable(field_name: str) -> str:
    """The environment variable of a settings field."""
    return field_name.upper() if field_name in _BARE else f"BATCHLINE_{field_name.upper()}"


def _read(name: str, environ: Mapping[str, str]) -> str | None:
    if name in environ:
        return environ[name]
    path = environ.get(f"{name}_FILE")
    return Path(path).read_text(encoding="utf-8").strip() if path else None


def _cast(text: str, kind: object) -> object:
    if kind is int:
        return int(text)
    if kind is float:
        return float(text)
    if kind is Path:
        return Path(text)
    return text


def load(
    environ: Mapping[str, str] | None = None, *, needs: tuple[str, ...] = ("database_url", "redis_url")
) -> Settings:
    """Read the environment.

    Args:
        environ: variables; the process's own when absent.
        needs: fields that must not be empty for this process.

    Raises:
        SettingsError: with every fault, one a line.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, object] = {}
    wrong: list[str] = []
    hints = typing.get_type_hints(Settings)
    for field in fields(Settings):
        name = variable(field.name)
        text: str | None = None
        try:
            text = _read(name, environ)
            if text is not None:
                values[field.name] = _cast(text, hints[field.name])
        except OSError as e:
            wrong.append(f"{name}_FILE cannot be read: {e.strerror}.")
        except ValueError:
            wrong.append(f"{name} is {text!r}, which is no {hints[field.name].__name__}.")
    wrong += [
        f"{variable(n)} is not set; `batchline up` sets it, or name a server yourself."
        for n in needs
        if not values.get(n)
    ]
    try:
        settings = Settings(**types.MappingProxyType(values))  # pyright: ignore[reportArgumentType]
    except SettingsError as e:
        raise SettingsError("\n".join([*wrong, e.detail])) from None
    if wrong:
        raise SettingsError("\n".join(wrong))
    return settings


DEFAULT_URL = f"http://127.0.0.1:{Settings.port}"
KEY_FILE = Path(".batchline/key")
"""Where the embedded stack keeps the admin key."""


@dataclass(frozen=True)
class ClientSettings:
    """Where the API is and who asks: for the SDK and the command line."""

    urls: tuple[str, ...]
    """Empty when the environment names none."""
    api_key: str
    default_url: str = DEFAULT_URL
    """Where `batchline up` would put the API."""


def split_urls(text: str) -> tuple[str, ...]:
    """Servers from a comma-separated list, without closing slashes."""
    return tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())


def load_client(environ: Mapping[str, str] | None = None, *, key_file: Path = KEY_FILE) -> ClientSettings:
    """Read BATCHLINE_URL and BATCHLINE_API_KEY (or `..._FILE`); the key else from `key_file`, empty when there is none.

    BATCHLINE_PORT moves the default address; what is no port is left for `load` to refuse.

    Raises:
        SettingsError: a file that is named cannot be read.
    """
    environ = os.environ if environ is None else environ
    try:
        url = _read("BATCHLINE_URL", environ)
        key = _read("BATCHLINE_API_KEY", environ)
        if key is None and key_file.exists():
            key = key_file.read_text(encoding="utf-8").strip()
    except OSError as e:
        raise SettingsError(f"{e.filename} cannot be read: {e.strerror}.") from e
    port = environ.get(variable("port"), "")
    default_url = f"http://127.0.0.1:{port}" if port.isdecimal() and int(port) else DEFAULT_URL
    return ClientSettings(split_urls(url or ""), key or "", default_url)

"""doctor: asks every part how it is, and says what to do about those that are not well."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from batchline.cli import diagnosis, installation
from batchline.cli.installation import Finding
from batchline.cli.output import Json, busy, counted, tell_json, tell_table
from batchline.cli.places import FOLDER, Folder, embedded, load_settings, open_client
from batchline.errors import BatchlineError, ForbiddenError, UnauthorizedError

if TYPE_CHECKING:
    from batchline.model import ModelSpec
    from batchline.settings import Settings
    from batchline.store import Store
    from batchline.store.health import Health

SKEW_S = 2.0
FREE_BYTES = 2**30
_ASK_S = 3.0
_COUNT_S = 5.0
"""A count of the queue that is older is made anew: nobody counts while no API runs."""


def doctor(*, folder: Folder = FOLDER, as_json: Json = False) -> None:
    """Check every part; exit 1 if one is not well.

    Looks into the database where one is known (DATABASE_URL, or the system that runs in the folder), else asks the API.
    """
    with busy("looking …"):
        findings = list(examine(folder))
    if as_json:
        tell_json({"well": all(f.well for f in findings), "parts": findings})
    else:
        tell_table(
            ["part", "", "what", "what to do"],
            [(f.part, "well" if f.well else "not well", f.detail, f.advice) for f in findings],
        )
    if not all(f.well for f in findings):
        raise typer.Exit(1)


def examine(folder: Path) -> Iterator[Finding]:
    """All findings; a part that cannot even be looked at is not well, and the others are looked at all the same."""
    yield from installation.examine()
    yield disk(folder)
    try:
        settings = load_settings(folder, required=False)
    except BatchlineError as e:
        yield Finding("settings", False, e.detail, "Mend the variables; nothing else can be looked at before.")
        return
    yield from _guarded("ports", lambda: ports(settings, folder))
    yield from _guarded("redis", lambda: redis(settings))
    if settings.database_url:
        yield from _guarded("database", lambda: database(settings))
    else:
        yield Finding(
            "database", True, "not known here (no DATABASE_URL, no embedded system): the API is asked instead"
        )
    yield from _guarded("api", lambda: api(folder, ask_workers=not settings.database_url))


def _guarded(part: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except BatchlineError as e:
        yield Finding(part, False, e.detail, "See that it runs and can be reached from here.")
    except Exception as e:  # a doctor must come to an end with every patient
        yield Finding(
            part, False, f"could not be looked at: {type(e).__name__}: {e}", "This is a bug; please report it."
        )


def disk(folder: Path) -> Finding:
    """Room where the embedded system, or whatever is started here, writes."""
    place = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    detail = f"{free / 2**30:.1f} GiB free in {place}"
    if free < FREE_BYTES:
        return Finding("disk", False, detail, "Make room: Postgres stops when its disk is full.")
    return Finding("disk", True, detail)


def ports(settings: Settings, folder: Path) -> Iterator[Finding]:
    """Whether `up` could listen; asked only while nothing of ours runs or is named elsewhere."""
    from batchline import settings as names
    from batchline.local.server import is_free

    if settings.database_url or embedded(folder) or names.load_client().urls:
        return
    if is_free(settings.port):
        yield Finding("ports", True, f"{settings.port} is free for `batchline up`")
    else:
        advice = "Stop the program that listens there, or set BATCHLINE_PORT."
        yield Finding("ports", False, f"{settings.port} is in use", advice)


def redis(settings: Settings) -> Iterator[Finding]:
    """Only hints go through Redis: without it work is slower and not lost."""
    if not settings.redis_url:
        if settings.database_url:
            yield Finding("redis", False, "not known", "Set REDIS_URL.")
        return
    from batchline.queue.hints import Hints

    hints = Hints(settings.redis_url)
    try:
        answers = hints.ping()
    finally:
        hints.close()
    if answers:
        yield Finding("redis", True, "answers")
    else:
        yield Finding("redis", False, "does not answer", "See that Redis runs and REDIS_URL is right; no job is lost.")


def database(settings: Settings) -> Iterator[Finding]:
    """Postgres, its schema and clock, and what it knows of workers, leader and queue."""
    from batchline.store import migrations, open_store
    from batchline.store.health import read_health, read_models

    have, want = migrations.current(settings.database_url), migrations.head()
    if have != want:
        yield Finding("database", False, f"schema {have or 'none'}, this code needs {want}", "Run `batchline migrate`.")
        return
    store = open_store(settings.database_url, connections=1)
    try:
        store.chores.count_backlog(every_s=_COUNT_S)
        before = datetime.now(UTC)
        health = read_health(store.db)
        after = datetime.now(UTC)
        yield Finding("database", True, f"answers, schema {have}")
        yield clock(health.now, before, after)
        yield from workers(store, health)
        yield leader(has_leader=health.has_leader)
        entries = read_models(store.db)
        yield from diagnosis.models(entries, settings.models, lambda spec: _fetchable(settings, spec))
        yield from queue(
            health.queued_jobs,
            health.oldest_queued_s,
            diagnosis.queue(entries, store.workers.list(), settings.models, lambda spec: _fetchable(settings, spec)),
        )
    finally:
        store.close()


def _fetchable(settings: Settings, spec: ModelSpec) -> bool:
    """Whether the blob store has the files of a version, as far as can be told from here."""
    from batchline.data import places_of
    from batchline.data.blobs import Blobs
    from batchline.data.model_blobs import ModelBlobs

    try:
        return ModelBlobs(Blobs(places_of(settings))).has(spec)
    except BatchlineError:
        return False


def clock(theirs: datetime, before: datetime, after: datetime) -> Finding:
    """The database's clock, read between two readings of ours."""
    skew_s = max((before - theirs).total_seconds(), (theirs - after).total_seconds(), 0.0)
    if skew_s > SKEW_S:
        advice = "Let both machines follow a time server (chrony, systemd-timesyncd)."
        return Finding("clock", False, f"{skew_s:.1f} s away from the database's", advice)
    return Finding("clock", True, f"within {max(skew_s, 0.1):.1f} s of the database's")


def workers(store: Store, health: Health) -> Iterator[Finding]:
    """Live ones by their leases, and every pool that a model names."""
    live = [w for w in store.workers.list() if w.live and not w.draining]
    yield _workers(len(live))
    for pool in health.pools:
        if live and not any(w.pool == pool for w in live):
            advice = f"Start one with BATCHLINE_POOL={pool} `batchline worker`."
            yield Finding("workers", False, f"models name the pool {pool}, and no worker serves it", advice)


def _workers(live: int) -> Finding:
    if live:
        return Finding("workers", True, f"{live} live")
    return Finding("workers", False, "none is live", "Start one: `batchline worker`, or look into its log.")


def leader(*, has_leader: bool) -> Finding:
    if has_leader:
        return Finding("scheduler", True, "one leads")
    advice = "Start one: `batchline scheduler`; without it lost work is not rescued."
    return Finding("scheduler", False, "none leads", advice)


def queue(jobs: int, oldest_s: float | None, stuck: Iterable[Finding]) -> Iterator[Finding]:
    """How much waits, unless some of it waits for too long: then `stuck` says what, and why."""
    found = list(stuck)
    yield from found
    if not found:
        yield Finding("queue", True, diagnosis.waiting(jobs, oldest_s) if jobs and oldest_s is not None else "empty")


def api(folder: Path, *, ask_workers: bool) -> Iterator[Finding]:
    """Each API process: alive, ready; and, where no database is known, what it says of workers and queue."""
    from batchline.client import Client

    with open_client(folder, timeout_s=_ASK_S) as client:
        urls = client.urls
    reached = False
    for url in urls:
        with Client(url, timeout_s=_ASK_S) as client:
            try:
                client.request("GET", "/livez")
                client.request("GET", "/readyz")
            except BatchlineError as e:
                yield Finding(
                    "api",
                    False,
                    e.detail if url in e.detail else f"{url}: {e.detail}",
                    "Start it with `batchline up`, or set BATCHLINE_URL.",
                )
                continue
        reached = True
        yield Finding("api", True, f"{url} is ready")
    if reached:
        yield from _ask_api(folder, ask_workers=ask_workers)


def _ask_api(folder: Path, *, ask_workers: bool) -> Iterator[Finding]:
    with open_client(folder, timeout_s=_ASK_S) as client:
        try:
            models = client.models()
            yield Finding("key", True, f"accepted; {counted(len(models), 'model')}")
            if ask_workers:
                told = cast("dict[str, Any]", client.request("GET", "/v1/workers"))
                yield _workers(sum(w["live"] and not w["draining"] for w in told["data"]))
                backlog = cast("dict[str, Any]", client.request("GET", "/v1/backlog"))
                pools = backlog["pools"].values()
                yield from queue(
                    sum(p["jobs"] for p in pools),
                    max((p["oldest_age_s"] for p in pools), default=None),
                    diagnosis.pools(backlog["pools"], told["data"]),
                )
        except UnauthorizedError as e:
            yield Finding("key", False, e.detail, "Set BATCHLINE_API_KEY; make a key with `batchline keys create`.")
        except ForbiddenError:
            yield Finding("workers", True, "not asked: the key has no scope admin")

"""Of models and of what waits for them: which cannot be served, why jobs stay queued, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchline.cli.installation import Finding
from batchline.cli.output import counted, seconds
from batchline.model import TORCH_FILE

if TYPE_CHECKING:
    from batchline.model import ModelSpec
    from batchline.store.contract import WorkerView
    from batchline.store.health import ModelHealth

OLD_S = 60.0
_PROBES = 3
"""So many folders that no worker took up are checked as a worker would check them; each takes seconds."""
_LOGS = "(`.batchline/logs`, or wherever the worker writes)"


def nowhere(_: ModelSpec) -> bool:
    """The blob store has nothing."""
    return False


def models(
    entries: Sequence[ModelHealth], repository: Path, fetchable: Callable[[ModelSpec], bool] = nowhere
) -> Iterator[Finding]:
    """Catalogue and repository, each entry that cannot be served; `fetchable`: the blob store has its files."""
    here = _is_here(entries, repository)
    wrong = [_unreadable(entry) for entry in entries if entry.spec is None]
    if here:
        wrong += _unloadable(entries, repository, fetchable)
        wrong += _strangers({entry.ref for entry in entries}, repository)
    yield from wrong
    if not wrong:
        place = f"their files lie in {repository}" if here else "their files are not on this machine"
        yield Finding("models", True, f"{counted(len(entries), 'version')} in the catalogue; {place}")


def _is_here(entries: Sequence[ModelHealth], repository: Path) -> bool:
    """Whether the workers' repository can be looked at.

    An empty folder need not be theirs (the API's container has one), nor a `models` where we happen to stand.
    """
    if not repository.is_dir():
        return False
    if not entries:
        return True
    if repository.is_absolute():
        return any(repository.iterdir())
    return any((repository / e.ref.replace("@", "/")).is_dir() for e in entries)


def _unloadable(
    entries: Sequence[ModelHealth], repository: Path, fetchable: Callable[[ModelSpec], bool]
) -> Iterator[Finding]:
    for entry in entries:
        if entry.spec and (fault := _fault_of(entry.spec, repository, fetchable, hashed=False)):
            yield Finding("models", False, f"{entry.ref} cannot be loaded: {fault}", _RESTORE)


def _fault_of(spec: ModelSpec, repository: Path, fetchable: Callable[[ModelSpec], bool], *, hashed: bool) -> str | None:
    """What keeps a worker from loading a version; one whose files are not in the repository is fetched."""
    from batchline import registry

    folder = repository / spec.name / spec.version
    if any(not (folder / name).exists() for name in spec.files) and fetchable(spec):
        return None
    return registry.fault_of(repository, spec, hashed=hashed)


_RESTORE = "Put the file back as it was, or import the model again as a new version."


def _unreadable(entry: ModelHealth) -> Finding:
    advice = "Run the release that wrote it, or import the model again as a new version."
    return Finding("models", False, f"the catalogue's entry of {entry.ref} cannot be read: {entry.fault}", advice)


def _strangers(known: set[str], repository: Path) -> Iterator[Finding]:
    """What lies in the repository and not in the catalogue, with the reason that a worker has, or would have."""
    from batchline import registry
    from batchline.errors import BatchlineError

    probes = _PROBES
    for found in registry.scan(repository):
        problem, advice = found.problem, "Mend it, or take it out of the repository."
        if problem is None and f"{found.name}@{found.version}" in known:
            continue
        if problem is None and probes:
            probes -= 1
            try:
                registry.read_version(found.path, found.name, found.version)
            except BatchlineError as e:
                problem = e.detail
        if problem is None:
            problem = f"{found.path} is not in the catalogue"
            advice = "A worker takes it up within seconds; if none does, start one on this repository."
        yield Finding("models", False, problem, advice)


def queue(
    entries: Sequence[ModelHealth],
    workers: Sequence[WorkerView],
    repository: Path,
    fetchable: Callable[[ModelSpec], bool] = nowhere,
) -> Iterator[Finding]:
    """Old work, by model: no worker of its pool, a model that cannot be loaded, or too few workers."""
    for entry in entries:
        if entry.queued_jobs and entry.oldest_queued_s > OLD_S:
            detail = f"{entry.ref}: {waiting(entry.queued_jobs, entry.oldest_queued_s)}"
            yield Finding("queue", False, detail, _why(entry, workers, repository, fetchable))


def waiting(jobs: int, oldest_s: float) -> str:
    return f"{counted(jobs, 'job')}, the oldest waits for {seconds(oldest_s)}"


def _why(
    entry: ModelHealth,
    workers: Sequence[WorkerView],
    repository: Path,
    fetchable: Callable[[ModelSpec], bool],
) -> str:
    if entry.spec is None:
        return "Its catalogue entry cannot be read; see `models`."
    serving = [w for w in workers if w.live and not w.draining and w.pool == entry.pool]
    if not serving:
        return no_worker_of(entry.pool)
    if _is_here([entry], repository) and (fault := _fault_of(entry.spec, repository, fetchable, hashed=True)):
        return f"Workers cannot load it: {fault} {_RESTORE}"
    loaded = [w for w in serving if entry.ref in w.models.split()]
    if not loaded:
        having = f"None of the {counted(len(serving), 'live worker')} of its pool {entry.pool} has loaded it"
        if entry.spec.file == TORCH_FILE:
            return f"{having}: it needs workers with PyTorch (batchline[torch]); look for `model passed over` {_LOGS}."
        return f"{having}: look for `model cannot be loaded` in their logs {_LOGS}."
    speed = sum(w.rows_per_s for w in loaded)
    if not speed:
        having = f"{counted(len(loaded), 'worker')} loaded it and finished no row lately"
        return f"{having}: look into their logs {_LOGS}, and restart them if they hang."
    return f"Add workers of its pool {entry.pool}: {len(loaded)} loaded it and do {speed:.1f} rows/s while busy."


def no_worker_of(pool: str) -> str:
    return f"No live worker serves its pool {pool}: start one with BATCHLINE_POOL={pool} `batchline worker`."


def pools(backlog: Mapping[str, Mapping[str, Any]], workers: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Old work, by pool: as much as the API tells of `backlog`, its pools, and of the workers."""
    for pool, work in backlog.items():
        if work["jobs"] and work["oldest_age_s"] > OLD_S:
            detail = f"pool {pool}: {waiting(int(work['jobs']), work['oldest_age_s'])}"
            if any(w["live"] and not w["draining"] and w["pool"] == pool for w in workers):
                advice = f"Add workers of this pool, or look into the logs of the present ones {_LOGS}."
            else:
                advice = no_worker_of(pool)
            yield Finding("queue", False, detail, advice)

"""What stands behind `Store`: five contracts, and the records that pass through them.

Every method is one short statement in Postgres: it happens whole or not at all. Any of them raises
StoreUnavailableError when Postgres cannot be asked; unless a method says otherwise, calling it again is then safe, and
zero changes mean "somebody else was first", never an error. Moves are those of `batchline.job.TRANSITIONS`; ages are
measured by the database's clock. `tests/contract` holds every line of this page.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from batchline.errors import BatchlineError
from batchline.job import Admitted, ClaimedJob, FinishedJob, JobView, Lane, NewJob, Status
from batchline.model import ModelRecord, ModelSpec

SCOPES = ("submit", "read", "admin")


@dataclass(frozen=True, slots=True)
class Head:
    """The first waiting job of one model: what a worker chooses its next model by."""

    model_id: int
    rank: int
    suspect: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """What one claim brought: the jobs in order of rank, and whether it saw more that it left behind."""

    jobs: list[ClaimedJob]
    more: bool
    first_rank: int = 0
    """The lowest rank among the jobs: a floor for the next claim."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A claimed job that could not be run this time, and why; tried again after `delay_s` while its budget lasts."""

    id: uuid.UUID
    attempt: int
    code: str
    message: str
    delay_s: float


class Pulse(enum.Enum):
    """What a worker learns from its heartbeat."""

    LIVE = "live"
    DRAINING = "draining"
    """It lives, and is to claim nothing more, finish what it holds, and end."""
    LOST = "lost"
    """The lease had run out: others may have the jobs; come back under a new id."""


class Speed(NamedTuple):
    """Rows/s of one worker busy with a model, by lane; 0 when never measured."""

    online: float
    bulk: float


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One process incarnation as its row tells it."""

    id: uuid.UUID
    host: str
    pid: int
    pool: str
    device: str
    started_at: datetime
    heartbeat_at: datetime
    live: bool
    draining: bool
    models: str
    rows_per_s: float
    instance: str
    """The ledger's name of the machine or process it runs on; empty for one that nobody launched."""
    speeds: Mapping[int, Speed] = field(default_factory=dict[int, Speed])
    """As it measured them, by the ids of models that it has served."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Queued work of one tenant, model and lane at the last count."""

    tenant_id: int
    model_id: int
    pool: str
    lane: Lane
    jobs: int
    rows: int
    oldest_age_s: float


@dataclass(frozen=True, slots=True)
class Rescued:
    """What one rescue did: jobs queued again as suspects, and jobs given up as poison."""

    requeued: int
    poisoned: int


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a key speaks for, and what it may do."""

    key_id: int
    tenant_id: int
    tenant: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key without its secret."""

    id: int
    tenant: str
    name: str
    scopes: str
    created_at: datetime
    revoked_at: datetime | None


class Jobs(Protocol):
    """Jobs as clients see them. Used by the API."""

    def submit(self, jobs: Sequence[NewJob]) -> list[Admitted | BatchlineError]:
        """Store a group of jobs as `queued`.

        Args:
            jobs: N complete jobs of any tenants; ids are unique. One idempotency key may come several times.

        Returns:
            N outcomes in the order of jobs. `Admitted(replayed=True)` names the first job of the key, when its body
            hash is the same; KeyReusedError when it is another; ConflictError when the key has been in flight in
            another transaction for 2 s; InvalidRequestError for data that Postgres refuses. A job that cannot be
            stored does not fail its neighbours.

        Raises:
            StoreUnavailableError: any part of the group may or may not be stored; the same call again tells.
        """
        ...

    def read(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, JobView]:
        """The jobs with these ids, of any tenant, with results; unknown ids are absent."""
        ...

    def list(
        self,
        tenant_id: int,
        *,
        status: Status | None,
        model: str | None,
        after: uuid.UUID | None,
        limit: int,
        batch: uuid.UUID | None = None,
    ) -> list[JobView]:
        """One tenant's jobs of lane online, or the slices of one of its batches; newest first, without results.

        Args:
            tenant_id: whose.
            status: only these, or all.
            model: only this model's, by name, or all.
            after: only jobs older than this id, which need not exist.
            limit: at most so many.
            batch: whose slices; they show in no other list.
        """
        ...

    def terminal(self, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Those of the ids whose job has ended; the cheap form of `read` for those who wait."""
        ...

    def cancel(self, tenant_id: int, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Move CANCEL: the tenant's queued and running jobs among the ids.

        Returns:
            What this call cancelled; another tenant's, unknown and ended jobs are left out.
        """
        ...


class Claims(Protocol):
    """Jobs in a worker's hands. Every call after the claim carries the fence: worker and attempt. What does not
    match it (cancelled, rescued, claimed again) is left alone and left out of the answer.
    """

    def heads(self, pool: str, lane: Lane, *, floor: int = 0) -> list[Head]:
        """The first claimable job of each of the pool's models in a lane, and its first suspect there, by rank.

        Args:
            pool: the models' pool.
            lane: which queue.
            floor: look only at ranks from here on; spares the dead entries of what was claimed before. Suspects are
                found whatever their rank. Jobs that come back have old ranks: pass 0 every now and then.
        """
        ...

    def claim(self, worker_id: uuid.UUID, model_id: int, lane: Lane, *, rows: int, floor: int = 0) -> Claim:
        """Move CLAIM: take jobs of one model in order of rank while their rows fit; the first one always fits.

        Not repeated by itself: after a lost reply the jobs are the worker's without its knowledge, until `reconcile`
        or `rescue`.

        Args:
            worker_id: must be live and not draining, or nothing is claimed.
            model_id: which model.
            lane: which queue; suspects and jobs that wait for run_at stand outside of it.
            rows: how many rows to take, from 1.
            floor: as for `heads`.
        """
        ...

    def claim_suspect(self, worker_id: uuid.UUID, model_id: int, lane: Lane = Lane.ONLINE) -> Claim:
        """Move CLAIM: take the model's first suspect of a lane, alone. `more` is always False."""
        ...

    def expose(self, worker_id: uuid.UUID, job: ClaimedJob) -> bool:
        """Note that the job enters a forward pass with nothing else in the process: a crash from now on is its own.

        Returns:
            False if the job is no longer this attempt's: do not run it.
        """
        ...

    def finish(self, worker_id: uuid.UUID, jobs: Sequence[FinishedJob]) -> set[uuid.UUID]:
        """Move FINISH: status and result, together.

        Returns:
            The jobs that this very attempt has finished, now or in an earlier call whose reply was lost.

        Raises:
            InvalidRequestError: a text is not JSON, or the status is none that finishes; nothing was written.
        """
        ...

    def retry(self, worker_id: uuid.UUID, failures: Sequence[Failure], *, max_failures: int) -> dict[uuid.UUID, str]:
        """Move RETRY: charge a failure; queue again after `delay_s`, or end as failed when the budget is spent.

        A job that fails gets the error for every row; a slice gets it once, of row null.

        Returns:
            The new status of each job that was still this attempt's.
        """
        ...

    def give_back(self, worker_id: uuid.UUID, jobs: Sequence[ClaimedJob]) -> set[uuid.UUID]:
        """Move GIVE_BACK: queue again at once, no failure charged. Returns what was still this attempt's."""
        ...

    def reconcile(self, worker_id: uuid.UUID, held: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Move GIVE_BACK for the worker's running jobs that it does not hold: claims whose reply was lost.

        Call it only while no claim of this worker is under way, or that claim is taken for lost too.
        """
        ...


class Workers(Protocol):
    """Who is believed alive. Used by workers and by the scheduler's leader."""

    def register(
        self, worker_id: uuid.UUID, *, host: str, pid: int, pool: str, device: str, lease_s: float, instance: str = ""
    ) -> None:
        """Begin one incarnation, live for `lease_s`; an id that is known stays as it is.

        On an instance that is being given up (see `instance_contract`) it drains from the start.
        """
        ...

    def heartbeat(
        self,
        worker_id: uuid.UUID,
        *,
        lease_s: float,
        models: str,
        rows_per_s: float,
        bulk_rows_per_s: float = 0.0,
        rows_done: int = 0,
        speeds: Mapping[int, Speed] | None = None,
    ) -> Pulse:
        """Renew the lease for `lease_s` from now, unless it had run out.

        Args:
            worker_id: of this incarnation.
            lease_s: how long it is believed alive from now on.
            models: refs of what is loaded, space-separated.
            rows_per_s: how fast it goes, in the online lane if it has ever been busy there.
            bulk_rows_per_s: how fast in the bulk lane; 0 when never.
            rows_done: predicted and written since it registered.
            speeds: of this worker, by the ids of models that it has served.
        """
        ...

    def drain(self, worker_id: uuid.UUID) -> None:
        """The worker claims nothing from now on; what it holds, it may finish."""
        ...

    def bury(self, worker_ids: Sequence[uuid.UUID]) -> None:
        """End these leases now: their processes are known to be gone."""
        ...

    def list(self) -> list[WorkerView]:
        """Workers whose lease ended less than an hour ago or stands, oldest first."""
        ...

    def drain_rates(self, lane: Lane) -> dict[str, float]:
        """Measured rows/s of the live workers of each pool in a lane; a pool that was never busy in it is left out."""
        ...

    def speeds(self) -> dict[int, Speed]:
        """Measured speeds by model id: the mean of the live workers that ever told one, else as last told by any."""
        ...

    def bulk_rate(self, pool: str, model_id: int) -> float:
        """Rows/s that the live workers of a pool do together of a model's slices, by its own measured speed.

        Where none lives, what one would do; 0 when the model was never measured.
        """
        ...

    def lead(self, name: str, holder: uuid.UUID, *, lease_s: float) -> float | None:
        """Take or renew the lease `name` for `lease_s`.

        Returns:
            For how many seconds this holder has led without a gap; None while another does.
        """
        ...

    def leader(self, name: str) -> uuid.UUID | None:
        """Who holds the lease `name` now; None when nobody does."""
        ...

    def resign(self, name: str, holder: uuid.UUID) -> None:
        """Leave the lease `name` at once, if this holder has it."""
        ...


class Chores(Protocol):
    """What the scheduler does to jobs. Safe under two leaders; each call is one step of at most STEP jobs."""

    @property
    def STEP(self) -> int:  # noqa: N802 - a constant of the adapter
        """How many jobs one step moves at most; a step that moved as many may have left some."""
        ...

    def settled(self, *, lease_s: float) -> bool:
        """Whether Postgres has been up for a lease: before that no lease that ran out proves a worker dead."""
        ...

    def rescue(self, *, max_failures: int) -> Rescued:
        """Move RESCUE, or POISON: take back the running jobs of workers whose lease has run out.

        They become suspects. Only a crash while exposed charges a failure; at `max_failures` the job ends as failed,
        with code `poison` and an error for every row. A slice is charged nothing (see `Slices.expose`) and given up
        when it has crashed alone 200 times; it gets one error in all, of row null.
        """
        ...

    def expire(self) -> int:
        """Move EXPIRE: queued jobs whose deadline has passed. Returns how many."""
        ...

    def release(self) -> int:
        """Make claimable the queued jobs whose run_at has come. Returns how many; their status stays."""
        ...

    def waiting(self) -> list[tuple[str, Lane]]:
        """The pools and lanes that have claimable work, suspects included."""
        ...

    def prune(self, *, results_kept_s: float, jobs_kept_s: float, keys_kept_s: float) -> int:
        """One step each: inputs and results of jobs that ended so long ago, job rows, idempotency keys, dead workers,
        settled launches.

        Slices are left to `Batches.prune`. A row goes only after its result has gone, in a later step.

        Returns:
            How much went; call again until it is 0.
        """
        ...

    def count_backlog(self, *, every_s: float) -> None:
        """Count the queued work anew, unless it was counted within `every_s` or somebody counts right now."""
        ...

    def backlog(self) -> list[Backlog]:
        """The last count; tenants, models and lanes without queued work are absent."""
        ...


class Catalogue(Protocol):
    """Tenants and their keys, models and their specs."""

    def register_model(self, spec: ModelSpec) -> int:
        """Enter a model, or mend policy and signature of one with the same bytes. Returns its number.

        Raises:
            InvalidRequestError: name and version are there with another digest.
        """
        ...

    def models(self) -> list[ModelRecord]:
        """All models, by name and version."""
        ...

    def add_key(self, key: str, *, tenant: str, name: str, scopes: tuple[str, ...]) -> int:
        """Admit a key, with its tenant if that is new; a key that is known is valid again. Returns its number.

        Raises:
            InvalidRequestError: no scope, or one that is not in SCOPES.
        """
        ...

    def find_key(self, key: str) -> Principal | None:
        """Who the key speaks for; None when it is unknown or revoked."""
        ...

    def keys(self) -> list[KeyView]:
        """All keys, oldest first."""
        ...

    def revoke_key(self, key_id: int) -> bool:
        """End a key. False if there was nothing to end."""
        ...

"""A batch whose worker is taken away again and again by spot notices, and the count of what that costs.

Workers are real processes; each has a fake metadata service of its own. When its two minutes are over an instance is
gone: here, a worker that is still there at the end of its notice is killed.
"""

from __future__ import annotations

import json
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import batch_rig
import fake_imds
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import small_models
from fake_imds import FakeImds
from worker_process import ROOT, Worker, a_worker, until
from worker_rig import Rig

from batchline.batch import Input, Output
from workers.spot_notice import MARGIN_S

TELLING = (str(ROOT / "tests" / "launchers" / "worker_that_tells.py"),)
SLICE_ROWS = 1000
ROW_S = 0.0008
"""A slice takes about a second."""
ENOUGH_S = MARGIN_S + 10.0
"""Until the end of the instance: also when AWS cuts a second off and the worker looks late, a slice can be done."""
TOO_SHORT_S = MARGIN_S + 0.5
CLAIMS_END_S = 5.0


@dataclass
class Told:
    """One pass of one process."""

    pid: int
    at: float
    first: int
    rows: int


@dataclass
class Round:
    """One notice."""

    pid: int
    at: float
    enough: bool
    code: int
    """Exit code of the worker; negative: it was killed."""


@dataclass
class Cost:
    """What the notices cost, in rows."""

    lost: int
    twice: int
    repeated: int
    """Predicted more often than once."""
    repeated_of: list[int] = field(default_factory=list[int])
    """Of each round: rows that its worker had predicted of slices that another did again."""
    late_claims: int = 0
    """Slices begun later than 5 s after the notice."""
    rescued: int = 0


class Rounds:
    """The batch, and one worker after the other."""

    def __init__(self, rig: Rig, folder: Path, database_url: str, redis_url: str, slices: int) -> None:
        self.rig, self.folder = rig, folder
        self.rows = slices * SLICE_ROWS
        self.rounds: list[Round] = []
        self.rescued = 0
        self._urls = database_url, redis_url
        self._random = random.Random(7)
        self._tell = folder / "told"
        self.batch = self._plan()

    def _plan(self) -> uuid.UUID:
        model = self.rig.add("double", small_models.double(self.folder / "source.onnx"))
        at = np.arange(self.rows)
        path = self.folder / "data" / "in.parquet"
        table = pa.table({"id": at, "a": -at.astype(np.float32), "b": np.ones(self.rows, np.float32)})
        pq.write_table(table, path, row_group_size=SLICE_ROWS)
        given = Input(uri=f"file://{path}", key="id")
        output = Output(uri=f"file://{self.folder / 'data' / 'out'}/", format="parquet")
        return batch_rig.data_set(
            self.rig.store, model, "double@1", self.rig.settings, given=given, output=output, slice_rows=SLICE_ROWS
        )

    @contextmanager
    def worker(self, imds: FakeImds, *, deaf: bool = False, row_s: float = ROW_S) -> Iterator[Worker]:
        """A worker process on an instance; `deaf`: the mutant that asks nobody."""
        places = {
            "BATCHLINE_DATA_ROOTS": self.rig.settings.data_roots,
            "BATCHLINE_BLOBS": self.rig.settings.blobs,
            "BATCHLINE_SPOT_NOTICE": "" if deaf else imds.url,
            "BATCHLINE_IDLE_POLL_S": "0.2",
            "BATCHLINE_BULK_MS": "20",
            "TELL_TO": str(self._tell),
            "TELL_ROW_S": str(row_s),
        }
        log = self.folder / f"worker-{len(self.rounds)}.log"
        with a_worker(*self._urls, self.rig.repository, log, **places) as worker:
            worker.start(TELLING)
            yield worker

    def told(self, pid: int | None = None) -> list[Told]:
        lines = self._tell.read_text().splitlines() if self._tell.exists() else []
        return [t for t in (Told(**json.loads(line)) for line in lines) if pid in (None, t.pid)]

    def interrupt(self, worker: Worker, imds: FakeImds, *, enough: bool) -> None:
        """Give notice in the middle of a slice, and take the instance away when its time is over."""
        assert worker.process
        pid = worker.process.pid
        share = self._random.uniform(0.2, 0.7)
        until(lambda: self._within(pid, share), worker, 90)
        at = time.time()
        within_s = ENOUGH_S if enough else TOO_SHORT_S
        imds.notice(within_s)
        while worker.alive and time.time() < at + within_s:
            self.chores()
            time.sleep(0.05)
        if worker.alive:
            self._stop_within(worker)
        code = worker.end(signal.SIGKILL) if worker.alive else worker.process.returncode
        self.rounds.append(Round(pid, at, enough, code))

    def _stop_within(self, worker: Worker) -> None:
        """Stop a process that is to be killed where that costs something: in the middle of a slice."""
        assert worker.process
        process = worker.process

        def stopped() -> bool:
            process.send_signal(signal.SIGSTOP)
            last = self.told(process.pid)[-1]
            if SLICE_ROWS / 10 < last.first % SLICE_ROWS < SLICE_ROWS - last.rows:
                return True
            process.send_signal(signal.SIGCONT)
            return not worker.alive

        until(stopped, worker, 60)

    def _within(self, pid: int, share: float) -> bool:
        self.chores()
        told = self.told(pid)
        return bool(told) and (told[-1].first % SLICE_ROWS) / SLICE_ROWS > share

    def chores(self) -> None:
        """What a scheduler does all the time."""
        done = self.rig.store.chores.rescue(max_failures=3)
        self.rescued += done.requeued + done.poisoned
        self.rig.store.chores.release()

    def finish(self) -> None:
        """A last worker, quick and on a quiet instance, does what is left."""

        def ended() -> bool:
            self.chores()
            return {s.status for s in batch_rig.slices(self.rig.store, self.batch)} == {"succeeded"}

        with fake_imds.fake_imds() as imds, self.worker(imds, row_s=0.0) as worker:
            until(ended, worker, 120)
            assert worker.end(signal.SIGTERM) == 0

    def cost(self) -> Cost:
        """Count, from the files that were written and from what the workers told."""
        files = sorted((self.folder / "data" / "out").glob("part-*.parquet"))
        table = pa.concat_tables([pq.read_table(path) for path in files])
        keys = table["id"].to_numpy()
        written = np.bincount(keys, minlength=self.rows)
        outputs = np.array(table["y"].to_pylist(), np.float32)
        right = (outputs[:, 0] == -2.0 * keys) & (outputs[:, 1] == 2.0)
        assert right.all()
        repeated = self._repeated()
        return Cost(
            lost=int((written == 0).sum()),
            twice=int((written > 1).sum()),
            repeated=sum(repeated.values()),
            repeated_of=[repeated.get(r.pid, 0) for r in self.rounds],
            late_claims=sum(self._late_claims(r) for r in self.rounds),
            rescued=self.rescued,
        )

    def _repeated(self) -> Counter[int]:
        """By process: rows that it had predicted and that were predicted again later."""
        found: Counter[int] = Counter()
        before = np.zeros(self.rows, np.int64)
        for t in self.told():
            rows = before[t.first : t.first + t.rows]
            found.update(rows[rows > 0].tolist())
            rows[:] = t.pid
        return found

    def _late_claims(self, r: Round) -> int:
        begun: dict[int, float] = {}
        for t in self.told(r.pid):
            begun.setdefault(t.first // SLICE_ROWS, t.at)
        return sum(at > r.at + CLAIMS_END_S for at in begun.values())


def interrupted(
    rig: Rig, folder: Path, database_url: str, redis_url: str, *, rounds: int, deaf: bool = False
) -> tuple[list[Round], Cost]:
    """So many notices, by turns with enough time to finish the slice in hand and with none."""
    batch = Rounds(rig, folder, database_url, redis_url, slices=6 * rounds)
    for number in range(rounds):
        with fake_imds.fake_imds() as imds, batch.worker(imds, deaf=deaf) as worker:
            imds.warn()
            batch.interrupt(worker, imds, enough=number % 2 == 0)
    batch.finish()
    return batch.rounds, batch.cost()


def check(rounds: list[Round], cost: Cost) -> None:
    """What must hold of every number of notices."""
    assert (cost.lost, cost.twice) == (0, 0), cost
    assert [r.code for r in rounds] == [0] * len(rounds), rounds
    assert cost.late_claims == 0, cost
    assert cost.rescued == 0, "what was not finished was given back, uncharged"
    assert cost.repeated <= SLICE_ROWS * len(rounds), cost
    for r, repeated in zip(rounds, cost.repeated_of, strict=True):
        assert repeated <= (0 if r.enough else SLICE_ROWS), (r, cost)

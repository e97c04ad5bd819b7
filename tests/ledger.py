"""A client that keeps a ledger: it writes down every submit before it sends it, and repeats unknown outcomes.

What it holds the system to, at the end (`Audit`):
    every 200/202 has a terminal status; no job ended twice; no result was written twice; no innocent job failed;
    every output is what ONNX Runtime says when it is called directly.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import stack

from batchline.job import parse_id

AUDIT_SQL = """
CREATE TABLE audit (job_id uuid, event text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION audit_ended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NEW.status IN ('succeeded', 'failed', 'cancelled', 'expired') THEN
    INSERT INTO audit VALUES (NEW.id, 'ended');
  END IF;
  RETURN NEW;
END $$;
CREATE FUNCTION audit_result() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO audit VALUES (NEW.job_id, 'result');
  RETURN NEW;
END $$;
CREATE TRIGGER audit_ended AFTER UPDATE OF status ON jobs FOR EACH ROW EXECUTE FUNCTION audit_ended();
CREATE TRIGGER audit_result AFTER INSERT OR UPDATE ON job_results FOR EACH ROW EXECUTE FUNCTION audit_result();
"""


@dataclass
class Entry:
    """One line of the ledger."""

    key: str
    row: list[float]
    job_id: str | None = None
    sends: int = 0


@dataclass
class Ledger:
    """Submits rows from several threads until told to stop; fail-over over all URLs."""

    path: Path
    urls: Sequence[str]
    api_key: str
    model: str
    make_row: Callable[[random.Random], list[float]]
    give_up_s: float = 120.0
    entries: list[Entry] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, threads: int, *, jobs_each: int, pause_s: float = 0.0) -> None:
        """Submit `jobs_each` jobs from each thread."""
        for number in range(threads):
            thread = threading.Thread(target=self._submit_many, args=(number, jobs_each, pause_s), daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def is_submitting(self) -> bool:
        return any(t.is_alive() for t in self._threads)

    @property
    def accepted(self) -> list[Entry]:
        return [e for e in self.entries if e.job_id]

    def join(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._stop.set()

    def _submit_many(self, number: int, jobs: int, pause_s: float) -> None:
        rng = random.Random(number)
        with httpx.Client(timeout=10.0, headers={"Authorization": f"Bearer {self.api_key}"}) as http:
            for _ in range(jobs):
                if self._stop.wait(pause_s):
                    return
                entry = Entry(str(uuid.uuid4()), self.make_row(rng))
                with self._lock, self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": entry.key, "row": entry.row}) + "\n")
                    self.entries.append(entry)
                self._submit(http, entry, rng)

    def _submit(self, http: httpx.Client, entry: Entry, rng: random.Random) -> None:
        deadline = time.monotonic() + self.give_up_s
        while time.monotonic() < deadline and not self._stop.is_set():
            url = rng.choice(list(self.urls))
            entry.sends += 1
            try:
                answer = http.post(
                    f"{url}/v1/jobs",
                    json={"model": self.model, "inputs": [entry.row]},
                    headers={"Idempotency-Key": entry.key},
                )
            except httpx.HTTPError:
                self._stop.wait(0.05)
                continue
            if answer.status_code in (200, 202):
                entry.job_id = answer.json()["id"]
                return
            if answer.status_code not in (409, 429, 503):
                self.refused.append(f"{answer.status_code} {answer.text[:200]}")
                return
            self._stop.wait(0.05)


@dataclass(frozen=True)
class Audit:
    """What the database says of the ledger's jobs."""

    accepted: int
    not_terminal: int
    ended_twice: int
    results_twice: int
    failed: int
    keys_twice: int
    statuses: dict[str, int]

    @property
    def is_clean(self) -> bool:
        return not (self.not_terminal or self.ended_twice or self.results_twice or self.failed or self.keys_twice)


def install_audit(database_url: str) -> None:
    """Record every end of a job and every write of a result, by triggers: nothing can happen between two looks."""
    stack.query(database_url, AUDIT_SQL)


def open_jobs(database_url: str) -> int:
    """Jobs without a terminal status."""
    return int(stack.query(database_url, "SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')")[0][0])


def audit(database_url: str, ledger: Ledger) -> Audit:
    """Count; the ids come from the client's ledger, not from the database."""
    ids = [str(parse_id(e.job_id)) for e in ledger.accepted if e.job_id]
    statuses = dict(
        stack.query(
            database_url,
            "SELECT coalesce(j.status::text, 'unknown'), count(*) FROM unnest(%s::uuid[]) AS t(id) "
            "LEFT JOIN jobs j USING (id) GROUP BY 1",
            (ids,),
        )
    )
    twice = dict(
        stack.query(
            database_url,
            "SELECT event, count(*) FROM (SELECT event, job_id FROM audit GROUP BY 1, 2 HAVING count(*) > 1) x "
            "GROUP BY 1",
        )
    )
    terminal = sum(statuses.get(s, 0) for s in ("succeeded", "failed", "cancelled", "expired"))
    return Audit(
        accepted=len(ids),
        not_terminal=len(ids) - terminal,
        ended_twice=twice.get("ended", 0),
        results_twice=twice.get("result", 0),
        failed=statuses.get("failed", 0),
        keys_twice=len(ids) - len(set(ids)),
        statuses=statuses,
    )

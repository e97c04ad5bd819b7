"""load: many clients that submit, wait and submit again, and how quick they were answered."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from batchline.cli.jobs import read_rows
from batchline.cli.output import Json, busy, note, tell_json, tell_table
from batchline.cli.places import open_client
from batchline.errors import BatchlineError
from batchline.job import Status

if TYPE_CHECKING:
    from batchline.client import Client

_LAST_S = 60.0
"""How long the jobs that are under way at the end are waited for."""


@dataclass
class _Seen:
    """What all clients have seen; they are threads."""

    latencies_s: list[float] = field(default_factory=list[float])
    """From the submit to the result read, of jobs that succeeded."""
    faults: Counter[str] = field(default_factory=Counter[str])
    """Whatever else came of a job: its status, or the code of the error."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def took(self, seconds: float, fault: str | None) -> None:
        with self.lock:
            if fault is None:
                self.latencies_s.append(seconds)
            else:
                self.faults[fault] += 1


def load(
    model: Annotated[str, typer.Argument(help="The model's name, or NAME@VERSION.")],
    *,
    rows: Annotated[
        str, typer.Option("--rows", help="The rows of each job, a JSON array, or - to read it from stdin.")
    ],
    clients: Annotated[int, typer.Option(min=1, max=256, help="How many at once.")] = 16,
    duration_s: Annotated[float, typer.Option("--seconds", min=0.1, help="How long jobs are begun.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Test how many jobs a second the system does.

    Clients submit a job, wait for its result, and begin again. Tells jobs and rows a second, and the time from submit
    to result. Exit 1 if a job failed or was refused. For example:

    batchline load digits --rows '[[0, 5, ...]]' --clients 64
    """
    inputs = read_rows(rows)
    seen = _Seen()
    with open_client() as client:
        until = time.monotonic() + duration_s
        threads = [
            threading.Thread(target=_submit_again, args=(client, model, inputs, until, seen), daemon=True)
            for _ in range(clients)
        ]
        began = time.monotonic()
        with busy(f"{clients} clients for {duration_s:g} s …"):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        took_s = time.monotonic() - began
    told = _told(seen, len(inputs), clients, took_s)
    tell_json(told) if as_json else tell_table(["what", "value"], [(k, v) for k, v in told.items() if k != "faults"])
    for fault, count in seen.faults.most_common():
        note(f"{count} jobs: {fault}")
    if seen.faults or not seen.latencies_s:
        raise typer.Exit(1)


def _submit_again(client: Client, model: str, inputs: Sequence[object], until: float, seen: _Seen) -> None:
    name, _, version = model.partition("@")
    while (began := time.monotonic()) < until:
        try:
            job = client.submit(name, inputs, version=version or None)
            job = client.wait(job, until + _LAST_S - time.monotonic())
            fault = None if job.status is Status.SUCCEEDED else job.status.value
        except BatchlineError as e:
            fault = e.code
            if not e.retryable:  # the next one would end alike
                until = began
        seen.took(time.monotonic() - began, fault)


def _told(seen: _Seen, rows: int, clients: int, took_s: float) -> dict[str, object]:
    done = sorted(seen.latencies_s)
    told: dict[str, object] = {
        "clients": clients,
        "seconds": round(took_s, 3),
        "jobs": len(done),
        "jobs_per_s": round(len(done) / took_s, 1),
        "rows_per_s": round(len(done) * rows / took_s, 1),
    }
    for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99), ("max_ms", 1.0)):
        told[name] = round(1000.0 * done[min(int(share * len(done)), len(done) - 1)], 1) if done else None
    return told | {"faults": dict(seen.faults)}

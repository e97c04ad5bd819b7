"""Jobs as JSON: what the store read, in the words of the contract; results are passed through unread."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from batchline import answers
from batchline.job import JobView, Status
from batchline.wire import JobBody, JobList

Eta = Callable[[JobView], "float | None"]
_encoder = msgspec.json.Encoder()


def job_json(view: JobView, eta: Eta) -> bytes:
    """One job as JSON."""
    return as_json(job_body(view, eta))


def as_json(body: JobBody) -> bytes:
    """A body as it goes out."""
    return _encoder.encode(body)


def list_json(views: list[JobView], eta: Eta, *, has_more: bool) -> bytes:
    """One page of jobs as JSON."""
    data = [job_body(view, eta) for view in views]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return _encoder.encode(JobList(data, first, last, has_more))


def job_body(view: JobView, eta: Eta) -> JobBody:
    """One job in the words of the contract."""
    return answers.job_body(view, eta(view) if view.status is Status.QUEUED else None)

"""The calls of the API as generators: they yield what to send or how long to sleep, and know no network.

call = calls.get(job_id)        the driver sends each yielded Send and hands the Answer (or None: none came) back
"""

from __future__ import annotations

import gzip
import io
import math
import random
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, TypedDict, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from batchline.client.results import Job, JobPage, Model, ModelPage, Traffic
from batchline.client.retries import Failure, decide, poll_wait_s, retry_after_s
from batchline.clock import Clock
from batchline.errors import (
    HTTP_STATUS,
    AlreadyEndedError,
    BatchlineError,
    ConflictError,
    Fault,
    InvalidRequestError,
    NotFoundError,
    TimedOutError,
    UnreachableError,
)
from batchline.wire import FaultBody, OpenAIError

T = TypeVar("T")

PAGE = 100
"""Jobs of one page."""
LONG_POLL_S = 30.0
ANSWER_S = 30.0
"""The longest that one request may take, over what it asks the server to wait."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as one part of a form; sent from its beginning at every try."""

    name: str
    content: bytes | Path
    gzip: bool = False
    """Whether to send what is inside."""

    def open(self) -> IO[bytes]:
        """Raises InvalidRequestError when the file cannot be read any more."""
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        try:
            return _inflated(self.content) if self.gzip else self.content.open("rb")
        except (OSError, EOFError, zlib.error) as e:
            raise InvalidRequestError(f"{self.content} cannot be read: {e}.") from e


def _inflated(path: Path) -> IO[bytes]:
    """A temporary file: a form tells its length before it is sent."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the sender closes it
    with gzip.open(path) as packed:
        shutil.copyfileobj(packed, file)
    file.seek(0)
    return file


@dataclass(frozen=True, slots=True)
class Send:
    """One request to make."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | Upload | None
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """No answer came: connection refused, reset, or too slow."""

    why: str


Call = Generator[Send | float, Answer | Lost | None, T]
"""Yields a request to send (and takes its outcome) or seconds to sleep (and takes None); returns the result."""


class _Problem(msgspec.Struct):
    type: str = ""
    title: str = ""
    detail: str = ""
    errors: list[FaultBody] = []
    error: OpenAIError | None = None
    """What /v1/files and /v1/batches say instead of all that."""


class SubmitOptions(TypedDict, total=False):
    """What a job may be told beside its model and its rows."""

    version: str | int | None
    """A number or an alias; the model's own choice when absent."""
    priority: int
    """0 (first) to 9; 5 when absent."""
    ttl_s: float | None
    """Wanted this long after its creation at the latest."""
    deadline: datetime | None
    """Wanted by then; aware. The earlier of the two counts."""
    metadata: Mapping[str, object] | None
    """Kept with the job and given back."""
    idempotency_key: str | None
    """Two submits with the same key are one job. One is minted when absent, so that no retry within a call doubles;
    give your own to repeat a submit after a restart of your program."""
    webhook: str | Mapping[str, object] | None
    """A URL that is told of the end; with `{"url": …, "events": ["job.failed"]}` of such ends only."""


@dataclass
class Calls:
    """One client's calls. `current` is the server that answered last; all calls share it."""

    urls: Sequence[str]
    api_key: str
    timeout_s: float
    clock: Clock
    rng: random.Random = field(default_factory=random.Random)
    current: int = 0

    def submit(
        self,
        model: str,
        inputs: object,
        *,
        version: str | int | None = None,
        priority: int = 5,
        ttl_s: float | None = None,
        deadline: datetime | None = None,
        metadata: Mapping[str, object] | None = None,
        idempotency_key: str | None = None,
        webhook: str | Mapping[str, object] | None = None,
    ) -> Call[Job]:
        body = {"model": model, "inputs": inputs, "version": version, "priority": priority, "ttl_s": ttl_s}
        body |= {"deadline": deadline, "metadata": metadata, "webhook": hook(webhook)}
        if deadline is not None and deadline.tzinfo is None:
            raise InvalidRequestError("The deadline has no time zone: give an aware datetime.")
        content = encode({name: value for name, value in body.items() if value is not None})
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex, "Prefer": "respond-async"}
        return self.typed(Job, "POST", "/v1/jobs", content, headers)

    def get(self, job_id: str) -> Call[Job]:
        return self.typed(Job, "GET", _job_path(job_id))

    def cancel(self, job_id: str) -> Call[Job]:
        return self.typed(Job, "POST", f"{_job_path(job_id)}/cancel")

    def wait(self, job_id: str, timeout_s: float | None) -> Call[Job]:
        until = self.clock.monotonic() + (math.inf if timeout_s is None else timeout_s)
        polls = 0
        while True:
            left_s = until - self.clock.monotonic()
            asked_s = float(int(max(0.0, min(LONG_POLL_S, left_s))))
            headers = {"Prefer": f"wait={int(asked_s)}"} if asked_s else {}
            started = self.clock.monotonic()
            # The first question is always asked, whatever is left of the time.
            job = yield from self._patient(job_id, headers, until if polls else max(until, started + 1.0), asked_s)
            if job.is_finished:
                return job
            polls += 1
            now = self.clock.monotonic()
            if now >= until:
                raise TimedOutError(f"{job_id} is still {job.status} after {timeout_s:g} s; wait for it again.")
            pause_s = poll_wait_s(polls, asked_s, now - started)
            if pause_s:
                yield min(pause_s, until - now)

    def _patient(self, job_id: str, headers: dict[str, str], until: float, asked_s: float) -> Call[Job]:
        answer = yield from self.answer("GET", _job_path(job_id), None, headers, until=until, holds_s=asked_s)
        return _decode(Job, answer)

    def page(self, status: str | None, model: str | None, after: str | None, limit: int) -> Call[JobPage]:
        asked = {"status": status, "model": model, "after": after, "limit": limit}
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        return self.typed(JobPage, "GET", f"/v1/jobs?{query}")

    def models(self) -> Call[list[Model]]:
        page = yield from self.typed(ModelPage, "GET", "/v1/models")
        return list(page.data)

    def model(self, name: str) -> Call[Model]:
        return self.typed(Model, "GET", f"/v1/models/{quote(name, safe='')}")

    def traffic(self, name: str) -> Call[Traffic]:
        return self.typed(Traffic, "GET", _traffic_path(name))

    def set_traffic(
        self,
        name: str,
        production: str | int,
        canary: str | int | None,
        percent: float | None,
        shadow: str | int | None,
    ) -> Call[Traffic]:
        if (canary is None) != (percent is None):
            raise InvalidRequestError("A canary has a version and a percent: give both or neither.")
        share = None if canary is None else {"version": canary, "percent": percent}
        body = {"production": production, "canary": share, "shadow": shadow}
        return self.typed(Traffic, "PUT", _traffic_path(name), encode(body))

    def reset_traffic(self, name: str) -> Call[Traffic]:
        return self.typed(Traffic, "DELETE", _traffic_path(name))

    def request(self, method: str, path: str, body: object = None) -> Call[object]:
        content = None if body is None else encode(body)
        answer = yield from self.answer(method, path, content, {})
        return _decode(object, answer) if answer.body else None

    def decoded(self, kind: type[T], answer: Answer) -> T:
        """What an answer says, checked."""
        return _decode(kind, answer)

    def typed(
        self, kind: type[T], method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Call[T]:
        answer = yield from self.answer(method, path, body, headers or {})
        return _decode(kind, answer)

    def answer(
        self,
        method: str,
        path: str,
        body: bytes | Upload | None,
        headers: dict[str, str],
        *,
        until: float | None = None,
        holds_s: float = 0.0,
    ) -> Call[Answer]:
        """Send until a server answers with success; what was sent is the same every time, its key included.

        Raises:
            BatchlineError: a server refused, or none answered before `until`.
        """
        until = self.clock.monotonic() + self.timeout_s if until is None else until
        headers = {"Authorization": f"Bearer {self.api_key}", "Accept": "application/json"} | headers
        if isinstance(body, bytes):
            headers["Content-Type"] = "application/json"
        failures = 0
        while True:
            server = self.current
            left_s = max(0.1, until - self.clock.monotonic())
            timeout_s = min(ANSWER_S + holds_s, left_s + (5.0 if holds_s else 0.0))
            answer = yield Send(method, self.urls[server] + path, headers, body, timeout_s)
            if isinstance(answer, Answer) and answer.status < 300:
                return answer
            failures += 1
            error, failure = self._failed(answer, server)
            left_s = until - self.clock.monotonic()
            again = decide(failure, failures=failures, servers=len(self.urls), left_s=left_s, rng=self.rng)
            if again is None:
                raise error
            if again.elsewhere and self.current == server:  # unless another call has moved on already
                self.current = (server + 1) % len(self.urls)
            if again.wait_s:
                yield again.wait_s

    def _failed(self, answer: Answer | Lost | None, server: int) -> tuple[BatchlineError, Failure]:
        if isinstance(answer, Answer):
            wait_s = retry_after_s(answer.headers, self.clock.now())
            error = error_of(answer, wait_s)
            return error, Failure(answer.status, wait_s, isinstance(error, ConflictError))
        why = answer.why if answer else "no answer"
        named = ", ".join(self.urls) if len(self.urls) > 1 else self.urls[server]
        return (
            UnreachableError(f"{named} cannot be reached ({why}): is Batchline up, and is BATCHLINE_URL right?"),
            Failure(None),
        )


def hook(webhook: str | Mapping[str, object] | None) -> Mapping[str, object] | None:
    """A webhook as bodies have it; a URL alone asks for all events."""
    return {"url": webhook} if isinstance(webhook, str) else webhook


def encode(body: object) -> bytes:
    """A body as JSON; arrays and numbers of numpy become lists and numbers.

    Raises:
        InvalidRequestError: a value has no JSON form; an infinity among them, which JSON would turn into null.
    """
    try:
        content = msgspec.json.encode(body, enc_hook=_plain)
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise InvalidRequestError(f"The request has no JSON form: {e}.") from None
    if b"null" in content and _has_infinity(body):
        raise InvalidRequestError("The inputs hold an infinity, which JSON cannot carry; NaN is sent as null.")
    return content


def _plain(value: object) -> object:
    to_list = getattr(value, "tolist", None)
    if to_list is None:
        raise TypeError(f"{type(value).__name__} cannot be sent")
    return to_list()


def _has_infinity(value: object) -> bool:
    if isinstance(value, float):
        return math.isinf(value)
    if isinstance(value, Mapping):
        return any(map(_has_infinity, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_infinity, value))
    return hasattr(value, "tolist") and _has_infinity(_plain(value))


def _decode(kind: type[T], answer: Answer) -> T:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.DecodeError as e:
        raise BatchlineError(f"The server's answer cannot be read ({e}): does BATCHLINE_URL name Batchline?") from e


def _job_path(job_id: str) -> str:
    if not job_id:
        raise NotFoundError("There is no job with an empty id.")
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _traffic_path(name: str) -> str:
    return f"/v1/models/{quote(name, safe='')}/traffic"


_BY_CODE = {kind.code: kind for kind in HTTP_STATUS}
_BY_STATUS = {status: kind for kind, status in reversed(HTTP_STATUS.items())}
_URN = "urn:batchline:error:"


def error_of(answer: Answer, wait_s: float | None = None) -> BatchlineError:
    """The error that a problem+json answer tells, as the class it was raised as; by its status if the code is new."""
    try:
        problem = msgspec.json.decode(answer.body, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem()
    if problem.error is not None:
        return _openai_error(answer.status, problem.error, wait_s)
    code = problem.type.removeprefix(_URN)
    kind = _BY_CODE.get(code) or _BY_STATUS.get(answer.status) or BatchlineError
    detail = problem.detail or problem.title or f"The server answered {answer.status}."
    return kind(detail, faults=tuple(Fault(f.pointer, f.detail) for f in problem.errors), retry_after_s=wait_s)


def _openai_error(status: int, error: OpenAIError, wait_s: float | None) -> BatchlineError:
    """OpenAI's words are coarser: what is wrong with a body is 400 there, and what is too late a 409 without a code."""
    coarse = {400: InvalidRequestError, 409: AlreadyEndedError}.get(status) or _BY_STATUS.get(status)
    kind = _BY_CODE.get(error.code or "") or coarse
    faults = tuple(Fault(f.pointer, f.detail) for f in error.errors)
    return (kind or BatchlineError)(error.message, faults=faults, retry_after_s=wait_s)

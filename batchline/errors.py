"""Every error that Batchline raises on purpose, on one page.

The way of the data, and what can go wrong on each arrow:

    client --(1)--> api --(2)--> store --(3)--> worker --(4)--> runtime --(5)--> store --(6)--> client

    1  InvalidRequestError, UnauthorizedError, ForbiddenError, NotFoundError, TooLargeError, ...   the caller's to mend
    2  StoreUnavailableError, OverloadedError                              retryable
    3  StaleWorkerError                                                    the worker comes back under a new id
    4  ModelError, RowError                                                a row's own result, never its neighbours'
    5  StoreUnavailableError                                               retryable, the result is kept in hand
    6  ResultExpiredError                                                  the caller came too late

`code` is stable and goes over the wire; `retryable` is what a client or a chore may act on.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class Fault(NamedTuple):
    """One fault of a request body: where (RFC 6901 pointer) and what."""

    pointer: str
    detail: str


class BatchlineError(Exception):
    """Root of the tree. The message is for people: what happened, to what, and what to do next."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, faults: tuple[Fault, ...] = (), retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.faults = faults
        self.retry_after_s = retry_after_s


class RetryableError(BatchlineError):
    """The same call may succeed later, unchanged."""

    code: ClassVar[str] = "unavailable"
    retryable: ClassVar[bool] = True


class SettingsError(BatchlineError):
    """The environment does not describe a runnable process; lists every fault at once."""

    code = "bad_settings"


class MalformedError(BatchlineError):
    """The body is not JSON, or not JSON that can be read."""

    code = "malformed"


class InvalidRequestError(BatchlineError):
    """The body is readable and does not fit the contract or the model."""

    code = "invalid"


class UnauthorizedError(BatchlineError):
    """No key, or one that is unknown or revoked."""

    code = "unauthorized"


class ForbiddenError(BatchlineError):
    """The key is good and lacks the scope."""

    code = "forbidden"


class NotFoundError(BatchlineError):
    """No such thing, or another tenant's: the caller cannot tell."""

    code = "not_found"


class ConflictError(BatchlineError):
    """The same is in hand elsewhere: an idempotency key in flight, a schedule that others keep changing."""

    code = "conflict"
    retryable = True


class KeyReusedError(BatchlineError):
    """The idempotency key was used with another body."""

    code = "idempotency_key_reused"


class AlreadyEndedError(BatchlineError):
    """The job has ended, so that it can no longer be cancelled."""

    code = "already_ended"


class EndpointDisabledError(BatchlineError):
    """The endpoint of a webhook has been disabled; nothing is sent there until it is enabled again."""

    code = "endpoint_disabled"


class ResultExpiredError(BatchlineError):
    """The job is known and its result has been pruned."""

    code = "result_expired"


class TooLargeError(BatchlineError):
    """The body is larger than the limit."""

    code = "too_large"


class UnsupportedMediaError(BatchlineError):
    """The body's type or encoding is not spoken here."""

    code = "unsupported_media_type"


class QuotaError(RetryableError):
    """This tenant has its fill of queued rows, or of open batches."""

    code = "quota_exceeded"


class OverloadedError(RetryableError):
    """The system has its fill of queued rows, or the commit queue is full."""

    code = "overloaded"


class StoreUnavailableError(RetryableError):
    """Postgres could not be asked."""

    code = "store_unavailable"


class StaleWorkerError(RetryableError):
    """The worker's lease has expired; its jobs belong to others by now."""

    code = "stale_worker"


class ModelError(BatchlineError):
    """A model cannot be imported, loaded or run."""

    code = "model_error"


class RuntimeMissingError(RetryableError):
    """This process has not what runs a model of this kind; others may."""

    code = "runtime_missing"


class OutOfMemoryError(RetryableError):
    """The device had no room for this many rows; fewer may fit."""

    code = "out_of_memory"


class RowError(BatchlineError):
    """One row cannot be predicted; its neighbours can."""

    code = "row_error"


class SourceError(BatchlineError):
    """A data set cannot be read as it stands: absent, changed, truncated, a column missing; names file, row, column."""

    code = "source_error"


class SourceUnavailableError(RetryableError):
    """A data set's place does not answer now."""

    code = "source_unavailable"


class SinkError(BatchlineError):
    """Results cannot be written where they should go: no permission, no room, no such table."""

    code = "sink_error"


class SinkUnavailableError(RetryableError):
    """The place for results does not answer now."""

    code = "sink_unavailable"


class UnreachableError(RetryableError):
    """No server answered the client."""

    code = "unreachable"


class TimedOutError(RetryableError):
    """What was waited for has not come in the time that was given; it may still come."""

    code = "timed_out"


class LocalError(BatchlineError):
    """The embedded stack cannot start or stop a part on this machine."""

    code = "local"


HTTP_STATUS: dict[type[BatchlineError], int] = {
    BatchlineError: 500,
    RetryableError: 503,
    SettingsError: 500,
    MalformedError: 400,
    InvalidRequestError: 422,
    UnauthorizedError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    KeyReusedError: 422,
    AlreadyEndedError: 409,
    EndpointDisabledError: 409,
    ResultExpiredError: 410,
    TooLargeError: 413,
    UnsupportedMediaError: 415,
    QuotaError: 429,
    OverloadedError: 503,
    StoreUnavailableError: 503,
    StaleWorkerError: 503,
    ModelError: 500,
    RuntimeMissingError: 503,
    OutOfMemoryError: 503,
    RowError: 422,
    SourceError: 422,
    SourceUnavailableError: 503,
    SinkError: 422,
    SinkUnavailableError: 503,
    UnreachableError: 503,
    TimedOutError: 504,
    LocalError: 500,
}
"""Which status each error answers with; a test walks all subclasses."""

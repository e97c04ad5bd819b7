"""One S3 client an endpoint, with bounded waits and retries, and what S3 says in our words."""

from __future__ import annotations

import functools
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, cast

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from batchline.errors import BatchlineError, SinkError, SinkUnavailableError, SourceError, SourceUnavailableError

if TYPE_CHECKING:
    from botocore.client import BaseClient

log = logging.getLogger("batchline.data")

CONNECT_S = 5.0
SILENCE_S = 20.0
"""The longest that S3 may say nothing within one answer."""
TRIES = 4
_INVALID = "the server's AWS credentials are not valid"
_CREDENTIALS = {
    "ExpiredToken": "the server's AWS credentials have expired",
    "TokenRefreshRequired": "the server's AWS credentials have expired",
    "InvalidToken": _INVALID,
    "InvalidAccessKeyId": _INVALID,
    "SignatureDoesNotMatch": _INVALID,
    "RequestTimeTooSkewed": "the server's clock is not S3's",
}
"""S3's code -> what it means, for people."""
FAULTS = (BotoCoreError, ClientError)
"""What a call may raise."""

_lock = threading.Lock()


def client(endpoint: str) -> Any:
    """The S3 client of this process for an endpoint (empty: AWS); safe to share among threads."""
    with _lock:  # making one is not safe among threads
        return _client(endpoint, SILENCE_S)


@functools.lru_cache(maxsize=8)
def _client(endpoint: str, silence_s: float) -> BaseClient:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=silence_s,
        retries={"mode": "standard", "total_max_attempts": TRIES},
        max_pool_connections=16,
        s3={"addressing_style": "path"} if endpoint else {},
        request_checksum_calculation="when_required",  # S3s of others know no newer checksums
        response_checksum_validation="when_required",
    )
    # a region is needed to sign; an S3 of one's own takes any
    fallback = "us-east-1" if endpoint and not region else region
    made = boto3.session.Session().client("s3", endpoint_url=endpoint or None, region_name=fallback, config=config)
    return cast("BaseClient", made)


def status_of(e: Exception) -> int:
    """HTTP status of an answer; 0 when there was none."""
    if not isinstance(e, ClientError):
        return 0
    return int(e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(e: Exception) -> str:
    """S3's own code; empty when there is none."""
    return str(e.response.get("Error", {}).get("Code", "")) if isinstance(e, ClientError) else ""


def source_error(uri: str, e: Exception) -> BatchlineError:
    """What went wrong while reading."""
    status = status_of(e)
    if status == 404:
        return SourceError(f"There is no {uri}.")
    if status in (412, 416):
        return SourceError(f"{uri} has changed since the batch was planned: submit the batch again.")
    return _told(uri, e, "read", SourceError, SourceUnavailableError)


def sink_error(uri: str, e: Exception) -> BatchlineError:
    """What went wrong while writing."""
    if status_of(e) == 404:
        return SinkError(f"{uri} cannot be written: there is no such bucket.")
    return _told(uri, e, "written", SinkError, SinkUnavailableError)


def _told(
    uri: str, e: Exception, done: str, refused: type[BatchlineError], away: type[BatchlineError]
) -> BatchlineError:
    log.warning("s3: %s: %s", uri, e)
    if isinstance(e, NoCredentialsError | PartialCredentialsError):
        return refused(f"{uri} may not be {done}: the server has no AWS credentials.")
    if isinstance(e, ParamValidationError):
        return refused(f"{uri} is no name that S3 takes.")
    if isinstance(e, CredentialRetrievalError):
        return away(f"{uri} cannot be {done} now: the server's AWS credentials cannot be had.")
    status = status_of(e)
    if code_of(e) in _CREDENTIALS:
        return refused(f"{uri} cannot be {done}: {_CREDENTIALS[code_of(e)]}.")
    if status in (301, 307, 400) and code_of(e) in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        return refused(f"{uri} lies in another region than the server is set to (AWS_REGION).")
    if status in (401, 403):
        return refused(f"{uri} may not be {done}: S3 denies access. See the bucket's policy and the server's role.")
    if 400 <= status < 500 and status not in (408, 409, 429):
        return refused(f"{uri} cannot be {done}: S3 answers {status} {code_of(e)}.")
    return away(f"{uri} cannot be {done} now: S3 {f'answers {status}' if status else 'does not answer'}.")

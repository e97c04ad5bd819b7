"""AWS for providers: clients with bounded waits, the tags that tell our instances, and errors in our words."""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import boto3.session
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)
from botocore.loaders import Loader, create_loader

from autoscaler.providers.contract import ProviderError, Trouble
from batchline.errors import SettingsError

CONNECT_S = 5.0
SILENCE_S = 15.0
ASK_TRIES = 2
"""Of calls that change nothing. Those that do are sent once: after a lost reply, a refused repetition would say that
nothing was done. The autoscaler repeats them itself, with the same token."""
FAULTS = (BotoCoreError, ClientError)
"""What a call may raise."""

STACK_TAG, POOL_TAG, LAUNCH_TAG = "batchline:stack", "batchline:pool", "batchline:launch"
PAGE = 1000
"""Items of a page; AWS gives no more."""
LIVING = ("pending", "running", "stopping", "stopped", "shutting-down")

CAPACITY_CODES = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "InsufficientReservedInstanceCapacity",
        "InsufficientFreeAddressesInSubnet",
        "UnfulfillableCapacity",
        "MaxSpotInstanceCountExceeded",
        "MaxFleetCountExceeded",
        "VcpuLimitExceeded",
        "InstanceLimitExceeded",
        "SpotMaxPriceTooLow",
    }
)
THROTTLING_CODES = frozenset(
    {
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "TooManyRequestsException",
        "EC2ThrottledException",
        "ResourceContention",
        "ScalingActivityInProgress",
    }
)
REPEATED_CODES = frozenset({"IdempotentParameterMismatch", "IdempotentInstanceTerminated"})
"""The token was used before: for a request that read differently, or for instances that are gone by now."""
DENIED_CODES = frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"})
STRANGER_CODES = frozenset(
    {"AuthFailure", "InvalidClientTokenId", "SignatureDoesNotMatch", "UnrecognizedClientException", "ExpiredToken"}
    | {"ExpiredTokenException", "RequestExpired", "InvalidAccessKeyId"}
)
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, ProfileNotFound, TokenRetrievalError)


@functools.cache
def _loader() -> Loader:
    """Descriptions of AWS's services, some of them megabytes: read once for all pools."""
    return create_loader()


class Aws:
    """The clients of one region. Making one asks nobody; they are safe to share among threads."""

    def __init__(self, region: str = "", endpoint_url: str = "") -> None:
        """Args:
        region: empty: AWS_REGION or the profile's.
        endpoint_url: of one's own; empty is AWS, or AWS_ENDPOINT_URL.
        """
        core = botocore.session.get_session()
        core.register_component("data_loader", _loader())
        self._session = boto3.session.Session(botocore_session=core)
        self._own = bool(endpoint_url or os.environ.get("AWS_ENDPOINT_URL"))
        self._endpoint_url = endpoint_url or None
        self.region = region or os.environ.get("AWS_REGION") or self._session.region_name or ""
        self._made: dict[tuple[str, int], Any] = {}

    def ask(self, service: str) -> Any:
        """A client for calls that change nothing."""
        return self._client(service, ASK_TRIES)

    def act(self, service: str) -> Any:
        """A client that sends each call once."""
        return self._client(service, 1)

    def _client(self, service: str, tries: int) -> Any:
        if (service, tries) not in self._made:
            config = Config(
                connect_timeout=CONNECT_S,
                read_timeout=SILENCE_S,
                retries={"mode": "standard", "total_max_attempts": tries},
                max_pool_connections=4,
            )
            try:
                self._made[service, tries] = self._session.client(  # pyright: ignore[reportCallIssue]
                    service,  # pyright: ignore[reportArgumentType]
                    region_name=self.region,
                    endpoint_url=self._endpoint_url,
                    config=config,
                )
            except (*FAULTS, ValueError) as e:
                raise provider_error(e, f"ask {service}") from e
        return self._made[service, tries]

    def check(self) -> None:
        """Whether there are a region and credentials.

        Raises:
            SettingsError: there are not.
        """
        if not self.region:
            raise SettingsError("no AWS region is named: set region in the provider's table, or AWS_REGION.")
        known = sorted({r for p in self._session.get_available_partitions() for r in self._regions(p)})
        if not self._own and self.region not in known:
            near = [r for r in known if r[:2] == self.region[:2]] or known
            raise SettingsError(f"AWS has no region {self.region!r}; there are {', '.join(near)}.")
        try:
            found = self._session.get_credentials()
        except BotoCoreError as e:
            raise SettingsError(f"the AWS credentials cannot be read: {e}") from e
        if found is None:
            raise SettingsError(
                "there are no AWS credentials: give this machine or pod a role, or set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY. docs/autoscaler.md has the policy that the role needs."
            )

    def _regions(self, partition: str) -> list[str]:
        return self._session.get_available_regions("ec2", partition_name=partition)


def code_of(e: Exception) -> str:
    """AWS's own code of an error; empty when there was no answer."""
    return str(e.response.get("Error", {}).get("Code", "")) if isinstance(e, ClientError) else ""


def message_of(e: Exception) -> str:
    """What AWS says."""
    return str(e.response.get("Error", {}).get("Message", "")) if isinstance(e, ClientError) else str(e)


def trouble_of(code: str, status: int = 400) -> Trouble:
    """What an AWS error code means for us."""
    if code in CAPACITY_CODES:
        return Trouble.CAPACITY
    if code in THROTTLING_CODES or status == 429:
        return Trouble.THROTTLED
    return Trouble.UNKNOWN if status >= 500 else Trouble.REFUSED


def provider_error(e: Exception, doing: str) -> ProviderError:
    """What went wrong in a call.

    Args:
        e: one of FAULTS.
        doing: what the call was to do, as in "cannot launch instances".
    """
    if isinstance(e, ClientError):
        status = int(e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = code_of(e)
        what = f"cannot {doing}: AWS answers {code}: {message_of(e)}"
        if code in DENIED_CODES:
            what += " Give the role the policy in docs/autoscaler.md."
        if code in STRANGER_CODES:
            what += " Mend the credentials, or this machine's clock."
        return ProviderError(trouble_of(code, status), what)
    if isinstance(e, _NO_CREDENTIALS):
        return ProviderError(Trouble.REFUSED, f"cannot {doing}: there are no AWS credentials ({e}).")
    if isinstance(e, ParamValidationError | ValueError):
        return ProviderError(Trouble.REFUSED, f"cannot {doing}: {e}")
    return ProviderError(Trouble.UNKNOWN, f"cannot {doing} now: AWS does not answer ({type(e).__name__}: {e})")


def tags(stack: str, pool: str, launch_id: uuid.UUID | None = None) -> list[dict[str, str]]:
    """The tags of what belongs to a pool, as API calls take them."""
    found = {STACK_TAG: stack, POOL_TAG: pool} | ({LAUNCH_TAG: str(launch_id)} if launch_id else {})
    return [{"Key": key, "Value": value} for key, value in found.items()]


def filters(named: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Filters as Describe calls take them."""
    return [{"Name": name, "Values": list(values)} for name, values in named.items()]


def pages(client: Any, call: str, key: str, doing: str, **arguments: Any) -> list[dict[str, Any]]:
    """All pages of a Describe call.

    Args:
        client: whom to ask.
        call: as boto3 names it, `describe_instances`.
        key: the answer's list.
        doing: for the error.
        arguments: of the call.

    Raises:
        ProviderError: as told by `provider_error`.
    """
    try:
        return [item for page in client.get_paginator(call).paginate(**arguments) for item in page.get(key, [])]
    except FAULTS as e:
        raise provider_error(e, doing) from e


def instances(aws: Aws, named: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Instances by filters, in one paginated DescribeInstances.

    Raises:
        ProviderError: they cannot be listed.
    """
    reservations = pages(
        aws.ask("ec2"),
        "describe_instances",
        "Reservations",
        "list instances",
        Filters=filters(named),
        PaginationConfig={"PageSize": PAGE},
    )
    return [instance for reservation in reservations for instance in reservation.get("Instances", [])]


def tags_of(described: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a described resource."""
    return {tag["Key"]: tag["Value"] for tag in described.get("Tags", [])}


def launch_id_of(described: Mapping[str, Any]) -> uuid.UUID | None:
    """Which launch an instance's tag names; None for none, or nonsense."""
    try:
        return uuid.UUID(tags_of(described).get(LAUNCH_TAG, ""))
    except ValueError:
        return None


def state_of(described: Mapping[str, Any]) -> str:
    """`pending`, `running`, …"""
    return str(described.get("State", {}).get("Name", ""))


def age_s(described: Mapping[str, Any], now: datetime | None = None) -> float:
    """Seconds since AWS launched an instance, by this machine's clock."""
    launched = described.get("LaunchTime")
    return max(0.0, ((now or datetime.now(UTC)) - launched).total_seconds()) if launched else 0.0


def batches(ids: Iterable[str], size: int) -> Iterator[list[str]]:
    """Cut a list of ids for calls that take so many."""
    rest = list(dict.fromkeys(ids))
    for start in range(0, len(rest), size):
        yield rest[start : start + size]

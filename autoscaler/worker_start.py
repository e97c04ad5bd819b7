"""The first process of a worker's machine on EC2: learns who and where it is, and becomes the worker.

Reads the instance's id (IMDSv2 only), variables from SSM Parameter Store and Secrets Manager, then replaces itself by
`python -m workers`. The environment that it was started with outranks what it reads.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, cast

from autoscaler.providers import aws
from batchline.errors import BatchlineError, SettingsError, UnreachableError
from batchline.logs import configure

log = logging.getLogger("autoscaler.worker_start")

IMDS = "http://169.254.169.254"
IMDS_S = 5.0
TOKEN_S = 300
_MOST_BYTES = 4096


def instance_id(endpoint: str) -> str:
    """This machine's id, by IMDSv2.

    Raises:
        UnreachableError: no answer: not on EC2, or the metadata service is off.
    """
    try:
        token = _imds(endpoint, "latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}, "PUT")
        return _imds(endpoint, "latest/meta-data/instance-id", {"X-aws-ec2-metadata-token": token}, "GET").strip()
    except (OSError, urllib.error.URLError, http.client.HTTPException, ValueError) as e:
        raise UnreachableError(f"the metadata service at {endpoint} does not tell this instance's id: {e}") from e


def _imds(endpoint: str, path: str, headers: Mapping[str, str], method: str) -> str:
    asked = urllib.request.Request(f"{endpoint.rstrip('/')}/{path}", headers=dict(headers), method=method)  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a link-local address is behind no proxy
    with opener.open(asked, timeout=IMDS_S) as answer:
        return answer.read(_MOST_BYTES).decode()


def parameters(region: aws.Aws, path: str) -> dict[str, str]:
    """Variables from SSM Parameter Store: /a/b/DATABASE_URL below /a/b is DATABASE_URL.

    Raises:
        ProviderError: it may not be read.
    """
    found = aws.pages(
        region.ask("ssm"),
        "get_parameters_by_path",
        "Parameters",
        f"read the parameters below {path}",
        Path=path,
        Recursive=True,
        WithDecryption=True,
    )
    return {item["Name"].rsplit("/", 1)[-1]: item["Value"] for item in found}


def secret(region: aws.Aws, name: str) -> dict[str, str]:
    """Variables from a secret of Secrets Manager: a JSON object.

    Raises:
        ProviderError: it may not be read.
        SettingsError: it is no JSON object.
    """
    try:
        text = region.ask("secretsmanager").get_secret_value(SecretId=name).get("SecretString", "")
    except aws.FAULTS as e:
        raise aws.provider_error(e, f"read the secret {name}") from e
    try:
        found: Any = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SettingsError(f"the secret {name} must be a JSON object of variables.")
    return {str(key): str(value) for key, value in cast("dict[str, object]", found).items()}


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The worker's whole environment.

    Args:
        environ: this process's; BATCHLINE_START_PARAMETERS and BATCHLINE_START_SECRETS say what is read.

    Raises:
        BatchlineError: something cannot be read; the unit tries again.
    """
    region = aws.Aws(environ.get("AWS_REGION", ""))
    read: dict[str, str] = {}
    if path := environ.get("BATCHLINE_START_PARAMETERS"):
        read |= parameters(region, path)
    for name in environ.get("BATCHLINE_START_SECRETS", "").split():
        read |= secret(region, name)
    if not environ.get("BATCHLINE_INSTANCE"):
        read["BATCHLINE_INSTANCE"] = instance_id(environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or IMDS)
    return {**read, **environ}


def main() -> None:
    """Read, then become the worker; arguments are handed on."""
    configure(level=os.environ.get("BATCHLINE_LOG_LEVEL", "INFO"))
    try:
        complete = environment(os.environ)
    except BatchlineError as e:
        raise SystemExit(f"worker_start: {e.detail}") from e
    log.info("starting a worker on %s", complete["BATCHLINE_INSTANCE"])
    os.execve(sys.executable, [sys.executable, "-m", "workers", *sys.argv[1:]], complete)  # noqa: S606


if __name__ == "__main__":
    main()

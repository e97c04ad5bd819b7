"""The Kubernetes API server by plain HTTPS: a service account's token, the cluster's CA, JSON in and out."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, cast

import httpx

from autoscaler.providers.contract import ProviderError, Trouble

Json = dict[str, Any]
_CALL_S = 10.0
_TOLD = 300
"""Characters of a foreign message that are passed on."""


class ConflictError(ProviderError):
    """409: the object has changed since it was read. Nothing was done; read again."""


class MissingError(ProviderError):
    """404: no such object."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said.

    Attributes:
        body: the JSON object.
        at: the server's clock, to the second; ages are counted by it.
    """

    body: Json
    at: datetime


class KubeApi:
    """Calls, each of which is answered or raises ProviderError within about ten seconds."""

    def __init__(self, server: str, token_file: Path, ca_file: Path) -> None:
        """Nothing is read or opened before the first call.

        Args:
            server: https://HOST[:PORT], and nothing but https: the token goes there.
            token_file: read at every call, since kubelet renews it.
            ca_file: who signs the server's certificate.
        """
        self.server = server.rstrip("/")
        self._token_file = token_file
        self._ca_file = ca_file
        self._client: httpx.Client | None = None

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Answer:
        return self._call("GET", path, query=query)

    def post(self, path: str, body: Json) -> Answer:
        return self._call("POST", path, body)

    def merge(self, path: str, body: Json) -> Answer:
        """Change some fields (RFC 7386); with `metadata.resourceVersion` only of what has not changed since."""
        return self._call("PATCH", path, body, media_type="application/merge-patch+json")

    def _call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: Mapping[str, str] | None = None,
        media_type: str = "application/json",
    ) -> Answer:
        headers = {"Authorization": f"Bearer {self._token()}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = media_type
        try:
            response = self._opened().request(method, self.server + path, params=query, json=body, headers=headers)
        except httpx.InvalidURL as e:
            raise ProviderError(Trouble.REFUSED, f"server {self.server!r} is no address: {e}") from e
        except httpx.HTTPError as e:
            if "CERTIFICATE_VERIFY_FAILED" in str(e):
                raise ProviderError(
                    Trouble.REFUSED, f"the certificate of {self.server} is not signed by {self._ca_file}"
                ) from e
            said = f"the Kubernetes API at {self.server} did not answer {method} {path}: {type(e).__name__} {e}"
            raise ProviderError(Trouble.UNKNOWN, said.rstrip()) from e
        if response.is_success:
            return Answer(_object(response), _date(response))
        raise _error(response, f"{method} {path}")

    def _token(self) -> str:
        try:
            return self._token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as e:
            raise ProviderError(
                Trouble.REFUSED,
                f"the service account's token {self._token_file} cannot be read: run the autoscaler in the cluster,"
                " with a service account, or name another token_file",
            ) from e

    def _opened(self) -> httpx.Client:
        if self._client is None:
            try:
                verify = ssl.create_default_context(cafile=str(self._ca_file))
            except (OSError, ssl.SSLError) as e:
                raise ProviderError(
                    Trouble.REFUSED,
                    f"the cluster's CA {self._ca_file} cannot be read; name another ca_file",
                ) from e
            # A proxy of the environment knows nothing of the cluster's inside.
            self._client = httpx.Client(verify=verify, timeout=_CALL_S, trust_env=False)
        return self._client

    def close(self) -> None:
        """Give the connections back."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _object(response: httpx.Response) -> Json:
    try:
        found: object = response.json()
    except ValueError as e:
        raise ProviderError(Trouble.UNKNOWN, "the Kubernetes API answered with something that is no JSON") from e
    if not isinstance(found, dict):
        raise ProviderError(Trouble.UNKNOWN, "the Kubernetes API answered with something that is no object")
    return cast("Json", found)


def _date(response: httpx.Response) -> datetime:
    try:
        return parsedate_to_datetime(response.headers["Date"])
    except (KeyError, ValueError):
        return datetime.now(UTC)


def _error(response: httpx.Response, asked: str) -> ProviderError:
    try:
        told = str(_object(response).get("message", ""))[:_TOLD]
    except ProviderError:
        told = ""
    said = f"the Kubernetes API answered {asked} with {response.status_code}{': ' if told else ''}{told}"
    match response.status_code:
        case 409:
            return ConflictError(Trouble.THROTTLED, said)
        case 404:
            return MissingError(Trouble.REFUSED, said)
        case 429:
            return ProviderError(Trouble.THROTTLED, said)
        case 401:
            return ProviderError(Trouble.REFUSED, f"{said}; the token is not this cluster's, or has expired")
        case status if status < 500:
            return ProviderError(Trouble.REFUSED, said)
        case _:
            return ProviderError(Trouble.UNKNOWN, said)

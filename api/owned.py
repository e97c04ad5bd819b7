"""The thing that a path names, for the tenant whose key comes with the request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from litestar import Request

from api.http import headers_of
from api.services import Services
from batchline.errors import NotFoundError


class _Owned(Protocol):
    @property
    def tenant_id(self) -> int: ...


I = TypeVar("I")  # noqa: E741 - an id
T = TypeVar("T", bound=_Owned)


async def owned(
    services: Services,
    request: Request[Any, Any, Any],
    scope: str,
    *,
    parse: Callable[[str], I],
    read: Callable[[I], T | None],
    unknown: Callable[[str], NotFoundError],
) -> T:
    """What the path's one parameter names; what is another tenant's is as unknown as what is not there.

    Args:
        services: whose keys are checked.
        request: with a key.
        scope: what the key must allow.
        parse: makes the id of the parameter's text.
        read: asks the store; may block.
        unknown: the error for the parameter's text.

    Raises:
        NotFoundError: `unknown`; and what the check of the key raises.
    """
    principal = await services.keys.check(headers_of(request.scope), scope)
    (text,) = request.path_params.values()
    try:
        wanted = parse(text)
    except NotFoundError:
        raise unknown(text) from None
    found = await services.ask(lambda: read(wanted))
    if found is None or found.tenant_id != principal.tenant_id:
        raise unknown(text)
    return found

"""Questions to Postgres that are not grouped: asked in a few threads, and not waited for without end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from batchline.errors import StoreUnavailableError

T = TypeVar("T")


class Asking:
    """Runs blocking calls for the event loop."""

    def __init__(self, *, threads: int, timeout_s: float) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="ask")
        self._timeout_s = timeout_s

    async def __call__(self, work: Callable[[], T]) -> T:
        """What `work` returns.

        Raises:
            StoreUnavailableError: it took too long; it may still happen.
        """
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        future.add_done_callback(_heard)
        try:
            return await asyncio.wait_for(asyncio.shield(future), self._timeout_s)
        except TimeoutError:
            raise StoreUnavailableError("The database does not answer; try again.", retry_after_s=2.0) from None

    def close(self) -> None:
        """Take no more; what runs is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _heard(future: asyncio.Future[Any]) -> None:
    """Nobody may be left to hear of an error, and that is no news."""
    if not future.cancelled():
        future.exception()

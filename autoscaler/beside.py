"""What works beside the loop, on one service of AWS: tried at start, then a thread of its own that nobody waits for."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from autoscaler.providers.aws import Aws
from autoscaler.providers.contract import ProviderError, Trouble
from batchline.errors import SettingsError


class Beside(ABC):
    """The frame: a subclass says how it is tried, and what its thread does until `_closed`."""

    def __init__(self, name: str, aws: Aws, *, needs: str, join_s: float) -> None:
        """Nothing is asked before `check` or `start`.

        Args:
            name: of its table in the configuration, and of the thread.
            aws: where.
            needs: what its role must be allowed, as a sentence goes on after "needs".
            join_s: how long `close` waits for the thread.
        """
        self._name, self._aws, self._needs, self._join_s = name, aws, needs, join_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def check(self) -> None:
        """Try it once, so that what is wrong shows at start.

        Raises:
            SettingsError: no region, no credentials, not allowed, or options that cannot be.
            ProviderError: AWS does not answer just now.
        """
        try:
            self._aws.check()
            self._try()
        except SettingsError as e:
            raise SettingsError(f"{self._name}: {e.detail}") from e
        except ProviderError as e:
            if e.trouble is Trouble.REFUSED:
                raise SettingsError(f"{self._name}: {e.detail} Its role needs {self._needs}.") from e
            raise

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Bring it to an end; what is under way is waited for, but not long."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._join_s)

    @abstractmethod
    def _try(self) -> None:
        """Raises ProviderError, or SettingsError."""

    @abstractmethod
    def _run(self) -> None:
        """The thread's work, until `_closed`."""

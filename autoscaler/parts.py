"""What a configuration names, made and tried: providers, CloudWatch, the queue of interruptions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from autoscaler.config import Config
from autoscaler.providers import NONE, Provider, ProviderError, build
from autoscaler.tables import decode
from batchline.errors import SettingsError

if TYPE_CHECKING:
    from autoscaler.cloudwatch import CloudWatch
    from autoscaler.interruptions import Interruptions

log = logging.getLogger("autoscaler")


class Trials:
    """What the trials have found.

    Attributes:
        faults: what cannot work, each with what to do.
        silent: who did not answer; that is no reason to refuse, they may do so later.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.silent: list[str] = []

    @contextmanager
    def trial(self, where: str = "") -> Generator[None]:
        """Note what the body finds; `where` stands before each fault that does not say so itself."""
        before = f"{where}: " if where else ""
        try:
            yield
        except SettingsError as e:
            self.faults += [before + fault for fault in e.detail.split("\n")]
        except ProviderError as e:
            self.silent.append(before + e.detail)

    def refuse(self) -> None:
        """Log who did not answer.

        Raises:
            SettingsError: all faults, one a line, if there are any.
        """
        for told in self.silent:
            log.warning("not checked", extra={"error": told})
        if self.faults:
            raise SettingsError("\n".join(self.faults))


def providers(config: Config, trials: Trials) -> dict[str, Provider]:
    """The provider of each pool that has one and whose options can be; each is tried."""
    found = dict[str, Provider]()
    for pool in config.pools.values():
        if pool.provider != NONE:
            with trials.trial(f"pools.{pool.pool}"):
                found[pool.pool] = build(pool.provider, pool.pool, pool.options, stack=config.stack)
                found[pool.pool].check()
    return found


def channel(config: Config, trials: Trials) -> CloudWatch | None:
    """CloudWatch, if the file has a table of that name; it is tried."""
    if config.cloudwatch is None:
        return None
    made: CloudWatch | None = None
    with trials.trial(), _boto3("cloudwatch"):
        from autoscaler.cloudwatch import CloudWatch, Options  # noqa: PLC0415 - boto3 is an extra

        made = CloudWatch(decode(config.cloudwatch, Options, "cloudwatch"), stack=config.stack)
        made.check()
    return made


def listener(
    config: Config, trials: Trials, *, leads: Callable[[], bool], obey: Callable[[str, str], None]
) -> Interruptions | None:
    """Who hears of spot interruptions, if the file names their queue; it is tried.

    Args:
        config: of the file.
        trials: what it finds is noted there.
        leads: whether this process leads.
        obey: called with an instance and a reason.
    """
    if config.interruptions is None:
        return None
    made: Interruptions | None = None
    with trials.trial(), _boto3("interruptions"):
        from autoscaler.interruptions import Interruptions, Options  # noqa: PLC0415 - boto3 is an extra

        made = Interruptions(decode(config.interruptions, Options, "interruptions"), leads=leads, obey=obey)
        made.check()
    return made


@contextmanager
def _boto3(table: str) -> Generator[None]:
    """Raises SettingsError where a library is not installed."""
    try:
        yield
    except ImportError as e:
        told = f"{table} needs {e.name}, which is not installed: pip install 'batchline[data]'"
        raise SettingsError(told) from e

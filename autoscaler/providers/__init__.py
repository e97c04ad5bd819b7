"""Where workers are launched: providers behind one contract, each imported only when a pool names it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from autoscaler.providers.contract import Found, Provider, ProviderError, Trouble
from autoscaler.tables import decode
from batchline.errors import SettingsError

__all__ = ["ADAPTERS", "NONE", "Adapter", "Found", "Provider", "ProviderError", "Trouble", "build"]

NONE = "none"
"""No provider at all: the autoscaler only says what it would do."""


class Adapter(NamedTuple):
    """Where a provider is. The module offers `Options` and the class, made as `Class(pool, options, stack=…)`."""

    module: str
    kind: str


ADAPTERS: dict[str, Adapter] = {
    "local": Adapter("autoscaler.providers.local", "LocalProvider"),
    "ec2-spot": Adapter("autoscaler.providers.ec2_spot", "Ec2SpotProvider"),
    "asg": Adapter("autoscaler.providers.asg", "AsgProvider"),
    "kubernetes": Adapter("autoscaler.providers.kubernetes", "KubernetesProvider"),
}


def build(name: str, pool: str, table: Mapping[str, object], *, stack: str) -> Provider:
    """The provider of one pool; it asks nobody anything yet.

    Args:
        name: as in ADAPTERS.
        pool: whose workers.
        table: the provider's options, as TOML gave them.
        stack: the value of the tag `batchline:stack`: what tells two installations in one account apart.

    Raises:
        SettingsError: no such provider, an option that does not fit, a library that is not installed.
    """
    if name not in ADAPTERS:
        raise SettingsError(f"there is no provider {name!r}; use {', '.join((NONE, *ADAPTERS))}")
    adapter = ADAPTERS[name]
    try:
        module: Any = importlib.import_module(adapter.module)
    except ImportError as e:
        if (e.name or "").startswith("autoscaler"):
            raise SettingsError(f"the provider {name} is not part of this installation") from e
        raise SettingsError(
            f"the provider {name} needs {e.name}, which is not installed: pip install 'batchline[data]'"
        ) from e
    options: object = decode(table, module.Options, name)
    return cast("Provider", getattr(module, adapter.kind)(pool, options, stack=stack))

"""Batchline: asynchronous batch inference. `Client` and `AsyncClient` are loaded when they are first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchline.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("batchline.client"), name)
    raise AttributeError(f"module 'batchline' has no attribute {name!r}")

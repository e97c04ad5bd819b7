"""Where the API and the database are: the environment says so, else the embedded stack that runs in a folder."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchline.errors import SettingsError

if TYPE_CHECKING:
    from batchline.client import Client
    from batchline.local.plan import Addresses
    from batchline.settings import Settings
    from batchline.store import Store

FOLDER = Path(".batchline")
Folder = Annotated[Path, typer.Option(help="Where the embedded system keeps everything.")]


def embedded(folder: Path) -> Addresses | None:
    """The addresses of the system that runs in the folder, if one does and it is ready."""
    from batchline.local import stack

    return stack.status(folder).addresses


def open_client(folder: Path = FOLDER, *, timeout_s: float = 10.0) -> Client:
    """A client of BATCHLINE_URL, else of the system in the folder, else of the default address."""
    from batchline import settings
    from batchline.client import Client

    found = settings.load_client(key_file=folder / "key")
    addresses = None if found.urls else embedded(folder)
    urls = found.urls or (addresses.api_urls if addresses else ())
    return Client(",".join(urls) or None, found.api_key, timeout_s=timeout_s)


def load_settings(folder: Path = FOLDER, *, required: bool = True) -> Settings:
    """The settings, with the addresses, models and blobs of the system in the folder where the environment names none.

    Raises:
        SettingsError: no database is known and one is required.
    """
    from dataclasses import replace

    from batchline.settings import Settings, load

    found = load(needs=())
    if (not found.database_url or not found.redis_url) and (addresses := embedded(folder)):
        found = replace(
            found,
            database_url=found.database_url or addresses.database_url,
            redis_url=found.redis_url or addresses.redis_url,
            models=addresses.models if addresses.models and found.models == Settings.models else found.models,
            blobs=f"file://{(folder / 'blobs').resolve()}" if found.blobs == Settings.blobs else found.blobs,
        )
    if required and not found.database_url:
        raise SettingsError(
            f"No database is known: DATABASE_URL is not set and no system runs in {folder}; start one with"
            " `batchline up`, or set DATABASE_URL."
        )
    return found


@contextmanager
def opened_store(settings: Settings) -> Generator[Store]:
    """The store, once its schema is known to fit."""
    from batchline.store import migrations, open_store

    migrations.check(settings.database_url)
    store = open_store(settings.database_url, connections=2)
    try:
        yield store
    finally:
        store.close()

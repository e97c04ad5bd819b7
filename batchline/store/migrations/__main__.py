"""`python -m batchline.store.migrations`: bring the schema up to date and register the admin key, if one is given."""

from __future__ import annotations

import sys

from batchline import logs, settings
from batchline.errors import BatchlineError
from batchline.store import open_store
from batchline.store.migrations import migrate


def main() -> None:
    config = settings.load(needs=("database_url",))
    logs.configure(level=config.log_level)
    prepare(config.database_url, config.admin_key)


def prepare(database_url: str, admin_key: str) -> str:
    """Migrate, then make `admin_key`, if not empty, a key of the tenant `default`; may be repeated.

    Returns:
        The schema version.
    """
    version = migrate(database_url)
    if admin_key:
        store = open_store(database_url, connections=1)
        store.catalogue.add_key(admin_key, tenant="default", name="admin", scopes=("admin",))
        store.close()
    return version


if __name__ == "__main__":
    try:
        main()
    except BatchlineError as e:
        sys.exit(f"migrate: {e.detail}")

"""init and migrate: what a database and a set of containers need before the first process starts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from batchline.cli.output import Json, busy, group, note, tell, tell_json
from batchline.cli.places import FOLDER, Folder, load_settings
from batchline.errors import LocalError, StoreUnavailableError

app = group("Prepare a deployment; may be repeated.")

_RETRY_S = 0.5


@app.command("secrets")
def make_secrets(
    directory: Annotated[Path, typer.Argument(metavar="DIR", file_okay=False, help="A folder that is there.")],
    *,
    as_json: Json = False,
) -> None:
    """Make the secrets of a deployment as files.

    Those that are there stay as they are; no server is touched.

    postgres_password, redis_password, database_url and redis_url (for hosts named `postgres` and `redis`), admin_key,
    flower_basic_auth (USER:PASSWORD). Only their owner can read them; the servers' passwords, its group too.
    """
    from batchline.local.container_secrets import make_secrets

    try:
        made = make_secrets(directory)
    except OSError as e:
        raise LocalError(f"{e.filename} cannot be made: {e.strerror}; is {directory} there, and ours to write?") from e
    if as_json:
        tell_json({"made": made})
    else:
        tell(f"Made {', '.join(made)} in {directory}." if made else f"All secrets stand in {directory} already.")


@app.command()
def database(
    *,
    wait_s: Annotated[float, typer.Option("--wait", min=0.0, help="Seconds in which Postgres may come up.")] = 60.0,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """Migrate and register the admin key.

    The key is what BATCHLINE_ADMIN_KEY or the file BATCHLINE_ADMIN_KEY_FILE holds, if one is given.
    """
    from batchline.store.migrations.__main__ import prepare

    settings = load_settings(folder)
    until = time.monotonic() + wait_s
    with busy("waiting for Postgres …"):
        while True:
            try:
                version = prepare(settings.database_url, settings.admin_key)
                break
            except StoreUnavailableError as e:
                if time.monotonic() + _RETRY_S > until:
                    raise
                note(f"batchline: {e.detail}")
                time.sleep(_RETRY_S)
    if as_json:
        tell_json({"schema": version, "admin_key": bool(settings.admin_key)})
    else:
        tell(f"The schema is {version}; the admin key is {'registered' if settings.admin_key else 'not given'}.")


def migrate(*, folder: Folder = FOLDER, as_json: Json = False) -> None:
    """Bring the database's schema up to date."""
    from batchline.store import migrations

    version = migrations.migrate(load_settings(folder).database_url)
    tell_json({"schema": version}) if as_json else tell(f"The schema is {version}.")

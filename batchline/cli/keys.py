"""keys create, list, revoke: straight on the database, since the first key cannot be made through the API."""

from __future__ import annotations

from typing import Annotated

import typer

from batchline.cli.output import Json, group, note, tell, tell_json, tell_table
from batchline.cli.places import FOLDER, Folder, load_settings, opened_store
from batchline.errors import NotFoundError

app = group("Create, list and revoke API keys.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    *,
    tenant: Annotated[str, typer.Option(help="Whose jobs it sees; made if new.")] = "default",
    scope: Annotated[list[str] | None, typer.Option(help="submit, read or admin; several times for several.")] = None,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """Create a key and print it, the only time.

    It may submit and read, unless --scope says otherwise.
    """
    from batchline.store.catalogue import new_key

    scopes = tuple(scope or ("submit", "read"))
    key = new_key()
    with opened_store(load_settings(folder)) as store:
        key_id = store.catalogue.add_key(key, tenant=tenant, name=name, scopes=scopes)
    if as_json:
        tell_json({"id": key_id, "tenant": tenant, "name": name, "scopes": scopes, "key": key})
    else:
        note(f"Key {key_id} of tenant {tenant} may {', '.join(scopes)}. Keep it: it is not stored and not shown again.")
        tell(key)


@app.command("list")
def list_keys(*, folder: Folder = FOLDER, as_json: Json = False) -> None:
    """List keys, without their secrets."""
    with opened_store(load_settings(folder)) as store:
        keys = store.catalogue.keys()
    if as_json:
        from dataclasses import asdict

        tell_json([asdict(key) | {"scopes": key.scopes.split()} for key in keys])
        return
    tell_table(
        ["id", "tenant", "name", "scopes", "created", "revoked"],
        [(k.id, k.tenant, k.name, k.scopes, f"{k.created_at.astimezone():%Y-%m-%d %H:%M}",
          f"{k.revoked_at.astimezone():%Y-%m-%d %H:%M}" if k.revoked_at else "") for k in keys],
    )  # fmt: skip


@app.command()
def revoke(
    key_id: Annotated[int, typer.Argument(metavar="ID", help="From `keys list`.")],
    *,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """Revoke a key; servers forget it within seconds."""
    with opened_store(load_settings(folder)) as store:
        if not store.catalogue.revoke_key(key_id):
            raise NotFoundError(f"There is no key {key_id} that could be revoked; see `batchline keys list`.")
    tell_json({"id": key_id, "revoked": True}) if as_json else tell(f"Key {key_id} is revoked.")

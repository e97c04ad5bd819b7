"""up, down, status: the embedded system on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchline.cli.output import Json, busy, note, seconds, tell, tell_json, tell_table
from batchline.cli.places import FOLDER, Folder

if TYPE_CHECKING:
    from batchline.local.plan import Addresses


def up(
    *,
    detach: Annotated[bool, typer.Option("--detach/--foreground", help="Leave it running, or stay with it.")] = True,
    apis: Annotated[int, typer.Option(min=1, help="API processes.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes.")] = 1,
    max_workers: Annotated[
        int | None,
        typer.Option(min=1, help="Under load; default: cores, at least 2. Not above --workers: advice only."),
    ] = None,
    flower: Annotated[bool, typer.Option(help="Whether to start Flower.")] = True,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """Start the whole system on this machine.

    Postgres, Valkey, API, workers, scheduler, autoscaler and Flower, under a supervisor that restarts what dies. The
    autoscaler adds workers while the queue is long, and takes them back.

    BATCHLINE_PORT and BATCHLINE_FLOWER_PORT move the ports; DATABASE_URL and REDIS_URL, when set, are used instead of
    the embedded servers. BATCHLINE_METRICS_PORT is the first of as many ports as there are APIs, workers, scheduler and
    autoscaler, in this order. Data survives a restart.
    """
    from batchline.local import stack

    def ready(addresses: Addresses) -> None:
        _tell_addresses(addresses, as_json=as_json, detached=detach)

    if detach:
        with busy("starting …"):
            addresses = stack.up(
                folder, detach=True, apis=apis, workers=workers, flower=flower, max_workers=max_workers
            )
        ready(addresses)
    else:
        stack.up(
            folder,
            detach=False,
            apis=apis,
            workers=workers,
            flower=flower,
            max_workers=max_workers,
            on_ready=ready,
        )


def down(*, folder: Folder = FOLDER, as_json: Json = False) -> None:
    """Stop it; jobs in hand are finished first."""
    from batchline.local import stack

    with busy("stopping …"):
        stopped = stack.down(folder)
    if as_json:
        tell_json({"stopped": stopped})
    else:
        tell("Stopped." if stopped else f"Nothing runs in {folder}.")


def status(*, folder: Folder = FOLDER, as_json: Json = False) -> None:
    """How its processes are; exit 1 unless all are up."""
    from batchline.local import stack

    found = stack.status(folder)
    if as_json:
        addresses = _public(found.addresses) if found.addresses else None
        parts = [_part(part) for part in found.parts]
        shown = {"folder": folder, "running": found.running, "ready": found.ready, "pid": found.pid}
        tell_json(shown | {"parts": parts, "addresses": addresses})
    elif not found.running:
        note(f"batchline: nothing runs in {folder}; start it with `batchline up`.")
    else:
        tell_table(
            ["part", "state", "pid", "port", "metrics", "up", "restarts", "last error"],
            [(p.name, p.state, p.pid, p.port, p.metrics_port, seconds(p.uptime_s) if p.pid else "", p.restarts,
              p.last_error.strip().splitlines()[-1] if p.last_error.strip() else "") for p in found.parts],
        )  # fmt: skip
    if not found.ready:
        raise typer.Exit(1)


def _part(part: object) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(part)  # pyright: ignore[reportArgumentType]


def _public(addresses: Addresses) -> dict[str, object]:
    """Without passwords: they stand in files that only their owner can read."""
    return {
        "folder": addresses.folder,
        "api_urls": addresses.api_urls,
        "flower_url": addresses.flower_url,
        "key_path": addresses.key_path,
        "flower_credentials_path": addresses.flower_credentials_path,
        "already_running": addresses.already_running,
    }


def _tell_addresses(addresses: Addresses, *, as_json: bool, detached: bool) -> None:
    if as_json:
        tell_json(_public(addresses))
        return
    tell("Batchline runs already." if addresses.already_running else "Batchline is up.")
    for url in addresses.api_urls:
        tell(f"  API     {url}    key: {_near(addresses.key_path)}")
    if addresses.flower_url:
        tell(
            f"  Flower  {addresses.flower_url}    user batchline, password: {_near(addresses.flower_credentials_path)}"
        )
    tell(f"  logs    {_near(addresses.folder / 'logs')}")
    tell("Stop it with `batchline down`." if detached else "Stop it with Ctrl-C.")


def _near(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

"""The SDK and the command line on schedules, against a running API."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import pytest
from api_server import ALICE, running_api
from typer.testing import CliRunner

from api.openapi_schedules import SCHEDULE
from batchline.cli import app
from batchline.client import AsyncClient, Client
from batchline.errors import InvalidRequestError, NotFoundError


@pytest.fixture
def api(database_url, redis_url):
    with running_api(database_url, redis_url) as running:
        yield running


@pytest.fixture
def client(api):
    with Client(api.url, ALICE) as client:
        yield client


FROM, TO = datetime(2026, 10, 24, tzinfo=UTC), datetime(2026, 10, 27, tzinfo=UTC)


def test_the_sdk_knows_every_route(client):
    """Made, listed, changed, run, backfilled, deleted; refusals come with their pointers."""
    made = client.schedules.create("nightly", "30 2 * * *", SCHEDULE["batch"], timezone="Europe/Berlin")
    assert (made.overlap, made.catch_up, made.enabled) == ("skip", "last", True)
    assert client.schedules.list() == [made]
    assert client.schedules.get(made.id) == made
    assert client.schedules.update(made.id, enabled=False).next_fire_at is None
    run = client.schedules.run(made.id)
    assert client.get_batch(run.batch_id).info.id == run.batch_id
    done = client.schedules.backfill(made.id, FROM, TO)
    assert (len(done.data), done.known) == (3, 0)
    assert [r.outcome for r in client.schedules.runs(made.id)] == ["submitted", "queued", "queued", "queued"]
    assert len(client.schedules.runs(made.id, limit=2)) == 2
    with pytest.raises(InvalidRequestError) as refused:
        client.schedules.create("other", "x", SCHEDULE["batch"])
    assert refused.value.faults[0].pointer == "/cron"
    client.schedules.delete(made.id)
    with pytest.raises(NotFoundError):
        client.schedules.get(made.id)


def test_all_pages_are_read(client):
    """More schedules and runs than one page has."""
    for n in range(101):
        client.schedules.create(f"s{n}", "0 0 * * *", SCHEDULE["batch"], enabled=False)
    found = client.schedules.list()
    assert [s.name for s in found] == [f"s{n}" for n in range(101)]
    client.schedules.backfill(found[0].id, datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 4, 30, tzinfo=UTC))
    assert len({r.fire_at for r in client.schedules.runs(found[0].id, limit=1000)}) == 119


def test_the_asyncio_client_knows_them_too(api):
    """The same calls with await."""

    async def use():
        async with AsyncClient(api.url, ALICE) as client:
            made = await client.schedules.create("nightly", "30 2 * * *", SCHEDULE["batch"])
            run = await client.schedules.run(made.id)
            assert await client.schedules.list() == [made]
            assert [r.batch_id for r in await client.schedules.runs(made.id)] == [run.batch_id]
            await client.schedules.delete(made.id)

    asyncio.run(use())


def test_the_command_line(api, tmp_path, monkeypatch):
    """Every command, by name or by id, as JSON and as a table; 1 for what is not there, 2 for what is no body."""
    monkeypatch.setenv("BATCHLINE_URL", api.url)
    monkeypatch.setenv("BATCHLINE_API_KEY", ALICE)
    body = tmp_path / "batch.json"
    body.write_text(json.dumps(SCHEDULE["batch"]), encoding="utf-8")

    def call(*words, code=0):
        done = CliRunner().invoke(app, ["schedules", *words])
        assert done.exit_code == code, done.output
        return done.stdout.strip()

    made = call("create", "nightly", "--cron", "30 2 * * *", "--timezone", "Europe/Berlin", "--batch", str(body))
    assert made.startswith("sched_")
    assert json.loads(call("list", "--json"))[0]["id"] == made
    assert "nightly" in call("list")
    call("disable", "nightly")
    assert "disabled" in call("show", made)
    call("enable", "nightly")
    assert call("run", "nightly").startswith("batch_")
    done = json.loads(call("backfill", "nightly", "--from", "2026-10-24T00:00:00", "--to", "2026-10-27", "--json"))
    assert len(done["data"]) in (2, 3)
    assert call("runs", "nightly").count("queued") == len(done["data"])
    call("delete", "nightly")
    assert json.loads(call("list", "--json")) == []
    assert isinstance(CliRunner().invoke(app, ["schedules", "show", "nightly"]).exception, NotFoundError)
    body.write_text("[]")
    call("create", "n", "--cron", "0 0 * * *", "--batch", str(body), code=2)

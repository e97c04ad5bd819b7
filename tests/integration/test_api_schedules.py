"""/v1/schedules: what is kept, what is refused and where, whose it is, runs by hand and over the past."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import stack
from api_server import ALICE, BOB, READER, running_api
from system import until

from api.openapi_schedules import SCHEDULE
from batchline.batch import parse_schedule_id


@pytest.fixture
def api(database_url, redis_url):
    with running_api(database_url, redis_url) as running:
        yield running


def made(api, **changes):
    response = api.call("POST", "/v1/schedules", json=SCHEDULE | changes)
    assert response.status_code == 201, response.text
    return response.json()


def test_a_schedule_is_kept_as_it_was_given(api):
    """With its next fire time, in UTC."""
    shown = made(api)
    assert {k: shown[k] for k in SCHEDULE} == SCHEDULE
    at = datetime.fromisoformat(shown["next_fire_at"])
    assert datetime.now(UTC) < at < datetime.now(UTC) + timedelta(days=1, hours=2)
    assert at.minute == 30
    assert api.call("GET", f"/v1/schedules/{shown['id']}").json() == shown


@pytest.mark.parametrize(
    ("changes", "pointers"),
    [
        ({"cron": "61 * * * *", "timezone": "Nowhere"}, ["/cron", "/timezone"]),
        ({"cron": "@daily"}, ["/cron"]),
        ({"catch_up": "some"}, ["/catch_up"]),
        ({"name": ""}, ["/name"]),
        ({"surplus": 1}, ["/surplus"]),
        ({"batch": []}, ["/batch"]),
        ({"batch": {"model": "digits", "input": {"rows": [[1, 2]]}}}, ["/batch/input/rows/0"]),
        ({"batch": {"model": "nobody", "input": {"rows": [[1]]}}}, ["/batch/model"]),
        ({"batch": SCHEDULE["batch"] | {"metadata": {"a": "{now}"}}}, ["/batch/metadata/a"]),
        ({"batch": SCHEDULE["batch"] | {"surplus": 1}}, ["/batch/surplus"]),
        ({"batch": SCHEDULE["batch"] | {"metadata": {"a": "x" * (1 << 20)}}}, ["/batch"]),
        ({"name": "a\0b"}, ["/name"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_where_it_stands(api, changes, pointers):
    """Problem details with a pointer for each fault."""
    response = api.call("POST", "/v1/schedules", json=SCHEDULE | changes)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    assert [e["pointer"] for e in response.json()["errors"]] == pointers


def test_a_name_is_taken_once_a_tenant(api):
    """Another tenant may have it."""
    made(api)
    again = api.call("POST", "/v1/schedules", json=SCHEDULE)
    assert (again.status_code, again.json()["errors"][0]["pointer"]) == (422, "/name")
    assert api.call("POST", "/v1/schedules", BOB, json=SCHEDULE).status_code == 201
    other = made(api, name="other")
    renamed = api.call("PATCH", f"/v1/schedules/{other['id']}", json={"name": SCHEDULE["name"]})
    assert (renamed.status_code, renamed.json()["errors"][0]["pointer"]) == (422, "/name")


def test_another_tenants_schedule_is_none(api):
    """404 on every route, like an id that nobody has."""
    one = f"/v1/schedules/{made(api)['id']}"
    unknown = "/v1/schedules/sched_06h02i295tr8depcvro8po5se4"
    stretch = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}
    for path in (one, unknown):
        for method, tail, body in (
            ("GET", "", None), ("PATCH", "", {"enabled": False}), ("DELETE", "", None), ("GET", "/runs", None),
            ("POST", "/run", None), ("POST", "/backfill", stretch),
        ):  # fmt: skip
            response = api.call(method, path + tail, BOB, json=body)
            assert (response.status_code, response.json()["detail"]) == (404, "There is no schedule with this id.")
    assert api.call("GET", "/v1/schedules", BOB).json()["data"] == []
    assert api.call("POST", "/v1/schedules", READER, json=SCHEDULE).status_code == 403
    assert api.call("GET", one, READER).status_code == 200


def test_lists_come_in_pages(api):
    """Oldest first; every schedule once."""
    ids = [made(api, name=f"s{n}")["id"] for n in range(5)]
    first = api.call("GET", "/v1/schedules?limit=3").json()
    assert ([s["id"] for s in first["data"]], first["has_more"]) == (ids[:3], True)
    rest = api.call("GET", f"/v1/schedules?after={first['last_id']}").json()
    assert ([s["id"] for s in rest["data"]], rest["has_more"]) == (ids[3:], False)
    assert api.call("GET", "/v1/schedules?after=x").status_code == 422


def test_what_is_named_changes(api):
    """Disabled it has no next fire time; enabled again it goes on from now."""
    shown = made(api)
    path = f"/v1/schedules/{shown['id']}"
    assert api.call("PATCH", path, json={"enabled": False}).json() == shown | {"enabled": False, "next_fire_at": None}
    assert api.call("PATCH", path, json={"enabled": True}).json() == shown
    hourly = api.call("PATCH", path, json={"cron": "0 * * * *", "overlap": "allow"}).json()
    assert (hourly["cron"], hourly["overlap"]) == ("0 * * * *", "allow")
    assert hourly["next_fire_at"] < shown["next_fire_at"] or hourly["next_fire_at"].endswith(":00:00Z")
    assert api.call("GET", path).json() == hourly
    assert api.call("PATCH", path, json={"cron": "x"}).json()["errors"][0]["pointer"] == "/cron"
    assert api.call("PATCH", path, json={"batch": {"model": "digits"}}).json()["errors"][0]["pointer"] == "/batch/input"
    assert api.call("GET", path).json() == hourly


def test_changes_at_one_time_are_all_kept(api):
    """Three read the schedule before any of them writes; its next fire time fits what they made of it together."""
    one = f"/v1/schedules/{made(api)['id']}"
    changes = ({"cron": "5 4 * * *"}, {"enabled": False}, {"overlap": "allow"})
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with stack.connected(api.database_url) as connection, ThreadPoolExecutor(len(changes)) as threads:
        cursor = connection.cursor()
        cursor.execute("BEGIN; SELECT 1 FROM schedules FOR UPDATE")
        answers = [threads.submit(api.call, "PATCH", one, json=change) for change in changes]
        until(lambda: len(stack.query(api.database_url, waiting)) == len(changes), within_s=30, what="all at the row")
        cursor.execute("COMMIT")
        assert [answer.result().status_code for answer in answers] == [200] * len(changes)
    shown = api.call("GET", one).json()
    assert (shown["cron"], shown["enabled"], shown["overlap"]) == ("5 4 * * *", False, "allow")
    assert shown["next_fire_at"] is None


def test_put_gives_every_field_anew(api):
    """What it does not name has its default; the same once more changes nothing, not even a fire time that is due."""
    shown = made(api, overlap="allow", enabled=False)
    path = f"/v1/schedules/{shown['id']}"
    changed = api.call("PUT", path, json=SCHEDULE | {"name": "new"}).json()
    assert (changed["name"], changed["overlap"], changed["enabled"]) == ("new", "skip", True)
    assert changed.keys() == shown.keys()
    assert changed["id"] == shown["id"]
    api.store.db.run("UPDATE schedules SET next_fire_at = now() - interval '1 second'")
    due = api.call("GET", path).json()
    assert api.call("PUT", path, json=SCHEDULE | {"name": "new"}).json() == due
    assert api.call("PUT", path, json={"name": "new"}).json()["errors"][0]["pointer"] == "/cron"
    assert api.call("PUT", path, BOB, json=SCHEDULE).status_code == 404
    assert api.call("PUT", path, READER, json=SCHEDULE).status_code == 403


def test_a_fire_time_that_is_due_survives_another_name(api):
    """Only a new rhythm begins anew."""
    shown = made(api)
    api.store.db.run("UPDATE schedules SET next_fire_at = now() - interval '1 second'")
    due = api.call("GET", f"/v1/schedules/{shown['id']}").json()["next_fire_at"]
    changed = api.call("PATCH", f"/v1/schedules/{shown['id']}", json={"name": "new", "batch": SCHEDULE["batch"]}).json()
    assert changed["next_fire_at"] == due


def test_a_deleted_schedule_is_gone_and_its_batches_stay(api):
    """With its history."""
    path = f"/v1/schedules/{made(api)['id']}"
    batch = api.call("POST", f"{path}/run").json()["batch_id"]
    assert api.call("DELETE", path).json()["deleted"] is True
    assert api.call("DELETE", path).status_code == 404
    assert api.call("GET", f"{path}/runs").status_code == 404
    assert api.call("GET", f"/v1/batches/{batch}").status_code == 200


def test_run_now_submits_a_batch_whatever_the_rhythm(api):
    """Also of a disabled schedule; the history links to the batch."""
    shown = made(api, enabled=False)
    run = api.call("POST", f"/v1/schedules/{shown['id']}/run").json()
    assert run["outcome"] == "submitted"
    batch = api.call("GET", f"/v1/batches/{run['batch_id']}").json()
    assert (batch["schedule_id"], batch["status"]) == (shown["id"], "validating")
    runs = api.call("GET", f"/v1/schedules/{shown['id']}/runs").json()
    assert [(r["batch_id"], r["batch_status"]) for r in runs["data"]] == [(run["batch_id"], "validating")]
    again = api.call("POST", f"/v1/schedules/{shown['id']}/run").json()
    assert again["batch_id"] != run["batch_id"]


def test_one_idempotency_key_is_one_run(api):
    """Of this schedule; for another one the key is refused, and when the run is not known any more it is gone."""
    shown, other = made(api), made(api, name="other")
    path, key = f"/v1/schedules/{shown['id']}/run", {"Idempotency-Key": "k1"}
    first = api.call("POST", path, headers=key).json()
    assert api.call("POST", path, headers=key).json()["batch_id"] == first["batch_id"]
    assert len(api.call("GET", f"/v1/schedules/{shown['id']}/runs").json()["data"]) == 1
    assert api.call("POST", path, headers={"Idempotency-Key": "k2"}).json()["batch_id"] != first["batch_id"]
    refused = api.call("POST", f"/v1/schedules/{other['id']}/run", headers=key)
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:batchline:error:idempotency_key_reused")
    assert api.call("POST", path, headers={"Idempotency-Key": "ä".encode()}).status_code == 400
    api.store.db.run("DELETE FROM schedule_runs")
    assert api.call("POST", path, headers=key).status_code == 410


STRETCH = {"from": "2026-10-24T00:00:00Z", "to": "2026-10-27T00:00:00Z"}


def test_a_backfill_runs_each_fire_time_once(api):
    """Three nights, one of them with a repeated hour; the second time there is nothing left to do."""
    shown = made(api, overlap="allow")
    path = f"/v1/schedules/{shown['id']}/backfill"
    done = api.call("POST", path, json=STRETCH).json()
    assert [r["fire_at"] for r in done["data"]] == [
        "2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z",
    ]  # fmt: skip
    assert {r["outcome"] for r in done["data"]} == {"submitted"}
    batch = api.call("GET", f"/v1/batches/{done['data'][0]['batch_id']}").json()
    assert batch["metadata"] == {"night": "2026-10-24"}
    again = api.call("POST", path, json=STRETCH).json()
    assert (again["data"], again["known"]) == ([], 3)


def test_a_backfill_of_skipped_fire_times_queues_them(api):
    """Unless overlap is allow, they run one after another; what was skipped before runs now."""
    shown = made(api)
    wanted = parse_schedule_id(shown["id"])
    api.store.db.run(
        "INSERT INTO schedule_runs (schedule_id, fire_at, outcome) VALUES (%(id)s, '2026-10-24T00:30:00Z', 'skipped')",
        {"id": wanted},
    )
    done = api.call("POST", f"/v1/schedules/{shown['id']}/backfill", json=STRETCH).json()
    assert [r["outcome"] for r in done["data"]] == ["queued"] * 3
    page = api.call("GET", f"/v1/schedules/{shown['id']}/runs?limit=2").json()
    assert ([r["fire_at"][:10] for r in page["data"]], page["has_more"]) == (["2026-10-26", "2026-10-25"], True)
    rest = api.call("GET", f"/v1/schedules/{shown['id']}/runs?after={page['data'][-1]['fire_at']}").json()
    assert ([r["fire_at"][:10] for r in rest["data"]], rest["has_more"]) == (["2026-10-24"], False)


def test_a_backfill_of_a_disabled_schedule_says_that_it_runs(api):
    """Run now does, and so does overlap allow: whether the batches wait for one another must not decide."""
    shown = made(api, enabled=False)
    done = api.call("POST", f"/v1/schedules/{shown['id']}/backfill", json=STRETCH).json()
    assert {r["detail"] for r in done["data"]} == {"Backfill of a disabled schedule; waits for its turn."}
    assert [r["outcome"] for r in done["data"]] == ["queued"] * 3


@pytest.mark.parametrize(
    ("stretch", "pointer"),
    [
        ({"from": "2026-10-24T00:00:00Z", "to": "2026-10-24T00:00:00Z"}, "/to"),
        ({"from": "2026-10-24T00:00:00Z", "to": "2999-10-24T00:00:00Z"}, "/to"),
        ({"from": "2000-10-24T00:00:00Z", "to": "2026-10-24T00:00:00Z"}, "/to"),
        ({"from": "2026-10-24T00:00:00", "to": "2026-10-24T00:00:00Z"}, "/from"),
        ({"from": "2026-10-24T00:00:00Z"}, "/to"),
    ],
)
def test_a_stretch_that_does_not_fit_is_refused(api, stretch, pointer):
    """Empty, ahead, too long, without a zone."""
    response = api.call("POST", f"/v1/schedules/{made(api)['id']}/backfill", ALICE, json=stretch)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == pointer

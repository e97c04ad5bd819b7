"""The budget of a day: it warns, then bulk waits for midnight or more money, and online goes on throughout."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import batch_stack
import pytest
import stack
from fake_provider import FakeProvider, Options

from autoscaler.budget import Budgets, online_of, standing_of, within
from autoscaler.config import ADVICE, advised, parse
from autoscaler.guards import check, guard
from autoscaler.loop import Autoscaler
from autoscaler.providers import ADAPTERS, Adapter
from autoscaler.signals import Decision, Demand, Facts, Limits, Signals, Spent
from batchline.clock import FakeClock
from batchline.errors import SettingsError
from batchline.job import Lane
from batchline.store.cost_contract import Standing

FACTS = Facts(start_s=60, billing_s=60, price_per_hour=1.0)
TEN = Limits(2, 8, budget_per_day=10.0)
MUCH, LITTLE = 1e15, 1e-6


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setitem(ADAPTERS, "fake", Adapter("fake_provider", "FakeProvider"))


@pytest.mark.parametrize(
    ("spent", "standing"),
    [(0.0, "well"), (7.99, "well"), (8.0, "warned"), (9.99, "warned"), (10.0, "spent"), (90.0, "spent")],
)
def test_how_a_pool_stands(spent, standing):
    """Without a budget it is always well; the share that warns is set."""
    assert standing_of(spent, 10.0, 0.8) is Standing(standing)
    assert standing_of(spent, None, 0.8) is Standing.WELL
    assert (standing_of(spent, 10.0, 0.5) is Standing.WELL) == (spent < 5)


@pytest.mark.parametrize("workers", [0, 1, 5])
@pytest.mark.parametrize("spent", [0.0, 9.0, 9.95, 9.9999, 10.0, 12.0])
def test_money_that_runs_out_stops_launches_and_takes_nothing_away(workers, spent):
    """Down to the last cent and beyond: a policy that wants what is there keeps it, one that wants more gets one."""
    seen, today = Signals(0.0, workers=workers), Spent(0, spent)
    limits = within(standing_of(spent, 10.0, 0.8), seen, TEN, FACTS, today)
    allowed = guard(Decision(8, "online"), seen, limits, FACTS, today)
    assert allowed.desired >= max(1, workers)
    assert allowed.desired == 8 or spent > 9
    assert spent < 10 or allowed.desired == max(1, workers)
    idle = guard(Decision(0, "nothing to do"), seen, limits, FACTS, today)
    assert (idle.desired == 0) == (spent >= 10)


def test_held_bulk_is_no_demand():
    """Online rows stay, with their age."""
    seen = Signals(5.0, queued_rows=110, bulk_rows=100, oldest_age_s=3, workers=2, demands=(Demand(60, 100),))
    assert online_of(seen) == replace(seen, queued_rows=10, bulk_rows=0, demands=())


def test_a_share_that_warns_is_one():
    """0 would warn of nothing spent, above 1 never."""
    for share in (0.0, 1.5):
        with pytest.raises(SettingsError, match="budget_warn_at"):
            check(replace(TEN, budget_warn_at=share))
    config = parse("[pools.cpu]\nbudget_per_day = 5\nprice_per_hour = 1\nbudget_warn_at = 0.5", "a.toml")
    assert config.pools["cpu"].limits.budget_warn_at == 0.5


class Purse:
    """A store of which only what was spent and kept counts."""

    def __init__(self):
        self.spent_today, self.asked, self.kept = 0.0, [], []

    def spent(self, pool, since):
        self.asked.append(since)
        return self.spent_today

    def keep(self, money):
        self.kept.append(money)


def test_the_alarm_tells_each_change_once_and_a_new_day_begins_well(caplog):
    """It counts every 15 s; who does not lead keeps and tells nothing."""
    caplog.set_level(logging.INFO, "autoscaler")
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    clock, purse = FakeClock(noon), Purse()
    config = replace(advised("cpu"), limits=TEN, price_per_hour=1.0)
    budgets, other = Budgets(purse, clock), Budgets(purse, clock)

    def step(spent, seconds=15.0):
        purse.spent_today = spent
        clock.advance(seconds)
        assert other.watch(config, leads=False) is budgets.watch(config, leads=True)
        return budgets.watch(config, leads=True).value

    assert [step(s) for s in (1.0, 8.5, 9.0, 10.0, 11.0)] == ["well", "warned", "warned", "spent", "spent"]
    assert len(purse.asked) == 10
    assert [(m.standing.value, m.bulk_held_until) for m in purse.kept] == [
        ("well", None), ("warned", None), ("spent", noon.replace(hour=0) + timedelta(days=1)),
    ]  # fmt: skip
    assert [r.levelname for r in caplog.records] == ["WARNING", "ERROR"]
    clock.advance(12 * 3600 - 120.0)
    assert step(0.0, 60.0) == "well"
    assert purse.asked[-1] == noon.replace(hour=0) + timedelta(days=1)
    assert purse.kept[-1].bulk_held_until is None


def test_a_spent_budget_holds_bulk_and_not_online_until_it_is_raised_or_the_day_ends(store, tmp_path):
    """Over the real ledger and queue: workers for online stay and come, those for bulk go; slices wait, unclaimed."""
    model = store.catalogue.register_model(stack.a_spec(pool="cpu"))
    clock = FakeClock(datetime.now(UTC))
    provider = FakeProvider("cpu", Options(str(tmp_path / "cloud.json")))

    def run(budget, ticks=6):
        text = (
            "every_s = 0.1\n[pools.cpu]\nprovider = 'fake'\npolicy = 'queue'\nmax_workers = 6\nprice_per_hour = 3.6e9\n"
            f"budget_per_day = {budget}\npolicy_options = {{ rows_per_worker = 10, cooldown_s = 5 }}"
        )
        scaler = Autoscaler(store, parse(text, "a.toml"), {"cpu": provider},
                            clock, lease_s=30.0)  # fmt: skip
        for _ in range(ticks):
            scaler.tick()
            for id_ in provider.cloud.live() - {w.instance for w in store.workers.list()}:
                stack.a_worker(store, instance=id_)
            clock.advance(5.0)
        scaler.close()
        return store.instances.decisions(pool="cpu", limit=1)[0]

    def heads(lane):
        return len(store.claims.heads("cpu", lane))

    batch_stack.planned(store, model, [100])
    store.jobs.submit([stack.new_job(model) for _ in range(20)])
    assert run(MUCH).desired == 6
    assert (heads(Lane.ONLINE), heads(Lane.BULK)) == (1, 1)

    told = run(LITTLE)
    assert "batches wait" in told.reason
    assert (heads(Lane.ONLINE), heads(Lane.BULK)) == (1, 0)
    assert told.desired == 2  # for twenty online rows, though all the money is gone
    serving = [i for i in store.instances.list() if i.status == "serving"]
    assert len(serving) == 2
    (money,) = store.costs.money()
    assert money.standing is Standing.SPENT
    assert money.bulk_held_until > datetime.now(UTC)

    run(MUCH, ticks=1)
    assert heads(Lane.BULK) == 1
    run(LITTLE, ticks=1)
    assert heads(Lane.BULK) == 0
    clock.advance(86400.0)
    run(LITTLE, ticks=1)
    assert heads(Lane.BULK) == 1


POOL = "[pools.cpu]\nprovider = 'fake'\nprice_per_hour = 3.6e9\nmin_workers = 1\n"


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("[pools.gpu]", False),
        (POOL, False),
        (POOL + f"budget_per_day = {MUCH}", False),
        (POOL + f"budget_per_day = {2 * LITTLE}", True),
        ("", True),
    ],
    ids=["the pool has left the file", "no budget", "a higher one", "not high enough", "no file"],
)
def test_a_changed_file_frees_bulk_at_the_next_tick(store, tmp_path, text, held):
    """Whoever reads it, the one that has held it or another; one without a file frees nothing of others."""
    model = store.catalogue.register_model(stack.a_spec(pool="cpu"))
    provider, clock = FakeProvider("cpu", Options(str(tmp_path / "cloud.json"))), FakeClock(datetime.now(UTC))
    batch_stack.planned(store, model, [100])
    before = Autoscaler(store, parse(POOL + f"budget_per_day = {LITTLE}", "a.toml"), {"cpu": provider}, clock,
                        lease_s=30.0)  # fmt: skip

    def heads_after(scaler):
        scaler.tick()
        return len(store.claims.heads("cpu", Lane.BULK))

    assert heads_after(before) == 1, "nothing is spent yet"
    clock.advance(15.0)
    assert heads_after(before) == 0
    providers, config = ({"cpu": provider}, parse(text, "a.toml")) if text else ({}, ADVICE)
    before.configure(config, {name: one for name, one in providers.items() if name in config.pools})
    assert (heads_after(before) == 0) == held
    store.db.run("UPDATE pool_money SET standing = 'spent', bulk_held_until = now() + interval '1 hour'")
    before.close()
    another = Autoscaler(store, config, providers if "cpu" in config.pools else {}, clock, lease_s=30.0)
    assert (heads_after(another) == 0) == held

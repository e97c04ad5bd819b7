"""Laws of the scaling policies: never below zero, nothing but the history counts, and none flaps."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.guards import guard
from autoscaler.policies import POLICIES, DrainTime, QueueRule, TargetInFlight
from autoscaler.signals import Demand, Facts, Limits, Signals, Spent, of_one_speed
from autoscaler.simulate.rivals import Keda

ALL = [*[make() for make in POLICIES.values()], Keda()]
FACTS = Facts(start_s=60, billing_s=60)
RATE = 10.0


@st.composite
def histories(draw):
    """A pool as it may be seen, ten seconds between looks: any arrivals, any service, work and number of workers."""
    looks, arrived, done, arrived_work_s = [], 0.0, 0.0, 0.0
    for n in range(draw(st.integers(1, 30))):
        arrived += draw(st.floats(0, 1e6))
        done = min(arrived, done + draw(st.floats(0, 1e6)))
        bulk, bulk_work_s = draw(st.floats(0, 1e6)), draw(st.floats(0, 1e6))
        arrived_work_s += draw(st.floats(0, 1e6))
        looks.append(
            Signals(
                at=1e9 + 10.0 * n,
                queued_rows=arrived - done + bulk,
                bulk_rows=bulk,
                running_rows=draw(st.floats(0, 1e3)),
                oldest_age_s=draw(st.floats(0, 1e3)),
                arrived_rows=arrived,
                workers=draw(st.integers(0, 50)),
                pending=draw(st.integers(0, 50)),
                rows_per_s=draw(st.sampled_from([0.0, RATE])),
                bulk_rows_per_s=draw(st.sampled_from([0.0, RATE / 50, RATE * 50])),
                demands=(Demand(draw(st.floats(-1e3, 1e5)), bulk, bulk_work_s),) if bulk else (),
                queued_work_s=bulk_work_s + draw(st.floats(0, 1e6)),
                bulk_work_s=bulk_work_s,
                running_work_s=draw(st.floats(0, 1e3)),
                arrived_work_s=arrived_work_s,
            )
        )
    return looks


@pytest.mark.parametrize("policy", ALL, ids=lambda p: p.name)
@given(history=histories())
@settings(max_examples=60)
def test_a_decision_is_a_count_and_replays(policy, history):
    """desired >= 0 and says why; the same history gives the same, and what is older than the memory changes nothing."""
    now = history[-1].at
    decision = policy.decide(history, FACTS, now)
    assert decision.desired >= 0
    assert decision.reason
    assert policy.decide(tuple(history), FACTS, now) == decision


@pytest.mark.parametrize("policy", ALL, ids=lambda p: p.name)
@given(history=histories(), low=st.integers(0, 20), extra=st.integers(0, 40), launches=st.integers(0, 30))
@settings(max_examples=60)
def test_no_policy_gets_past_its_limits(policy, history, low, extra, launches):
    """live + pending stays within the maximum, launches of an hour within theirs."""
    limits = Limits(low, max(1, low + extra), max_launches_per_hour=20)
    seen, now = history[-1], history[-1].at
    allowed = guard(policy.decide(history, FACTS, now), seen, limits, FACTS, Spent(launches))
    assert 0 <= allowed.desired <= limits.max_workers
    assert max(0, allowed.desired - seen.total) <= max(0, 20 - launches)


def look(*args, bulk_rows_per_s=0.0, **changes):
    """Of a pool whose models all do RATE, and in bulk the same where nothing else is measured."""
    seen = Signals(*args, rows_per_s=RATE, bulk_rows_per_s=bulk_rows_per_s, **changes)
    return of_one_speed(seen, RATE, bulk_rows_per_s)


def play(policy, rates, *, start_s=60.0, maximum=1000):
    """A pool that does as the policy says, ten seconds a look; returns its looks and what was wanted."""
    facts, looks, wanted = Facts(start_s, 60), [], []
    launched: list[tuple[float, int]] = []
    live, arrived, done = 0, 0.0, 0.0
    for n, rate in enumerate(rates):
        now = 10.0 * n
        live += sum(k for at, k in launched if at + start_s <= now)
        launched = [(at, k) for at, k in launched if at + start_s > now]
        arrived += 10.0 * rate
        done = min(arrived, done + live * RATE * 10.0)
        age = (arrived - done) / rate if rate else 0.0
        pending = sum(k for _, k in launched)
        looks.append(look(now, arrived - done, oldest_age_s=age, arrived_rows=arrived, workers=live, pending=pending))
        desired = min(maximum, policy.decide(looks, facts, now).desired)
        wanted.append(desired)
        change = desired - looks[-1].total
        if change > 0:
            launched.append((now, change))
        while change < 0 and launched:
            at, k = launched.pop()
            keep = max(0, k + change)
            change += k - keep
            if keep:
                launched.append((at, keep))
        live += min(change, 0)
    return looks, wanted


@given(period=st.integers(4, 60), low=st.floats(0, 200), high=st.floats(200, 2000), up=st.floats(0.05, 0.95))
@settings(max_examples=25, deadline=None)
def test_drain_time_does_not_flap_on_a_sawtooth(period, low, high, up):
    """Within any break-even time (start-up or billing minimum) what there is changes direction at most twice."""
    rates = [low + (high - low) * (n % period / (up * period) if n % period < up * period else 0.0) for n in range(240)]
    looks, _ = play(DrainTime(), rates)
    moves = [(b.at, 1 if b.total > a.total else -1) for a, b in pairwise(looks) if a.total != b.total]
    turns = [at for (_, before), (at, after) in pairwise(moves) if before != after]
    for n, at in enumerate(turns):
        assert sum(at <= other < at + FACTS.start_s for other in turns[n:]) <= 2


def test_drain_time_serves_a_steady_stream_with_what_it_needs():
    """100 rows/s at 10 rows/s a worker: ten workers, give or take one, and no row waits beyond the target."""
    looks, wanted = play(DrainTime(target_wait_s=120), [100.0] * 360)
    assert all(9 <= n <= 11 for n in wanted[120:])
    assert max(seen.oldest_age_s for seen in looks) <= 125


def test_drain_time_gives_up_workers_when_nothing_comes_any_more():
    """After the last row all workers go within a minute or two; with the next row one comes back."""
    _, wanted = play(DrainTime(), [200.0] * 60 + [0.0] * 40 + [50.0] * 10)
    assert max(wanted[:60]) >= 20
    assert wanted[85] == 0
    assert wanted[-1] > 0


def test_drain_time_meets_a_deadline_with_a_steady_few():
    """A batch of 36,000 rows due in an hour, 10 rows/s a worker: one or two, not one for each thousand rows."""
    seen = look(0.0, 36_000, 36_000, demands=(Demand(3600, 36_000),))
    decision = DrainTime().decide([seen], FACTS, 0.0)
    assert decision.desired == 2
    assert "rows due in 3600 s" in decision.reason


def test_drain_time_hurries_when_a_deadline_is_near():
    """The same batch due in five minutes: enough for what is left after the start."""
    seen = look(0.0, 36_000, 36_000, demands=(Demand(300, 36_000),))
    assert DrainTime().decide([seen], FACTS, 0.0).desired >= math.ceil(3600 / (300 - 60))


def test_drain_time_does_batches_without_a_deadline_within_the_hour():
    """100,000 rows, 10 rows/s a worker, no deadline: a steady three; one row more than nothing: one."""
    seen = look(0.0, 100_000, 100_000)
    assert DrainTime().decide([seen], FACTS, 0.0).desired == 3
    assert DrainTime().decide([look(0.0, 1, 1)], FACTS, 0.0).desired == 1


@pytest.mark.parametrize("there", [0, 1])
def test_drain_time_lets_no_row_lie_however_little_work_it_is(there):
    """A single fast row of a batch, or one that runs: somebody is there for it."""
    seen = of_one_speed(Signals(1e9, 1, 1, workers=there, rows_per_s=1e6), 1e6)
    assert DrainTime().decide([seen], FACTS, seen.at).desired == 1
    running = of_one_speed(Signals(1e9, running_rows=1, workers=1, rows_per_s=1e6), 1e6)
    assert DrainTime().decide([running], FACTS, running.at).desired == 1


def test_drain_time_does_not_make_those_without_a_deadline_wait_for_a_later_one():
    """A small batch that is due tomorrow does not put off a large one that has no deadline."""
    alone = DrainTime().decide([look(0.0, 360_000, 360_000)], FACTS, 0.0)
    both = look(0.0, 360_010, 360_010, demands=(Demand(86_400, 10),))
    assert DrainTime().decide([both], FACTS, 0.0).desired == alone.desired == 11


def test_drain_time_sees_those_without_a_deadline_however_many_rows_of_others_run():
    """Rows that run are in the demands and not in the queue: they hide nothing that is queued."""
    queued, running = 160_000, 80_000
    demands = (Demand(86_400, queued - 60_000 + running),)
    seen = look(0.0, queued, queued, running_rows=running, workers=1, demands=demands)
    assert DrainTime().decide([seen], FACTS, 0.0).desired == 2, "60,000 have none"


@pytest.mark.parametrize(("bulk_rate", "workers"), [(0.0, 100), (RATE, 100), (100 * RATE, 1), (RATE / 10, 1000)])
def test_drain_time_reckons_batches_at_their_own_rate(bulk_rate, workers):
    """Slices may go a hundred times as fast as jobs of a row, or be of a dearer model; not measured, as those."""
    rows = 3540 * RATE * 100
    seen = look(at=1e9, queued_rows=rows, bulk_rows=rows, bulk_rows_per_s=bulk_rate)
    assert DrainTime().decide([seen], FACTS, seen.at).desired == workers
    working = look(seen.at, running_rows=rows, workers=workers, bulk_rows_per_s=bulk_rate)
    assert DrainTime().decide([working], FACTS, seen.at).desired == workers


def test_drain_time_does_not_panic_about_what_is_late_already():
    """What no launch can save does not start a thousand workers for ten seconds."""
    seen = look(0.0, 100_000, 100_000, demands=(Demand(-5.0, 100_000),))
    assert DrainTime().decide([seen], FACTS, 0.0).desired == 3


def test_drain_time_gives_nobody_up_whom_a_deadline_at_hand_needs():
    """A launch could not help any more; four would do it within a minute, and seven within the 30 s that are left."""
    seen = look(1e9, 2000, 2000, workers=10, demands=(Demand(30.0, 2000),))
    assert DrainTime().decide([seen], FACTS, seen.at).desired == 7
    late = replace(seen, demands=(Demand(0.0, 2000),))
    assert DrainTime().decide([late], FACTS, late.at).desired == 4, "late already: as batches without a deadline"


def test_drain_time_measures_before_it_multiplies():
    """With an unknown service rate one worker is started, whatever is queued."""
    assert DrainTime().decide([Signals(0.0, 10**6)], FACTS, 0.0).desired == 1
    assert DrainTime().decide([Signals(0.0)], FACTS, 0.0).desired == 0


def test_queue_rule_scales_up_at_once_and_down_only_after_the_cooldown():
    """A burst is answered at once; its end gives nothing up until the cooldown has passed."""
    rule = QueueRule(rows_per_worker=100, cooldown_s=60)
    burst, after, later = Signals(0.0, 450, workers=1), Signals(59.0, 0, workers=5), Signals(61.0, 0, workers=5)
    assert rule.decide([burst], FACTS, 0.0).desired == 5
    assert rule.decide([burst, after], FACTS, 59.0).desired == 5
    assert rule.decide([burst, later], FACTS, 61.0).desired == 0
    assert "450 rows" in rule.decide([burst], FACTS, 0.0).reason


def test_target_in_flight_takes_steps_and_waits_for_stable_advice():
    """Up by half at most once a minute's advice agrees; down by a quarter at most after five minutes of it."""
    rule = TargetInFlight(target=100)
    looks = [Signals(10.0 * n, 5000, workers=8) for n in range(12)]
    assert rule.decide(looks, FACTS, looks[-1].at).desired == 12
    assert rule.decide([Signals(0.0, 800, workers=8), *looks[1:4]], FACTS, 30.0).desired == 8
    quiet = [Signals(10.0 * n, 5000.0 if n == 0 else 0.0, workers=8) for n in range(60)]
    assert rule.decide(quiet[:20], FACTS, 190.0).desired == 8
    assert rule.decide(quiet, FACTS, 590.0).desired == 6
    near = [Signals(10.0 * n, 2050, workers=20) for n in range(12)]
    assert rule.decide(near, FACTS, 110.0).desired == 21
    assert TargetInFlight(target=100, up_tolerance=0.1).decide(near, FACTS, 110.0).desired == 20


def test_keda_doubles_each_quarter_minute_and_goes_to_zero_after_its_cooldown():
    """max(100 %, 4 pods) in 15 s; the highest advice of five minutes; the last pod goes when nothing came for five."""
    rule = Keda(rows_per_worker=100)
    assert rule.decide([Signals(30.0, 5000)], FACTS, 30.0).desired == 1
    assert rule.decide([Signals(45.0, 5000, workers=1)], FACTS, 45.0).desired == 5
    assert rule.decide([Signals(60.0, 5000, workers=5)], FACTS, 60.0).desired == 10
    looks = [Signals(15.0 * n, 1000.0 if n == 0 else 0.0, workers=10) for n in range(40)]
    assert rule.decide(looks[:19], FACTS, 270.0).desired == 10
    assert rule.decide(looks[:24], FACTS, 345.0).desired == 0

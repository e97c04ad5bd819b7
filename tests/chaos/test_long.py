"""The long form of the fault test: run by `make chaos`, never by `make test`."""

import pytest
from chaos_monkey import Chaos, ledger_of, outage_of_redis, results_are_right, settle
from system import running_system


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [11, 12])
def test_twenty_thousand_jobs_end_once_under_forty_kills(tmp_path, digits_model, seed):
    """Bare Celery on Redis lost 6 of 20,000 tasks under 40 kill -9; here nothing is lost, doubled or failed."""
    with running_system(tmp_path / "system", {"digits": digits_model}, apis=2, workers=2) as system:
        ledger = ledger_of(system, tmp_path)
        chaos = Chaos(system, seed=seed, pause_s=4.0)
        ledger.start(24, jobs_each=840, pause_s=0.05)
        chaos.start()
        ledger.join(within_s=1500)
        chaos.end()
        found = settle(system, ledger, within_s=120)
        print(f"faults {len(chaos.faults)}, kills {chaos.kills}, {found}")
        assert found.accepted >= 20_000
        assert chaos.kills >= 40, chaos.faults
        assert not ledger.refused
        assert found.is_clean, found
        results_are_right(system, ledger, digits_model)


def test_a_minute_without_redis_loses_nothing(tmp_path, digits_model):
    """Jobs are accepted and done all the while; when Redis is back everything goes on."""
    with running_system(tmp_path / "system", {"digits": digits_model}) as system:
        outage_of_redis(system, tmp_path, 60.0)

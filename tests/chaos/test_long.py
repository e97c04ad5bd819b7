"""The long form of the fault test: run by `make chaos`, never by `make test`."""

import pytest
from chaos_monkey import outage_of_redis, survive
from system import running_system


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [11, 12])
def test_twenty_thousand_jobs_end_once_under_forty_kills(tmp_path, digits_model, seed):
    """Bare Celery on Redis lost 6 of 20,000 tasks under 40 kill -9; here nothing is lost, doubled or failed."""
    with running_system(tmp_path / "system", {"digits": digits_model}, apis=2, workers=2) as system:
        chaos = survive(
            system, tmp_path, digits_model, seed=seed, pause_s=4.0, threads=24, jobs_each=840, within_s=1500
        )
        assert chaos.kills >= 40, chaos.faults


def test_a_minute_without_redis_loses_nothing(tmp_path, digits_model):
    """Jobs are accepted and done all the while; when Redis is back everything goes on."""
    with running_system(tmp_path / "system", {"digits": digits_model}) as system:
        outage_of_redis(system, tmp_path, 60.0)

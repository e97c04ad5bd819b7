"""The configuration file: what it says is what is done, and what cannot be is refused with where and what to do."""

import os

import pytest

from autoscaler import providers
from autoscaler.__main__ import _reread
from autoscaler.config import advised, load, parse
from autoscaler.policies import DrainTime
from batchline.errors import SettingsError


def refused(text: str) -> str:
    with pytest.raises(SettingsError) as e:
        parse(text, "a.toml")
    return e.value.detail


def test_a_file_says_limits_policy_and_provider_by_pool():
    """Defaults fill the rest; the provider's table is kept as it is, for the provider to decode."""
    config = parse(
        """
        stack = "night"
        [pools.cpu]
        provider = "local"
        min_workers = 1
        max_workers = 4
        floors = [[8, 18, 2]]
        policy_options = { target_wait_s = 30 }
        [pools.cpu.local]
        anything = 1
        [pools.gpu]
        """,
        "a.toml",
    )
    cpu = config.pools["cpu"]
    assert (config.stack, cpu.limits.max_workers, cpu.limits.floors) == ("night", 4, ((8, 18, 2),))
    assert cpu.policy == DrainTime(target_wait_s=30.0)
    assert cpu.options == {"anything": 1}
    assert config.pools["gpu"].provider == "none"


def test_a_changed_file_that_breaks_something_does_not_end_the_scaler(tmp_path, caplog):
    """Refused or failing otherwise: the one before stays, and the error is logged once."""

    class Scaler:
        def configure(self, *_):
            raise RuntimeError("nobody expected this")

    path = tmp_path / "a.toml"
    path.write_text("[pools.a]")
    reread = _reread(path, Scaler())
    os.utime(path, (1, 1))
    reread()
    reread()
    assert caplog.text.count("the one before stays") == 1


def test_the_kill_switch_of_the_file_outranks_its_pools():
    """`enabled = false` at the top switches every pool off."""
    pools = parse("enabled = false\n[pools.a]\n[pools.b]\nenabled = true", "a.toml").pools
    assert not any(pool.limits.enabled for pool in pools.values())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pools = 3", "pools"),
        ("[pools", "no TOML"),
        ("", "no pool is named"),
        ("every_s = 0\n[pools.a]", "every_s is 0"),
        ("stack = ''\n[pools.a]", "stack is ''"),
        ("[pools.a]\nmin_workers = 3\nmax_workers = 2", "minimum of 3 workers is above the maximum of 2"),
        ("[pools.a]\nmax_workers = 0", "use 1 or more"),
        ("[pools.a]\nmin_workers = -1", "use 0 or more"),
        ("[pools.a]\nmax_workers = '8'", "pools.a.max_workers: expected `int`"),
        ("[pools.a]\nmax_worker = 8", "no field max_worker; it has provider, policy"),
        ("[pools.a]\npolicy = 'keda'", "no policy 'keda'; use drain_time, queue, target_in_flight"),
        ("[pools.a]\nprovider = 'gce'", "no provider 'gce'; use none, local, ec2-spot, asg, kubernetes"),
        ("[pools.a]\nprice_per_hour = 1.0\nbudget_per_day = 0", "the budget of a day is 0"),
        ("[pools.a]\nbudget_per_day = 5", "needs a price_per_hour"),
        ("[pools.a]\nmax_launches_per_hour = 0", "0 launches an hour"),
        ("[pools.a]\nfloors = [[8, 30, 1]]", "no span of hours"),
        ("[pools.a]\nstart_s = nan", "pools.a.start_s is nan"),
        ("[pools.a]\nstart_limit_s = 0", "must be more than 0"),
        ("[pools.a]\npolicy_options = { target_wait_s = 0 }", "target_wait_s is 0"),
        ("[pools.a]\npolicy_options = { rows_per_worker = 9 }", "no field rows_per_worker; it has target_wait_s"),
        ("[pools.a]\npolicy_options = { name = 'x' }", "the policy is chosen by the pool's field policy"),
        ("[pools.a]\nprovider = 'local'\nlocal = 3", "pools.a.local must be a table"),
    ],
)
def test_what_cannot_be_is_refused_and_the_message_says_what_to_do(text, told):
    """Each fault names the file, the field, and what fits."""
    detail = refused(text)
    assert told in detail
    assert detail.startswith("a.toml")


def test_all_faults_of_a_file_are_told_together():
    """One a line, of every pool."""
    told = refused("[pools.a]\nmin_workers = 9\nprovider = 'gce'\n[pools.b]\npolicy = 'x'").split("\n")
    assert [line.split(":")[1].strip() for line in told] == ["pools.a", "pools.a", "pools.b"]


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    """With its path and the reason."""
    with pytest.raises(SettingsError, match=r"absent\.toml cannot be read: No such file"):
        load(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load(tmp_path / "latin.toml")


def test_pools_that_no_file_names_are_advised_only():
    """By the queue rule, with one worker at least, as without any file."""
    pool = advised("cpu")
    assert (pool.provider, pool.policy.name, pool.limits.min_workers) == ("none", "queue", 1)


def test_a_provider_that_is_not_there_is_refused(monkeypatch):
    """Neither unknown names nor missing libraries end in a traceback."""
    with pytest.raises(SettingsError, match="no provider 'gce'"):
        providers.build("gce", "cpu", {}, stack="s")
    monkeypatch.setitem(providers.ADAPTERS, "far", providers.Adapter("a_library_nobody_has", "Far"))
    with pytest.raises(SettingsError, match="needs a_library_nobody_has"):
        providers.build("far", "cpu", {}, stack="s")

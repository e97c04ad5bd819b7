"""Workers as pods: totals, labels and deletion costs against a fake API server with faults."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kube_server
import pytest
from kube_server import Cluster

from autoscaler.providers import ProviderError, Trouble, build, kubernetes
from autoscaler.providers.contract import Provider
from batchline.errors import SettingsError
from batchline.store.instance_contract import Launch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again sooner: the fake answers at once."""
    monkeypatch.setattr(kubernetes, "_POLL_S", 0.02)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(replicas=2)


@pytest.fixture
def options(cluster: Cluster, tmp_path) -> Iterator[dict[str, Any]]:
    with kube_server.serving(cluster, tmp_path) as found:
        yield found


@pytest.fixture
def provider(options) -> Provider:
    return build("kubernetes", "cpu", options, stack="batchline")


def a_launch(count: int, total: int, launch_id: uuid.UUID | None = None) -> Launch:
    return Launch(launch_id or uuid.uuid4(), "cpu", "kubernetes", count, total, dt.datetime.now(dt.UTC))


def once(fault: int | str, method: str, ending: str) -> Callable[[str, str], int | str | None]:
    """A rule that spoils the first such request."""
    left = [fault]
    return lambda m, path: left.pop() if left and m == method and path.endswith(ending) else None


def test_a_launch_brings_pods_and_names_them(cluster, provider):
    """The new pods are the launch's, by label; those that were there are not."""
    before = cluster.names()
    launch = a_launch(3, 5)
    brought = {instance.id for instance in provider.launch(launch)}
    assert brought == cluster.names() - before
    found = {f.instance.id: f.launch_id for f in provider.list()}
    assert found == dict.fromkeys(before) | dict.fromkeys(brought, launch.id)
    assert {i.id for i in provider.launch(launch)} == brought
    assert cluster.replicas == 5


def test_from_zero(cluster, provider):
    """To none at all and up again."""
    provider.end(list(cluster.names()))
    assert cluster.replicas == 0
    cluster.run()
    assert len(provider.launch(a_launch(1, 1))) == 1


def test_the_chosen_pod_goes_and_no_other(cluster, provider):
    """By its deletion cost, though it is the oldest and every other is ready too; repeated, nothing more happens."""
    provider.launch(a_launch(3, 5))
    cluster.run()
    before = cluster.names()
    chosen = sorted(before, key=lambda n: cluster.pods[n]["metadata"]["creationTimestamp"])[:2]
    provider.end(chosen)
    provider.end(chosen)
    assert cluster.names() == before - set(chosen)
    assert {f.instance.id for f in provider.list() if f.ending} == set(chosen)
    cluster.run()
    provider.end([*chosen, "never-was"])
    assert cluster.replicas == 3


def test_a_pod_that_is_not_ready_goes_first_and_the_chosen_one_next(cluster, provider):
    """Kubernetes ranks readiness above cost: a starting pod may go instead; asked again, the chosen goes; no other."""
    first = cluster.names()
    (starting,) = provider.launch(a_launch(1, 3))
    chosen = min(first)
    provider.end([chosen])
    assert cluster.names() == first
    provider.end([chosen])
    assert cluster.names() == first - {chosen}
    assert starting.id not in cluster.names()


@pytest.mark.parametrize(("method", "ending"), [("PATCH", "/batchline-worker"), ("GET", "pods")])
def test_a_reply_that_is_lost_launches_nothing_twice(cluster, provider, method, ending):
    """Done and not answered: UNKNOWN; the same launch asked again finds its pods."""
    cluster.rule = once("lost", method, ending)
    launch = a_launch(2, 4)
    with pytest.raises(ProviderError) as failed:
        provider.launch(launch)
    assert failed.value.trouble is Trouble.UNKNOWN
    assert len(provider.launch(launch)) == 2
    assert (cluster.replicas, cluster.peak) == (4, 4)


def test_what_others_wrote_on_the_deployment_stays(cluster, provider):
    """The note of a launch is one annotation among others."""
    provider.launch(a_launch(1, 3))
    assert cluster.deployments[kube_server.DEPLOYMENT]["metadata"]["annotations"]["by"] == "hand"


def test_a_lost_label_is_found_again(cluster, provider):
    """The pods were labelled, the answer was lost: they are the launch's none the less."""
    names = cluster.names()
    launch = a_launch(2, 4)

    def rule(method: str, path: str) -> str | None:
        return "lost" if "/pods/" in path and sum("/pods/" in p for _, p in cluster.seen) == 1 else None

    cluster.rule = rule
    with pytest.raises(ProviderError):
        provider.launch(launch)
    assert {i.id for i in provider.launch(launch)} == cluster.names() - names


def test_a_lost_end_ends_nothing_else(cluster, provider):
    """The scale went down, the answer was lost, the controller is slow: asked again, one pod goes and not two."""
    chosen = min(cluster.names())
    cluster.rule = once("lost", "PATCH", "/batchline-worker")
    cluster.controlled = False
    with pytest.raises(ProviderError):
        provider.end([chosen])
    provider.end([chosen])
    cluster.controlled = True
    cluster.control()
    assert (cluster.replicas, chosen in cluster.names()) == (1, False)


def test_conflicts_are_read_again(cluster, provider):
    """Somebody scales between our read and our write, twice: ours is done once, on top of theirs."""
    deployment, times = cluster.deployments[kube_server.DEPLOYMENT], [2]

    def rule(method: str, path: str) -> None:
        if method == "PATCH" and path.endswith(kube_server.DEPLOYMENT) and times[0]:
            times[0] -= 1
            deployment["spec"]["replicas"] += 1
            cluster.control()
            cluster.run()

    cluster.rule = rule
    assert len(provider.launch(a_launch(1, 9))) == 1
    assert cluster.replicas == 5
    cluster.run()
    times[0] = 2
    chosen = min(cluster.names())
    provider.end([chosen])
    assert (cluster.replicas, chosen in cluster.names()) == (6, False)


def test_endless_conflicts_end(cluster, options):
    """Nothing was done, and it is said; nobody waits for ever."""
    cluster.rule = lambda method, path: 409 if path.endswith("/batchline-worker") and method == "PATCH" else None
    provider = build("kubernetes", "cpu", options | {"wait_s": 0.5}, stack="")
    with pytest.raises(ProviderError) as failed:
        provider.launch(a_launch(1, 3))
    assert failed.value.trouble is Trouble.THROTTLED
    with pytest.raises(ProviderError) as failed:
        provider.end([min(cluster.names())])
    assert failed.value.trouble is Trouble.THROTTLED
    assert cluster.replicas == 2


@pytest.mark.parametrize(
    ("status", "trouble"), [(429, Trouble.THROTTLED), (403, Trouble.REFUSED), (503, Trouble.UNKNOWN)]
)
def test_what_the_server_says_is_told_apart(cluster, provider, status, trouble):
    """Before anything was done: throttled, refused, or no answer that says."""
    cluster.rule = lambda method, path: status
    for call in (lambda: provider.launch(a_launch(1, 3)), provider.list, lambda: provider.end(["x"])):
        with pytest.raises(ProviderError) as failed:
            call()
        assert failed.value.trouble is trouble


def test_refused_after_the_fact_is_unknown(cluster, provider):
    """Replicas were added, the label was not allowed: nobody may take the launch for one that did nothing."""
    cluster.rule = lambda method, path: 403 if "/pods/" in path else None
    with pytest.raises(ProviderError) as failed:
        provider.launch(a_launch(1, 3))
    assert failed.value.trouble is Trouble.UNKNOWN


def test_a_slow_controller_is_waited_for(cluster, options):
    """The pods do not come in time: UNKNOWN, and the same launch later has them, with nothing added."""
    cluster.controlled = False
    provider = build("kubernetes", "cpu", options | {"wait_s": 0.3}, stack="")
    launch = a_launch(2, 4)
    with pytest.raises(ProviderError) as failed:
        provider.launch(launch)
    assert failed.value.trouble is Trouble.UNKNOWN
    cluster.controlled = True
    assert len(provider.launch(launch)) == 2
    assert cluster.peak == 4


@pytest.mark.parametrize(("quota", "brought"), [(3, 1), (2, 0)])
def test_a_quota_is_capacity(cluster, options, quota, brought):
    """What the quota lets through is the launch's; the rest is not asked for any longer, and comes at no later time."""
    cluster.quota = quota
    provider = build("kubernetes", "cpu", options | {"wait_s": 0.3}, stack="")
    if brought:
        assert len(provider.launch(a_launch(3, 5))) == brought
    else:
        with pytest.raises(ProviderError, match="exceeded quota") as failed:
            provider.launch(a_launch(3, 5))
        assert failed.value.trouble is Trouble.CAPACITY
    cluster.quota = 100
    assert (cluster.replicas, len(provider.list())) == (2 + brought, 2 + brought)


def test_clocks_apart(cluster, provider):
    """The cluster's clock is a minute behind the database's: new pods are still told from old ones."""
    cluster.behind = dt.timedelta(minutes=1)
    before = cluster.names()
    brought = {i.id for i in provider.launch(a_launch(2, 4))}
    assert brought == cluster.names() - before
    assert all(f.age_s < 5 for f in provider.list() if f.instance.id in brought)


def test_a_replacement_is_nobodys(cluster, provider):
    """A node dies, Kubernetes makes another pod: it is listed as ours, of no launch."""
    (brought,) = provider.launch(a_launch(1, 3))
    known = cluster.names()
    cluster.lose(brought.id)
    (new,) = cluster.names() - known
    assert {f.launch_id for f in provider.list() if f.instance.id == new} == {None}


def test_evicted_pods_are_gone(cluster, provider):
    """A failed pod stays in the listing of Kubernetes for hours and is no instance any more."""
    name = min(cluster.names())
    cluster.pods[name]["status"] = {"phase": "Failed", "reason": "Evicted"}
    assert name not in {f.instance.id for f in provider.list()}


def test_two_scalers_with_the_same_launch_launch_it_once(cluster, options):
    """A leader that was thought dead, and the next one: five rounds of the same launch at once."""
    providers = [build("kubernetes", "cpu", options, stack="") for _ in range(2)]
    for total in range(4, 14, 2):
        launch = a_launch(2, total)
        with ThreadPoolExecutor() as threads:
            first, second = threads.map(lambda p, launch=launch: {i.id for i in p.launch(launch)}, providers)
        assert first == second
        assert (len(first), cluster.replicas) == (2, total)


def test_whatever_fails_it_converges_and_stays_within_the_total(cluster, provider):
    """Launches and ends with a third of all answers spoilt: never above the total, no pod twice, none lost."""
    rng, most = random.Random(7), 6
    ours: dict[uuid.UUID, set[str]] = {}

    def rule(method: str, path: str) -> int | str | None:
        return rng.choice(["lost", 409, 429, 503]) if rng.random() < 0.33 else None

    def insist(call: Callable[[], Any]) -> Any:
        for _ in range(100):
            try:
                return call()
            except ProviderError as e:
                if e.trouble not in (Trouble.UNKNOWN, Trouble.THROTTLED):
                    raise
        raise AssertionError("never done")

    first = cluster.names()
    cluster.rule = rule
    for _ in range(15):
        cluster.run()
        here = cluster.names()
        if len(here) < most:
            launch = a_launch(rng.randint(1, most - len(here)), most)
            ours[launch.id] = {i.id for i in insist(lambda launch=launch: provider.launch(launch))}
            assert len(ours[launch.id]) == launch.count
            cluster.run()
        else:
            chosen = rng.sample(sorted(here), rng.randint(1, 4))
            insist(lambda chosen=chosen: provider.end(chosen))
            assert cluster.names() == here - set(chosen)
        assert cluster.replicas == len(cluster.names())
    assert cluster.peak <= most
    everyone = [name for names in (first, *ours.values()) for name in names]
    assert len(everyone) == len(set(everyone))
    assert cluster.names() <= set(everyone)


def test_check_is_content(provider):
    """All is as deploy/kubernetes makes it."""
    provider.check()


def test_check_says_what_is_wrong_and_what_to_do(cluster, provider, options, tmp_path):
    """Every kind of bad setting is refused at start, in words."""
    with pytest.raises(SettingsError, match="no Deployment nix in namespace batchline; apply deploy/kubernetes"):
        build("kubernetes", "cpu", options | {"deployment": "nix"}, stack="").check()
    with pytest.raises(SettingsError, match="serve the pool cpu; set BATCHLINE_POOL"):
        build("kubernetes", "gpu", options, stack="").check()
    target = {"kind": "Deployment", "name": kube_server.DEPLOYMENT}
    cluster.hpas = [{"metadata": {"name": "keda-hpa-w"}, "spec": {"scaleTargetRef": target}}]
    cluster.deployments[kube_server.DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]["env"] = []
    with pytest.raises(SettingsError, match=r"(?s)set BATCHLINE_INSTANCE.*keda-hpa-w scales batchline-worker too"):
        provider.check()
    cluster.allowed -= {("patch", "deployments"), ("patch", "pods")}
    with pytest.raises(SettingsError, match="not allowed in namespace batchline: patch deployments, patch pods"):
        provider.check()
    with pytest.raises(SettingsError, match="token_file"):
        build("kubernetes", "cpu", options | {"token_file": str(tmp_path / "none")}, stack="").check()
    (tmp_path / "wrong").write_text("wrong")
    with pytest.raises(SettingsError, match="401"):
        build("kubernetes", "cpu", options | {"token_file": str(tmp_path / "wrong")}, stack="").check()
    with pytest.raises(SettingsError, match="namespace"):
        build("kubernetes", "cpu", options | {"namespace": ""}, stack="").check()


def test_no_cluster(options, tmp_path):
    """Nothing listens: it may do so later. Somebody does whose certificate is not the cluster's: refused."""
    nowhere = options | {"server": "https://127.0.0.1:9"}
    with pytest.raises(ProviderError, match="did not answer"):
        build("kubernetes", "cpu", nowhere, stack="").check()
    other = tmp_path / "other"
    other.mkdir()
    kube_server.certificate(other)
    with pytest.raises(SettingsError, match="is not signed by"):
        build("kubernetes", "cpu", options | {"ca_file": str(other / "ca.crt")}, stack="").check()


def test_an_address_that_is_none_is_refused(options):
    """With the rest of the settings, and not by an error that nobody expects."""
    with pytest.raises(SettingsError, match="is no address"):
        build("kubernetes", "cpu", options | {"server": "https://host:port"}, stack="").check()


@pytest.mark.parametrize(
    "wrong",
    [
        {"deploymnt": "x"},
        {},
        {"deployment": 3},
        {"deployment": "x", "wait_s": 60.0},
        {"deployment": "x", "server": "http://10.0.0.1"},
    ],
)
def test_options_are_strict(wrong):
    """An unknown field, a missing one, another type, a wait that keeps the loop, a token in clear text: refused."""
    with pytest.raises(SettingsError):
        build("kubernetes", "cpu", wrong, stack="")

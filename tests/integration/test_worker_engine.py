"""The engine on real Postgres and Redis: what becomes of rows, jobs and claims."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import stack
from system import until
from worker_rig import Rig

from batchline import metrics
from batchline.errors import OutOfMemoryError, StoreUnavailableError
from batchline.job import Lane
from batchline.store import Store
from workers.runtimes.onnx_runtime import opener


@pytest.fixture
def rig(store: Store, redis_url: str, tmp_path: Path) -> Rig:
    return Rig(store, redis_url, tmp_path / "models")


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    return tmp_path / "source.onnx"


class Doubled:
    """A runtime that doubles x, and does what the test wants before."""

    def __init__(self, before: Any) -> None:
        self.before = before
        self.sizes: list[int] = []

    def __call__(self, spec: Any, data: bytes) -> Doubled:
        return self

    def run(self, inputs: Any) -> dict[str, Any]:
        self.sizes.append(len(inputs["x"]))
        self.before(inputs["x"])
        return {"y": inputs["x"] * 2}


def test_jobs_of_many_tenants_share_one_forward_pass_and_each_gets_its_own_rows(rig: Rig, onnx_file: Path) -> None:
    """Ten jobs of ten tenants are one claim of ten rows; no result is anybody else's."""
    model = rig.add("double", small_models.double(onnx_file))
    jobs = [rig.pixels(model, [i, -i], tenant_id=i) for i in range(10)]
    assert [(s["jobs"], s["rows"], s["passes"], s["flush_reason"]) for s in rig.work()] == [(10, 10, 1, "drained")]
    assert [rig.outputs(j) for j in jobs] == [[{"y": [2.0 * i, -2.0 * i]}] for i in range(10)]
    assert set(rig.statuses(jobs)) == {"succeeded"}


def test_a_claim_that_leaves_work_behind_nudges_again(rig: Rig, onnx_file: Path) -> None:
    """Full micro-batches are nudged on before they are predicted; the last one is not."""
    model = rig.add("double", small_models.double(onnx_file), max_batch_size=4)
    for i in range(10):
        rig.pixels(model, [i, i])
    assert [(s["rows"], s["flush_reason"]) for s in rig.work()] == [(4, "full"), (4, "full"), (2, "drained")]
    assert rig.nudges.sent == [("cpu", Lane.ONLINE)] * 2


def test_a_job_larger_than_a_micro_batch_runs_in_passes_and_keeps_its_order(rig: Rig, onnx_file: Path) -> None:
    """Eleven rows at four a pass: three passes, outputs in the order of rows."""
    model = rig.add("double", small_models.double(onnx_file), max_batch_size=4)
    job = rig.pixels(model, *[[i, i] for i in range(11)])
    assert [s["passes"] for s in rig.work()] == [3]
    assert [row["y"][0] for row in rig.outputs(job)] == [2.0 * i for i in range(11)]


def test_a_model_with_a_fixed_first_axis_runs_row_by_row(rig: Rig, onnx_file: Path) -> None:
    """Such a model's batch size is 1 whatever its policy says."""
    model = rig.add("one", small_models.only_one(onnx_file), max_batch_size=64)
    job = rig.pixels(model, [1, 2], [3, 4])
    assert [s["passes"] for s in rig.work()] == [2]
    assert rig.outputs(job) == [{"y": [2.0, 4.0]}, {"y": [6.0, 8.0]}]


@pytest.mark.parametrize(("padding", "passes"), [({"mode": "none"}, 3), ({"mode": "pad", "value": 0.0}, 1)])
def test_rows_of_unequal_length_run_by_shape_or_padded(
    rig: Rig, onnx_file: Path, padding: dict[str, Any], passes: int
) -> None:
    """`none`: one pass for each length. `pad`: one pass, and zeros change no sum."""
    model = rig.add("total", small_models.total(onnx_file), padding=padding)
    rows = [np.arange(n, dtype=np.float32) for n in (3, 1, 5, 3)]
    jobs = [rig.submit(model, {"x": rows[:3]}), rig.submit(model, {"x": rows[3:]})]
    assert [s["passes"] for s in rig.work()] == [passes]
    assert [rig.outputs(j) for j in jobs] == [[{"y": 3.0}, {"y": 0.0}, {"y": 10.0}], [{"y": 3.0}]]


def test_a_bad_row_fails_alone(rig: Rig, onnx_file: Path) -> None:
    """One row that the model refuses: its neighbours in the job and in the micro-batch succeed."""
    model = rig.add("pick", small_models.pick(onnx_file))
    values = [[1], [2, 99, 3], [98, 97], [4]]
    jobs = [rig.submit(model, {"i": np.array(v, dtype=np.int64)}) for v in values]
    rig.work()
    assert rig.statuses(jobs) == ["succeeded", "succeeded", "failed", "succeeded"]
    assert rig.outputs(jobs[1]) == [{"y": 20.0}, None, {"y": 30.0}]
    errors = json.loads(rig.view(jobs[1]).errors)
    assert [(e["row"], e["code"]) for e in errors] == [(1, "predict_failed")]
    assert "indices" not in errors[0]["message"], "the runtime's own text is for the log"
    assert [rig.view(j).rows_failed for j in jobs] == [0, 1, 2, 0]
    assert rig.view(jobs[2]).code == "predict_failed"


def test_non_finite_outputs_are_words(rig: Rig, onnx_file: Path) -> None:
    """NaN and infinity are results, spelled as strings; finite neighbours keep their shortest float32 form."""
    model = rig.add("log", small_models.logarithm(onnx_file))
    job = rig.pixels(model, [0.0, -1.0], [1.1, 1.0])
    rig.work()
    assert rig.outputs(job)[0] == {"y": ["-Infinity", "NaN"]}
    finite = rig.outputs(job)[1]["y"][0]
    assert finite == pytest.approx(np.log(1.1))
    assert str(finite) == str(np.float32(finite))


@pytest.mark.parametrize(("padding", "passes"), [("none", 4), ("pad", 1)])
def test_texts_of_many_lengths_become_the_models_tensors(rig: Rig, tmp_path: Path, padding: str, passes: int) -> None:
    """Words are numbered a=1, b=2, c=3 and summed; bad ones are 0. Results do not depend on the company."""
    source = tmp_path / "words"
    small_models.token_sum(source)
    (source / "model.toml").write_text(f"[text]\nmax_length = 4\n[policy.padding]\nmode = '{padding}'\n")
    model = rig.add("words", source)
    jobs = [rig.submit(model, {"text": texts}) for texts in (["a b", "c"], ["a b c"], ["b", "c c c c c"])]
    assert [s["passes"] for s in rig.work()] == [passes]
    assert [[row["y"] for row in rig.outputs(j)] for j in jobs] == [[3, 3], [6], [2, 12]]


def test_out_of_memory_halves_the_size_and_remembers_it(store: Store, redis_url: str, tmp_path: Path) -> None:
    """Eight rows find no room, four do; the next claim takes four at once."""

    def before(x: Any) -> None:
        if len(x) > 4:
            raise OutOfMemoryError("no room")

    runtime = Doubled(before)
    rig = Rig(store, redis_url, tmp_path / "models", open_runtime=runtime)
    model = rig.add("double", small_models.double(tmp_path / "m.onnx"), max_batch_size=8)
    rig.models.load(model)
    runtime.sizes.clear()
    jobs = [rig.pixels(model, [i, i]) for i in range(16)]
    assert [s["rows"] for s in rig.work()] == [8, 4, 4]
    assert runtime.sizes == [8, 4, 4, 4, 4]
    assert set(rig.statuses(jobs)) == {"succeeded"}


def test_a_row_without_room_even_alone_is_tried_again_later(store: Store, redis_url: str, tmp_path: Path) -> None:
    """Its job goes back to the queue with a failure charged; the other job of the micro-batch succeeds."""

    def before(x: Any) -> None:
        if (x == 7).any():
            raise OutOfMemoryError("no room")

    rig = Rig(store, redis_url, tmp_path / "models", open_runtime=Doubled(before))
    model = rig.add("double", small_models.double(tmp_path / "m.onnx"))
    jobs = [rig.pixels(model, [1, 1]), rig.pixels(model, [7, 7])]
    rig.work()
    assert rig.statuses(jobs) == ["succeeded", "queued"]
    assert rig.view(jobs[1]).run_at is not None


def test_a_model_that_cannot_be_loaded_fails_its_jobs_and_no_others(rig: Rig, onnx_file: Path) -> None:
    """Other bytes than the catalogue knows: `model_error` once the budget is spent; other models go on."""
    bad = rig.add("bad", small_models.double(onnx_file))
    good = rig.add("good", small_models.double(onnx_file))
    small_models.double(rig.repository / "bad" / "1" / "model.onnx", width=3)
    jobs = [rig.pixels(bad, [1, 1]), rig.pixels(good, [1, 1])]
    rig.work()
    assert rig.statuses(jobs) == ["queued", "succeeded"]
    deadline = time.monotonic() + 20
    while rig.view(jobs[0]).status != "failed":
        assert time.monotonic() < deadline
        rig.store.chores.release()
        rig.work()
    assert rig.view(jobs[0]).code == "model_error"


def test_claims_that_bring_nothing_though_there_is_work_are_told_of(rig: Rig, onnx_file: Path) -> None:
    """Postgres may have had this worker drain: nothing is claimed, and a heartbeat is to ask."""
    model = rig.add("double", small_models.double(onnx_file))
    rig.pixels(model, [1, 2])
    assert [s["jobs"] for s in rig.work()] == [1]
    assert rig.empty == []
    rig.store.workers.drain(rig.worker_id)
    job = rig.pixels(model, [3, 4])
    assert rig.work() == []
    assert rig.empty
    assert rig.statuses([job]) == ["queued"]


def test_what_is_not_on_the_device_is_given_back_when_the_drain_begins(
    store: Store, redis_url: str, tmp_path: Path
) -> None:
    """The running micro-batch finishes; the claimed one that waits for the device goes back, nothing charged."""
    running, go_on = threading.Event(), threading.Event()

    def before(x: Any) -> None:
        if x.any():  # zeros are the warm-up's
            running.set()
            assert go_on.wait(20)

    rig = Rig(store, redis_url, tmp_path / "models", open_runtime=Doubled(before))
    model = rig.add("double", small_models.double(tmp_path / "m.onnx"), max_batch_size=1)
    rig.models.load(model)
    jobs = [rig.pixels(model, [i, i]) for i in (1, 2, 3)]
    threads = [threading.Thread(target=rig.engine.run, args=(Lane.ONLINE,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert running.wait(20)
    until(lambda: rig.statuses(jobs).count("running") == 2)
    rig.leave.begin("test")
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert sorted(rig.statuses(jobs)) == ["queued", "queued", "succeeded"]
    assert stack.query(_url(store), "SELECT max(failures) FROM jobs") == [(0,)]
    assert rig.turns.held() == []


class Lossy:
    """Claims whose n-th `claim` or first `finish`es are carried out, or not, and whose reply is lost."""

    def __init__(self, claims: Any, *, lose_claims: int = 0, refuse_finishes: int = 0) -> None:
        self._claims = claims
        self.lose_claims = lose_claims
        self.refuse_finishes = refuse_finishes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._claims, name)

    def claim(self, *a: Any, **k: Any) -> Any:
        claim = self._claims.claim(*a, **k)
        if self.lose_claims:
            self.lose_claims -= 1
            raise StoreUnavailableError("lost")
        return claim

    def finish(self, *a: Any, **k: Any) -> Any:
        if self.refuse_finishes:
            self.refuse_finishes -= 1
            raise StoreUnavailableError("away")
        return self._claims.finish(*a, **k)


def test_jobs_of_a_claim_whose_reply_was_lost_are_not_stranded(rig: Rig, onnx_file: Path) -> None:
    """They run under our name and nobody knows: the next claim gives them back first."""
    model = rig.add("double", small_models.double(onnx_file))
    job = rig.pixels(model, [1, 1])
    rig.engine = rig.an_engine(Lossy(rig.store.claims, lose_claims=1))
    assert rig.engine.run(Lane.ONLINE)["jobs"] == 0
    assert rig.statuses([job]) == ["running"]
    assert [s["jobs"] for s in rig.work()] == [1]
    assert rig.statuses([job]) == ["succeeded"]


def test_a_result_stays_in_hand_while_postgres_is_away(rig: Rig, onnx_file: Path) -> None:
    """Three refused finishes, one result, one attempt."""
    model = rig.add("double", small_models.double(onnx_file))
    job = rig.pixels(model, [1, 1])
    rig.engine = rig.an_engine(Lossy(rig.store.claims, refuse_finishes=3))
    rig.work()
    assert rig.outputs(job) == [{"y": [2.0, 2.0]}]
    assert rig.view(job).attempt == 1


def test_a_result_that_came_too_late_is_dropped_and_counted(store: Store, redis_url: str, tmp_path: Path) -> None:
    """Rescued while it was predicted: the fence keeps the result out."""
    rig: Rig

    def before(x: Any) -> None:
        if x.any():
            rig.store.workers.bury([rig.worker_id])
            rig.store.chores.rescue(max_failures=3)

    rig = Rig(store, redis_url, tmp_path / "models", open_runtime=Doubled(before))
    model = rig.add("double", small_models.double(tmp_path / "m.onnx"))
    job = rig.pixels(model, [1, 1])
    stale = metrics.STALE._value.get()
    rig.engine.run(Lane.ONLINE)
    assert metrics.STALE._value.get() == stale + 1
    assert rig.statuses([job]) == ["queued"]
    assert rig.view(job).suspect


def test_a_suspect_runs_when_nothing_else_is_in_the_process_and_is_exposed(
    store: Store, redis_url: str, tmp_path: Path
) -> None:
    """With three threads at work, a suspect's pass has one row, and only its job is running; the rest follows."""
    seen: list[tuple[int, list[tuple[bool, bool]]]] = []
    rig: Rig

    def before(x: Any) -> None:
        if (x == 7).any():
            rows = stack.query(_url(store), "SELECT suspect, exposed FROM jobs WHERE status = 'running'")
            seen.append((len(x), rows))

    rig = Rig(store, redis_url, tmp_path / "models", open_runtime=Doubled(before))
    model = rig.add("double", small_models.double(tmp_path / "m.onnx"), max_batch_size=2)
    jobs = [rig.pixels(model, [7, 7]) for _ in range(3)]
    stack.query(_url(store), "UPDATE jobs SET suspect = true")
    jobs += [rig.pixels(model, [i, i]) for i in (20, 21, 22, 23, 24, 25)]
    threads = [threading.Thread(target=rig.work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(rig.statuses(jobs)) == {"succeeded"}
    assert seen == [(1, [(True, True)])] * 3


def test_a_suspect_waits_for_results_that_are_still_being_written(store: Store, redis_url: str, tmp_path: Path) -> None:
    """A crash would take them along: their jobs are running too until they are written."""
    writing, exposed = threading.Event(), threading.Event()
    running: list[Any] = []

    class SlowToWrite(Lossy):
        def finish(self, *a: Any, **k: Any) -> Any:
            writing.set()
            exposed.wait(0.5)
            return super().finish(*a, **k)

    def before(x: Any) -> None:
        if (x == 7).any():
            running.extend(stack.query(_url(store), "SELECT suspect FROM jobs WHERE status = 'running'"))
            exposed.set()

    rig = Rig(store, redis_url, tmp_path / "models", open_runtime=Doubled(before))
    rig.engine = rig.an_engine(SlowToWrite(store.claims))
    model = rig.add("double", small_models.double(tmp_path / "m.onnx"))
    rig.models.load(model)
    jobs = [rig.pixels(model, [1, 1])]
    threads = [threading.Thread(target=rig.work) for _ in range(2)]
    threads[0].start()
    assert writing.wait(20)
    jobs.append(rig.pixels(model, [7, 7]))
    stack.query(_url(store), "UPDATE jobs SET suspect = true WHERE status = 'queued'")
    threads[1].start()
    for thread in threads:
        thread.join(20)
    assert rig.statuses(jobs) == ["succeeded"] * 2
    assert running == [(True,)]


def test_suspects_and_normal_work_take_turns(rig: Rig, onnx_file: Path) -> None:
    """A queue of suspects does not hold up the others, nor the others them."""
    model = rig.add("double", small_models.double(onnx_file), max_batch_size=1)
    rig.models.load(model)
    for _ in range(3):
        rig.pixels(model, [1, 1])
    stack.query(_url(rig.store), "UPDATE jobs SET suspect = true")
    for _ in range(3):
        rig.pixels(model, [1, 1])
    reasons = [s["flush_reason"] == "suspect" for s in rig.work()]
    assert reasons == [True, False] * 3


def test_a_model_with_a_delay_waits_for_more_rows(rig: Rig, onnx_file: Path) -> None:
    """A job that comes within max_queue_delay_microseconds runs in the same forward pass."""
    model = rig.add("double", small_models.double(onnx_file), max_queue_delay_microseconds=1_000_000)
    rig.models.load(model)
    first = rig.pixels(model, [1, 1])
    summaries: list[Any] = []
    thread = threading.Thread(target=lambda: summaries.append(rig.engine.run(Lane.ONLINE)))
    thread.start()
    until(lambda: rig.statuses([first]) == ["running"])
    second = rig.pixels(model, [2, 2])
    thread.join(20)
    assert [(s["jobs"], s["flush_reason"]) for s in summaries] == [(2, "delay")]
    assert rig.statuses([first, second]) == ["succeeded"] * 2


def test_a_job_of_better_rank_than_the_floor_is_found_within_a_second(rig: Rig, onnx_file: Path) -> None:
    """While a stream of jobs moves the floor up, an urgent job with an older rank does not starve behind it."""
    model = rig.add("double", small_models.double(onnx_file), max_batch_size=2)
    for i in range(4):
        rig.pixels(model, [i, i])
    rig.engine.run(Lane.ONLINE)
    urgent = rig.pixels(model, [9, 9], rank=1)
    began = time.monotonic()
    while rig.statuses([urgent]) != ["succeeded"]:
        assert time.monotonic() - began < 3
        rig.pixels(model, [1, 1])
        rig.engine.run(Lane.ONLINE)


def test_a_cancelled_job_keeps_its_cancellation(store: Store, redis_url: str, tmp_path: Path) -> None:
    """Cancelled while it was predicted: cancel wins over the finish; its neighbour's result stands."""
    rig: Rig
    jobs: list[Any] = []

    def before(x: Any) -> None:
        if jobs:
            rig.store.jobs.cancel(stack.TENANT, [jobs[0].id])

    rig = Rig(store, redis_url, tmp_path / "models", open_runtime=Doubled(before))
    model = rig.add("double", small_models.double(tmp_path / "m.onnx"))
    jobs += [rig.pixels(model, [1, 1]), rig.pixels(model, [2, 2])]
    rig.work()
    assert rig.statuses(jobs) == ["cancelled", "succeeded"]


def test_the_least_recently_used_model_makes_room(rig: Rig, onnx_file: Path) -> None:
    """With room for one model, the second one's load unloads the first; work for both is done."""
    small_models.double(onnx_file)
    first, second = rig.add("first", onnx_file), rig.add("second", onnx_file)
    rig.models._limit_bytes = int(onnx_file.stat().st_size * 1.5)
    for model in (first, second, first):
        job = rig.pixels(model, [1, 1])
        rig.work()
        assert rig.statuses([job]) == ["succeeded"]
    assert rig.models.refs() == "first@1"


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_that_falls_back_to_the_cpu_is_an_error(rig: Rig, onnx_file: Path) -> None:
    """A machine without a GPU refuses BATCHLINE_DEVICE=cuda instead of running slowly on the CPU."""
    model = rig.add("double", small_models.double(onnx_file))
    rig.models._open = opener("cuda:0", 1)
    job = rig.pixels(model, [1, 1])
    rig.work()
    assert rig.statuses([job]) == ["queued"]
    assert stack.query(_url(rig.store), "SELECT failures FROM jobs") == [(1,)]


def _url(store: Store) -> str:
    return store.db.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)

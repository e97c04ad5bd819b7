"""`python -m workers`: settings, store, queue, models, engine; runs until SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

from batchline import logs, metrics, settings
from batchline.data import places_of
from batchline.data.blobs import Blobs
from batchline.data.model_blobs import ModelBlobs
from batchline.errors import BatchlineError, StoreUnavailableError
from batchline.job import Lane
from batchline.queue.celery_queue import CeleryNudger, run_worker, stop_worker
from batchline.queue.hints import Hints
from batchline.settings import Settings
from batchline.store import Store, migrations, open_store
from workers.bulk_sizes import BulkSizes
from workers.engine import Engine
from workers.heartbeat import Heart
from workers.idle import Newcomers, look_for_work
from workers.leaving import GIVE_BACK_S, Leave
from workers.model_files import Cache, ModelFiles
from workers.models import Models
from workers.predict import Device, Predictor, Sizes
from workers.reporting import Reporter
from workers.runtimes.choice import Runtimes
from workers.slices import SliceRunner
from workers.spot_notice import IMDS, Imds, SpotNotice
from workers.turns import Turns
from workers.works import Works, warm

log = logging.getLogger("workers")

_HEART_STATEMENT_S = 5.0


def main() -> int:
    config = settings.load()
    logs.configure(level=config.log_level)
    runtimes = Runtimes(config.device, config.intra_op_threads)
    migrations.check(config.database_url)
    metrics.serve(config.metrics_port, config.metrics_host)
    store = open_store(config.database_url, connections=config.connections - 1)
    own = open_store(config.database_url, connections=1, statement_timeout_s=_HEART_STATEMENT_S)
    hints = Hints(config.redis_url)
    nudger = CeleryNudger(config.redis_url, hints)
    device, turns, leave = Device(), Turns(), Leave()
    _listen_for_signals(leave)
    blobs = ModelBlobs(Blobs(places_of(config)))
    models = Models(
        ModelFiles(config.models, blobs, _cache(config)),
        store.catalogue,
        runtimes.open,
        limit_bytes=config.models_limit_bytes,
        check=runtimes.check,
    )
    heart = Heart(
        own.workers,
        config,
        loaded=models.refs,
        done=turns.done,
        worked=turns.worked,
        on_drain=lambda: _drain(leave),
        report=Reporter(own.costs, turns).tell,
    )
    engine = _engine(
        config, store, models, device=device, turns=turns, hints=hints, nudger=nudger, heart=heart, leave=leave
    )
    heart.bury_the_dead()
    device.watch()
    threading.Thread(target=_see_out, args=(leave, turns, store, heart, config), name="leave", daemon=True).start()
    _listen_for_notices(config, leave)
    _prepare(config, store, models, engine, blobs)
    if not leave.closing.is_set():  # who registers counts as capacity: not before its models are loaded
        heart.start()
    for lane in Lane:
        looking = (engine, lane, config.idle_poll_s)
        threading.Thread(target=look_for_work, args=looking, name="idle", daemon=True).start()
    try:
        return run_worker(
            config.redis_url,
            name=f"worker-{os.getpid()}",
            pool=config.pool,
            concurrency=config.concurrency + 1,  # one for bulk
            run=engine.run,
            on_ready=lambda: log.info("worker ready", extra={"models": models.refs()}),
            on_drain=lambda: leave.ask("SIGTERM"),
        )
    finally:
        leave.begin("the end", leave.left_s if leave.closing.is_set() else 0.0)
        leave.let_finish(turns)
        turns.wait_empty(_give_back_s(config))
        heart.stop()
        nudger.close()
        hints.close()
        device.close()
        store.close()
        own.close()


def _engine(
    config: Settings,
    store: Store,
    models: Models,
    *,
    device: Device,
    turns: Turns,
    hints: Hints,
    nudger: CeleryNudger,
    heart: Heart,
    leave: Leave,
) -> Engine:
    """The stations of both lanes, over one device."""
    sizes = Sizes()
    predictor = Predictor(device, sizes)
    run_slice = SliceRunner(
        config,
        claims=store.claims,
        slices=store.slices,
        open_work=Works(config, store.results).open,
        predictor=predictor,
        pace=BulkSizes(sizes, bulk_s=config.bulk_ms / 1000),
        turns=turns,
        draining=leave.draining,
    )
    return Engine(
        config,
        claims=store.claims,
        models=models,
        predictor=predictor,
        sizes=sizes,
        turns=turns,
        hints=hints,
        nudger=nudger,
        worker_id=lambda: heart.worker_id,
        run_slice=run_slice,
        leave=leave,
        on_empty=heart.soon,
    )


def _listen_for_signals(leave: Leave) -> None:
    """Leave in good order from the first moment; once it runs, Celery's handlers stand in for these."""
    threading.Thread(target=leave.heed, name="signals", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: leave.ask(signal.Signals(number).name))


def _listen_for_notices(config: Settings, leave: Leave) -> None:
    """Watch the machine's metadata for the news that it will be taken away."""
    if config.spot_notice:
        imds = Imds(IMDS if config.spot_notice == "imds" else config.spot_notice)
        watch = SpotNotice(imds, leave.begin)
        threading.Thread(target=watch.watch, args=(leave.closing,), name="spot", daemon=True).start()


def _cache(config: Settings) -> Cache:
    folder = Path(config.model_cache) if config.model_cache else config.models / ".cache"
    return Cache(folder, config.model_cache_bytes)


def _prepare(config: Settings, store: Store, models: Models, engine: Engine, blobs: ModelBlobs) -> None:
    """Register newcomers and load what there is, so that ready means loaded; then keep looking for newcomers."""
    newcomers = Newcomers(config.models, store.catalogue, blobs)
    warm()
    for prepare in (newcomers.look, lambda: models.preload(config.pool)):
        try:
            prepare()
        except BatchlineError as e:
            log.warning("models not loaded in advance", extra={"error": e.detail})
    threading.Thread(target=newcomers.watch, args=(engine.closing,), name="newcomers", daemon=True).start()


def _see_out(leave: Leave, turns: Turns, store: Store, heart: Heart, config: Settings) -> None:
    """Once this process leaves: tell Postgres, and come to an end."""

    def note() -> None:
        try:
            store.workers.drain(heart.worker_id)
        except StoreUnavailableError as e:
            log.info("drain not noted", extra={"error": e.detail})

    leave.see_out(turns, note=note, stop=stop_worker, give_back_s=_give_back_s(config))


def _drain(leave: Leave) -> None:
    """Postgres has this worker drain: it may finish what it holds. Who leaves already has noted that there himself."""
    if not leave.closing.is_set():
        leave.begin("told to drain", GIVE_BACK_S)


def _give_back_s(config: Settings) -> float:
    return min(config.lease_s, GIVE_BACK_S)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BatchlineError as e:
        sys.exit(f"worker: {e.detail}")

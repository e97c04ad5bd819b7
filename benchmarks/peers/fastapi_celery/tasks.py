"""The peer's Celery half: a prefork worker whose every child holds its own ONNX Runtime session."""

import os

import numpy as np
import onnxruntime
from celery import Celery
from celery.signals import worker_process_init

app = Celery("peer", broker=os.environ["PEER_REDIS_URL"], backend=os.environ["PEER_REDIS_URL"])
app.conf.update(
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    result_expires=3600,
)

_session: onnxruntime.InferenceSession | None = None


@worker_process_init.connect
def load_model(**_):
    """Load the model once per child, after the fork: ONNX Runtime's threads do not survive one."""
    global _session  # noqa: PLW0603 - one model per process is the pattern of Celery's own documentation
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    _session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"])


@app.task(name="peer.predict")
def predict(rows):
    """Score rows, B lists of 64 floats, and return one {"label", "probabilities"} a row."""
    label, probabilities = _session.run(None, {_session.get_inputs()[0].name: np.asarray(rows, np.float32)})
    return [{"label": n, "probabilities": p} for n, p in zip(label.tolist(), probabilities.tolist(), strict=True)]

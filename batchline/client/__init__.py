"""The SDK: submit rows, wait for results, survive what lies between.

    with Client() as client:
        job = client.wait(client.submit("digits", rows))
        for row in client.rows(job): ...
        table = client.batch("churn", "customers.parquet", key="id").to_arrow()

`calls` decides what to send and when to try again, and knows no network; `clients` sends it, with and without await.
"""

from batchline.client.batch_calls import BatchOptions
from batchline.client.batch_results import BatchInfo
from batchline.client.batches import AsyncBatch, Batch
from batchline.client.calls import SubmitOptions
from batchline.client.clients import AsyncClient, Client
from batchline.client.results import Job, Model, ModelVersion, RowError, Timings, Traffic

__all__ = [
    "AsyncBatch",
    "AsyncClient",
    "Batch",
    "BatchInfo",
    "BatchOptions",
    "Client",
    "Job",
    "Model",
    "ModelVersion",
    "RowError",
    "SubmitOptions",
    "Timings",
    "Traffic",
]

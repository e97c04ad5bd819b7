"""The peer: Ray Data, read_parquet -> map_batches -> write_parquet, as its manual has batch inference.

Reads {"model", "source", "target", "batch_rows"} as JSON from stdin once for every line and prints one sample a line;
Ray stays up between the lines, so that its start is not counted.
"""

import json
import logging
import shutil
import sys
import time

import numpy as np
import ray

FEATURES = [f"f{i}" for i in range(30)]


class Net:
    """One ONNX Runtime session an actor."""

    def __init__(self, path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, batch):
        """Score one batch: columns by name, [B] each."""
        x = np.column_stack([batch[name] for name in FEATURES])
        label, probabilities = self.session.run(["label", "probabilities"], {"features": x})
        return {"id": batch["id"], "label": label, "probabilities": probabilities}


def score(task):
    shutil.rmtree(task["target"], ignore_errors=True)
    start = time.perf_counter()
    rows = ray.data.read_parquet(task["source"])
    scored = rows.map_batches(
        Net, fn_constructor_args=(task["model"],), batch_size=task["batch_rows"], concurrency=1, num_cpus=1
    )
    scored.write_parquet(task["target"])
    spent_s = time.perf_counter() - start
    return {"rows_per_s": task["rows"] / spent_s, "seconds": spent_s, "rows": task["rows"]}


if __name__ == "__main__":
    ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    for line in sys.stdin:
        print(json.dumps(score(json.loads(line))), flush=True)

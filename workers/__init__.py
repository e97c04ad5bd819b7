"""The worker process: claim, collate, predict, write."""

import os

# ONNX Runtime's Linux wheels report to their maker over the network, from the import on, unless this is set before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

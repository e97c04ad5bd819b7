"""The worker as if on another host: it cannot see that a dead worker's process is gone, and must wait for its lease."""

import runpy

from workers import heartbeat

assert hasattr(heartbeat, "host_identity")
heartbeat.host_identity = lambda: "elsewhere/1"
runpy.run_module("workers", run_name="__main__", alter_sys=True)

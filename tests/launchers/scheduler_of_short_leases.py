"""The scheduler, whose webhooks have less time: three seconds an attempt, five the lease of who dies with it."""

import runpy

from scheduler.deliveries import Deliveries
from scheduler.posting import Poster

Poster.__init__.__kwdefaults__["timeout_s"] = 3.0
Deliveries.__init__.__kwdefaults__["lease_s"] = 5.0
runpy.run_module("scheduler", run_name="__main__", alter_sys=True)

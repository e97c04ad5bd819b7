"""The scheduler, with less time for webhooks: three seconds an attempt, five the lease of who dies, one to the next."""

import runpy

from batchline import webhook
from scheduler.deliveries import Deliveries
from scheduler.posting import Poster

Poster.__init__.__kwdefaults__["timeout_s"] = 3.0
Deliveries.__init__.__kwdefaults__["lease_s"] = 5.0
webhook.RETRIES_S = (1,) * len(webhook.RETRIES_S)
runpy.run_module("scheduler", run_name="__main__", alter_sys=True)

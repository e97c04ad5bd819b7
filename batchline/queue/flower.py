"""`python -m batchline.queue.flower`: Flower over our Celery app, behind a login.

Its `/metrics` and `/healthcheck` stay open even so (Flower's doing): keep its port off public networks.
"""

from __future__ import annotations

import sys

from batchline import settings
from batchline.errors import BatchlineError
from batchline.queue.celery_queue import make_app


def main() -> None:
    config = settings.load(needs=("redis_url", "flower_basic_auth"))
    # Within this process only: on a real command line everybody could read the password.
    arguments = [
        "flower",
        f"--address={config.flower_host}",
        f"--port={config.flower_port}",
        f"--basic-auth={config.flower_basic_auth}",
        "--max-tasks=10000",
    ]
    make_app(config.redis_url).start(arguments)


if __name__ == "__main__":
    try:
        main()
    except BatchlineError as e:
        sys.exit(f"flower: {e.detail}")

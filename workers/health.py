"""`python -m workers.health`: ends with 0 while a worker of this machine holds its lease. For health checks."""

from __future__ import annotations

import sys

from batchline import settings
from batchline.errors import BatchlineError
from batchline.store import open_store
from workers.heartbeat import host_identity


def main() -> int:
    """Ask Postgres, since a worker that cannot reach it is not well either."""
    try:
        store = open_store(settings.load(needs=("database_url",)).database_url, connections=1, statement_timeout_s=5.0)
        here = host_identity()
        return 0 if any(w.live and w.host == here for w in store.workers.list()) else 1
    except BatchlineError as e:
        print(e.detail, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""The background process of a detached `up`: FOLDER LOCK_DESCRIPTOR OPTIONS_AS_JSON."""

import sys
from pathlib import Path

import msgspec

from batchline import logs
from batchline.errors import BatchlineError
from batchline.local.plan import Options
from batchline.local.stack import failure_path, supervise

if __name__ == "__main__":
    folder, lock, options = sys.argv[1:]
    logs.configure(as_json=False)
    try:
        supervise(Path(folder), msgspec.json.decode(options, type=Options), int(lock))
    except BatchlineError as e:
        failure_path(Path(folder)).write_text(e.detail, encoding="utf-8")
        sys.exit(1)

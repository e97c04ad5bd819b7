"""`python -m api`: one API process."""

from __future__ import annotations

import sys

from api.process import main

if __name__ == "__main__":
    sys.exit(main())

"""A worker's first conversion: made where pandas is installed, and without importing it."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
import numpy, pyarrow
from workers.works import warm
warm()
assert pyarrow.array(numpy.arange(3)).to_pylist() == [0, 1, 2]
assert "pandas" not in sys.modules, "from numpy"
for values in ([0.5, None], ["a", None], [b"a"], [True, None], [[1.0], [2.0]]):
    pyarrow.chunked_array([values]).chunk(0).to_numpy(zero_copy_only=False)
    assert "pandas" not in sys.modules, values
"""


def test_warming_up_converts_without_pandas() -> None:
    """A fresh process warms up, converts afterwards, and has not imported pandas."""
    subprocess.run([sys.executable, "-c", _PROGRAM], check=True, timeout=60)

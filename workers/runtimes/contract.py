"""What the worker asks of a runtime: open a model from bytes, run one micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from batchline.model import ModelSpec
from batchline.rows import Array


class Runtime(Protocol):
    """One opened model on one device."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one forward pass.

        Args:
            inputs: one array [B, ...] for each declared input.

        Returns:
            One array for each output; the caller checks that each has B rows.

        Raises:
            OutOfMemoryError: the device had no room for B rows.
            Exception: whatever the runtime says when it cannot run these rows.
        """
        ...


OpenRuntime = Callable[[ModelSpec, bytes], Runtime]
"""Opens a model from the bytes of its file; raises ModelError when it cannot."""

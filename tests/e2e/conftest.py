"""Models that whole-system tests run."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import digits


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the digits model."""
    folder = tmp_path_factory.mktemp("digits")
    digits.build(folder)
    return folder

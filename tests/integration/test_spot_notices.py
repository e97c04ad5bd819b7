"""Spot notices in the middle of a batch: real workers, a fake metadata service, every row counted."""

from __future__ import annotations

from pathlib import Path

import batch_rig
import pytest
import spot_rounds
from worker_rig import Rig

from batchline.store import Store


@pytest.fixture
def rig(store: Store, redis_url: str, tmp_path: Path) -> Rig:
    (tmp_path / "data").mkdir()
    return Rig(store, redis_url, tmp_path / "models", **batch_rig.settings_of(tmp_path))


def test_a_spot_notice_loses_no_row_and_repeats_at_most_the_slice_in_hand(
    rig: Rig, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Where there is time the slice is finished and nothing is repeated; else it is given back whole and uncharged."""
    rounds, cost = spot_rounds.interrupted(rig, tmp_path, database_url, redis_url, rounds=2)
    spot_rounds.check(rounds, cost)


def test_a_worker_that_ignores_the_notice_is_found_out(
    rig: Rig, database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MUTANT: nobody asks the metadata service, and the instance is taken away with a slice half done."""
    monkeypatch.setattr(spot_rounds, "ENOUGH_S", 3.0)
    rounds, cost = spot_rounds.interrupted(rig, tmp_path, database_url, redis_url, rounds=1, deaf=True)
    assert (cost.lost, cost.twice) == (0, 0), "the lease brings the work back"
    assert cost.repeated > 0
    assert cost.rescued > 0
    with pytest.raises(AssertionError):
        spot_rounds.check(rounds, cost)

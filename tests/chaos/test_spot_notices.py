"""The long form of the spot-notice test: twenty instances are taken away from one batch; run by `make chaos`."""

from __future__ import annotations

from pathlib import Path

import batch_rig
import pytest
import spot_rounds
from worker_rig import Rig

from batchline.store import Store


@pytest.mark.timeout(1200)
def test_twenty_spot_notices_lose_no_row_and_repeat_at_most_a_slice_each(
    store: Store, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Ten with enough time to finish the slice in hand, which repeat nothing, and ten with none."""
    (tmp_path / "data").mkdir()
    rig = Rig(store, redis_url, tmp_path / "models", **batch_rig.settings_of(tmp_path))
    rounds, cost = spot_rounds.interrupted(rig, tmp_path, database_url, redis_url, rounds=20)
    print(f"\n{len(rounds)} notices, {cost}")
    spot_rounds.check(rounds, cost)
    assert cost.repeated > 0

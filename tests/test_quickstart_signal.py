"""What the quickstart shows must be more than chance: fusing levels beats laterals alone by more than seeds vary."""

from __future__ import annotations

import runpy
import statistics
from pathlib import Path

import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "quickstart_signal.py"))


@pytest.mark.slow  # a minute and a half of training
def test_fpn_beats_laterals_only_by_more_than_the_seeds_spread(tmp_path: Path):
    settings = BENCHMARK["Settings"].load()
    aps: dict[str, list[float]] = {}
    for neck, _, result in BENCHMARK["measure"](settings, ["fpn", "channel_mapper"], range(3), tmp_path):
        aps.setdefault(neck, []).append(result.ap.ap)
    fused, apart = aps["fpn"], aps["channel_mapper"]
    difference = statistics.mean(fused) - statistics.mean(apart)
    assert difference > max(statistics.stdev(fused), statistics.stdev(apart)), aps
    assert min(fused) > max(apart), aps

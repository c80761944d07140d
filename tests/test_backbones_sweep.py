"""Every name that timm lists, at two image sizes; the tables under results/ come of the same script."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "backbone_sweep.py"


def _rows(tmp_path: Path, *arguments: str) -> list[dict[str, str]]:
    out = tmp_path / "sweep.csv"
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments, "--out", out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["256x256", "320x416"])
def test_ninety_nine_of_a_hundred_names_feed_a_pyramid(tmp_path: Path, size: str) -> None:
    rows = _rows(tmp_path, "--image-size", size, "--without-plain")
    refused = {row["name"]: row["reason"] for row in rows if row["ok"] != "1"}
    assert len(refused) <= 0.0103 * len(rows), refused
    assert all(refused.values())


def test_a_file_is_continued(tmp_path: Path) -> None:
    (good,) = _rows(tmp_path, "--image-size", "96x160", "--names", "pit_ti_224", "--real-below", "1e7")
    assert (good["ok"], good["real"], good["padded"], good["plain_ok"]) == ("1", "1", "", "0")
    again, bad = _rows(tmp_path, "--image-size", "96x160", "--names", "crossvit_9_240")
    assert again == good
    assert (bad["name"], bad["ok"]) == ("crossvit_9_240", "0")
    assert "do not follow the image" in bad["reason"]

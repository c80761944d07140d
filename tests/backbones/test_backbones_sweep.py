"""Every name that timm lists, at two image sizes; the tables under results/ come of the same script."""

import csv
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "backbone_sweep.py"


def _start(out: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), *arguments, "--out", str(out)]
    with _complaints(out).open("w") as file:  # not a pipe: it would be full before it is read
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)


def _complaints(out: Path) -> Path:
    return out.with_name(f"{out.name}.txt")


def _rows(sweep: subprocess.Popen[bytes], out: Path) -> list[dict[str, str]]:
    assert sweep.wait() == 0, _complaints(out).read_text()[-2000:]
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_ninety_nine_of_a_hundred_names_feed_a_pyramid(tmp_path: Path) -> None:
    sizes = ["256x256", "320x416"]
    sweeps = {size: _start(tmp_path / size, "--image-size", size, "--without-plain") for size in sizes}  # side by side
    for size, sweep in sweeps.items():
        rows = _rows(sweep, tmp_path / size)
        refused = {row["name"]: row["reason"] for row in rows if row["ok"] != "1"}
        assert len(refused) <= 0.0103 * len(rows), refused
        assert all(refused.values())


def test_a_file_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: another one would first import torch for seconds."""
    out = tmp_path / "sweep.csv"
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path))  # the script sets another, which is taken back with this one

    def rows(*arguments: str) -> list[dict[str, str]]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--image-size", "96x160", *arguments, "--out", str(out)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        with out.open(newline="") as file:
            return list(csv.DictReader(file))

    (good,) = rows("--names", "test_vit", "--real-below", "1e7")
    assert (good["ok"], good["real"], good["padded"], good["plain_ok"]) == ("1", "1", "", "0")
    again, bad = rows("--names", "crossvit_9_240")
    assert again == good
    assert (bad["name"], bad["ok"]) == ("crossvit_9_240", "0")
    assert "do not follow the image" in bad["reason"]

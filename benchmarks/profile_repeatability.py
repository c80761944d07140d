"""Does a second profile say the same? Twenty necks on one backbone, profiled in two processes, one after the other.

The cache folder is one of its own, in which two short profiles have gone before: how well processes agree on a device
is known from the third on.

Reported: Kendall's tau between the two rankings, over the pairs that the intervals of both profiles separate; and the
share of necks whose two intervals overlap.

    python benchmarks/profile_repeatability.py --device cpu --out results/profile_repeatability.csv
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CANDIDATES = [
    *("channel_mapper", "top_only", "fpn", "pafpn", "bfp", "unet", "semantic_fpn", "fpn_carafe", "csp_pafpn", "lc_pan"),
    *("bifpn,repeats=1", "bifpn,repeats=2", "bifpn,repeats=3", "qufpn,repeats=1", "fpn,channels=48", "fpn,channels=96"),
    *("pafpn,channels=48", "pafpn,channels=96", "fpn,merge=concat", "asff"),
]
CLI = "from fpn_bench.cli import main; main()"
FIELDS = (
    *("candidate", "process", "median_ms", "low_ms", "high_ms", "p90_ms", "samples", "converged"),
    *("clock_ms", "speed", "spread", "macs", "machine"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", default="256x256")
    parser.add_argument("--channels", default="64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--budget", default="3", help="seconds for each neck")
    parser.add_argument("--out", type=Path, default=Path("profile_repeatability.csv"))
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    cache = tempfile.mkdtemp()
    for process in (-1, 0, 1, 2):
        command = [sys.executable, "-c", CLI, "profile", *(CANDIDATES if process > 0 else CANDIDATES[:2]), "--json"]
        for name in ("backbone", "image_size", "channels", "device", "threads", "budget"):
            command += [f"--{name.replace('_', '-')}", getattr(args, name)]
        environment = os.environ | {"FPN_BENCH_CACHE": cache}
        answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        if process < 1:
            continue
        for found in json.loads(answer.stdout)["profiles"]:
            row = {field: found["latency"].get(field) for field in FIELDS}
            row |= {"candidate": found["name"], "process": process}
            rows.append(row | {"macs": found["static"]["macs"], "machine": found["machine"]["label"]})
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    report(args.out)


def report(path: Path) -> None:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    first, second = ({r["candidate"]: r for r in rows if r["process"] == p} for p in "12")
    concordant = discordant = 0
    for a, b in itertools.combinations(first, 2):
        if all(separated(profile[a], profile[b]) for profile in (first, second)):
            same = (median(first[a]) < median(first[b])) == (median(second[a]) < median(second[b]))
            concordant, discordant = concordant + same, discordant + (not same)
    overlap = [name for name in first if not separated(first[name], second[name])]
    pairs = concordant + discordant
    shift = sorted(abs(median(second[n]) / median(first[n]) - 1) for n in first)
    print(f"{path}: {len(first)} necks, {pairs} of {len(first) * (len(first) - 1) // 2} pairs separated in both")
    tau = f"{(concordant - discordant) / pairs:.3f}" if pairs else "undefined"
    print(f"Kendall's tau over these: {tau}")
    print(f"intervals of one neck overlap: {len(overlap)} of {len(first)}")
    print(
        f"change of a median from one process to the other: {shift[len(shift) // 2]:.1%} at the median, {shift[-1]:.1%}"
    )


def separated(a: dict[str, str], b: dict[str, str]) -> bool:
    return float(a["high_ms"]) < float(b["low_ms"]) or float(b["high_ms"]) < float(a["low_ms"])


def median(row: dict[str, str]) -> float:
    return float(row["median_ms"])


if __name__ == "__main__":
    main()

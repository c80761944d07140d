"""How large a report gets and how long it takes: bytes of the page, seconds of `write_report`, by number of trials.

    python benchmarks/report_size.py [--trials 100 5000 50000]

Rows as a search writes them: thousands of distinct necks of five families with their own graphs and costs, the first
dozen of them published ones, AP and latency made up with noise, one in eight rejected, one in twenty-five failed,
learning curves at two rungs, a second seed for one in ten. Seconds are given by the clock and, after the stroke, of the
processor.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fpn_bench.analysis import make_table
from fpn_bench.graph import cost
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.reports import write_report
from fpn_bench.zoo import create_graph

FEATURES = (FeatureSpec(3, 40, 8), FeatureSpec(4, 112, 16), FeatureSpec(5, 320, 32))
FAMILIES: dict[str, dict[str, list[Any]]] = {
    "fpn": {"merge": ["sum", "max", "concat", "fast_normalised"], "repeats": [1, 2, 3, 4], "separable": [False, True]},
    "pafpn": {"merge": ["sum", "max", "concat", "fast_normalised"], "separable": [False, True]},
    "bifpn": {"repeats": [1, 2, 3, 4, 5], "fusion": ["fast_normalised", "softmax", "sum"]},
    "channel_mapper": {},
    "top_only": {},
}
DISTINCT = 5_000
"""Networks drawn; further trials take one of them again, under another id."""
PUBLISHED = 12
OBJECTIVES = [
    {"name": "ap", "direction": "maximize"},
    {"name": "macs", "direction": "minimize"},
    {"name": "latency_ms", "direction": "minimize"},
]


def neck(rng: np.random.Generator) -> dict[str, Any]:
    """The columns that follow from a random neck."""
    family = str(rng.choice(list(FAMILIES)))
    chosen = {name: values[rng.integers(len(values))] for name, values in FAMILIES[family].items()}
    channels, levels = int(rng.integers(16, 257)), tuple(range(3, int(rng.integers(6, 9))))
    graph = create_graph(family, FEATURES, levels, channels, **chosen)
    costs = cost(graph, (256, 256))
    choices = {"family": family, "channels": channels, "out_levels": list(levels), **chosen}
    return {
        "neck": family,
        "neck_label": f"{family} {channels}ch P3-P{levels[-1]} " + " ".join(f"{k}={v}" for k, v in chosen.items()),
        "neck_params": costs.params,
        "neck_macs": costs.macs,
        "params": 3_400_000 + costs.params,
        "macs": 420_000_000 + costs.macs,
        "graph": graph.to_json(),
        **{f"choice.{name}": value for name, value in choices.items()},
    }


def rows(trials: int) -> list[dict[str, Any]]:
    """A search of so many trials."""
    rng = np.random.default_rng(0)
    necks = [neck(rng) for _ in range(min(trials, DISTINCT))]
    made = []
    for trial in range(trials):
        facts = necks[trial] if trial < DISTINCT else necks[rng.integers(DISTINCT)]
        latency = float(7.5 + facts["macs"] / 1.6e8 * rng.uniform(0.97, 1.03))
        ap = float(12 + 2 * np.log10(facts["neck_params"]) + rng.normal(0, 0.8))
        row = {
            "study": "sizes",
            "trial": trial,
            "candidate": f"c{trial:015x}",
            "seed": 0,
            "protocol": "1f0c5a7e9b21",
            "source": "published" if trial < PUBLISHED else "sampled",
            "dataset": "made up",
            "image_height": 256,
            "image_width": 256,
            "backbone": "tf_efficientnet_lite0",
            "weights_random": False,
            "epochs": 8,
            "latency_device": "cpu",
            **facts,
            "latency_ms": latency,
            "latency_low_ms": latency * 0.98,
            "latency_high_ms": latency * 1.02,
            "latency_p90_ms": latency * 1.1,
            "started_at": f"2026-02-03T{trial // 3600 % 24:02d}:00:00+00:00",
            "total_s": 40.0,
            "torch": "2.15.0",
            "fpn_bench": "0.1.0",
            "machine": "a",
            "machine_label": "a machine",
        }
        fate = rng.random()
        if fate < 0.04:
            made.append(row | {"status": "failed", "reason": "the loss became nan in epoch 3"})
        elif latency > 26:
            made.append(row | {"status": "rejected", "reason": f"latency_ms {latency:.2f} > 26"})
        else:
            parts = {"ap": ap, "ap50": ap * 1.8, "ap_s": ap * 0.2, "ap_m": ap * 0.8, "ap_l": ap * 1.5}
            curve = json.dumps([[2, ap * 0.6], [4, ap * 0.8], [8, ap]])
            made.append(row | parts | {"status": "complete", "ap_curve": curve, "train_s": 35.0})
            if rng.random() < 0.1:
                made.append(made[-1] | {"seed": 1, "ap": ap + float(rng.normal(0, 0.8)), "source": "confirmed"})
    return made


def seconds(table: pd.DataFrame, path: Path, formats: Sequence[str]) -> str:
    """Of writing the report: by the clock / of the processor."""
    meta = {"name": "sizes", "objectives": OBJECTIVES, "constraints": ["latency_ms <= 26"]}
    clock, processor = time.perf_counter(), time.process_time()
    write_report(table, meta, path, formats=formats)
    return f"{time.perf_counter() - clock:.1f} / {time.process_time() - processor:.1f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 5_000, 50_000])
    options = parser.parse_args()
    print("trials  page MB         page s  all formats but png s")
    for trials in options.trials:
        table = make_table(rows(trials))
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "report.html"
            alone = seconds(table, page, ["html"])
            size_mb = page.stat().st_size / 1e6
            every = seconds(table, page, ["html", "csv", "md", "json"])
            print(f"{trials:6d}  {size_mb:7.2f}  {alone:>13}  {every:>13}", flush=True)


if __name__ == "__main__":
    main()

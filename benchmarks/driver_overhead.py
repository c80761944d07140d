"""What the driver itself costs: milliseconds of a rejected candidate, and its overhead in a trial that is trained.

    python benchmarks/driver_overhead.py [--trials 100]

Real candidates on a real backbone, over a SQLite study as always; only latency and training are made up, so that
what is left is the driver's. A rejected candidate's time holds everything: asking, building the graph, counting params
and MACs, storing and telling.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from typing import Any

import torch

from fpn_bench.search import Described, Space, run_study
from fpn_bench.search.detectors import DetectorEvaluator, prepare
from fpn_bench.search.records import OnProgress


class Instant(DetectorEvaluator):
    """Describes for real; latency and AP are functions of the costs."""

    def measure(self, described: Described) -> Mapping[str, Any]:
        return {"latency_ms": described.facts["macs"] / 1e8}

    def train(self, described: Described, seed: int, epochs: int, on_progress: OnProgress) -> Mapping[str, Any]:
        return {"ap": 20 + described.facts["neck_params"] % 1000 / 100}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100, help="candidates that are not rejected")
    parser.add_argument("--trial-s", type=float, default=40.0, help="seconds of a trial that the share is taken of")
    options = parser.parse_args()
    torch.set_num_threads(1)
    space = Space.load("vehicles").replace(
        data={"kind": "synthetic", "train_images": 4, "val_images": 4},
        constraints=["params <= 6e6", "neck_params <= 200000"],
    )
    with tempfile.TemporaryDirectory() as folder:
        bench, metadata = prepare(space, cache=folder)
        study, result = run_study(
            space, Instant(space, bench), bench.protocol, f"{folder}/study", budget=options.trials, metadata=metadata
        )
        table = study.table()
    print(result.message, "; ".join(f"{n} {status}" for status, n in table.status.value_counts().items()))
    for status, column in (("rejected", "total_s"), ("complete", "overhead_s")):
        values = table.loc[table.status == status, column].astype(float) * 1e3
        what = "whole cost of a rejected candidate" if status == "rejected" else "driver's overhead in a trial"
        print(f"{what}: median {values.median():.0f} ms, p95 {values.quantile(0.95):.0f} ms, max {values.max():.0f} ms")
        if status == "complete":
            print(f"that is {values.mean() / 10 / options.trial_s:.2f} % of a trial of {options.trial_s:g} s (mean)")


if __name__ == "__main__":
    main()

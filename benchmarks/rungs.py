"""How many epochs a search with rungs needs for the front that Optuna's multivariate TPE finds in 100 whole trainings.

    python benchmarks/rungs.py --out results/rungs.csv [--seeds 20]

Searches through the real driver, over learning curves that were recorded from real trainings (`fpn_bench.tabular`), of
seed 0: "training" up to an epoch looks the AP up. A candidate counts once it was trained to the end, at its recorded
AP; hypervolume is that of AP and the cost, from AP 0 and the table's worst cost, as a share of the whole table's. Rows
are appended as studies end, and a second call goes on.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fpn_bench import tabular
from fpn_bench.analysis import mean_interval
from fpn_bench.search import run_study

FULL = "tpe"
METHODS: Mapping[str, tuple[str, tuple[int, ...], str, float]] = {
    "tpe": ("tpe", (), "reach", 0.5),
    "random": ("random", (), "reach", 0.5),
    "known_cost": ("known_cost", (), "reach", 0.5),
    "known_cost, rung 4": ("known_cost", (4,), "reach", 0.5),
    "known_cost, rungs 2 4": ("known_cost", (2, 4), "reach", 0.5),
    "known_cost, rungs 1 2 4": ("known_cost", (1, 2, 4), "reach", 0.5),
    "known_cost, rungs 2 4, nondominated": ("known_cost", (2, 4), "nondominated", 0.5),
    "tpe, rungs 2 4": ("tpe", (2, 4), "reach", 0.5),
}
"""Sampler, rungs, rule, share that goes on."""


def run(
    method: str, table: tabular.TabularBenchmark, cost: str, seed: int, trials: float
) -> list[tuple[float, float, int]]:
    """(whole trainings spent, share of the table's hypervolume, candidates seen) after each trial of a study."""
    kind, rungs, rule, keep = METHODS[method]
    space = table.space.replace(
        objectives={"ap": "maximise", cost: "minimise"},
        sampler={"kind": kind, "seed": seed},
        rungs={"epochs": list(rungs), "rule": rule, "keep": keep},
        budget={"trials": round(trials)},
        enqueue="none",
    )
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        protocol = table.metadata.protocol
        study, _ = run_study(space, table.evaluator(space), protocol, Path(folder) / "study", share=False)
        rows = study.table()
    spent, complete, reached, seen = 0.0, [], [], set()
    for row in rows.to_dict("records"):
        spent += row["paid"] or 0.0
        if row["status"] in ("complete", "stopped", "continued"):
            seen.add(row["candidate"])
        if row["status"] == "complete":
            complete.append(row["candidate"])
        reached.append((spent, table.hypervolume_fraction(complete, ("ap", cost), seed=0), len(seen)))
    return reached


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="curves", help="a shipped table, or the path of one")
    parser.add_argument("--out", type=Path, default=Path("results/rungs.csv"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=100, help="whole trainings of the search to be matched")
    parser.add_argument("--share", type=float, default=0.5, help="of them, what the other methods may spend")
    parser.add_argument("--cost", default="macs")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    args = parser.parse_args()
    table = tabular.load(args.table)
    done = pd.read_csv(args.out) if args.out.is_file() else pd.DataFrame({"method": [], "seed": []})
    finished = set(zip(done["method"], done["seed"], strict=True))
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for method in args.methods:
            if (method, seed) in finished:
                continue
            trials = args.trials if method == FULL else args.trials * args.share
            with args.out.open("a", newline="") as stream:
                writer = csv.writer(stream)
                if not stream.tell():
                    writer.writerow(["method", "seed", "cost", "trainings", "hypervolume", "candidates"])
                for spent, share, seen in run(method, table, args.cost, seed, trials):
                    writer.writerow([method, seed, args.cost, f"{spent:.4f}", f"{share:.5f}", seen])
    report(pd.read_csv(args.out), args.trials)


def report(rows: pd.DataFrame, trials: int) -> None:
    """For each method the trainings until it has what the other one has in the end, means over seeds."""
    final = rows[rows.method == FULL].groupby("seed").hypervolume.last()
    wanted = final.mean()
    print(f"{FULL}, {trials} whole trainings: hypervolume {_mean(final)} of the table's, {len(final)} seeds")
    print(f"{'method':<42}{'trainings until then':>24}{'share':>9}{'never':>7}", end="")
    print(f"{'at 10':>18}{'at 20':>18}{'at the end':>18}")
    for method, of in rows.groupby("method", sort=False):
        needed, never = [], 0
        at: dict[float, list[float]] = {10: [], 20: [], 1e9: []}
        for _, study in of.groupby("seed"):
            above = study[study.hypervolume >= wanted]
            never += above.empty
            needed.append(study.trainings.iloc[-1] if above.empty else above.trainings.iloc[0])
            for limit, found in at.items():
                within = study[study.trainings <= limit + 1e-6]
                found.append(0.0 if within.empty else within.hypervolume.iloc[-1])
        print(
            f"{method:<42}{_mean(needed, 1):>24}{np.mean(needed) / trials:>9.1%}{never:>7}"
            + "".join(f"{_mean(found):>18}" for found in at.values())
        )


def _mean(values: Any, digits: int = 4) -> str:
    """Mean with its 95 % t interval."""
    found = mean_interval(values)
    return f"{found.value:.{digits}f}" + (f" ± {found.high - found.value:.{digits}f}" if found.count > 1 else "")


if __name__ == "__main__":
    main()

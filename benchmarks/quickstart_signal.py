"""Does the quickstart's short training tell a neck that fuses levels from one that does not, beyond the seeds' spread?

    python benchmarks/quickstart_signal.py [--necks fpn channel_mapper pafpn top_only] [--seeds 3] [--space SPACE.yaml]

Trains each neck on the synthetic set with several seeds under the settings of ``search_spaces/quickstart.yaml`` and
prints AP (percent points, COCO rules, val split) by object size, and the seconds a trial takes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from fpn_bench.backbones import create_backbone
from fpn_bench.data.coco import load_coco
from fpn_bench.data.synthetic import write_synthetic
from fpn_bench.detection.detector import Detector
from fpn_bench.nn.neck import build_neck
from fpn_bench.training import FeatureCache, HeadConfig, TrainingRecipe, TrainingResult, seeded, train_detector
from fpn_bench.zoo import create_graph

QUICKSTART = Path(__file__).parent.parent / "search_spaces" / "quickstart.yaml"
NECKS = ("fpn", "channel_mapper")


@dataclass(frozen=True)
class Settings:
    """What the quickstart trains with.

    Attributes:
        data: options of the drawing.
        image_size: (height, width) of the network's input.
        channels: width of the neck.
    """

    data: dict[str, Any]
    backbone: str
    weights: str
    image_size: tuple[int, int]
    head: HeadConfig
    training: TrainingRecipe
    channels: int = 64

    @classmethod
    def load(cls, path: Path = QUICKSTART) -> Settings:
        space = yaml.safe_load(path.read_text())
        return cls(
            data={option: value for option, value in space["data"].items() if option != "kind"},
            backbone=space["backbone"]["name"],
            weights=space["backbone"]["weights"],
            image_size=tuple(space["image_size"]),
            head=HeadConfig(**space["head"]),
            training=TrainingRecipe(**space["training"]),
        )


def measure(
    settings: Settings, necks: Sequence[str], seeds: Sequence[int], folder: Path
) -> Iterator[tuple[str, int, TrainingResult]]:
    """Train every neck with every seed; yields (neck, seed, result). The set and the cache are kept in ``folder``."""
    data = load_coco(write_synthetic(folder, **settings.data))
    backbone = create_backbone(settings.backbone, weights=settings.weights)
    train, val = (
        FeatureCache.open_or_build(
            backbone,
            data.splits[split],
            dataset_hash=data.hash,
            split=split,
            image_size=settings.image_size,
            root=folder / "features",
            mirror=split == "train" and settings.training.mirror,
        )
        for split in ("train", "val")
    )
    for neck in necks:
        graph = create_graph(neck, backbone.features, channels=settings.channels)
        for seed in seeds:
            with seeded(seed):
                detector = Detector(build_neck(graph), len(data.classes), settings.head)
            yield neck, seed, train_detector(detector, train, val, recipe=settings.training, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--necks", nargs="+", default=list(NECKS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds a neck")
    parser.add_argument("--space", type=Path, default=QUICKSTART, help="whose backbone, image size, head and training")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--folder", type=Path, help="where the set and the cache are kept (default: nowhere)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = Settings.load(arguments.space)
    print(settings)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        results: dict[str, list[TrainingResult]] = {}
        started = time.perf_counter()
        for neck, seed, result in measure(settings, arguments.necks, range(arguments.seeds), folder):
            if not results:
                before_s = time.perf_counter() - started - result.train_s - result.evaluate_s
                print(f"drawing and caching {before_s:.1f} s\n")
                print("neck            seed     AP   AP50    APs    APm    APl  train s  evaluate s")
            results.setdefault(neck, []).append(result)
            ap = result.ap
            print(
                f"{neck:<15} {seed:4d} {ap.ap:6.1f} {ap.ap50:6.1f} {ap.ap_s:6.1f} {ap.ap_m:6.1f} {ap.ap_l:6.1f} "
                f"{result.train_s:8.1f} {result.evaluate_s:11.1f}",
                flush=True,
            )
    print()
    for neck, runs in results.items():
        aps = [run.ap.ap for run in runs]
        spread = f"{statistics.stdev(aps):.2f}" if len(aps) > 1 else "-"
        print(f"{neck:<15} mean {statistics.mean(aps):5.2f}  s.d. {spread}  {min(aps):.1f} .. {max(aps):.1f}")


if __name__ == "__main__":
    main()

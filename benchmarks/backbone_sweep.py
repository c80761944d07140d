"""Which of timm's names feed a pyramid P3-P5 at an image size, how, and why the others do not.

Beside each name stands what the plain wiring gives: torchvision's FPN straight on timm's `features_only`.

    python benchmarks/backbone_sweep.py --image-size 320x416 --out results/backbones_320x416.csv
    python benchmarks/backbone_sweep.py --summary results/backbones_*.csv

Every name is built and run on the meta device; what cannot run there is run on real tensors, and so is plain wiring
of models that declare a fixed size (of less than 1e9 parameters). `--real-below 20e6` runs every pyramid of fewer
parameters on real tensors too, and looks whether the image's last row and column reach every map. Names that the file
holds already are not done again.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections import OrderedDict
from pathlib import Path

import timm
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from fpn_bench.backbones import BackboneInfo, create_backbone, describe_backbone, list_backbones
from fpn_bench.errors import MeasurementError
from fpn_bench.profiling import ANY_ERROR, translate_torch_errors
from fpn_bench.pyramid import ImageSize, level_sizes, map_size

LEVELS = (3, 4, 5)
LARGEST_REAL_PARAMS = 1e9
"""What plain wiring of larger models gives is taken from the meta device: their weights may be more than the memory."""
FIELDS = (
    "name",
    "family",
    "params",
    "levels",
    "strides",
    "recipe",
    "padded",
    "made",
    "ok",
    "real",
    "reason",
    "probe_cpu_s",
    "plain_runs",
    "plain_ok",
    "plain_reason",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", default="320x416", help="HEIGHTxWIDTH")
    parser.add_argument("--out", type=Path, help="CSV, written as it goes")
    parser.add_argument("--names", default="*", help="shell pattern of timm names")
    parser.add_argument("--free-only", action="store_true", help="only models that declare no fixed input size")
    parser.add_argument("--real-below", type=float, default=0, help="parameters up to which real tensors are run too")
    parser.add_argument("--without-plain", action="store_true", help="leave plain wiring out")
    parser.add_argument("--summary", nargs="+", type=Path, help="only count what these files hold")
    args = parser.parse_args()
    if args.summary:
        for path in args.summary:
            summarise(path)
        return
    height, width = map(int, args.image_size.split("x"))
    out: Path = args.out or Path(f"backbones_{height}x{width}.csv")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as home:
        os.environ["FPN_BENCH_CACHE"] = home  # every probe is made and timed, none read
        sweep(names_wanted(args.names, args.free_only), (height, width), out, args.real_below, not args.without_plain)
    summarise(out)


def names_wanted(pattern: str, free_only: bool) -> list[str]:
    names = list_backbones(pattern)
    return [n for n in names if not (free_only and timm.get_pretrained_cfg(n).fixed_input_size)]


def sweep(names: list[str], image_size: ImageSize, out: Path, real_below: float, with_plain: bool) -> None:
    done = {row["name"] for row in read(out)} if out.exists() else set()
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not done:
            writer.writeheader()
        for count, name in enumerate(names):
            if name in done:
                continue
            row, params = row_of(name, image_size, real_below)
            writer.writerow(row | plain(name, image_size, params) if with_plain else row)
            file.flush()
            print(f"\r{count + 1}/{len(names)} {name:<60}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def row_of(name: str, image_size: ImageSize, real_below: float) -> tuple[dict[str, object], int]:
    """What it gives here, and its params."""
    begun = time.process_time()
    info = describe_backbone(name, image_size)
    row: dict[str, object] = {
        "name": name,
        "family": info.family,
        "params": info.params,
        "reason": info.reason,
        "probe_cpu_s": round(time.process_time() - begun, 3),
        "ok": 0,
        "real": 0,
    }
    if info.probe is not None:
        padded = info.probe.recipe.padded(image_size)
        row["levels"] = " ".join(str(s.level) for s in info.features)
        row["strides"] = " ".join(f"{stride:g}" for stride in info.probe.strides)
        row["recipe"] = str(info.probe.recipe)
        row["padded"] = "x".join(map(str, padded)) if padded != image_size else ""
        row["made"] = " ".join(str(k) for k in LEVELS if k not in [s.level for s in info.features])
        row["ok"], row["real"], row["reason"] = checked(info, image_size, real_below)
    return row, info.params


def checked(info: BackboneInfo, image_size: ImageSize, real_below: float) -> tuple[int, int, str]:
    """Whether the maps are those of P3-P5, whether real tensors said so, and what was wrong."""
    real = info.params < real_below
    try:
        try:
            with translate_torch_errors(ANY_ERROR):
                backbone = create_backbone(info.name, LEVELS, image_size=image_size, device="meta")
                maps = backbone(torch.zeros(1, 3, *image_size, device="meta"))
        except MeasurementError as error:
            if "meta" not in error.reason:
                raise
            real = True
        if real:
            images = torch.randn(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
            other = images.clone()
            other[..., -1, :], other[..., :, -1] = -3.0, -3.0
            with translate_torch_errors(ANY_ERROR), torch.no_grad():
                backbone = create_backbone(info.name, LEVELS, image_size=image_size)
                maps = backbone(images)
                blind = [k for k, a, b in zip(LEVELS, maps, backbone(other), strict=True) if torch.equal(a, b)]
            if blind:
                return 0, 1, f"the image's last row and column do not reach P{blind}"
    except MeasurementError as error:
        return 0, int(real), error.reason
    own = {s.level: map_size(image_size, s.level) for s in backbone.trunk_features}
    wanted = [level_sizes(own, LEVELS)[level] for level in LEVELS]
    sizes = [tuple(m.shape[-2:]) for m in maps]
    channels = [m.shape[1] for m in maps]
    if sizes != wanted or channels != [s.channels for s in backbone.features]:
        return 0, int(real), f"maps are {sizes} of {channels} channels, not {wanted}"
    return 1, int(real), ""


def plain(name: str, image_size: ImageSize, params: int) -> dict[str, object]:
    """torchvision's FPN straight on `features_only`: whether it runs, and whether its maps hold P3, P4 and P5."""
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    try:
        try:
            with translate_torch_errors(ANY_ERROR):
                sizes = plain_sizes(name, image_size, "meta")
        except MeasurementError as error:
            if "meta" not in error.reason:
                raise
            fixed = True
        if fixed and params < LARGEST_REAL_PARAMS:
            with translate_torch_errors(ANY_ERROR):
                sizes = plain_sizes(name, image_size, "cpu")  # tables made for another size do not show on meta
    except MeasurementError as error:
        return {"plain_runs": 0, "plain_ok": 0, "plain_reason": error.reason[:160]}
    fits = [
        [all(n in (side >> k, -(-side >> k)) for n, side in zip(size, image_size, strict=True)) for size in sizes]
        for k in LEVELS
    ]
    ok = all(any(of_level) for of_level in fits)
    reason = "" if ok else "maps are " + " ".join(f"{h}x{w}" for h, w in dict.fromkeys(sizes))
    return {"plain_runs": 1, "plain_ok": int(ok), "plain_reason": reason}


def plain_sizes(name: str, image_size: ImageSize, device: str) -> list[ImageSize]:
    with torch.device(device), torch.no_grad():
        model = timm.create_model(name, features_only=True, pretrained=False).eval()
        fpn = FeaturePyramidNetwork(model.feature_info.channels(), 64, LastLevelMaxPool()).eval()
        maps = model(torch.zeros(1, 3, *image_size))
        outputs = fpn(OrderedDict((str(i), m) for i, m in enumerate(maps)))
    return [(m.shape[-2], m.shape[-1]) for m in list(outputs.values())[:-1]]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summarise(path: Path) -> None:
    rows = read(path)
    good = [r for r in rows if r["ok"] == "1"]
    as_it_is = [r for r in good if r["recipe"] == "as it is" and not r["made"] and not r["padded"]]
    seconds = [float(r["probe_cpu_s"]) for r in rows]
    counts = {
        "P3-P5": len(good),
        "of these as they are": len(as_it_is),
        "on real tensors": sum(r["real"] == "1" for r in good),
        "with levels made by an adapter": sum(bool(r["made"]) for r in good),
        "padded": sum(bool(r["padded"]) for r in good),
        "plain wiring runs": sum(r["plain_runs"] == "1" for r in rows),
        "plain wiring gives P3-P5": sum(r["plain_ok"] == "1" for r in rows),
        "probe, CPU s: median": statistics.median(seconds),
        "95th percentile": sorted(seconds)[int(0.95 * len(seconds))],
        "all": round(sum(seconds)),
    }
    print(f"{path}: {len(rows)} names; " + "; ".join(f"{what} {count}" for what, count in counts.items()))
    for row in rows:
        if row["ok"] != "1":
            print(f"  {row['name']}: {row['reason']}")


if __name__ == "__main__":
    main()

"""Forward time of our FPN against torchvision's, same weights, same maps, in alternating rounds of one process.

    python benchmarks/neck_forward.py [--rounds 60] [--image-size 640] [--channels 256] [--threads 1]

Prints the median of both and of the per-round ratio ours / torchvision, with a 95 % bootstrap interval. The two
orders of a round alternate, so that neither always runs on the warmer cache.
"""

from __future__ import annotations

import argparse
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torchvision.ops import FeaturePyramidNetwork

import fpn_bench as fb
from fpn_bench.pyramid import map_size

WIDTHS = {2: 256, 3: 512, 4: 1024, 5: 2048}  # ResNet-50


def build(channels: int) -> tuple[fb.Neck, FeaturePyramidNetwork, tuple[fb.FeatureSpec, ...]]:
    """Ours and torchvision's with equal weights."""
    features = tuple(fb.FeatureSpec(level, width, 2**level) for level, width in WIDTHS.items())
    theirs = FeaturePyramidNetwork(list(WIDTHS.values()), channels).eval()
    ours = fb.build_neck(fb.create_graph("fpn", features, channels=channels)).eval()
    state = {}
    for i, level in enumerate(WIDTHS):
        for name in ("weight", "bias"):
            state[f"steps.lateral{level}.after.0.{name}"] = theirs.inner_blocks[i].state_dict()[f"0.{name}"]
            state[f"steps.P{level}.after.0.{name}"] = theirs.layer_blocks[i].state_dict()[f"0.{name}"]
    ours.load_state_dict(state)
    return ours, theirs, features


def timed(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    ours, theirs, features = build(options.channels)
    size = (options.image_size, options.image_size)
    maps = [torch.randn(1, s.channels, *map_size(size, s.level)) for s in features]
    named = OrderedDict((str(i), x) for i, x in enumerate(maps))
    samples = []
    with torch.inference_mode():
        for a, b in zip(ours(maps), theirs(named).values(), strict=True):
            assert torch.equal(a, b), "the two do not compute the same"
        for i in range(options.rounds):
            calls: list[Callable[[], object]] = [lambda: ours(maps), lambda: theirs(named)]
            order = (0, 1) if i % 2 else (1, 0)
            times = {k: timed(calls[k]) for k in order}
            samples.append((times[0], times[1]))
    mine, others = np.array(samples).T
    ratios = mine / others
    rng = np.random.default_rng(0)
    draws = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    print(
        f"fpn {options.channels}ch P2-P5 at {size[0]}x{size[1]}, {options.threads} thread(s), {options.rounds} rounds"
    )
    print(f"fpn_bench   {np.median(mine):8.2f} ms")
    print(f"torchvision {np.median(others):8.2f} ms")
    print(f"ratio       {np.median(ratios):8.4f}  (95 % {low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()

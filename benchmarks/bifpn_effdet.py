"""Forward + backward of our BiFPN against effdet's own, same weights, same maps, in alternating rounds of one process.

    python benchmarks/bifpn_effdet.py [--rounds 40] [--image-size 512] [--batch 2] [--threads 1]

EfficientDet-D0's neck (64 channels, three cells, P3-P7 of EfficientNet-B0's maps) in training mode. Prints the median
of both and of the per-round ratio ours / effdet, with a 95 % bootstrap interval, and the peak of the resident memory
that one such step adds in a fresh process, each in one of its own (Linux only).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from effdet.config import get_efficientdet_config, set_config_writeable
from effdet.efficientdet import BiFpn
from torch import nn

import fpn_bench as fb
from fpn_bench.pyramid import map_size

FEATURES = tuple(fb.FeatureSpec(level, width, 2**level) for level, width in ((3, 40), (4, 112), (5, 320)))


def theirs(image_size: int) -> nn.Module:
    """effdet's neck of D0."""
    config = get_efficientdet_config("efficientdet_d0")
    set_config_writeable(config)
    config.image_size = (image_size, image_size)
    return BiFpn(config, [{"num_chs": s.channels, "reduction": s.stride} for s in FEATURES])


def ours() -> fb.Neck:
    """The same neck of ours."""
    return fb.build_neck(fb.create_graph("bifpn", FEATURES, (3, 4, 5, 6, 7), 64))


def copy_weights(mine: nn.Module, source: nn.Module) -> None:
    """Both have their layers, and their merges, in the same order."""
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    for a, b in zip(
        (m for m in mine.modules() if isinstance(m, kinds)),
        (m for m in source.modules() if isinstance(m, kinds)),
        strict=True,
    ):
        a.load_state_dict(b.state_dict())


def step(neck: nn.Module, maps: list[torch.Tensor]) -> float:
    """Milliseconds of one forward and backward, gradients of the maps included."""
    inputs = [x.detach().requires_grad_() for x in maps]
    neck.zero_grad(set_to_none=True)
    start = time.perf_counter()
    total = torch.stack([x.square().mean() for x in neck(inputs)]).sum()
    total.backward()
    return (time.perf_counter() - start) * 1e3


def make_maps(image_size: int, batch: int) -> list[torch.Tensor]:
    """Random maps of the backbone."""
    torch.manual_seed(0)
    return [torch.randn(batch, s.channels, *map_size((image_size, image_size), s.level)) for s in FEATURES]


def resident_mib(key: str) -> float:
    """A line of this process's memory, VmRSS or VmHWM (its peak)."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(key)).split()[1]) / 1024


def print_peak(which: str, image_size: int, batch: int) -> None:
    """Run one step and print what it added to this process's resident memory at its peak, in MiB."""
    maps = make_maps(image_size, batch)
    neck = ours() if which == "ours" else theirs(image_size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is resident now
    before = resident_mib("VmRSS")
    step(neck, maps)
    print(resident_mib("VmHWM") - before)


def peak_mib(which: str, options: argparse.Namespace) -> float:
    """Median over fresh processes."""
    command = [sys.executable, __file__, "--peak", which, "--threads", str(options.threads)]
    command += ["--image-size", str(options.image_size), "--batch", str(options.batch)]
    return float(np.median([float(subprocess.check_output(command, text=True)) for _ in range(3)]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", choices=["ours", "effdet"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print_peak(options.peak, options.image_size, options.batch)
        return

    maps = make_maps(options.image_size, options.batch)
    reference, mine = theirs(options.image_size).train(), ours().train()
    copy_weights(mine, reference)
    for a, b in zip(mine(maps), reference(list(maps)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    samples = []
    for i in range(options.rounds + 2):
        times = {}
        for which in ("ours", "effdet") if i % 2 else ("effdet", "ours"):
            times[which] = step(mine if which == "ours" else reference, maps)
        samples.append((times["ours"], times["effdet"]))
    own, other = np.array(samples[2:]).T
    ratios = own / other
    rng = np.random.default_rng(0)
    draws = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    print(
        f"bifpn 64ch x3 P3-P7 at {options.image_size}, batch {options.batch}, forward + backward, "
        f"{options.threads} thread(s), {options.rounds} rounds"
    )
    print(f"fpn_bench {np.median(own):8.2f} ms")
    print(f"effdet    {np.median(other):8.2f} ms")
    print(f"ratio     {np.median(ratios):8.4f}  (95 % {low:.4f} to {high:.4f})")
    if sys.platform == "linux":
        peaks = {which: peak_mib(which, options) for which in ("ours", "effdet")}
        print(
            f"peak memory of a step: fpn_bench {peaks['ours']:.1f} MiB, effdet {peaks['effdet']:.1f} MiB, "
            f"ratio {peaks['ours'] / peaks['effdet']:.3f}"
        )


if __name__ == "__main__":
    main()

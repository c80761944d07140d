"""What a static profile of ResNet-50 + BiFPN costs, against fvcore's plain trace of the same, in alternating rounds.

    python benchmarks/static_profile.py [--rounds 30] [--image-size 640] [--threads 1]

fvcore counts as shipped, on real tensors; ours on meta gives params, MACs, other work, activations and their peak, of
every module. Prints the first profile after import (with what is imported by then), the medians of both and of
the per-round ratio fvcore / ours with a 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

import fpn_bench as fb
from fpn_bench.profiling import StaticProfile, static_profile_in_a_row


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of one call: passed, and of the CPU (what other programs do not lengthen by taking turns)."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")

    backbone = fb.create_backbone("resnet50", levels=(3, 4, 5)).eval()
    neck = fb.build_neck(fb.create_graph("bifpn", backbone.features, (3, 4, 5, 6, 7), 64)).eval()
    image = torch.zeros(1, 3, options.image_size, options.image_size)
    whole = nn.Sequential(backbone, neck).eval()

    def ours() -> StaticProfile:
        return static_profile_in_a_row({"backbone": backbone, "neck": neck}, image)

    def fvcores() -> float:
        analysis = FlopCountAnalysis(whole, (image,))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        with torch.no_grad():
            return float(analysis.total())

    first = timed(ours)
    fvcores()
    samples = []
    for i in range(options.rounds):
        times = {call: timed(call) for call in ((ours, fvcores) if i % 2 else (fvcores, ours))}
        samples.append((times[ours], times[fvcores]))
    own, other = np.array(samples).transpose(1, 2, 0)  # each: passed, CPU
    ratios = other[1] / own[1]
    rng = np.random.default_rng(0)
    low, high = np.quantile(np.median(rng.choice(ratios, (2000, len(ratios))), axis=1), (0.025, 0.975))
    profile = ours()
    modules = sum(len(part.modules) for part in profile.parts.values())
    print(
        f"resnet50 + bifpn 64ch x3 P3-P7 at {options.image_size}, {options.threads} thread(s), "
        f"{options.rounds} rounds: {profile.macs / 1e9:.2f} GMACs, {modules} modules"
    )
    print(f"first profile after import {first[0]:8.1f} ms, CPU {first[1]:.1f} ms")
    print(f"fpn_bench static_profile   {np.median(own[0]):8.1f} ms, CPU {np.median(own[1]):.1f} ms (medians)")
    print(f"fvcore plain trace         {np.median(other[0]):8.1f} ms, CPU {np.median(other[1]):.1f} ms")
    print(f"ratio fvcore / fpn_bench   {np.median(ratios):8.2f} of CPU time (95 % {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()

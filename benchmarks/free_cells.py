"""How fast random cells become checked, named and costed graphs, in one process and without torch.

    python benchmarks/free_cells.py [--cells 10000] [--repeats 1] [--profile]

Seconds of CPU time a stage for that many cells of NAS-FPN's space (P3-P7, seven nodes, sum and gate), and how many of
them are distinct networks. Stages: a cell drawn from the space and written as text; the family's graph from the text,
each node and the whole checked; its canonical id; its params and MACs at 640x640.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import sys
import time
from itertools import pairwise

from fpn_bench.graph import cost
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo import create_graph
from fpn_bench.zoo.merging_cells import MergingCells

LEVELS = (3, 4, 5, 6, 7)
FEATURES = tuple(FeatureSpec(level, channels, 2**level) for level, channels in ((3, 512), (4, 1024), (5, 2048)))


def measure(cells: int, repeats: int) -> dict[str, float]:
    """Seconds by stage."""
    space, rng, clock = MergingCells(LEVELS), random.Random(0), time.process_time
    seconds = dict.fromkeys(("sample", "build and check", "id", "cost"), 0.0)
    ids, macs = set(), []
    for _ in range(cells):
        at = [clock()]
        text = space.text(space.sample(rng))
        at.append(clock())
        graph = create_graph("merging_cells", FEATURES, LEVELS, 256, cell=text, repeats=repeats)
        at.append(clock())
        ids.add(graph.id)
        at.append(clock())
        macs.append(cost(graph, (640, 640)).macs)
        at.append(clock())
        for stage, (start, end) in zip(seconds, pairwise(at), strict=True):
            seconds[stage] += end - start
    print(f"{cells} cells, {repeats} of each stacked: {len(ids) / cells:.2%} distinct networks")
    print(f"{min(macs) / 1e9:.1f} to {max(macs) / 1e9:.1f} GMAC at 256 channels and 640x640")
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="cProfile of the whole, by own time")
    args = parser.parse_args()
    profile = cProfile.Profile()
    if args.profile:
        profile.enable()
    seconds = measure(args.cells, args.repeats)
    profile.disable()
    for name, value in seconds.items():
        print(f"{name:16} {value:7.2f} s")
    print(f"{'total':16} {sum(seconds.values()):7.2f} s")
    print(f"torch imported: {'torch' in sys.modules}")
    if args.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()

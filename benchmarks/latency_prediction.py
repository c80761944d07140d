"""How well a latency table predicts necks it has never seen, against what they then take.

    python benchmarks/latency_prediction.py [--train 50] [--test 50] [--visits 4] [--seed 0] [--device cpu]
        [--threads 1] [--clock wall|cpu] [--root DIR] [--out results/latency_prediction.csv]

Necks are drawn over all families of the zoo, with random options, widths and repeats, and free cells and DAGs, on maps
of a 256x256 image behind a ResNet-18's widths. The first half is predicted, measured and learned from; the other half
is predicted before any of it is measured, and then measured in several sweeps over all of it, for a shared machine has
slow minutes: what a neck took is the median over its sweeps, as measured or, where the yardstick was timed right behind
each measurement, at the machine's usual speed. How far the first sweep lies from that stands beside the errors.

Beside the table's prediction: the plain sum of the units, the same with every unit of the held-out necks estimated from
the trained half's, and regressions of the trained half's latencies on MACs alone, linear and log-linear.
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fpn_bench as fb
from fpn_bench.analysis import prediction_error
from fpn_bench.errors import InputError
from fpn_bench.latency import measure_latency
from fpn_bench.latency.prediction import LatencyTable, time_side_by_side
from fpn_bench.profiling import machine
from fpn_bench.pyramid import FeatureSpec, ImageSize, map_size
from fpn_bench.zoo import choices, list_necks, options
from fpn_bench.zoo.merging_cells import MergingCells
from fpn_bench.zoo.pyramid_dags import PyramidDags

IMAGE_SIZE = (256, 256)
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
WIDTHS = {2: 64, 3: 128, 4: 256, 5: 512}  # ResNet-18


def draw(rng: random.Random) -> tuple[str, fb.NeckGraph]:
    """A family and a neck of it: half of its listed and yes-or-no options at their default, the others anywhere."""
    while True:
        family = rng.choice(list_necks())
        finest = rng.choice((2, 3, 3))
        levels = tuple(range(finest, rng.choice((5, 6, 7)) + 1))
        features = tuple(FeatureSpec(level, width, 2**level) for level, width in WIDTHS.items() if level >= finest)
        chosen: dict[str, Any] = {}
        for option, default in options(family).items():
            listed = choices(family)[option] or ((False, True) if isinstance(default, bool) else ())
            if listed and rng.random() < 0.5:
                chosen[option] = rng.choice(listed)
            elif option in ("repeats", "depth"):
                chosen[option] = rng.randint(1, 4)
        try:
            if MergingCells.option in options(family):
                cells = MergingCells(levels)
                chosen[cells.option] = cells.text(cells.sample(rng))
            elif PyramidDags.option in options(family):
                dags = PyramidDags()
                chosen[dags.option] = dags.text(dags.sample(rng))
            return family, fb.create_graph(family, features, levels, rng.choice(range(32, 129, 8)), **chosen)
        except InputError:
            continue  # not every combination is a neck


def input_sizes(graph: fb.NeckGraph) -> dict[int, ImageSize]:
    """Of the maps that the neck is given."""
    return {spec.level: map_size(IMAGE_SIZE, spec.level) for spec in graph.inputs}


def measure(graph: fb.NeckGraph, arguments: argparse.Namespace) -> float:
    """Median milliseconds of a neck."""
    neck = fb.build_neck(graph).eval().to(arguments.device)
    sizes = input_sizes(graph)
    maps = [torch.randn(1, spec.channels, *sizes[spec.level]).to(arguments.device) for spec in graph.inputs]

    def forward() -> None:
        with torch.inference_mode():
            neck(maps)

    latency = measure_latency(forward, device=arguments.device, budget_s=arguments.budget_s, threads=arguments.threads)
    return latency.median_ms


def run(arguments: argparse.Namespace, root: Path) -> None:
    """Learn from the first necks, predict the others, measure them, print and write."""
    rng = random.Random(arguments.seed)
    necks: dict[str, tuple[str, fb.NeckGraph]] = {}
    while len(necks) < arguments.train + arguments.test:
        family, graph = draw(rng)
        necks[graph.id] = family, graph
    every = list(necks.values())
    trained, held_out = every[: arguments.train], every[arguments.train :]

    how = {"device": arguments.device, "threads": arguments.threads}
    timer = functools.partial(time_side_by_side, clock=CLOCKS[arguments.clock], **how)
    table = LatencyTable(**how, settings_id=arguments.clock, root=root, timer=timer)
    first, macs, ms = [], [], []
    began = time.perf_counter()
    for _, graph in trained:
        first.append(table.predict(graph, input_sizes(graph)).median_ms)
        ms.append(measure(graph, arguments))
        macs.append(fb.cost(graph, input_sizes=input_sizes(graph)).macs)
        table.learn(graph, input_sizes(graph), ms[-1])
    print(f"{len(trained)} necks timed, measured and learned from in {time.perf_counter() - began:.0f} s")

    estimated = [table.predict(graph, input_sizes(graph), time_missing=False) for _, graph in held_out]
    began = time.perf_counter()
    predicted = [table.predict(graph, input_sizes(graph)) for _, graph in held_out]
    units = sum(p.estimated for p in estimated), sum(p.units for p in estimated)
    print(f"{len(held_out)} held-out necks predicted: {units[0]} of {units[1]} units new, timed in", end=" ")
    print(f"{time.perf_counter() - began:.0f} s")

    visits = np.full((arguments.visits, len(held_out)), np.nan)
    slowness = np.ones_like(visits)
    for v, visit in enumerate(visits):
        for i in rng.sample(range(len(held_out)), len(held_out)):
            visit[i] = measure(held_out[i][1], arguments)
            slowness[v, i] = table.slowness()
    measured, steady = np.median(visits, axis=0), np.median(visits / slowness, axis=0)
    own_macs = np.array([fb.cost(graph, input_sizes=input_sizes(graph)).macs for _, graph in held_out])
    slope, offset = np.polyfit(macs, ms, 1)
    power, factor = np.polyfit(np.log(macs), np.log(ms), 1)
    print(f"{'':44}    as measured        at usual speed")
    for what, values in {
        "the table": [p.median_ms for p in predicted],
        "plain sum of the units": [p.sum_ms for p in predicted],
        "the table, new units estimated, not timed": [p.median_ms for p in estimated],
        "MACs, linear": slope * own_macs + offset,
        "MACs, log-linear": np.exp(factor) * own_macs**power,
        "the first sweep alone, as a prediction": visits[0],
    }.items():
        errors = prediction_error(values, measured), prediction_error(values, steady)
        print(f"{what:44}", *(f"{e.median_ape:6.1f} %, tau {e.kendall_tau:5.3f}" for e in errors))
    inside = np.mean([p.low_ms <= m <= p.high_ms for p, m in zip(predicted, measured, strict=True)])
    width = predicted[0].high_ms / predicted[0].median_ms
    print(f"{inside:.0%} of {len(held_out)} inside their interval, a factor of {width:.2f} both ways")
    print(f"slowness of the machine at those measurements: {slowness.min():.2f} to {slowness.max():.2f}")
    own = table.error()
    width = predicted[0].high_ms / predicted[0].median_ms
    print(f"leave-one-out over the trained necks: {own.median_ape:.1f} %, tau {own.kendall_tau:.3f}")
    early = prediction_error(first, ms)
    print(f"each trained neck from those before it: {early.median_ape:.1f} %, tau {early.kendall_tau:.3f}")
    print(f"held-out necks take {measured.min():.1f} to {measured.max():.1f} ms")

    with arguments.out.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        names = ["predicted_ms", "low_ms", "high_ms", "sum_ms", "estimated_ms", "measured_ms", "steady_ms"]
        names += [f"{what}_{i + 1}" for what in ("measured_ms", "slowness") for i in range(len(visits))]
        writer.writerow(["family", "neck", "macs", *names])
        for i, (family, graph) in enumerate(held_out):
            p = predicted[i]
            figures = [p.median_ms, p.low_ms, p.high_ms, p.sum_ms, estimated[i].median_ms, measured[i], steady[i]]
            figures += [*visits[:, i], *slowness[:, i]]
            writer.writerow([family, graph.id, own_macs[i], *(f"{x:.4f}" for x in figures)])


def main() -> None:
    """Predict, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=50, help="necks to learn from")
    parser.add_argument("--test", type=int, default=50, help="held-out necks")
    parser.add_argument("--visits", type=int, default=4, help="sweeps over the held-out necks")
    parser.add_argument("--budget-s", type=float, default=0.2, help="seconds of sampling a latency")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: without the wait for other processes")
    parser.add_argument("--root", type=Path, help="folder of the latency table; a new one by default")
    parser.add_argument("--out", type=Path, default=Path("results/latency_prediction.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    start, load = time.perf_counter(), os.getloadavg()[0]

    with tempfile.TemporaryDirectory() as folder:
        run(arguments, arguments.root or Path(folder))
    seconds = time.perf_counter() - start
    how = f"{arguments.device}, {arguments.threads} thread(s), {arguments.clock} clock"
    print(f"{machine().label}; {how}, torch {torch.__version__}")
    print(f"load average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end; {seconds:.0f} s in all")


if __name__ == "__main__":
    main()

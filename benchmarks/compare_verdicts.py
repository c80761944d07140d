"""How often does a comparison say the truth? A neck against a copy of it, and against one made 5 % slower on purpose.

The slower one runs the same neck and then multiplies matrices for 5 % of its time: real work, whose amount is tried out
beside the neck once.

    python benchmarks/compare_verdicts.py --tries 100 --out results/compare_verdicts.csv
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

import fpn_bench as fb
from fpn_bench.latency import measure_rounds
from fpn_bench.profiling import Execution, machine

FIELDS = ("truth", "try", "verdict", "ratio", "low", "high", "rounds", "seconds", "machine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=100, help="of each kind")
    parser.add_argument("--slower", type=float, default=1.05)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for each of the two")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("compare_verdicts.csv"))
    args = parser.parse_args()
    execution = Execution(args.device, threads=1)
    backbone = fb.create_backbone("resnet18", image_size=(128, 128))
    graph = fb.create_graph("bifpn", backbone.features, channels=64, repeats=3)
    neck = execution.place(fb.build_neck(graph, backbone.features))
    maps = execution.inputs([(f.channels, 128 // f.stride, 128 // f.stride) for f in backbone.features])
    call = execution.call(neck, maps)
    with execution.settings(), torch.inference_mode():
        slower = burdened(call, args.slower, execution)
    done = read(args.out)
    with args.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for number in range(args.tries):
            for truth in ("same", "slower"):
                if (truth, str(number)) in {(r["truth"], r["try"]) for r in done}:
                    continue
                # A copy lies elsewhere in memory, as two candidates do.
                other = slower if truth == "slower" else execution.call(execution.place(neck), maps)
                begun = time.perf_counter()
                found = measure_rounds(
                    {"a": call, "b": other}, execution=execution, baseline="a", budget_s=args.budget, seed=number
                ).compare("b", "a")
                row = {name: getattr(found, name, "") for name in FIELDS}
                row |= {"truth": truth, "try": number, "seconds": round(time.perf_counter() - begun, 2)}
                writer.writerow(row | {"machine": machine().label})
                file.flush()
    report(args.out)


def burdened(call: Callable[[], object], factor: float, execution: Execution) -> Callable[[], object]:
    """The call and, behind it, matrix products that take so much of its time again: their number is tried out twice."""
    a = torch.randn(48, 48, device=execution.torch_device)

    def with_products(count: int) -> Callable[[], object]:
        def slower() -> None:
            call()
            for _ in range(count):
                a @ a

        return slower

    count = 20
    for _ in range(2):
        found = measure_rounds({"a": call, "b": with_products(count)}, execution=execution, budget_s=1.0, baseline="a")
        count = max(1, round(count * (factor - 1) / max(found.compare("b", "a").ratio - 1, 1e-3)))
    return with_products(count)


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def report(path: Path) -> None:
    rows = read(path)
    for truth in ("same", "slower"):
        these = [r for r in rows if r["truth"] == truth]
        verdicts = Counter(r["verdict"] for r in these)
        ratio = statistics.median(float(r["ratio"]) for r in these)
        seconds = statistics.median(float(r["seconds"]) for r in these)
        said = ", ".join(f"{verdict} {count}" for verdict, count in verdicts.most_common())
        print(f"truth {truth}: {said} of {len(these)}; median ratio {ratio:.4f}, {seconds:.1f} s a comparison")


if __name__ == "__main__":
    main()

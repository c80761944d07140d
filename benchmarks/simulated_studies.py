"""Do the statements hold? Studies whose truth is known, read through the functions that the report and `compare` use.

Each candidate has a true AP and a cost; its seeds scatter around it as on the table `curves` (1.24 AP for the worst
quarter of the networks, 0.91 for the best). Truths are equal; unequal (normal, s.d. 2.7 AP, as on `curves`); clustered
(four of five equal, the rest 3 to 8 AP below); or "ahead": equal but for a tenth of the searched necks, 3 AP above.
Three of the candidates of a searched study are published ones (one of two). Seeds: one, three, or one and two more for
the third of the candidates whose first was best.

Counted per kind of statement: studies with any false statement among those made at 95 %; intervals of 95 % that miss
the truth; of true differences of 2.5 to 3.5 AP those that were found; and by how much AP the neck that `choose` takes
falls short of the best (mean over studies).

    python benchmarks/simulated_studies.py --studies 500 --out results/simulated_studies.csv

A second call with the same arguments goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fpn_bench.analysis import compare_tables, hypervolume, make_table, pareto_mask, parse_objectives
from fpn_bench.analysis.choice import choose
from fpn_bench.latency.rounds import TOLERANCE, compare_turns
from fpn_bench.latency.single import MIN_SAMPLES
from fpn_bench.reports.evidence import gather
from fpn_bench.reports.sections.answer import answer_info

OBJECTIVES = [{"name": "ap", "direction": "maximize"}, {"name": "macs", "direction": "minimize"}]
DIRECTIONS = ("maximize", "minimize")
MARGIN_AP, MARGIN_VOLUME = 0.5, 0.01
TRUTHS = ("equal", "unequal", "clustered", "ahead")
SEEDS = ("1", "3", "1 to 3")
SIZES = (1, 2, 10, 30, 200)
PAIRS = ((1, 1), (2, 2), (10, 10), (30, 30), (200, 10))


@dataclass
class Count:
    """Of one kind of statement in one study."""

    statements: int = 0
    false: int = 0
    intervals: int = 0
    missed: int = 0
    of_three: int = 0
    found: int = 0
    regret: float = float("nan")

    def add(self, verdict: str, low: float, high: float, truth: float, margin: float = MARGIN_AP) -> None:
        """One difference with its verdict and interval, where ``truth`` is so much better."""
        right = {"better": truth > 0, "worse": truth < 0, "same": abs(truth) <= margin}
        if verdict in right:
            self.statements += 1
            self.false += not right[verdict]
        if not np.isnan(low):
            self.intervals += 1
            self.missed += not low - 1e-9 <= truth <= high + 1e-9
        if margin == MARGIN_AP and 2.5 <= abs(truth) <= 3.5:
            self.of_three += 1
            self.found += verdict == ("better" if truth > 0 else "worse")


def true_aps(kind: str, count: int, published: int, rng: np.random.Generator) -> np.ndarray:
    """The published ones first."""
    if kind == "unequal":
        return np.asarray(rng.normal(13.5, 2.7, count))
    truth = np.full(count, 13.5)
    if kind == "clustered":
        truth -= np.where(rng.random(count) < 0.2, rng.uniform(3, 8, count), 0)
    elif kind == "ahead":
        better = published + rng.permutation(count - published)[: max(1, (count - published) // 10)]
        truth[better] += 3
    return truth


def simulate(
    kind: str,
    count: int,
    seeds: str,
    rng: np.random.Generator,
    *,
    published: int = 0,
    source: str = "sampled",
    name: str,
) -> tuple[pd.DataFrame, dict[str, tuple[float, int]]]:
    """A table, and the true AP and the MACs of each candidate."""
    truth = true_aps(kind, count, published, rng)
    scatter = np.interp(truth, [9.0, 12.4, 14.3, 16.0], [1.24, 1.09, 0.93, 0.91])
    macs = 100 + 10 * (np.arange(count) % 10)  # costs of every size of study are alike
    drawn = truth + scatter * rng.standard_normal((3, count))
    first_best = np.argsort(-drawn[0])[: max(1, count // 3)]
    again = np.array([3 if seeds == "3" or (seeds == "1 to 3" and i in first_best) else 1 for i in range(count)])
    of = np.repeat(np.arange(count), again)
    seed = np.concatenate([np.arange(n) for n in again])
    names = np.array([f"{name}{i}" for i in range(count)], dtype=object)
    table = _template().iloc[np.zeros(len(of), dtype=int)].reset_index(drop=True)
    table = table.assign(
        study=name,
        trial=np.arange(len(of)),
        candidate=names[of],
        neck_label=names[of],
        seed=pd.array(seed, dtype=table["seed"].dtype),
        ap=drawn[seed, of],
        macs=pd.array(macs[of], dtype=table["macs"].dtype),
        source=np.where(of < published, "published", source),
    )
    return table.astype(_template().dtypes), {n: (float(t), int(m)) for n, t, m in zip(names, truth, macs, strict=True)}


@lru_cache
def _template() -> pd.DataFrame:
    fields = {
        "study": "",
        "trial": 0,
        "candidate": "",
        "status": "complete",
        "source": "sampled",
        "protocol": "p",
        "backbone": "b",
        "seed": 0,
    }
    return make_table([{**fields, "ap": 1.0, "macs": 1, "params": 10}])


def report(kind: str, size: int, seeds: str, rng: np.random.Generator) -> Iterator[tuple[str, Count]]:
    """What the report says of a search, of its front, and of a benchmark."""
    table, known = simulate(kind, size, seeds, rng, published=min(3, size // 2), name="c")
    evidence = gather(table, {"objectives": OBJECTIVES})
    info = answer_info(evidence)
    pairs = Count()
    for match in info.levels:
        if match.comparison is not None and match.rival is not None:
            pairs.add(*_said(match.comparison), known[match.neck["candidate"]][0] - known[match.rival["candidate"]][0])
    for match in info.matches:
        if match.comparison is not None and match.rival is not None:
            pairs.add(*_said(match.comparison), known[match.rival["candidate"]][0] - known[match.neck["candidate"]][0])
    yield "report, picked against published", pairs
    chances = Count()
    truth = np.array(list(known.values()))
    on_front = dict(zip(known, pareto_mask(truth, DIRECTIONS), strict=True))
    for candidate, chance in zip(evidence.finished["candidate"], evidence.finished["front_probability"], strict=True):
        if chance <= 0.025 or chance >= 0.975:
            chances.statements += 1
            chances.false += bool(on_front[candidate]) != (chance > 0.5)
    if kind == "unequal":  # else several of one cost are on it by being equal to the last digit
        yield "report, on the front or not (97.5 %), each", chances
    table, known = simulate(kind, size, seeds, rng, source="listed", name="c")
    listed = Count()
    for match in answer_info(gather(table, {"objectives": OBJECTIVES})).listed:
        if match.comparison is not None and match.rival is not None:
            listed.add(*_said(match.comparison), known[match.neck["candidate"]][0] - known[match.rival["candidate"]][0])
    yield "report, listed against the best", listed


def compare(kind: str, sizes: tuple[int, int], seeds: str, rng: np.random.Generator) -> Iterator[Any]:
    """What `compare` says of two studies of other candidates, and of two of the same."""
    (a, known_a), (b, known_b) = (
        simulate("equal" if kind == "ahead" and name == "a" else kind, n, seeds, rng, name=name)
        for name, n in zip("ab", sizes, strict=True)
    )
    found = compare_tables(a, b, OBJECTIVES)
    volumes, levels = Count(), Count()
    front, known = found.front, known_a | known_b
    of_a, of_b = (
        hypervolume(np.array(list(points.values())), DIRECTIONS, front.reference) for points in (known_a, known_b)
    )
    if front.hypervolume_union > 0:
        change, truth = front.change, (of_b - of_a) / front.hypervolume_union
        volumes.add(change.verdict, change.low, change.high, float(np.clip(truth, -1, 1)), MARGIN_VOLUME)
    yield "compare, hypervolume", volumes
    for row in found.levels.to_dict("records"):
        truth = known[row["candidate_b"]][0] - known[row["candidate_a"]][0]
        levels.add(row["ap_verdict"], row["ap_difference_low"], row["ap_difference_high"], truth)
    yield "compare, best at a cost", levels
    a, truth_a = simulate(kind, sizes[1], seeds, rng, name="c")
    b, truth_b = simulate(kind, sizes[1], seeds, rng, name="c")
    found = compare_tables(a, b, OBJECTIVES)
    shared, mean = Count(), Count()
    changes = {name: truth_b[name][0] - truth_a[name][0] for name in truth_a}
    for row in found.shared.to_dict("records"):
        shared.add(row["ap_verdict"], np.nan, np.nan, changes[row["candidate"]])
    yield "compare, shared candidates", shared
    mean.add(found.ap.verdict, found.ap.low, found.ap.high, float(np.mean(list(changes.values()))))
    yield "compare, mean of the shared", mean


def choice(kind: str, size: int, seeds: str, rng: np.random.Generator) -> Iterator[tuple[str, Count]]:
    """What `choose` takes, and what it says of it."""
    table, known = simulate(kind, size, seeds, rng, published=min(3, size // 2), name="c")
    found = choose(table, costs=parse_objectives(OBJECTIVES[1:]))
    truth = known[found.neck["candidate"]][0]
    taken = Count(intervals=1, missed=int(not found.ap_low <= truth <= found.ap_high))
    taken.regret = max(ap for ap, _ in known.values()) - truth
    yield "choose, the AP of what is taken", taken
    against = Count()
    if found.comparison is not None and found.rival is not None:
        against.add(*_said(found.comparison), truth - known[found.rival["candidate"]][0])
    yield "choose, taken against published", against


def profile(ratio: float, rng: np.random.Generator) -> Count:
    """Rounds until the verdict stands, as `fpn_bench.latency.rounds` looks at them, 400 at most."""
    ratios = list(ratio * np.exp(0.05 * rng.standard_normal(400)))
    count, look_at = Count(), MIN_SAMPLES
    while True:
        found = compare_turns(ratios[:look_at], [1.0] * look_at)
        if found.verdict != "unclear" or look_at == len(ratios):
            break
        look_at = min(int(np.ceil(1.25 * look_at)), len(ratios))
    right = {"same": ratio <= 1 + TOLERANCE, "slower": ratio >= 1 + TOLERANCE, "faster": False}
    count.intervals, count.missed = 1, not found.low <= ratio <= found.high
    if found.verdict in right:
        # At the tolerance neither is true: "slower" and "same" are both said by chance alone.
        count.statements, count.false = 1, not right[found.verdict] or ratio == 1 + TOLERANCE
    return count


def _said(comparison: Any) -> tuple[str, float, float]:
    return comparison.verdict, comparison.low, comparison.high


def studies(args: argparse.Namespace) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each setting with what makes a study of it."""
    sizes = [n for n in SIZES if n <= args.most]
    for size, kind, seeds in itertools.product(sizes, TRUTHS, SEEDS):
        if not (size == 1 and kind == "ahead") and not (size == 1 and seeds == "1 to 3"):
            yield ("report", kind, str(size), seeds), lambda rng, k=kind, n=size, s=seeds: report(k, n, s, rng)
    for size, kind, seeds in itertools.product(sizes, TRUTHS, SEEDS):
        if size > 1:
            yield ("choose", kind, str(size), seeds), lambda rng, k=kind, n=size, s=seeds: choice(k, n, s, rng)
    for pair, kind, seeds in itertools.product([p for p in PAIRS if max(p) <= args.most], TRUTHS, SEEDS):
        name = f"{pair[0]} and {pair[1]}"
        yield ("compare", kind, name, seeds), lambda rng, k=kind, p=pair, s=seeds: compare(k, p, s, rng)
    for ratio in (1.0, 1 + TOLERANCE, 1.05):
        yield (
            ("profile", f"ratio {ratio:g}", "2", "-"),
            lambda rng, r=ratio: iter([("profile, two calls in rounds", profile(r, rng))]),
        )


def run(args: argparse.Namespace) -> pd.DataFrame:
    """A row a setting and kind of statement: sums over the studies, and how many studies have a false statement."""
    rows = []
    before = pd.read_csv(args.out, dtype=str) if args.out and args.out.exists() else pd.DataFrame()
    if len(before) and "regret" not in before:  # a table from before it was counted
        before.assign(regret="").to_csv(args.out, index=False, lineterminator="\n")
    kept = before.to_dict("records")
    done = {(r["version"], r["statement"].split(",")[0], r["truths"], r["candidates"], r["seeds"]) for r in kept}
    for setting, make in studies(args):
        chosen = (
            (args.only, setting[0]),
            (args.truths, setting[1]),
            (args.sizes, setting[2]),
            (args.seeds, setting[3]),
        )
        if any(wanted and value not in wanted for wanted, value in chosen) or (args.version, *setting) in done:
            continue
        kinds: dict[str, list[Count]] = defaultdict(list)
        for number in range(args.studies):
            rng = np.random.default_rng([zlib.crc32("/".join(setting).encode()), number])
            for family, count in make(rng):
                kinds[family].append(count)
        for family, counts in kinds.items():
            each = family.endswith("each")
            row = {
                "version": args.version, "statement": family, "truths": setting[1], "candidates": setting[2],
                "seeds": setting[3], "studies": len(counts),
                "statements": sum(c.statements for c in counts),
                "false_statements": sum(c.false for c in counts),
                "false_rate": sum(c.false for c in counts) / max(1, sum(c.statements for c in counts)) if each
                else float(np.mean([c.false > 0 for c in counts])),
                "intervals": sum(c.intervals for c in counts), "missed": sum(c.missed for c in counts),
                "differences_of_3": sum(c.of_three for c in counts), "found_of_3": sum(c.found for c in counts),
                "regret": float(np.mean([c.regret for c in counts])),
            }  # fmt: skip
            rows.append(row)
            if args.out:
                fresh = not args.out.exists()
                with args.out.open("a", newline="") as file:
                    writer = csv.DictWriter(file, list(row), lineterminator="\n")
                    if fresh:
                        writer.writeheader()
                    regret = "" if np.isnan(row["regret"]) else f"{row['regret']:.4f}"
                    writer.writerow(row | {"false_rate": f"{row['false_rate']:.4f}", "regret": regret})
            missed = row["missed"] / row["intervals"] if row["intervals"] else float("nan")
            power = row["found_of_3"] / row["differences_of_3"] if row["differences_of_3"] else float("nan")
            print(
                f"{family:45s} {setting[1]:10s} {setting[2]:>10s} {setting[3]:7s} false {row['false_rate']:.3f} "
                f"missed {missed:.3f} found {power:.2f} regret {row['regret']:.2f}",
                flush=True,
            )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500, help="of each setting")
    parser.add_argument("--most", type=int, default=200, help="candidates of a study, at most")
    parser.add_argument("--only", nargs="*", help="of report, choose, compare and profile; all by default")
    parser.add_argument("--truths", nargs="*", help="some of " + ", ".join(TRUTHS))
    parser.add_argument("--sizes", nargs="*", help="some of the numbers of candidates, as '200' or '200 and 10'")
    parser.add_argument("--seeds", nargs="*", help="some of " + ", ".join(SEEDS))
    parser.add_argument("--version", default="after", choices=("before", "after"))
    parser.add_argument("--out", type=Path)
    run(parser.parse_args())


if __name__ == "__main__":
    main()

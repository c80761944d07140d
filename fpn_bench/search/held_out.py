"""The held-out test split: looked at once, when a search is over, by the necks that it chose.

Nothing before reads that split: a figure that choices were made by is no estimate of what is to come. Each neck is
trained again as the study trained it (on the CPU to the bit), and its AP on the split is kept with the study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from fpn_bench.analysis import one_protocol, parse_objectives
from fpn_bench.analysis.choice import choose
from fpn_bench.candidates.context import EvaluationContext
from fpn_bench.search.detectors import DetectorEvaluator
from fpn_bench.search.records import Event, RunResult
from fpn_bench.search.study import Study

TEST_SPLIT: Final = "test"
"""Name of the split in a data set."""
_OVER: Final = ("finished", "plateau", "exhausted", "out_of_time")
"""How a run ended whose choice stands."""


def evaluate_chosen(
    study: Study,
    evaluator: DetectorEvaluator,
    context: EvaluationContext,
    result: RunResult,
    on_event: Callable[[Event], None] | None = None,
) -> None:
    """AP on the test split of the front and of what would be taken and its rival; kept with the study.

    Searched and published necks alike. A neck that was evaluated before is not evaluated again. Nothing happens where
    the data set has no such split, the search was broken off, or nothing finished.

    Raises:
        TrialError: a training diverged, which it did not when the study trained it.
    """
    if TEST_SPLIT not in context.dataset.splits or result.status not in _OVER:
        return
    known = {record["candidate"] for record in study.test_results()}
    for candidate, row in _chosen(study).items():
        if candidate in known:
            continue

        def progress(data: Mapping[str, Any], label: str = str(row["neck_label"])) -> None:
            if on_event is not None:
                on_event(Event("progress", -1, result.paid, result.paid, f"{label}, for the test split", data))

        ap, images = context.test(evaluator.describe(row["choices"]).candidate, int(row["seed"]), progress)
        study.add_test_result(
            {
                "candidate": candidate,
                "seed": int(row["seed"]),
                "val_ap": float(row["ap"]),
                "test_ap": ap.ap,
                "test_ap50": ap.ap50,
                "images": images,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )


def _chosen(study: Study) -> dict[str, Mapping[str, Any]]:
    """Candidate -> the row of its first seed."""
    table, objectives = study.table(), parse_objectives(study.metadata()["objectives"])
    front = study.front()
    if front.empty:
        return {}
    named = list(front["candidate"])
    if objectives[0].name == "ap" and one_protocol(table):
        found = choose(table, costs=[o for o in objectives if o.name != "ap"])
        named += [str(neck["candidate"]) for neck in (found.neck, found.rival) if neck is not None]
    rows: dict[str, Mapping[str, Any]] = {}
    for row in study.rows():
        if row["status"] == "complete" and row["candidate"] in named:
            first = rows.setdefault(row["candidate"], row)
            if row["seed"] < first["seed"]:
                rows[row["candidate"]] = row
    return {name: rows[name] for name in dict.fromkeys(named) if name in rows}

"""Studies at the edges: what a report must be able to say of anything."""

from __future__ import annotations

import pandas as pd
from tables import OBJECTIVES, UNTRAINED, graph_json, realistic_rows, realistic_table, row

from fpn_bench.analysis import empty_table, make_table

UNFINISHED = ("rejected", "failed", "running", "repeat", "stopped", "continued")


TEXT_FIELDS = (
    "study",
    "reason",
    "neck",
    "neck_label",
    "dataset",
    "backbone",
    "weights",
    "machine_label",
    "torch",
    "latency_device",
)
"""Columns of text that come from files and names."""


def minimize(name: str) -> dict[str, str]:
    return {"name": name, "direction": "minimize"}


def with_rungs(trials: int = 40) -> list[dict[str, object]]:
    """A search that stopped every third training at epoch 2 and went on with one of them later."""
    rows = []
    for i, given in enumerate(realistic_rows(trials)):
        if given["status"] == "complete":
            curve = [[2, given["ap"] * 0.6], [4, given["ap"] * 0.8 + i % 3], [8, given["ap"]]]
            given = given | {"ap_curve": str(curve), "epochs_trained": 8, "paid": 1.0}
            if i % 3 == 0 and given["source"] != "published":
                given |= {"status": "stopped", "epochs": 2, "epochs_trained": 2, "ap_curve": str(curve[:1])}
                given |= {"ap": curve[0][1], "paid": 0.25, "reason": "cannot reach the front"}
        rows.append(given)
    last = next(r for r in reversed(rows) if r["status"] == "stopped")
    last["status"] = "continued"
    whole = {"status": "complete", "trial": trials, "epochs": 8, "epochs_trained": 6, "ap": 21.0, "reason": ""}
    return [*rows, last | whole | {"ap_curve": "[[2, 12.0], [4, 17.0], [8, 21.0]]", "continues": last["trial"]}]


EDGES: dict[str, tuple[pd.DataFrame, list[dict[str, str]], str]] = {
    "empty": (empty_table(), OBJECTIVES, "The study is empty"),
    "one trial": (make_table([row(0, graph=graph_json("fpn", 64))]), OBJECTIVES, "1 neck on the front"),
    "one published": (make_table([row(0, source="published")]), OBJECTIVES, "1 published neck on the front"),
    "all rejected": (
        make_table([row(i, status="rejected", reason=f"macs {i} > 0", **UNTRAINED) for i in range(3)]),
        OBJECTIVES,
        "No candidate finished, so there is no front (3 rejected)",
    ),
    "all failed": (
        make_table([row(i, status="failed", reason="", **UNTRAINED, macs=None, params=None) for i in range(3)]),
        OBJECTIVES,
        "No candidate finished, so there is no front (3 failed)",
    ),
    "bare rows": (
        make_table({"study": "s", "trial": i, "status": s, "source": "sampled"} for i, s in enumerate(UNFINISHED)),
        OBJECTIVES,
        "1 stopped, 1 continued, 1 rejected, 1 failed, 1 repeat, 1 running",
    ),
    "all running": (make_table([row(0, status="running", **UNTRAINED)]), OBJECTIVES, "1 running"),
    "all stopped": (
        make_table([row(i, status="stopped", epochs=2, ap_curve="[[2, 9.5]]") for i in range(3)]),
        OBJECTIVES,
        "3 stopped",
    ),
    "rungs": (make_table(with_rungs()), OBJECTIVES, "published necks"),
    "single objective": (realistic_table(30), OBJECTIVES[:1], "published necks"),
    "without ap": (realistic_table(30), [OBJECTIVES[1], minimize("params")], "published necks"),
    "four objectives": (
        realistic_table(40, seeds=2),
        [*OBJECTIVES, minimize("latency_ms"), minimize("params")],
        "published necks",
    ),
    "missing values": (
        make_table([row(i, **UNTRAINED, latency_ms=None, params=None, macs=None, neck_label="") for i in range(3)]),
        OBJECTIVES,
        "No candidate finished",
    ),
    "some missing": (
        make_table([row(0, ap=None), row(1, macs=None), row(2, latency_ms=None, latency_low_ms=None), row(3)]),
        OBJECTIVES,
        "on the front",
    ),
    "infinite": (
        make_table([row(0, latency_ms=float("inf")), row(1)]),
        [OBJECTIVES[0], minimize("latency_ms")],
        "on the front",
    ),
    "equal": (make_table([row(i) for i in range(4)]), OBJECTIVES, "4 necks on the front"),
    "zero": (make_table([row(i, ap=0.0, macs=0) for i in range(2)]), OBJECTIVES, "2 necks on the front"),
    "two backbones": (
        make_table([r | {"backbone": f"net{i % 2}"} for i, r in enumerate(realistic_rows(40))]),
        OBJECTIVES,
        "published necks",
    ),
    "broken curves": (
        make_table([row(i, ap_curve=text) for i, text in enumerate(["{", "[1]", '[["a", 1]]', "null", "[[1, NaN]]"])]),
        OBJECTIVES,
        "on the front",
    ),
}

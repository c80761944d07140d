"""What all sections are computed from: each design once, the front among them, no infeasible one on it."""

from __future__ import annotations

import pandas as pd
import pytest
from edges import EDGES
from tables import OBJECTIVES, UNTRAINED, realistic_rows, realistic_table, row, study_meta

from fpn_bench.analysis import by_candidate, front, make_table
from fpn_bench.errors import InputError, ProtocolError
from fpn_bench.reports.details import hover_text
from fpn_bench.reports.evidence import evenly, gather, merge_studies
from fpn_bench.reports.sections.progress import progress_info

BEST = {"ap": 99.0, "macs": 1, "latency_ms": 0.1}


def test_each_design_once_and_the_front_is_that_of_analysis() -> None:
    table = realistic_table(120, seeds=2)
    evidence = gather(table, study_meta())
    assert evidence.designs["key"].is_unique
    assert set(evidence.designs["key"]) == set(table.loc[table["status"] != "repeat", "candidate"])
    assert set(evidence.front["key"]) == set(front(table, OBJECTIVES)["candidate"])
    assert len(evidence.finished) == len(by_candidate(table))
    assert evidence.finished["ap"].is_monotonic_decreasing
    assert evidence.front["front_probability"].between(0, 1).all()


@pytest.mark.parametrize("edge", EDGES)
def test_every_study_has_evidence(edge: str) -> None:
    table, objectives, _ = EDGES[edge]
    evidence = gather(table, study_meta(objectives=objectives))
    named = set(table.loc[(table["candidate"] != "") & (table["status"] != "repeat"), "candidate"])
    assert named <= set(evidence.designs["key"])
    assert set(evidence.front["status"]) <= {"complete"}
    assert evidence.designs["shown"].all()


def test_an_infeasible_design_that_dominates_is_on_no_front() -> None:
    rows = [
        row(0, ap=20.0, macs=100),
        row(0, ap=21.0, macs=100, seed=1),
        *(row(i, **BEST, status=s) for i, s in enumerate(("rejected", "failed", "stopped"), 1)),
    ]
    evidence = gather(make_table(rows), study_meta())
    assert evidence.front["trial"].tolist() == [0]
    assert evidence.designs["front_probability"].fillna(0).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_the_last_row_of_a_design_that_did_not_finish_counts() -> None:
    rows = [
        row(0, status="continued", epochs=2, ap=9.0),
        row(0, status="stopped", epochs=4, ap=12.0) | {"trial": 1},
        row(0, status="repeat") | {"trial": 2},
        row(5, status="failed", **UNTRAINED),
        row(5, ap=20.0) | {"trial": 6},
    ]
    designs = gather(make_table(rows), study_meta()).designs
    assert list(zip(designs["trial"], designs["status"], strict=True)) == [(6, "complete"), (1, "stopped")]


def test_trials_without_a_candidate_are_designs_of_their_own() -> None:
    rows = [{"study": "s", "trial": i, "status": "running", "source": "sampled"} for i in range(3)]
    designs = gather(make_table(rows), study_meta()).designs
    assert designs["key"].tolist() == ["s #0", "s #1", "s #2"]
    assert designs["label"].tolist() == ["trial 0", "trial 1", "trial 2"]


def test_the_merit_comes_first_whatever_the_order_of_objectives() -> None:
    assert [o.name for o in gather(realistic_table(20), study_meta(objectives=OBJECTIVES[::-1])).objectives] == [
        "ap",
        "macs",
    ]


def test_two_protocols_are_refused_or_kept_apart() -> None:
    table = make_table([row(0), row(0, protocol="other") | {"trial": 1}])
    with pytest.raises(ProtocolError):
        gather(table, study_meta())
    designs = gather(table, study_meta(), mix_protocols=True).designs
    assert designs["key"].tolist() == ["c00000000000@1f0c5a7e9b21", "c00000000000@other"]


def test_thinning_keeps_the_front_and_the_published() -> None:
    evidence = gather(realistic_table(400), study_meta(), most=50)
    shown = evidence.shown
    assert len(shown) == 50
    assert evidence.thinned
    assert set(evidence.front["key"]) <= set(shown["key"])
    assert (evidence.designs["source"] == "published").sum() == (shown["source"] == "published").sum()
    assert {"complete", "rejected"} <= set(shown["status"])
    assert gather(realistic_table(40), study_meta()).thinned is False
    few = gather(realistic_table(400), study_meta(), most=1)
    assert set(few.shown["key"]) == set(few.front["key"]) | set(
        few.designs.loc[few.designs["source"] == "published", "key"]
    )


@pytest.mark.parametrize(
    ("count", "most", "wanted"), [(0, 3, []), (3, 5, [0, 1, 2]), (100, 3, [0, 50, 99]), (9, 0, [])]
)
def test_evenly(count: int, most: int, wanted: list[int]) -> None:
    assert evenly(count, most).tolist() == wanted


def test_hover_escapes() -> None:
    evidence = gather(make_table([row(0, neck_label="<img src=x>")]), study_meta())
    (design,) = evidence.designs.to_dict("records")
    text = hover_text(design, evidence.details)
    assert text == design["hover"]
    assert text.startswith("<b>&lt;img src=x&gt;</b><br>Trial: 0<br>AP: 20.0<br>Parameters (M): 3.90<br>")


def test_studies_together() -> None:
    rows = realistic_rows(20)
    a, b = make_table(rows), make_table([r | {"study": "second", "choice.extra": "x"} for r in rows])
    table, meta, samples = merge_studies(
        [(a, study_meta(), None), (b, study_meta(name="second", notes=["other"]), None)]
    )
    assert len(table) == 2 * len(a)
    assert (meta["name"], samples) == ("vehicles + second", None)
    assert meta["notes"] == [*study_meta()["notes"], "other"]
    evidence = gather(table, meta)
    assert set(evidence.designs["key"]) == set(gather(a, study_meta()).designs["key"])


def test_one_study_together_is_itself() -> None:
    table, meta, _ = merge_studies([(realistic_table(5), study_meta(), None)])
    pd.testing.assert_frame_equal(table, realistic_table(5))
    assert meta == study_meta()


def test_studies_of_other_objectives_are_refused() -> None:
    with pytest.raises(InputError, match="got maximize ap, minimize macs in vehicles and maximize ap in b"):
        merge_studies(
            [
                (realistic_table(5), study_meta(), None),
                (realistic_table(5), study_meta(name="b", objectives=OBJECTIVES[:1]), None),
            ]
        )


def test_samples_of_the_same_images_are_joined() -> None:
    image = {"name": "a.jpg", "width": 10, "height": 10, "jpeg": "", "truth": []}
    one = {"classes": ["car"], "images": [image], "detections": {"a": [[]]}}
    two = one | {"detections": {"b": [[]]}}
    other = one | {"images": [image | {"name": "b.jpg"}], "detections": {"c": [[]]}}
    given = [(realistic_table(3), study_meta(), s) for s in (None, one, two, other)]
    joined = merge_studies(given)[2]
    assert callable(joined)
    assert joined(["a", "b"]) == one | {"detections": {"a": [[]], "b": [[]]}}
    others = [(realistic_table(3), study_meta(), s) for s in (one, two | {"classes": ["person"]})]
    joined = merge_studies(others)[2]
    assert callable(joined)
    assert joined(["a", "b"]) == one  # label 0 is another class there


def test_studies_of_one_name_are_told_apart() -> None:
    rows = realistic_rows(20)
    other = [r | {"candidate": f"other{r['trial']}"} for r in rows]
    table, meta, _ = merge_studies([(make_table(r), study_meta(), None) for r in (rows, other, rows)])
    assert meta["name"] == "vehicles + vehicles (2) + vehicles (3)"
    assert sorted(table["study"].unique()) == ["vehicles", "vehicles (2)", "vehicles (3)"]
    assert len(progress_info(gather(table, meta)).curve) == 60


def test_an_empty_protocol_is_none() -> None:
    rows = [row(0), row(1, status="running", protocol="", **UNTRAINED)]
    assert gather(make_table(rows), study_meta()).designs["key"].tolist() == ["c00000000000", "c00000000001"]


def test_a_candidate_of_two_protocols_is_two_designs() -> None:
    rows = [row(0), row(0, protocol="other", status="failed", **UNTRAINED) | {"trial": 1}]
    designs = gather(make_table(rows), study_meta(), mix_protocols=True).designs
    assert designs["status"].tolist() == ["complete", "failed"]

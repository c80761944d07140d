"""What a report says, before anything is drawn."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
from tables import OBJECTIVES, UNTRAINED, realistic_table, row, study_meta

from fpn_bench.analysis import compare, empty_table, front, make_table
from fpn_bench.errors import ProtocolError
from fpn_bench.reports import report_info
from fpn_bench.reports.info import NECKS_DRAWN, ONE_SEED, difference_text, front_to_draw, reasons_info
from fpn_bench.reports.units import quantity

PUBLISHED = {"source": "published", "neck_label": "fpn 64ch"}


def seeds(trial: int, aps: list[float], **values: Any) -> list[dict[str, Any]]:
    return [row(trial, seed=i, ap=ap, **values) for i, ap in enumerate(aps)]


def headline(rows: list[dict[str, Any]]) -> str:
    return report_info(make_table(rows), study_meta()).answer.headline


def test_one_seed_is_no_evidence() -> None:
    answer = report_info(make_table([row(0, ap=20.0, **PUBLISHED), row(1, ap=25.0)]), study_meta()).answer
    assert answer.headline.startswith("The search is ahead of the one published neck")
    assert "not beyond seed noise" in answer.headline
    assert ONE_SEED in answer.sentences
    assert answer.matches[0].comparison.verdict == "unclear"  # type: ignore[union-attr]


def test_seeds_make_evidence() -> None:
    rows = seeds(0, [20.0, 20.4, 20.2], **PUBLISHED) + seeds(1, [25.0, 25.1, 24.8])
    info = report_info(make_table(rows), study_meta())
    assert "beat the one published neck" in info.answer.headline
    assert "beyond seed noise" in info.answer.headline
    assert ONE_SEED not in info.answer.sentences
    assert any("standard deviation" in s for s in info.answer.sentences)


def test_a_search_that_lost_says_so() -> None:
    assert "not even the one published neck" in headline([row(0, ap=20.0, **PUBLISHED), row(1, ap=19.0)])
    dearer = [row(0, ap=20.0, macs=100, **PUBLISHED), row(1, ap=30.0, macs=200)]
    assert "not even the one published neck" in headline(dearer)
    two = [row(0, ap=20.0, **PUBLISHED), row(1, ap=21.0, **PUBLISHED), row(2, ap=20.5)]
    assert "ahead of 1 of the 2 published necks" in headline(two)


def test_one_sided_tables() -> None:
    assert "no published neck finished" in headline([row(0)])
    assert "no searched neck finished" in headline([row(0, **PUBLISHED)])


def test_levels_compare_with_published_necks_as_cheap() -> None:
    rows = [row(0, ap=15.0, macs=50), row(1, ap=20.0, macs=100, **PUBLISHED), row(2, ap=24.0, macs=200)]
    cheap, published, dear = report_info(make_table(rows), study_meta()).answer.levels
    assert (cheap.rival, published.rival) == (None, None)
    assert dear.rival is not None
    assert dear.rival["trial"] == 1
    assert dear.comparison is not None
    assert dear.comparison.difference == pytest.approx(4.0)


def test_difference_text() -> None:
    merit = report_info(make_table([row(0)]), study_meta()).objectives[0]
    assert difference_text(compare([21.8], [20.0]), merit) == "+1.8 AP, unclear (one seed)"
    assert difference_text(compare([25.0, 25.2], [20.0, 20.2]), merit).startswith("+5.0 AP, better [+")


def test_the_merit_comes_first_whatever_the_order_of_objectives() -> None:
    info = report_info(realistic_table(20), study_meta(objectives=OBJECTIVES[::-1]))
    assert [o.name for o in info.objectives] == ["ap", "macs"]


def test_planes_hold_every_finished_candidate_and_the_front_only_finished_ones() -> None:
    best = {"ap": 99.0, "macs": 1, "latency_ms": 0.1}
    rows = [
        row(0, ap=20.0, macs=100),
        row(1, ap=22.0, macs=200),
        row(2, **best, status="rejected", reason="latency_ms 30 > 24"),
        row(3, **best, status="failed", reason="loss became NaN"),
    ]
    table = make_table(rows)
    info = report_info(table, study_meta())
    plane = info.planes[0]
    assert plane.points["y"].tolist() == [20.0, 22.0]
    assert plane.line["y"].tolist() == [20.0, 22.0]
    assert plane.apart["status"].tolist() == ["rejected", "failed"]
    assert info.front["trial"].tolist() == [1, 0] == front(table, OBJECTIVES)["trial"].tolist()
    assert {level.neck["trial"] for level in info.answer.levels} == {0, 1}
    assert not info.hypervolume.curve["hypervolume"].gt(100 * 2).any()


def test_line_of_a_plane_rises_with_cost() -> None:
    objectives = [*OBJECTIVES, {"name": "latency_ms", "direction": "minimize"}]
    info = report_info(realistic_table(150, seeds=2), study_meta(objectives=objectives))
    assert [p.x.name for p in info.planes if p.x] == ["macs", "latency_ms"]
    for plane in info.planes:
        assert plane.line["x"].is_monotonic_increasing
        assert plane.line["y"].is_monotonic_increasing
    assert info.planes[1].limit == 24.0
    assert info.planes[0].limit is None
    assert (info.planes[1].points["x_low"] <= info.planes[1].points["x"]).all()


def test_reasons_are_grouped_but_for_their_numbers() -> None:
    rows = [row(i, **UNTRAINED, status="rejected", reason=f"latency_ms {20 + i}.5 > 24") for i in range(5)]
    rows += [row(9, **UNTRAINED, status="failed", reason="loss became NaN in epoch 3")]
    reasons = reasons_info(make_table(rows))
    assert reasons["count"].tolist() == [5, 1]
    assert reasons["reason"].tolist() == ["latency_ms 20.5 > 24", "loss became NaN in epoch 3"]
    assert len(reasons_info(empty_table())) == 0


def test_random_weights_are_loud() -> None:
    info = report_info(realistic_table(10).assign(weights_random=True), study_meta())
    assert "Random backbone weights: tf_efficientnet_lite0" in info.loud[0]
    assert report_info(realistic_table(10), study_meta()).loud == ()


def test_warnings() -> None:
    rows = [
        row(0, ap=math.nan),
        row(1),
        row(2, machine="other", machine_label="Xeon", latency_device="cuda", torch="2.14"),
        row(3, status="running", **UNTRAINED),
    ]
    told = "\n".join(report_info(make_table(rows), study_meta(warnings=["3 boxes dropped"])).warnings)
    for words in ("2 machines", "2 devices", "versions of torch", "without ap", "still running", "3 boxes dropped"):
        assert words in told


def test_noisy_latency_is_told_where_it_decides() -> None:
    table = make_table([row(0), row(1, latency_low_ms=9.0, latency_high_ms=19.0)])
    by_latency = study_meta(objectives=[OBJECTIVES[0], {"name": "latency_ms", "direction": "minimize"}])
    assert any("Latency of 1 candidate is known" in w for w in report_info(table, by_latency).warnings)
    assert report_info(table, study_meta()).warnings == ()


def test_two_protocols_are_refused_or_told() -> None:
    table = make_table([row(0), row(1, protocol="other")])
    with pytest.raises(ProtocolError):
        report_info(table, study_meta())
    assert any("2 protocols" in w for w in report_info(table, study_meta(), mix_protocols=True).warnings)


def test_many_members_are_thinned_with_both_ends() -> None:
    members = pd.DataFrame({"n": range(100)})
    drawn = front_to_draw(members)["n"].tolist()
    assert (len(drawn), drawn[0], drawn[-1]) == (NECKS_DRAWN, 0, 99)


def test_quantities() -> None:
    assert quantity("macs").text(1_234_000_000) == "1.23 G"
    assert quantity("ap").text(20.64) == "20.6 AP"
    assert quantity("latency_ms").text(pd.NA) == "–"
    assert quantity("ap").number(math.nan) == ""
    assert quantity("anything").title == "anything"

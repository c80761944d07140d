"""What the sections say, before it takes a form, and what their figures draw."""

from __future__ import annotations

import functools
import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from edges import EDGES, with_rungs
from tables import OBJECTIVES, UNTRAINED, graph_json, realistic_rows, realistic_table, row, study_meta

from fpn_bench.analysis import empty_table, hypervolume_over_trials, make_table
from fpn_bench.reports import Evidence, gather, report_info, style
from fpn_bench.reports.blocks import Drawings, Gallery, Plot, Section, Table
from fpn_bench.reports.sections import (
    SECTIONS,
    backbones,
    choices,
    curves,
    front,
    latency,
    necks,
    progress,
    samples,
    sizes,
    trust,
)
from fpn_bench.reports.sections.answer import answer_info, difference_text
from fpn_bench.reports.sections.provenance import loud_warnings, warnings
from fpn_bench.reports.sections.reasons import reasons_info
from fpn_bench.reports.units import quantity

PUBLISHED = {"source": "published", "neck_label": "fpn 64ch"}
NOTHING = re.compile(r"\bnan\b|<NA>|\bNone\b")


def evidence(rows: list[dict[str, Any]], **meta: Any) -> Evidence:
    return gather(make_table(rows), study_meta(**meta))


def seeds(trial: int, aps: list[float], **values: Any) -> list[dict[str, Any]]:
    return [row(trial, seed=i, ap=ap, **values) for i, ap in enumerate(aps)]


# ---- the contract of every section -----------------------------------------------------------------------------


@functools.cache
def evidence_at(edge: str) -> Evidence:
    """What the sections of a study at the edge are made of: gathered once, for no section may change it."""
    table, objectives, _ = EDGES[edge]
    return gather(table, study_meta(objectives=objectives))


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("make", SECTIONS, ids=lambda make: make.__module__.rpartition(".")[2])
def test_a_section_speaks_of_any_study(make: Any, edge: str) -> None:
    given = evidence_at(edge)
    before = given.designs.copy()
    section = make(given)
    pd.testing.assert_frame_equal(given.designs, before)
    if section is None:
        return
    assert isinstance(section, Section)
    said = [sentence.text for sentence in section.sentences]
    said += [b.caption for b in section.blocks if isinstance(b, Plot)]
    assert not [text for text in said if NOTHING.search(text) or ". ." in text]
    keys = set(given.designs["key"])
    for block in section.blocks:
        if isinstance(block, Plot):
            check_figure(block.draw(), keys)
            assert block.alt
        if isinstance(block, Table):
            for record in block.rows.to_dict("records"):
                texts = [column.text(record) for column in block.columns]
                assert all(isinstance(text, str) for text in texts)
                assert not NOTHING.search(" ".join(texts)), texts
                assert "key" not in record or record["key"] in keys


def check_figure(figure: go.Figure, keys: set[str]) -> None:
    json.loads(figure.to_json(), parse_constant=lambda constant: pytest.fail(f"{constant} in a figure"))
    for trace in figure.data:
        if trace.customdata is not None:
            assert len(trace.customdata) == len(trace.x) == len(trace.hovertext)
            assert set(trace.customdata) - {None} <= keys


@pytest.mark.parametrize("make", SECTIONS, ids=lambda make: make.__module__.rpartition(".")[2])
def test_a_section_draws_what_the_page_holds(make: Any) -> None:
    given = gather(make_table(with_rungs(300)), study_meta(), most=40)
    section = make(given)
    for block in section.blocks if section else ():
        if isinstance(block, Plot):
            check_figure(block.draw(), set(given.shown["key"]))


def test_mixed_protocols_have_a_report() -> None:
    rows = realistic_rows(30)
    table = make_table([*rows, *(r | {"protocol": "other", "trial": r["trial"] + 30} for r in rows)])
    report = report_info(table, study_meta(), mix_protocols=True)
    assert any("2 protocols are mixed" in sentence.text for sentence in report.mind)
    assert len(report.sections) > 8


def test_ids_are_unlike() -> None:
    report = report_info(make_table(with_rungs()), study_meta())
    ids = [s.id for s in report.sections] + [b.id for s in report.sections for b in s.blocks if hasattr(b, "id")]
    assert len(ids) == len(set(ids))


# ---- the answer ------------------------------------------------------------------------------------------------


def headline(rows: list[dict[str, Any]]) -> str:
    return answer_info(evidence(rows)).headline.text


def test_one_seed_is_judged_by_the_tables_spread() -> None:
    far, near = (answer_info(evidence([row(0, ap=20.0, **PUBLISHED), row(1, ap=ap)])) for ap in (28.0, 22.0))
    assert "beyond seed noise" in far.headline.text
    assert near.headline.text.startswith("The search is ahead of the one published neck")
    assert "not beyond seed noise" in near.headline.text
    assert "No neck has a second seed" in " ".join(s.text for s in near.sentences)
    assert near.matches[0].comparison.verdict == "unclear"  # type: ignore[union-attr]
    assert near.matches[0].comparison.high - near.matches[0].comparison.low < 8  # type: ignore[union-attr]


def test_seeds_make_evidence() -> None:
    answer = answer_info(evidence(seeds(0, [20.0, 20.4, 20.2], **PUBLISHED) + seeds(1, [25.0, 25.1, 24.8])))
    assert "beat the one published neck" in answer.headline.text
    assert "beyond seed noise" in answer.headline.text
    told = {name: value for s in answer.sentences for name, value in s.numbers.items()}
    squares = 2 * (np.var([20.0, 20.4, 20.2], ddof=1) + np.var([25.0, 25.1, 24.8], ddof=1))
    assert told["pooled_sd_ap"] == pytest.approx(((10 * 1.05**2 + squares) / 14) ** 0.5)


def test_a_lucky_pair_of_equal_seeds_proves_nothing() -> None:
    answer = answer_info(evidence(seeds(0, [17.2, 17.2], **PUBLISHED) + seeds(1, [17.3, 17.3])))
    assert answer.matches[0].comparison.verdict == "unclear"  # type: ignore[union-attr]


def test_same_within_what_makes_no_difference() -> None:
    close = seeds(0, [20.0, 20.01] * 80, **PUBLISHED) + seeds(1, [20.1, 20.11] * 80)
    answer = answer_info(evidence(close))
    assert answer.matches[0].comparison.verdict == "same"  # type: ignore[union-attr]
    assert answer.headline.numbers["beyond seed noise"] == 0


@pytest.mark.parametrize("merit", ["latency_ms", "params"])
def test_another_merit_is_judged_by_what_is_known_of_it(merit: str) -> None:
    """Latency by its interval; params, which are counted, by their difference."""
    rows = [row(0, latency_ms=20.0, params=20, **PUBLISHED), row(1, latency_ms=10.0, params=10)]
    rows[0] |= {"latency_low_ms": 19.0, "latency_high_ms": 21.0}
    rows[1] |= {"latency_low_ms": 9.0, "latency_high_ms": 11.0}
    answer = answer_info(gather(make_table(rows), {"objectives": [{"name": merit, "direction": "minimize"}]}))
    assert answer.matches[0].comparison.verdict == "better"  # type: ignore[union-attr]
    rows[0] |= {"latency_low_ms": None, "latency_high_ms": None}
    answer = answer_info(gather(make_table(rows), {"objectives": [{"name": merit, "direction": "minimize"}]}))
    assert answer.matches[0].comparison.verdict == {"latency_ms": "unclear", "params": "better"}[merit]  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_best_of_many_equals_is_no_victory() -> None:
    """All necks have one true AP: whoever is best of sixty is best by chance."""
    rng = np.random.default_rng(0)
    claims = 0
    for _ in range(40):
        rows = seeds(0, list(rng.normal(20, 1, 3)), **PUBLISHED)
        for trial in range(1, 61):
            rows += seeds(trial, list(rng.normal(20, 1, 3)))
        claims += answer_info(evidence(rows)).headline.numbers["beyond seed noise"] > 0
    assert claims <= 5  # 95 % together; by one comparison alone it would be a quarter of them


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
    cheap, published, dear = answer_info(evidence(rows)).levels
    assert (cheap.rival, published.rival) == (None, None)
    assert dear.rival is not None
    assert dear.rival["trial"] == 1
    assert dear.comparison is not None
    assert dear.comparison.difference == pytest.approx(4.0, abs=0.8)  # what is expected of the true ones


def test_difference_text() -> None:
    merit = evidence([row(0)]).merit
    unknown = {"difference": 1.8, "low": math.nan, "high": math.nan, "verdict": "unclear", "count_a": 1, "count_b": 3}
    assert difference_text(unknown, merit) == "+1.8 AP, unclear (how it scatters is not known)"
    many = {"difference": 5.0, "low": 4.5, "high": 5.5, "verdict": "better", "count_a": 2, "count_b": 2}
    assert difference_text(many, merit) == "+5.0 AP, better [+4.5, +5.5]"


# ---- the front -------------------------------------------------------------------------------------------------


def test_planes_hold_every_finished_candidate_and_the_front_only_finished_ones() -> None:
    best = {"ap": 99.0, "macs": 1, "latency_ms": 0.1}
    rows = [
        row(0, ap=20.0, macs=100),
        row(1, ap=22.0, macs=200),
        row(2, **best, status="rejected", reason="latency_ms 30 > 24"),
        row(3, **best, status="failed", reason="loss became NaN"),
        row(4, **best, status="stopped", epochs=2),
    ]
    (plane,) = front.front_info(evidence(rows))
    assert plane.points["y"].tolist() == [22.0, 20.0]
    assert plane.line["y"].tolist() == [20.0, 22.0]
    assert sorted(plane.apart["status"]) == ["failed", "rejected", "stopped"]
    drawn = front.front_figure(plane)
    for trace in drawn.data:
        infeasible = trace.yaxis == "y2"
        assert infeasible == any(k in ("c00000000002", "c00000000003", "c00000000004") for k in trace.customdata or ())
    space = front.space_info(evidence(rows))
    assert space is None or set(space.points["status"]) == {"complete"}


def test_line_of_a_plane_rises_with_cost() -> None:
    objectives = [*OBJECTIVES, {"name": "latency_ms", "direction": "minimize"}]
    planes = front.front_info(gather(realistic_table(150, seeds=2), study_meta(objectives=objectives)))
    assert [p.x.name for p in planes if p.x] == ["macs", "latency_ms"]
    for plane in planes:
        assert plane.line["x"].is_monotonic_increasing
        assert plane.line["y"].is_monotonic_increasing
    assert planes[1].limit == 24.0
    assert planes[0].limit is None
    assert (planes[1].points["x_low"] <= planes[1].points["x"]).all()


def test_points_are_shown_once_and_in_units() -> None:
    given = gather(realistic_table(80, seeds=2), study_meta())
    figure = front.front_figure(front.front_info(given)[0])
    shown = [x for trace in figure.data if trace.customdata is not None and trace.yaxis is None for x in trace.x]
    assert sorted(shown) == pytest.approx(sorted(given.finished["macs"].astype(float) / 1e9), rel=1e-5)
    line = next(trace for trace in figure.data if trace.name == "Pareto front")
    assert line.line.shape == "hv"
    assert list(line.y) == sorted(line.y)
    bars = next(trace for trace in figure.data if trace.name == "searched, on the front")
    assert min(bars.error_y.array) > 0


def test_a_line_knows_of_designs_that_are_not_drawn() -> None:
    table = realistic_table(300)
    whole, thin = (front.front_info(gather(table, study_meta(), most=most))[0] for most in (5000, 20))
    pd.testing.assert_frame_equal(
        whole.line.drop(columns=["shown", "hover"]), thin.line.drop(columns=["shown", "hover"])
    )
    assert len(thin.points) < len(whole.points)


def test_names_of_published_necks_never_cover_each_other() -> None:
    far = [row(0, ap=10.0, macs=10**9), row(1, ap=30.0, macs=3 * 10**9)]
    same = [row(i, ap=20.0, macs=2 * 10**9, source="published", neck_label=f"neck {i}") for i in range(2, 9)]
    traces = front.front_figure(front.front_info(evidence(far + same))[0]).data
    named = [t.textposition[0] for t in traces if t.name.startswith("published") and t.text[0]]
    assert len(set(named)) == len(named) == 4  # right, left, below, above; the legend names the others


def test_a_benchmark_of_many_published_necks_has_one_entry_in_the_legend() -> None:
    rows = [row(i, ap=20.0 + i, macs=10**9 + i, source="published", neck_label=f"neck {i}") for i in range(40)]
    names = [t.name for t in front.front_figure(front.front_info(evidence(rows))[0]).data]
    assert names == ["Pareto front", "published"] or names == ["published"]


def test_the_view_opens_on_what_finished() -> None:
    rows = [row(i, ap=20.0 + i, macs=(1 + i) * 10**9) for i in range(3)]
    rows += [row(9, **UNTRAINED, status="rejected", reason="macs 9e12 > 4e9", macs=9 * 10**12)]
    figure = front.front_figure(front.front_info(evidence(rows, constraints=["macs <= 4e9"]))[0])
    low, high = figure.layout.xaxis.range
    assert low < 1.0
    assert 4.0 < high < 5.0
    assert any("beyond this edge" in a.text for a in figure.layout.annotations)


def test_wide_costs_are_on_a_log_axis() -> None:
    rows = [row(i, ap=20.0 + i, macs=10 ** (8 + i)) for i in range(4)]
    assert front.front_figure(front.front_info(evidence(rows))[0]).layout.xaxis.type == "log"


def test_a_limit_on_a_log_axis_is_where_it_is() -> None:
    rows = [row(i, ap=20.0 + i, macs=10 ** (7 + i)) for i in range(4)]
    figure = front.front_figure(front.front_info(evidence(rows, constraints=["macs <= 2e9"]))[0])
    (note,) = (a for a in figure.layout.annotations if a.text == "hard limit")
    assert figure.layout.xaxis.type == "log"
    assert note.x == pytest.approx(math.log10(2.0))  # G, in decades
    assert figure.layout.shapes[0].x0 == pytest.approx(2.0)


@pytest.mark.parametrize(("text", "limit"), [("macs <= 4e-3", 0.004), ("macs <= e", None), ("macs <= 1.5.2", None)])
def test_a_limit_is_read_or_left_out(text: str, limit: float | None) -> None:
    assert front.front_info(evidence([row(0), row(1)], constraints=[text]))[0].limit == limit


def test_a_single_objective_is_shown_over_trials() -> None:
    given = gather(realistic_table(20), study_meta(objectives=OBJECTIVES[:1]))
    figure = front.front_figure(front.front_info(given)[0])
    assert figure.layout.xaxis.title.text == "Trial"
    assert "Pareto front" not in [trace.name for trace in figure.data]


def test_the_third_axis_is_borrowed_where_there_are_two_objectives() -> None:
    table = realistic_table(40)
    two = front.space_info(gather(table, study_meta()))
    assert two is not None
    assert (two.x, two.y, two.z, two.borrowed) == ("macs", "latency_ms", "ap", True)
    objectives = [*OBJECTIVES, {"name": "params", "direction": "minimize"}]
    three = front.space_info(gather(table, study_meta(objectives=objectives)))
    assert three is not None
    assert (three.x, three.y, three.borrowed) == ("macs", "params", False)


# ---- progress --------------------------------------------------------------------------------------------------


def test_progress_ends_at_one_hundred_on_every_axis() -> None:
    info = progress.progress_info(gather(realistic_table(40), study_meta()))
    assert info.curve["share"].iloc[-1] == 1.0
    assert info.curve["step"].tolist() == list(range(1, 41))
    for axis in progress.AXES:
        assert info.curve[axis].is_monotonic_increasing
        figure = progress.progress_figure(info, axis)
        assert figure.data[0].y[-1] == pytest.approx(100)


def test_epochs_are_those_that_were_trained() -> None:
    rows = [
        row(0, ap=20.0, epochs_trained=8),
        row(1, ap=21.0, epochs_trained=2, epochs=2, status="stopped"),
        row(2, status="rejected", **UNTRAINED),
        row(3, ap=22.0, shared_from="other"),
        row(4, ap=23.0),
    ]
    assert progress.progress_info(evidence(rows)).curve["epochs"].tolist() == [8, 10, 10, 10, 18]


def test_workers_end_in_another_order_than_they_begin() -> None:
    long = row(0, ap=20.0, total_s=3600.0, started_at="2026-02-03T10:00:00+00:00")
    short = row(1, ap=30.0, total_s=900.0, started_at="2026-02-03T10:15:00+00:00")
    curve = progress.progress_info(
        evidence([long, short, row(2, ap=10.0, macs=9 * 10**9, total_s=1.0, started_at="2026-02-03T12:00:00+00:00")])
    ).curve
    assert curve["trial"].tolist() == [1, 0, 2]
    assert curve["hours"].tolist() == pytest.approx([0.5, 1.0, 2.0 + 1 / 3600])


def test_a_trial_under_way_changes_no_order() -> None:
    long = row(0, ap=20.0, total_s=3600.0, started_at="2026-02-03T10:00:00+00:00")
    short = row(1, ap=30.0, total_s=900.0, started_at="2026-02-03T10:15:00+00:00")
    running = row(2, status="running", total_s=None, started_at="", **UNTRAINED)
    curve = progress.progress_info(evidence([long, short, running])).curve
    assert curve["trial"].tolist() == [1, 0]


def test_only_published_necks_that_came_first_are_shaded() -> None:
    first = [row(i, ap=20.0 + i, source="published") for i in range(3)]
    then = [row(i, ap=20.0 + i) for i in range(3, 9)]
    late = [row(9, ap=1.0, source="published")]
    assert progress.progress_info(evidence([*first, *then, *late])).published == 3
    assert progress.progress_info(evidence([*then, *late])).published == 0


def test_each_study_has_its_own_curve_from_one_reference() -> None:
    rows = realistic_rows(30)
    both = make_table(
        [
            *rows,
            *(r | {"study": "b", "candidate": f"b{r['candidate']}", "ap": r.get("ap") and r["ap"] - 3} for r in rows),
        ]
    )
    info = progress.progress_info(gather(both, study_meta()))
    ends = info.curve.groupby("study", sort=False)["hypervolume"].last()
    reference = [value for _, value in info.reference]
    for study in ends.index:
        own = hypervolume_over_trials(both[both["study"] == study], OBJECTIVES, reference=reference)
        assert ends[study] == pytest.approx(own["hypervolume"].iloc[-1])
    assert ends.iloc[0] > ends.iloc[1]


# ---- choices, curves, sizes, latency, backbones ----------------------------------------------------------------


def test_choices_are_those_of_sampled_designs() -> None:
    given = gather(realistic_table(300), study_meta())
    info = choices.choices_info(given)
    assert info.designs == int((given.finished["source"] != "published").sum())
    assert info.importance["choice"].iloc[0] == "channels"
    merge = info.spread[info.spread["choice"] == "merge"]
    sampled = given.finished[given.finished["source"] != "published"]
    for record in merge.to_dict("records"):
        own = sampled.loc[sampled["choice.merge"] == record["value"], "ap"]
        assert (record["count"], record["median"]) == (len(own), pytest.approx(own.median()))


def test_curves_end_where_the_rung_stopped_them() -> None:
    info = curves.curves_info(gather(make_table(with_rungs()), study_meta()))
    assert info.curves[info.curves["kind"] == "unfinished"].groupby("key")["epochs"].max().eq(2).all()
    assert info.curves[info.curves["kind"] != "unfinished"].groupby("key")["epochs"].max().eq(8).all()
    (rung,) = info.rungs.to_dict("records")
    table = make_table(with_rungs())
    stopped = int((table["status"] == "stopped").sum())
    assert (rung["epochs"], rung["stopped"], rung["on"]) == (2, stopped, 1)
    assert rung["evaluated"] == stopped + int((table["status"] == "complete").sum())
    tau = info.agreement.set_index("epochs")["tau"]
    assert tau[2] > 0.9
    assert tau[4] < tau[2]


def test_a_training_that_paused_later_was_evaluated_earlier_too() -> None:
    rows = [
        row(0, status="continued", epochs=2, ap_curve="[[2, 9.0]]"),
        row(0, status="stopped", epochs=4, ap_curve="[[2, 9.0], [4, 12.0]]") | {"trial": 1},
        row(2, status="stopped", epochs=2, ap_curve="[[2, 3.0]]"),
        row(3, ap_curve="[[2, 9.0], [4, 12.0], [8, 20.0]]"),
    ]
    found = curves.curves_info(evidence(rows)).rungs.to_dict("records")
    assert found == [
        {"epochs": 2, "evaluated": 3, "stopped": 1, "on": 1},
        {"epochs": 4, "evaluated": 2, "stopped": 1, "on": 0},
    ]


def test_names_are_cut_and_told_apart() -> None:
    long = "x" * 50
    assert style.short_names([long, long + "y", "a", "a", "a (2)", "<b>"]) == [
        "x" * 39 + "…",
        "x" * 39 + "… (2)",
        "a",
        "a (2)",
        "a (2) (2)",
        "&lt;b&gt;",
    ]


def test_sizes_are_those_of_the_front_and_the_published() -> None:
    given = gather(realistic_table(100), study_meta())
    info = sizes.sizes_info(given)
    assert set(info.rows["key"]) <= set(
        given.designs.loc[given.designs["on_front"] | (given.designs["source"] == "published"), "key"]
    )
    assert info.rows["ap"].is_monotonic_decreasing


def test_latency_counts_every_design_that_was_measured() -> None:
    given = gather(realistic_table(100), study_meta())
    info = latency.latency_info(given)
    assert info.histogram["designs"].sum() == given.designs["latency_ms"].notna().sum()
    assert {"rejected", "complete"} <= set(info.histogram["status"])
    assert info.error is None


def test_predictions_are_held_against_what_was_measured() -> None:
    rows = [row(i, latency_ms=10.0 + i, latency_predicted_ms=(10.0 + i) * 1.1) for i in range(5)]
    info = latency.latency_info(evidence(rows))
    assert info.error is not None
    assert (info.error.median_ape, info.error.candidates) == (pytest.approx(10.0), 5)


def test_backbones_are_compared_from_one_reference() -> None:
    rows = [
        row(0, ap=20.0, macs=100, backbone="a"),
        row(1, ap=30.0, macs=200, backbone="b"),
        row(2, ap=10.0, macs=300, backbone="a"),
    ]
    info = backbones.backbones_info(evidence(rows))
    # Reference AP 10, MACs 300: a dominates 10 x 200, b 20 x 100, both 2000 + 2000 - 10 x 100.
    assert set(info.rows["backbone"]) == {"a", "b"}
    assert info.rows["hypervolume"].tolist() == [2000, 2000]
    assert info.rows["share"].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert info.rows["on_front"].tolist() == [1, 1]
    assert backbones.section(evidence([row(0), row(1)])) is None


# ---- necks and images ------------------------------------------------------------------------------------------


def test_drawings_say_what_nodes_cost() -> None:
    graph = graph_json("fpn", 64)
    (drawing,) = necks.necks_info(evidence([row(0, graph=graph, image_height=256, image_width=256)]))
    costs = drawing.nodes.set_index("node")
    # The 3x3 conv with bias behind P3 at 64 channels, on a map of 32 x 32.
    assert costs.loc["P3", "params"] in (64 * 64 * 9 + 64, 64 * 64 * 9)
    assert costs.loc["P3", "macs"] == 64 * 64 * 9 * 32 * 32
    assert "37.7M" in drawing.svg


def test_a_graph_that_cannot_be_read_says_why() -> None:
    for graph, why in (("", "no graph was recorded"), ("{", "no JSON"), ('{"inputs": 3}', "cannot be read")):
        (drawing,) = necks.necks_info(evidence([row(0, graph=graph)]))
        assert drawing.svg == ""
        assert why in drawing.problem


def test_at_most_so_many_necks_are_drawn_with_both_ends() -> None:
    rows = [row(i, ap=20.0 + i, macs=100 + i) for i in range(100)]
    drawn = necks.necks_info(evidence(rows))
    assert len(drawn) == necks.MOST_DRAWN
    assert (drawn[0].title, drawn[-1].title) == ("fpn 131ch P3-P5", "fpn 32ch P3-P5")


def recorded() -> dict[str, Any]:
    image = {"name": "a.jpg", "width": 100, "height": 50, "jpeg": "AAAA", "truth": [[1, 2, 30, 40, 0]]}
    boxes = [[1, 2, 30, 40, 0, 0.9], [5, 5, 9, 9, 0, 0.1]]
    return {
        "classes": ["car"],
        "images": [image],
        "detections": {"c00000000000": [boxes], "c00000000001": [[]], "gone": [[]]},
    }


def test_samples_are_those_of_designs_that_finished() -> None:
    table = make_table([row(0, ap=20.0), row(1, ap=10.0), row(2, ap=30.0, macs=10)])
    gallery = samples.samples_info(gather(table, study_meta(), samples=recorded()))
    assert isinstance(gallery, Gallery)
    assert gallery.detections == {"c00000000000": [[[1, 2, 30, 40, 0, 0.9]]], "c00000000001": [[]]}
    assert gallery.chosen == "c00000000000"
    assert samples.samples_info(gather(table, study_meta())) is None
    assert samples.samples_info(gather(empty_table(), study_meta(), samples=recorded())) is None


# ---- reasons, warnings -----------------------------------------------------------------------------------------


def test_reasons_are_grouped_but_for_their_numbers() -> None:
    rows = [row(i, **UNTRAINED, status="rejected", reason=f"latency_ms {20 + i}.5 > 24") for i in range(5)]
    rows += [row(9, **UNTRAINED, status="failed", reason="loss became NaN in epoch 3")]
    reasons = reasons_info(make_table(rows))
    assert reasons["count"].tolist() == [5, 1]
    assert reasons["reason"].tolist() == ["latency_ms 20.5 > 24", "loss became NaN in epoch 3"]
    assert len(reasons_info(empty_table())) == 0


def test_random_weights_are_loud() -> None:
    (loud,) = loud_warnings(realistic_table(10).assign(weights_random=True))
    assert "Random backbone weights: tf_efficientnet_lite0" in loud.text
    assert loud_warnings(realistic_table(10)) == ()


def test_warnings() -> None:
    rows = [
        row(0, ap=math.nan),
        row(1),
        row(2, machine="other", machine_label="Xeon", latency_device="cuda", torch="2.14", latency_precision="fp16"),
        row(3, status="running", **UNTRAINED),
        row(4, status="rejected", latency_ms=None, latency_predicted_ms=40.0),
    ]
    told = "\n".join(s.text for s in warnings(evidence(rows, warnings=["3 boxes dropped"])))
    for words in (
        "2 values of machine",
        "2 values of device",
        "versions of torch",
        "without ap",
        "still running",
        "3 boxes dropped",
    ):
        assert words in told
    assert "1 candidate rejected on predicted latency alone" in told
    mixed = gather(make_table([row(0), row(1, protocol="other")]), study_meta(), mix_protocols=True)
    assert any("2 protocols" in s.text for s in warnings(mixed))


def test_noisy_latency_is_told_where_it_decides() -> None:
    rows = [row(0), row(1, latency_low_ms=9.0, latency_high_ms=19.0)]
    by_latency = [OBJECTIVES[0], {"name": "latency_ms", "direction": "minimize"}]
    assert any("Latency of 1 candidate is known" in s.text for s in warnings(evidence(rows, objectives=by_latency)))
    assert warnings(evidence(rows)) == ()


def test_quantities() -> None:
    assert quantity("macs").text(1_234_000_000) == "1.234 G"
    assert quantity("ap").text(20.64) == "20.6 AP"
    assert quantity("latency_ms").text(pd.NA) == "–"
    assert quantity("ap").number(math.nan) == ""
    assert quantity("anything").title == "anything"
    assert (quantity("macs").within, quantity("latency_ms").within) == ("MACs", "latency")


def test_drawings_are_blocks_of_the_page() -> None:
    section = necks.section(evidence([row(0, graph=graph_json("fpn", 64))]))
    assert section is not None
    assert isinstance(section.blocks[0], Drawings)


# -- benchmarks -------------------------------------------------------------------------------------------------


def benched(aps: dict[str, list[float]]) -> Evidence:
    rows = [
        row(trial, candidate=name, neck_label=name, source="listed", seed=seed, ap=ap, params=1e6, latency_ms=5.0 + i)
        for trial, (i, name, seed, ap) in enumerate(
            (i, name, seed, ap) for i, (name, of) in enumerate(aps.items()) for seed, ap in enumerate(of)
        )
    ]
    return gather(make_table(rows), {"objectives": OBJECTIVES})


def test_a_benchmark_is_told_as_one_and_not_as_a_search() -> None:
    info = answer_info(benched({"a": [20.0, 20.4, 20.2], "b": [20.1, 19.9, 20.3], "c": [5.0, 5.3, 5.1]}))
    assert info.headline.text == "a has the best AP of 3 candidates; 1 of the others cannot be told from it."
    assert (info.levels, info.matches) == ((), ())
    assert [(m.neck["label"], m.comparison and m.comparison.verdict) for m in info.listed] == [
        ("a", None),
        ("b", "unclear"),
        ("c", "worse"),
    ]
    assert "search" not in " ".join(s.text for s in (info.headline, *info.sentences))


def test_a_benchmark_of_one() -> None:
    info = answer_info(benched({"a": [20.0]}))
    assert info.headline.text == "a has the best AP of 1 candidate; none of the others reaches it."


# -- trust in the short training --------------------------------------------------------------------------------


def with_proxy(aps: dict[str, list[float]], long: dict[str, float]) -> Evidence:
    benched_ = benched(aps)
    kept = {
        "times": 4,
        "epochs": 8,
        "cost": "macs",
        "study": "s-x4",
        "candidates": [
            {
                "candidate": name,
                "label": name,
                "macs": i,
                "short": dict(enumerate(aps[name])),
                "long": {"0": ap},
            }
            for i, (name, ap) in enumerate(long.items())
        ],
    }
    return gather(benched_.table, {"objectives": OBJECTIVES, "proxy": {"4": kept}})


def test_what_a_longer_training_said_stands_beside_the_front() -> None:
    names = "abcdefghijklmnopqrst"
    aps = {name: [10.0 + i, 10.1 + i] for i, name in enumerate(names)}
    given = with_proxy(aps, {name: 30.0 + i for i, name in enumerate(names)})
    said = trust.section(given)
    assert [s.text for s in said.sentences] == [
        "20 candidates were trained for 32 epochs too, instead of 8 (study s-x4).",
        "Kendall's tau of the two rankings is 1.00 (1.00 to 1.00), and 1.00 (1.00 to 1.00) within the top: 1 is the "
        "same order, 0 no relation.",
    ]
    table, plot = said.blocks
    assert table.rows["tau"].tolist()[0] == 1
    trace = plot.draw().data[0]
    assert list(zip(trace.x, trace.y, strict=True)) == [(10.05 + i, 30.0 + i) for i in range(20)]
    assert set(trace.customdata) <= set(given.designs["key"])


def test_few_or_none_trained_longer_claim_nothing() -> None:
    aps = {name: [10.0 + i] for i, name in enumerate("abc")}
    few = trust.section(with_proxy(aps, {"a": 20.0}))
    assert [s.text for s in few.sentences] == ["1 candidate was trained for 32 epochs too, instead of 8 (study s-x4)."]
    none = trust.section(benched(aps))
    assert "was not measured" in none.sentences[0].text
    assert trust.section(gather(empty_table(), {"objectives": OBJECTIVES})) is None

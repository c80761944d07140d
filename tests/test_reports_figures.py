"""The figures say what was computed: which points, which line, which names."""

from __future__ import annotations

import pytest
from tables import OBJECTIVES, UNTRAINED, realistic_table, row, study_meta

from fpn_bench.analysis import make_table
from fpn_bench.reports import front_figure, hypervolume_figure, report_info


def test_points_are_shown_once_and_in_units() -> None:
    info = report_info(realistic_table(80, seeds=2), study_meta())
    figure = front_figure(info.planes[0])
    shown = [x for trace in figure.data if trace.name != "Pareto front" and trace.yaxis is None for x in trace.x]
    assert sorted(shown) == pytest.approx(sorted(info.candidates["macs"].astype(float) / 1e9))
    line = next(trace for trace in figure.data if trace.name == "Pareto front")
    assert line.line.shape == "hv"
    assert list(line.y) == sorted(line.y)
    bars = next(trace for trace in figure.data if trace.name == "searched, on the front")
    assert (bars.error_y.array > 0).all()


def test_names_of_published_necks_never_cover_each_other() -> None:
    far = [row(0, ap=10.0, macs=10**9), row(1, ap=30.0, macs=3 * 10**9)]
    same = [row(i, ap=20.0, macs=2 * 10**9, source="published", neck_label=f"neck {i}") for i in range(2, 9)]
    traces = front_figure(report_info(make_table(far + same), study_meta()).planes[0]).data
    named = [t.textposition[0] for t in traces if t.name.startswith("published") and t.text[0]]
    assert len(set(named)) == len(named) == 4  # right, left, below, above; the legend names the others


def test_the_view_opens_on_what_finished() -> None:
    rows = [row(i, ap=20.0 + i, macs=(1 + i) * 10**9) for i in range(3)]
    rows += [row(9, **UNTRAINED, status="rejected", reason="macs 9e12 > 4e9", macs=9 * 10**12)]
    figure = front_figure(report_info(make_table(rows), study_meta(constraints=["macs <= 4e9"])).planes[0])
    low, high = figure.layout.xaxis.range
    assert low < 1.0
    assert 4.0 < high < 5.0
    assert any("1 rejected or failed beyond this edge" in a.text for a in figure.layout.annotations)


def test_wide_costs_are_on_a_log_axis() -> None:
    rows = [row(i, ap=20.0 + i, macs=10 ** (8 + i)) for i in range(4)]
    assert front_figure(report_info(make_table(rows), study_meta()).planes[0]).layout.xaxis.type == "log"


def test_a_single_objective_is_shown_over_trials() -> None:
    info = report_info(realistic_table(20), study_meta(objectives=OBJECTIVES[:1]))
    figure = front_figure(info.planes[0])
    assert figure.layout.xaxis.title.text == "Trial"
    assert "Pareto front" not in [trace.name for trace in figure.data]


def test_hypervolume_ends_at_one_hundred() -> None:
    curve = hypervolume_figure(report_info(realistic_table(40), study_meta()).hypervolume).data[0]
    assert curve.y[-1] == pytest.approx(100)
    assert len(curve.x) == 40

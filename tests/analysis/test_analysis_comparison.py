"""Two tables side by side: against scipy and by hand, and the same from either side."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tables import UNTRAINED, realistic_table, row, study_meta

from fpn_bench.analysis import compare, compare_tables, differing_fields, empty_table, holm, hypervolume, make_table
from fpn_bench.analysis.shared import SHARED_COLUMNS
from fpn_bench.errors import InputError, ProtocolError
from fpn_bench.reports import comparison_text

AP_MACS = [{"name": "ap", "direction": "maximize"}, {"name": "macs", "direction": "minimize"}]
MIRROR = {"better": "worse", "worse": "better"}


def table(study: str, aps: dict[str, list[float]], **values: object) -> pd.DataFrame:
    """A row for each AP of each candidate, seeds from 0; a candidate's MACs follow from its name."""
    rows = []
    for name, figures in aps.items():
        for seed, ap in enumerate(figures):
            fields = {"study": study, "candidate": name, "seed": seed, "ap": ap, "macs": 100 + ord(name[0])}
            rows.append(row(len(rows), **{**fields, **values}))
    return make_table(rows)


def by_id(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_index("candidate")


# --------------------------------------------------------------------------------------------------------------
# By hand


def test_holm_by_hand():
    # Sorted: .005 x 4, .01 x 3, .03 x 2 = .06, .04 x 1 raised to the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, math.nan, 0.8]) == pytest.approx([1.0, math.nan, 1.0], nan_ok=True)
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_rejects(p):
    level = 0.05
    rejected = set()
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] * (len(p) - step) > level:
            break
        rejected.add(i)
    assert {i for i, q in enumerate(holm(p)) if q <= level} == rejected


def pooled(*samples: list[float]) -> tuple[float, int]:
    """By hand: the samples' own squares and the prior's ten of 1.05^2."""
    squares = sum(float(np.var(values, ddof=0) * len(values)) for values in samples)
    freedom = 10 + sum(len(values) - 1 for values in samples)
    return math.sqrt((10 * 1.05**2 + squares) / freedom), freedom


def test_an_interval_by_hand():
    sd, freedom = pooled([20, 21, 22], [23, 25, 27])
    error = sd * math.sqrt(2 / 3)
    half = float(stats.t.ppf(0.975, freedom)) * error
    found = compare_tables(table("one", {"x": [20, 21, 22]}), table("two", {"x": [23, 25, 27]}), AP_MACS)
    x = by_id(found.shared).loc["x"]
    assert (x.ap_difference, x.ap_difference_low, x.ap_difference_high) == pytest.approx((4, 4 - half, 4 + half))
    assert x.ap_p_differs == pytest.approx(2 * stats.t.sf(4 / error, freedom))
    assert x.ap_basis == "pooled sd"
    assert (x.seeds_a, x.seeds_b, x.ap_a, x.ap_b) == (3, 3, 21, 25)
    assert (found.ap.difference, found.ap.low, found.ap.count) == pytest.approx((4, 4 - half, 1))


def test_more_candidates_need_more_evidence():
    a, b = {"x": [20.0, 20.2, 20.1]}, {"x": [22.0, 22.4, 22.2]}
    alone = compare_tables(table("one", a), table("two", b), AP_MACS)
    assert list(alone.shared.ap_verdict) == ["better"]
    rng = np.random.default_rng(0)
    more = {f"c{i}": rng.normal(20, 1, (2, 3)) for i in range(80)}
    a |= {name: list(both[0]) for name, both in more.items()}
    b |= {name: list(both[1]) for name, both in more.items()}
    found = compare_tables(table("one", a), table("two", b), AP_MACS)
    among = by_id(found.shared)
    error = found.seed_sd * math.sqrt(2 / 3)
    p = [2 * stats.t.sf(abs(np.mean(b[n]) - np.mean(a[n])) / error, found.seed_freedom) for n in among.index]
    assert among.ap_p_differs.to_numpy() == pytest.approx(holm(p))
    assert among.loc["x", "ap_verdict"] == "unclear"


def test_a_second_seed_makes_no_interval_wider():
    def width(a: list[float], b: list[float]) -> float:
        found = compare_tables(table("one", {"x": a}), table("two", {"x": b}), AP_MACS, draws=2).shared.iloc[0]
        return found.ap_difference_high - found.ap_difference_low

    one = width([20.0], [26.0])
    assert one < 7  # 2 t(10) 1.05 sqrt(2)
    assert width([20.0, 21.5], [26.0, 24.5]) < one


def test_one_seed_is_judged_by_the_seeds_of_others():
    a = table("one", {"x": [20.0], "y": [10.0, 12.0, 14.0]})
    b = table("two", {"x": [30.0, 31.0], "y": [11.0]})
    found = compare_tables(a, b, AP_MACS)
    sd, freedom = pooled([10.0, 12.0, 14.0], [30.0, 31.0])
    assert (found.seed_sd, found.seed_freedom) == (pytest.approx(sd), 13) == (pytest.approx(sd), freedom)
    x = by_id(found.shared).loc["x"]
    half = float(stats.t.ppf(0.975, 13)) * sd * math.sqrt(1 + 1 / 2)
    assert (x.ap_basis, x.ap_difference) == ("pooled sd", 10.5)
    assert (x.ap_difference_low, x.ap_difference_high) == pytest.approx((10.5 - half, 10.5 + half))
    assert "1.23 AP, pooled with 13 degrees of freedom, 10 of them known beforehand" in " ".join(
        comparison_text(found).sentences
    )


def test_without_any_second_seed_the_prior_decides():
    a, b = table("one", {"x": [20.0], "y": [5.0]}), table("two", {"x": [40.0], "y": [6.0], "z": [50.0]})
    found = compare_tables(a, b, AP_MACS)
    assert list(found.shared.ap_verdict) == ["better", "unclear"]
    assert set(found.shared.ap_basis) == {"prior sd"}
    assert "No candidate has a second seed" in " ".join(comparison_text(found).sentences)
    assert found.front.change.difference > 0


def test_the_mean_change_is_that_of_these_candidates():
    a = {name: [ap - 0.1, ap + 0.1] for name, ap in zip("uvwxyz", range(10, 40, 5), strict=True)}
    gains = [1.0, 1.2, 0.8, 1.1, 0.9, 1.0]
    b = {name: [ap + gain for ap in a[name]] for name, gain in zip(a, gains, strict=True)}
    sd, freedom = pooled(*a.values(), *b.values())
    half = float(stats.t.ppf(0.975, freedom)) * sd * math.sqrt(6 * (1 / 2 + 1 / 2)) / 6
    found = compare_tables(table("one", a), table("two", b), AP_MACS).ap
    assert (found.verdict, found.count) == ("better", 6)
    assert (found.difference, found.low, found.high) == pytest.approx((1.0, 1 - half, 1 + half))
    assert compare_tables(table("one", a), table("two", b), AP_MACS, margin_ap=2).ap.verdict == "same"


def test_two_shared_candidates_do_not_span_hundreds():
    """A t interval of two differences has one degree of freedom: 12.7 times their spread."""
    found = compare_tables(table("one", {"x": [20.0], "y": [18.0]}), table("two", {"x": [21.0], "y": [24.0]}), AP_MACS)
    assert found.ap.high - found.ap.low < 5
    assert -1 <= found.front.change.low <= found.front.change.difference <= found.front.change.high <= 1


def test_hypervolumes_have_one_reference_point():
    # A: (20, 197), (24, 198); B: (22, 197), (30, 220), with AP up and MACs down, within (20, 220).
    a, b = table("one", {"a": [20.0], "b": [24.0]}), table("two", {"a": [22.0], "x": [30.0]})
    front = compare_tables(a, b, AP_MACS).front
    assert front.reference == (20.0, 220.0)
    assert (front.hypervolume_a, front.hypervolume_b) == (4 * 22, 2 * 23)
    assert front.hypervolume_union == 4 * 22 + 2 * 1
    assert front.change.difference == pytest.approx((46 - 88) / 90)
    assert list(front.members.side + front.members.candidate) == ["Ab", "Aa", "Bx", "Ba"]
    assert list(front.members.dominated) == [False, True, False, False]


def test_exact_objectives_need_no_seeds():
    objectives = [{"name": "macs", "direction": "minimize"}, {"name": "params", "direction": "minimize"}]
    a = make_table([row(0, macs=10, params=40), row(1, macs=40, params=10)])
    b = make_table([row(0, candidate="new", macs=20, params=20), row(1, macs=40, params=10)])
    front = compare_tables(a, b, objectives).front
    assert front.change.low == front.change.high == front.change.difference > 0
    assert front.change.verdict == "better"
    values = [[10, 40], [40, 10], [20, 20]]
    assert front.hypervolume_union == hypervolume(values, ["minimize"] * 2, front.reference)


def test_the_best_at_each_cost_by_hand():
    a = table("one", {"a": [10.0, 10.2], "c": [20.0, 20.2], "z": [30.0, 30.2]})
    b = table("two", {"b": [15.0, 15.2], "c": [14.0, 14.2], "y": [25.0, 25.2]})
    levels = compare_tables(a, b, AP_MACS).levels
    assert list(levels.at_most) == [198, 199, 221, 222]  # below b's 198 MACs, B has nothing
    assert list(levels.candidate_a + levels.candidate_b) == ["ab", "cb", "cy", "zy"]
    assert list(levels.ap_difference) == pytest.approx([5, -5, 5, -5], abs=1)  # what is expected of the true ones
    assert list(levels.ap_verdict) == ["better", "worse", "better", "worse"]


# --------------------------------------------------------------------------------------------------------------
# What is one and the same


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_table_is_the_same_as_itself(seeds):
    one = realistic_table(40, seeds=seeds)
    found = compare_tables(one, one)
    assert set(found.shared.ap_verdict) == set(found.shared.latency_verdict) == {"same"}
    assert (found.shared.ap_difference == 0).all()
    assert found.shared.costs_equal.all()
    front = found.front
    assert front.hypervolume_a == front.hypervolume_b == front.hypervolume_union > 0
    assert (front.change.verdict, front.change.difference) == ("same", 0)
    assert not front.members.dominated.any()
    assert len(found.only) == len(found.conditions) == 0
    assert (found.statuses.a == found.statuses.b).all()
    assert set(found.levels.ap_verdict) == {"same"}
    assert comparison_text(found).headline.startswith("B is the same as A")


def test_what_was_taken_over_is_no_evidence():
    aps = {"x": [20.0, 20.3], "y": [15.0, 15.1], "z": [10.0, 10.1]}
    taken = table("two", aps, shared_from="one", started_at="2026-02-04T00:00:00+00:00")
    own = table("two", {"v": [12.0, 12.2]})
    found = compare_tables(table("one", aps | {"v": [11.0, 11.1]}), pd.concat([taken, own], ignore_index=True), AP_MACS)
    assert dict(zip(found.shared.candidate, found.shared.ap_basis, strict=True)) == {
        **dict.fromkeys("xyz", "same training"),
        "v": "pooled sd",
    }
    assert found.ap.count == 1  # v alone
    assert found.ap.difference == pytest.approx(1.05)
    assert "3 pairs of one and the same training" in " ".join(comparison_text(found).sentences)


def test_what_was_trained_again_with_equal_figures_is_evidence():
    aps = {"x": [20.0, 20.3], "y": [15.0, 15.1]}
    found = compare_tables(table("one", aps), table("two", aps), AP_MACS)
    assert set(found.shared.ap_basis) == {"equal figures"}
    assert (found.ap.verdict, found.ap.difference, found.ap.count) == ("same", 0, 2)


def test_a_figure_on_both_sides_is_drawn_once():
    # B has one more, at the very cost of the reference point, which adds nothing; all else scatters alike.
    aps = {chr(ord("a") + i): [10 + 2.0 * i, 11 + 2.0 * i] for i in range(8)}
    a, b = table("one", aps), table("two", aps | {"x": [40.0, 41.0]})
    shared = compare_tables(a, b, AP_MACS).front.change
    shifted = {name: [ap + 1e-9 for ap in figures] for name, figures in aps.items()}
    apart = compare_tables(a, table("two", shifted | {"x": [40.0, 41.0]}), AP_MACS).front.change
    assert shared.difference == pytest.approx(apart.difference, abs=1e-6)
    assert shared.low == shared.high == 0
    assert apart.low < -0.01 < 0.01 < apart.high


APS = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.integers(100, 200).map(lambda v: v / 10), min_size=1, max_size=4), min_size=1
)


@settings(max_examples=4, deadline=None)
@given(APS, APS)
def test_swapping_the_two_mirrors_everything(one, two):
    a, b = table("one", one), table("two", two, latency_ms=15.0, latency_low_ms=14.7, latency_high_ms=15.2)
    there, back = compare_tables(a, b, AP_MACS, draws=50), compare_tables(b, a, AP_MACS, draws=50)
    x, y = by_id(there.shared), by_id(back.shared).reindex(there.shared.candidate)
    assert x.ap_difference.to_numpy() == pytest.approx(-y.ap_difference.to_numpy())
    assert x.ap_difference_low.to_numpy() == pytest.approx(-y.ap_difference_high.to_numpy(), nan_ok=True)
    assert x.latency_ratio.to_numpy() == pytest.approx(1 / y.latency_ratio.to_numpy())
    for column in ("ap_verdict", "latency_verdict"):
        assert list(x[column].replace(MIRROR)) == list(y[column])
    assert list(x.ap_basis) == list(y.ap_basis)
    for p, q in ((there.ap, back.ap), (there.front.change, back.front.change)):
        assert MIRROR.get(p.verdict, p.verdict) == q.verdict
        assert (p.difference, p.low, p.high) == pytest.approx((-q.difference, -q.high, -q.low), nan_ok=True)
    assert list(there.levels.ap_verdict.replace(MIRROR)) == list(back.levels.ap_verdict)
    assert (there.front.hypervolume_a, there.front.hypervolume_b) == (
        back.front.hypervolume_b,
        back.front.hypervolume_a,
    )


@settings(max_examples=5, deadline=None)
@given(
    st.lists(st.integers(100, 200).map(lambda v: v / 10), min_size=2, max_size=5),
    st.lists(st.integers(100, 200).map(lambda v: v / 10 + 0.05), min_size=2, max_size=5),
)
def test_a_single_pair_is_what_compare_says(a, b):
    found = compare_tables(table("one", {"x": a}), table("two", {"x": b}), AP_MACS, draws=2).shared.iloc[0]
    sd, freedom = pooled(a, b)
    truth = compare(b, a, margin=0.5, typical_sd=sd, typical_freedom=freedom)
    assert (found.ap_difference_low, found.ap_difference_high) == pytest.approx((truth.low, truth.high))
    assert found.ap_verdict == truth.verdict


# --------------------------------------------------------------------------------------------------------------
# What does not compare


def test_two_protocols_are_refused_with_the_fields_that_differ():
    a, b = table("one", {"x": [20.0]}), table("two", {"x": [21.0]}, protocol="other", epochs=5)
    with pytest.raises(
        ProtocolError, match=r"'1f0c5a7e9b21'.*'other' \(training.epochs: \"8\" in A, \"5\" in B; a tab"
    ):
        compare_tables(a, b)
    there = study_meta()
    here = study_meta(protocol={**there["protocol"], "training": {**there["protocol"]["training"], "batch_size": 4}})
    with pytest.raises(ProtocolError, match=r"\(training.batch_size: 16 in A, 4 in B\); their AP"):
        compare_tables(a, b, metadata=(there, here))
    with pytest.raises(ProtocolError, match=r"\(nothing that was recorded differs; a table"):
        compare_tables(a, b.assign(epochs=8))
    with pytest.raises(ProtocolError, match="B holds rows of 2 protocols, '1f0c5a7e9b21' and 'other'"):
        compare_tables(a, pd.concat([a, b]))


def test_an_empty_study_of_another_protocol_is_refused_too():
    protocol = {**study_meta()["protocol"], "id": "other"}
    with pytest.raises(ProtocolError, match="B under 'other'"):
        compare_tables(table("one", {"x": [20.0]}), empty_table(), metadata=({}, study_meta(protocol=protocol)))


def test_differing_fields_name_each_leaf():
    a, b = {"x": 1, "y": {"z": [1, 2], "w": 3}}, {"x": 1, "y": {"z": [1, 3]}, "v": None, "u": 0}
    assert list(differing_fields(a, b)) == [("y.z", [1, 2], [1, 3]), ("y.w", 3, None), ("u", None, 0)]
    assert list(differing_fields(a, a)) == []


LATENCY = [{"name": "ap", "direction": "maximize"}, {"name": "latency_ms", "direction": "minimize"}]


@pytest.mark.parametrize(
    "change",
    [{"latency_device": "NVIDIA L4"}, {"machine": "ffff"}, {"latency_precision": "fp16"}, {"latency_batch": 8}],
    ids=lambda c: next(iter(c)),
)
def test_latency_under_other_conditions_gets_no_verdict(change):
    aps = {"x": [20.0, 20.5], "y": [10.0, 10.5]}
    found = compare_tables(table("one", aps), table("two", aps, **change), LATENCY)
    (column,) = change
    assert set(found.shared.latency_verdict) == {"not comparable"}
    assert found.shared.latency_ratio.isna().all()
    assert found.shared.latency_conditions.str.startswith(f"{column}: ").all()
    assert list(found.conditions.field) == [column]
    assert [o.name for o in found.objectives] == ["ap"]
    assert "latency_ms left out of the fronts" in " ".join(comparison_text(found).sentences)
    alone = compare_tables(table("one", aps), table("two", aps, **change), LATENCY[1:])
    assert [o.name for o in alone.objectives] == ["ap", "macs"]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(14.9, 15.1, "worse"), (14.0, 16.0, "unclear"), (math.nan, math.nan, "unclear")],
)
def test_latency_needs_its_whole_interval_beyond_the_tolerance(low, high, verdict):
    a = table("one", {"x": [20.0]}, latency_ms=14.0, latency_low_ms=13.95, latency_high_ms=14.05)
    b = table("two", {"x": [21.0]}, latency_ms=15.0, latency_low_ms=low, latency_high_ms=high)
    x = compare_tables(a, b).shared.iloc[0]
    assert (x.latency_verdict, x.latency_ratio) == (verdict, pytest.approx(15 / 14))
    if not math.isnan(low):
        half = math.hypot(math.log(14.05 / 13.95) / 2, math.log(high / low) / 2)
        assert x.latency_ratio_high == pytest.approx(15 / 14 * math.exp(half))
    assert compare_tables(a, b, latency_tolerance=0.5).shared.latency_verdict[0] == (
        "unclear" if math.isnan(low) else "same"
    )


def test_other_conditions_are_told():
    a = table("one", {"x": [20.0]})
    b = table("two", {"x": [21.0]}, torch="3.0", weights="random", dataset="other name")
    meta = (study_meta(), study_meta(versions={"torch": "3.0", "timm": "2.0"}, constraints=[]))
    found = compare_tables(a, b, metadata=meta).conditions.set_index("field")
    assert set(found.index) == {"dataset", "torch", "timm", "weights of tf_efficientnet_lite0", "constraints"}
    assert tuple(found.loc["timm"]) == ("1.0.31", "2.0")
    assert tuple(found.loc["constraints"]) == ("latency_ms <= 24", "none")


def test_other_costs_under_one_id_are_a_warning():
    a, b = table("one", {"x": [20.0], "y": [20.0]}), table("two", {"x": [21.0], "y": [20.0]})
    b.loc[b.candidate == "x", "macs"] += 1
    found = compare_tables(a, b)
    assert list(found.shared.costs_equal) == [False, True]
    (warning,) = comparison_text(found).warnings
    assert warning.startswith("1 shared candidate with other params or MACs under the same id, e.g. x (")
    assert "MACs 220 / 221" in warning


def test_objectives_in_common_are_used():
    latency = study_meta(objectives=LATENCY)
    a, b = table("one", {"x": [20.0]}), table("two", {"x": [21.0]})
    found = compare_tables(a, b, metadata=(latency, study_meta()))
    assert [o.name for o in found.objectives] == ["ap"]
    assert (
        "A searched for ap, latency_ms, B for ap, macs: fronts are compared in ap." in comparison_text(found).sentences
    )
    only_macs, only_params = (study_meta(objectives=[{"name": n, "direction": "minimize"}]) for n in ("macs", "params"))
    assert [o.name for o in compare_tables(a, b, metadata=(only_macs, only_params)).objectives] == ["ap", "macs"]
    assert [o.name for o in compare_tables(a, b, metadata=(latency, {})).objectives] == ["ap", "latency_ms"]


# --------------------------------------------------------------------------------------------------------------
# Edges

FULL = realistic_table(10, seeds=2)
REJECTED = make_table([row(i, **UNTRAINED, status="rejected", reason="latency_ms 30 > 24") for i in range(3)])
NO_AP = make_table([row(i, ap=None) for i in range(3)])
NO_LATENCY = make_table(
    [row(i, latency_ms=None, latency_low_ms=None, latency_high_ms=None, latency_device="") for i in range(3)]
)
EDGES = {
    "empty": empty_table(),
    "rejected": REJECTED,
    "no AP": NO_AP,
    "no latency": NO_LATENCY,
    "one row": make_table([row()]),
    "nothing known": make_table([row(ap=None, macs=None, params=None, latency_ms=None, seed=None)]),
    "full": FULL,
}
MANY = [*AP_MACS, LATENCY[1], {"name": "params", "direction": "minimize"}]


@pytest.mark.parametrize(
    ("name_a", "name_b", "objectives"),
    [
        *((a, b, MANY) for a, b in itertools.combinations_with_replacement(EDGES, 2)),
        *((name, "full", objectives) for name in EDGES for objectives in (LATENCY, MANY[:1], MANY[3:])),
    ],
)
def test_edges_are_sentences(name_a, name_b, objectives):
    found = compare_tables(EDGES[name_a], EDGES[name_b], objectives, draws=5)
    assert comparison_text(found).headline.endswith(".")
    assert all(sentence.endswith(".") for sentence in comparison_text(found).sentences)
    assert "nan" not in " ".join(
        [comparison_text(found).headline, *comparison_text(found).sentences, *comparison_text(found).warnings]
    )
    assert list(found.shared.columns) == list(SHARED_COLUMNS)
    json.dumps(found.to_dict(), allow_nan=False)


def test_edges_say_what_is_missing():
    assert comparison_text(compare_tables(FULL, REJECTED)).headline == "Nothing to compare: no candidate finished in B."
    assert comparison_text(compare_tables(empty_table(), REJECTED)).headline.endswith(
        "no candidate finished in A and B."
    )
    assert comparison_text(compare_tables(NO_AP, NO_AP)).headline.startswith(
        "Nothing to compare: no candidate has an AP in both"
    )
    one_sided = compare_tables(NO_LATENCY, FULL, LATENCY)
    assert one_sided.front.change.verdict == "unclear"
    assert "A has no front: no candidate of it has all of ap, latency_ms." in comparison_text(one_sided).sentences
    statuses = compare_tables(NO_AP, REJECTED).statuses.set_index("status")
    assert tuple(statuses.loc["rejected"]) == (0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin_ap": -1}, "expected margin_ap .* got -1"),
        ({"latency_tolerance": math.nan}, "expected latency_tolerance .* got nan"),
        ({"margin_hypervolume": math.inf}, "expected margin_hypervolume .* got inf"),
        ({"confidence": 95}, "expected confidence .* got 95"),
        ({"draws": 1}, "expected draws .* got 1"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        compare_tables(FULL, FULL, **options)


def test_tables_are_left_as_they_were():
    a, b = realistic_table(10, seeds=2), realistic_table(10, seeds=2, random_state=3)
    before = a.copy(), b.copy()
    compare_tables(a, b, draws=2)
    pd.testing.assert_frame_equal(a, before[0])
    pd.testing.assert_frame_equal(b, before[1])


@pytest.mark.slow
def test_the_intervals_of_hypervolumes_hold_the_truth():
    """Candidates of known AP, one to three seeds each: the interval covers the difference of the true fronts."""
    hits = []
    for trial in range(120):
        rng = np.random.default_rng(trial)
        rows: dict[str, list[dict]] = {"A": [], "B": []}
        truth: dict[str, list[tuple[float, int]]] = {"A": [], "B": []}
        for side, count in (("A", 15), ("B", 30)):
            for i in range(count):
                macs = int(rng.integers(10**6, 10**7))
                ap = float(15 + 4 * np.log(macs / 1e6) + rng.normal(0, 2))
                truth[side].append((ap, macs))
                for seed in range(3 if i % 3 == 0 else 1):
                    fields = {"study": side, "candidate": f"{side}{i}", "seed": seed, "macs": macs}
                    rows[side].append(row(i, **fields, ap=ap + float(rng.normal(0, 0.8))))
        front = compare_tables(make_table(rows["A"]), make_table(rows["B"]), AP_MACS, draws=300).front
        a, b = (hypervolume(truth[s], ["maximize", "minimize"], front.reference) for s in "AB")
        hits.append(front.change.low <= (b - a) / front.hypervolume_union <= front.change.high)
    assert np.mean(hits) >= 0.88  # 95 % of 120, less three standard errors

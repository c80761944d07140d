"""What matters, held against figures by hand and against what cannot matter."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpn_bench.analysis import choice_groups, choice_importance


def frame(ap: list[float], **choices: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"ap": ap} | {f"choice.{name}": values for name, values in choices.items()})


def test_by_hand() -> None:
    # Means 2 and 5: 13.5 of a total of 17.5 is between groups, 4 within; epsilon squared is (13.5 - 4 / 4) / 17.5.
    found = choice_importance(frame([1.0, 2, 3, 4, 5, 6], merge=["sum"] * 3 + ["max"] * 3), "ap")
    assert found["share"].tolist() == pytest.approx([(13.5 - 1.0) / 17.5])
    assert (found["values"][0], found["candidates"][0]) == (2, 6)


def test_what_matters_comes_first_and_noise_is_below_its_line() -> None:
    rng = np.random.default_rng(0)
    strong, idle = rng.choice(["a", "b", "c"], 300), rng.choice(["x", "y"], 300)
    ap = 20 + 3.0 * (strong == "b") + rng.normal(0, 1, 300)
    found = choice_importance(frame(ap.tolist(), strong=strong.tolist(), idle=idle.tolist()), "ap")
    assert found["choice"].tolist() == ["strong", "idle"]
    assert found["share"][0] > 0.5 > found["noise"][0]
    assert found["share"][1] < found["noise"][1] + 0.02
    assert 0 < found["noise"][1] < 0.03


def test_noise_line_is_passed_by_one_idle_choice_in_twenty() -> None:
    rng = np.random.default_rng(1)
    idle = {f"c{i}": rng.choice(["x", "y", "z"], 80).tolist() for i in range(200)}
    found = choice_importance(frame(rng.normal(size=80).tolist(), **idle), "ap")
    assert 2 <= int((found["share"] > found["noise"]).sum()) <= 20


def test_a_choice_counts_only_where_it_was_asked_and_the_figure_is_known() -> None:
    ap = [1.0, 2, 3, 4, 5, 6, 100, float("nan")]
    found = choice_importance(frame(ap, merge=["sum"] * 3 + ["max"] * 3 + ["", "sum"]), "ap")
    assert found["candidates"].tolist() == [6]
    assert found["share"].tolist() == pytest.approx([(13.5 - 1.0) / 17.5])


@pytest.mark.parametrize(
    "table",
    [
        frame([], merge=[]),
        frame([1.0], merge=["sum"]),
        frame([1.0, 2.0, 3.0], merge=["sum"] * 3),
        frame([1.0, 2.0, 3.0], merge=["a", "b", "c"]),
        frame([2.0] * 6, merge=["a", "b"] * 3),
        frame([1.0, 2.0]),
    ],
    ids=["empty", "one", "one value", "all differ", "nothing to explain", "no choices"],
)
def test_nothing_to_say(table: pd.DataFrame) -> None:
    found = choice_importance(table, "ap")
    assert found.empty
    assert list(found) == ["choice", "share", "noise", "values", "candidates"]


def test_numbers_are_in_order_and_many_become_ranges() -> None:
    codes, labels = choice_groups(pd.Series(["128", "32", "64", "32"]))
    assert (codes.tolist(), labels) == ([2, 0, 1, 0], ["32", "64", "128"])
    codes, labels = choice_groups(pd.Series([str(v) for v in range(80)]))
    assert np.bincount(codes).tolist() == [10] * 8
    assert labels[0] == "0 to 9"
    assert labels[-1] == "70 to 79"


@given(st.lists(st.sampled_from(["1", "2", "10", "1e1", "a", "[3, 4]"]) | st.integers(0, 99).map(str), min_size=1))
def test_groups_are_all_used_and_named(values: list[str]) -> None:
    codes, labels = choice_groups(pd.Series(values))
    assert sorted(set(codes.tolist())) == list(range(len(labels)))
    assert len(set(labels)) == len(labels)
    for a, b in zip(values, codes, strict=True):
        for c, d in zip(values, codes, strict=True):
            assert a != c or b == d


def test_numbers_close_together_keep_apart() -> None:
    assert choice_groups(pd.Series(["1000001", "1000002"]))[1] == ["1000001", "1000002"]

"""Studies whose truth is known: statements made at 95 % are false no more often than they say.

The whole of it is `benchmarks/simulated_studies.py`; here are settings at which statements were false in half of the
studies before.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

SIMULATED = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "simulated_studies.py"))
STUDIES = 10


def false_studies(name: str, kind: str, size: object, seeds: str) -> dict[str, int]:
    """For each kind of statement, in how many studies one was false."""
    counts: dict[str, int] = {}
    for number in range(STUDIES):
        for statement, count in SIMULATED[name](kind, size, seeds, np.random.default_rng([number, 5])):
            counts[statement] = counts.get(statement, 0) + (count.false > 0)
    return counts


@pytest.mark.parametrize("kind", ["equal", pytest.param("clustered", marks=pytest.mark.slow)])
def test_two_studies_of_unequal_size_are_not_told_apart_by_their_size(kind: str) -> None:
    assert max(false_studies("compare", kind, (60, 10), "3").values()) <= 2


def test_the_best_of_equals_is_not_said_to_be_better() -> None:
    counts = false_studies("report", "equal", 20, "3")
    assert counts["report, picked against published"] <= 2
    assert counts["report, listed against the best"] <= 2


def test_a_difference_of_three_is_found() -> None:
    """One in ten of thirty is 3 AP ahead of the others, three seeds each: the report says so in most pairs."""
    of, found = 0, 0
    for number in range(5):
        for statement, count in SIMULATED["report"]("ahead", 30, "3", np.random.default_rng([number, 6])):
            if statement == "report, picked against published":
                of, found = of + count.of_three, found + count.found
    assert of >= 5
    assert found / of >= 0.7


def test_a_verdict_at_the_tolerance_is_rare_however_often_one_looks() -> None:
    rng = np.random.default_rng(0)
    assert sum(SIMULATED["profile"](1.02, rng).false for _ in range(300)) <= 0.05 * 300

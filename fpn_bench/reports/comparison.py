"""A comparison of two tables in words (`fpn_bench.analysis.compare_tables` found what they say)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fpn_bench.analysis import Objective, TableComparison
from fpn_bench.analysis.comparable import DEFAULT_OBJECTIVES
from fpn_bench.analysis.comparison import CORRECTION
from fpn_bench.analysis.intervals import Verdict
from fpn_bench.analysis.shared import NOT_COMPARABLE, SEPARATE
from fpn_bench.analysis.words import count, named


@dataclass(frozen=True)
class ComparisonText:
    """What `comparison_text` says.

    Attributes:
        headline: the answer in one sentence.
        sentences: what qualifies it.
        warnings: what needs a look before any figure is believed.
    """

    headline: str
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]


def comparison_text(found: TableComparison) -> ComparisonText:
    """What a comparison found, for people."""
    sentences = (
        *_shared_sentences(found),
        *_front_sentences(found),
        *_objective_sentences(found),
    )
    return ComparisonText(_headline(found), sentences, _warnings(found.shared))


def _headline(comparison: TableComparison) -> str:
    shared, ap, front = comparison.shared, comparison.ap, comparison.front
    complete = comparison.statuses[comparison.statuses["status"] == "complete"]
    empty = [side for side in "AB" if not complete[side.lower()].sum()]
    if empty:
        return f"Nothing to compare: no candidate finished in {' and '.join(empty)}."
    found: list[tuple[Verdict, str, str]] = []
    if not math.isnan(front.change.difference):
        change = front.change
        share = _change(100 * change.difference, 100 * change.low, 100 * change.high, ".1f", " %")
        found.append((change.verdict, "its front", f"hypervolume {share} of the joint front's"))
    if ap.count:
        told = f"AP of {count(ap.count, 'shared candidate')} {_change(ap.difference, ap.low, ap.high, '.2f')}"
        found.append((ap.verdict, "shared candidates", told))
    elif (shared["ap_basis"] == "same training").any():
        found.append(("same", "shared candidates", "shared candidates are the same trainings"))
    if not found:
        return "Nothing to compare: no candidate has an AP in both, and the two fronts span no volume."
    words = {"better": "better than A", "worse": "worse than A", "same": "the same as A"}
    found.sort(key=lambda part: part[0] == "unclear")  # a verdict first
    said = "; ".join(told for _, _, told in found)
    first = found[0][0]
    if first == "unclear":
        return f"Unclear how B stands to A: {said}."
    if all(verdict == first for verdict, _, _ in found):
        return f"B is {words[first]}: {said}."
    parts = ", ".join(f"{words.get(verdict, verdict)} by {by}" for verdict, by, _ in found)
    return f"B is {parts}: {said}."


def _shared_sentences(comparison: TableComparison) -> list[str]:
    shared, confidence, sd = comparison.shared, comparison.confidence, comparison.seed_sd
    margin, tolerance = comparison.margin_ap, comparison.latency_tolerance
    if shared.empty:
        return ["No candidate finished in both."]
    said = []
    basis = shared["ap_basis"].value_counts()
    pairs = int(basis.reindex(SEPARATE).fillna(0).sum())
    if pairs:
        listed = _counts(shared.loc[shared["ap_basis"].isin(SEPARATE), "ap_verdict"])
        said.append(
            f"AP of {count(pairs, 'pair')} measured apart: {listed}. Differences within {margin:g} are the same; "
            f"verdicts are corrected for their number ({CORRECTION}, {100 * (1 - confidence):g} %)."
        )
    freedom, replicates = comparison.seed_freedom, comparison.seed_replicates
    if pairs and replicates:
        said.append(
            f"Seeds' standard deviation: {sd:.2f} AP, pooled with {count(freedom, 'degree')} of "
            f"freedom, {freedom - replicates} of them known beforehand."
        )
    elif pairs:
        said.append(
            f"No candidate has a second seed: the seeds' standard deviation is taken to be {sd:.2f} AP, as in "
            "the tables that come with fpn_bench."
        )
    if "same training" in basis:
        said.append(
            f"{count(int(basis['same training']), 'pair')} of one and the same training, taken over or copied: the "
            "same by construction, and left out of the mean."
        )
    if "equal figures" in basis:
        said.append(f"{count(int(basis['equal figures']), 'pair')} equal seed by seed to the last digit.")
    if "no AP" in basis:
        said.append(f"{count(int(basis['no AP']), 'pair')} without an AP on both sides.")
    timed = shared.loc[~shared["latency_verdict"].isin(["", NOT_COMPARABLE]), "latency_verdict"]
    if len(timed):
        said.append(
            f"Latency of {count(len(timed), 'pair')}: {_counts(timed)}. Ratios within {100 * tolerance:g} % are the "
            "same."
        )
    other = shared.loc[shared["latency_conditions"] != "", "latency_conditions"]
    if len(other):
        said.append(f"Latency of {count(len(other), 'pair')} {NOT_COMPARABLE}: {other.mode()[0]}.")
    return said


def _front_sentences(comparison: TableComparison) -> list[str]:
    front, only, objectives = comparison.front, comparison.only, comparison.objectives
    said = []
    for side, other in ("AB", "BA"):
        members = front.members[front.members["side"] == side]
        beaten = int(members["dominated"].sum())
        if len(members):
            said.append(f"{beaten} of {count(len(members), 'member')} of {side}'s front beaten by {other}'s.")
        else:
            said.append(f"{side} has no front: no candidate of it has all of {named(objectives)}.")
        alone = only[only["side"] == side]
        if len(alone):
            joint = int(alone["on_joint_front"].sum())
            said.append(f"{count(len(alone), 'candidate')} only in {side}, {joint} of them on the joint front.")
    return said


def _objective_sentences(comparison: TableComparison) -> list[str]:
    said = []
    of_a, of_b = comparison.searched
    if of_a and of_b and set(of_a) != set(of_b):
        both: tuple[Objective, ...] = tuple(o for o in of_a if o in of_b) or DEFAULT_OBJECTIVES
        said.append(f"A searched for {named(of_a)}, B for {named(of_b)}: fronts are compared in {named(both)}.")
    for left in comparison.left_out:
        differ = ", ".join(f"{field} {a or '?'} / {b or '?'}" for field, a, b in left.conditions.to_numpy().tolist())
        said.append(f"{named(left.objectives)} left out of the fronts: measured under other conditions ({differ}).")
    if comparison.replaced:
        said.append(f"Fronts are compared in {named(DEFAULT_OBJECTIVES)}.")
    return said


def _warnings(shared: pd.DataFrame) -> tuple[str, ...]:
    other = shared[~shared["costs_equal"]]
    if other.empty:
        return ()
    first = other.iloc[0]
    return (
        f"{count(len(other), 'shared candidate')} with other params or MACs under the same id, e.g. "
        f"{first['candidate']} ({first['neck_label']}): params {first['params_a']} / {first['params_b']}, MACs "
        f"{first['macs_a']} / {first['macs_b']}. Counting changed between the two, or they are not the same networks.",
    )


def _change(value: float, low: float, high: float, digits: str, unit: str = "") -> str:
    """``"+1.20 (+0.55 to +1.85)"``."""
    said = f"{value:+{digits}}{unit}"
    return f"{said} (interval not known)" if math.isnan(low) else f"{said} ({low:+{digits}} to {high:+{digits}})"


def _counts(words: pd.Series[Any]) -> str:
    """``"3 better, 1 unclear"``."""
    return ", ".join(f"{n} {word}" for word, n in words.value_counts().sort_index().items())

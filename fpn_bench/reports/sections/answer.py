"""The answer, first: the best neck at each cost, and whether the search beat the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fpn_bench.analysis import Comparison, Objective, compare
from fpn_bench.analysis.rows import SEARCHED, STATUSES
from fpn_bench.analysis.uncertain_front import Scatter, seed_scatter
from fpn_bench.analysis.words import count
from fpn_bench.reports.blocks import Column, Section, Sentence, Table
from fpn_bench.reports.evidence import Evidence, evenly
from fpn_bench.reports.units import quantity

LEVELS_SHOWN = 6
LISTED_SHOWN = 100
SAME_AP = 0.5
"""AP, in percent points, that is taken to make no difference: an interval within it is "same"."""
CONFIDENCE = 0.95
"""Of all intervals of the two tables together."""
ONE_SEED = "One seed each: differences under the seeds' spread are not evidence."


@dataclass(frozen=True)
class Match:
    """A neck, and the best neck of the other kind (searched, published) that costs no more.

    Attributes:
        neck: the design.
        rival: None where none is as cheap, or where ``neck`` is published and only searched ones were held against
            published ones.
        comparison: in a list of levels ``neck`` against ``rival``; in a list of published necks ``rival`` against
            ``neck``.
    """

    neck: Mapping[Any, Any]
    rival: Mapping[Any, Any] | None
    comparison: Comparison | None


@dataclass(frozen=True)
class AnswerInfo:
    """A headline, sentences that qualify it, the best neck at each cost, each published neck and who beats it; of a
    benchmark, which searched nothing, each candidate against the best one instead."""

    headline: Sentence
    sentences: tuple[Sentence, ...] = ()
    levels: tuple[Match, ...] = ()
    matches: tuple[Match, ...] = ()
    listed: tuple[Match, ...] = ()


def section(evidence: Evidence) -> Section:
    info = answer_info(evidence)
    blocks: list[Table] = []
    if info.levels:
        note = ""
        if len(info.levels) < len(evidence.front):
            note = (
                f"{len(info.levels)} of the {len(evidence.front)} necks on the front, evenly spread; all stand below."
            )
        columns = _columns(evidence, "Neck", "Best published neck at no more cost", "is published itself")
        blocks.append(Table("levels", "Best neck at each cost", _frame(info.levels, evidence), columns, note))
    if info.matches:
        columns = _columns(evidence, "Published neck", "Best searched neck at no more cost", "")
        title = "Each published neck, and the best searched one at no more cost"
        blocks.append(Table("matches", title, _frame(info.matches, evidence), columns))
    if info.listed:
        columns = (*_columns(evidence, "Candidate", "", "")[:-2], _difference("Difference to the best", evidence))
        blocks.append(Table("listed", "Each candidate against the best", _frame(info.listed, evidence), columns))
    return Section("answer", "", (info.headline, *info.sentences), tuple(blocks))


def answer_info(evidence: Evidence) -> AnswerInfo:
    """Best neck at each cost level, and whether the search beat the published necks under this protocol."""
    counts = status_counts(evidence.table)
    on_front, merit = evidence.front, evidence.merit
    if on_front.empty:
        if not counts:
            return AnswerInfo(Sentence("The study is empty: no trial has been run."))
        told = ", ".join(f"{n} {status}" for status, n in counts.items())
        return AnswerInfo(Sentence(f"No candidate finished, so there is no front ({told}).", counts))

    known = evidence.finished.dropna(subset=[o.name for o in evidence.objectives])
    published, searched = known[known["source"] == "published"], known[known["source"].isin(SEARCHED)]
    scatter = seed_scatter(evidence.table) if merit.name == "ap" else Scatter()  # other merits': not known
    if (known["source"] == "listed").all():
        return _benchmark(evidence, scatter, known)
    matches = _matches(evidence, scatter, published, searched)
    necks = {"necks on the front": len(on_front)}
    if published.empty:
        headline = Sentence(
            f"{count(len(on_front), 'neck')} on the front; no published neck finished to compare them with.", necks
        )
    elif searched.empty:
        headline = Sentence(f"{count(len(on_front), 'published neck')} on the front; no searched neck finished.", necks)
    else:
        headline = _headline(matches, merit)
    best = on_front.iloc[0]
    figures = {o.name: float(best[o.name]) for o in evidence.objectives}
    said = ", ".join(_value(o.name, best[o.name]) for o in evidence.objectives)
    sentences = [Sentence(f"Best {quantity(merit.name).label}: {best['label']}, {said}.", figures)]
    if evidence.costs:
        sentences.append(_front_sentence(on_front, evidence.costs[0]))
    sentences += _seed_sentences(evidence, scatter, len(searched))
    return AnswerInfo(headline, tuple(sentences), _levels(evidence, scatter, published), matches)


def _benchmark(evidence: Evidence, scatter: Scatter, known: pd.DataFrame) -> AnswerInfo:
    """Of a study whose candidates were all listed: which stand beside the best, as far as seeds can tell."""
    best, *others = known.iloc[:LISTED_SHOWN].to_dict("records")
    against = [
        Match(neck, best, _compare(evidence, scatter, neck, best, len(known) - 1, alike=True)) for neck in others
    ]
    level = sum(m.comparison is not None and m.comparison.verdict != "worse" for m in against)
    shown = quantity(evidence.merit.name)
    facts = {"candidates": len(known), "necks on the front": len(evidence.front), "not worse beyond noise": level}
    beside = f"{level} of the others cannot be told from it" if level else "none of the others reaches it"
    named = f" on {best['backbone']}" if known["backbone"].nunique() > 1 else ""
    headline = Sentence(
        f"{best['label']}{named} has the best {shown.label} of {count(len(known), 'candidate')}; {beside}.",
        facts,
    )
    sentences = [
        Sentence(f"Best {shown.label}: {shown.text(best[evidence.merit.name])}.", {"best": best[evidence.merit.name]})
    ]
    if len(known) > LISTED_SHOWN:
        text = f"The {LISTED_SHOWN} best of {len(known)} are held against the best here."
        sentences.append(Sentence(text, {"shown": LISTED_SHOWN}))
    sentences += _seed_sentences(evidence, scatter, 0)
    if scatter.freedom:
        text = (
            "Differences to the best are by the pooled deviation, as if all candidates scattered alike, with intervals "
            "that hold together (Bonferroni, 95 %)."
        )
        sentences.append(Sentence(text))
    return AnswerInfo(headline, tuple(sentences), listed=(Match(best, None, None), *against))


def status_counts(table: pd.DataFrame) -> dict[str, int]:
    """Rows of each status, in the order of a trial's life; statuses that do not occur are left out."""
    counts = table["status"].value_counts()
    return {s: int(counts[s]) for s in STATUSES if s in counts}


def _matches(
    evidence: Evidence, scatter: Scatter, published: pd.DataFrame, searched: pd.DataFrame
) -> tuple[Match, ...]:
    matches = []
    for neck in published.to_dict("records"):
        within = _within(searched, neck, evidence)
        rival = _best(within)
        found = _compare(evidence, scatter, rival, neck, len(within) * len(published)) if rival else None
        matches.append(Match(neck, rival, found))
    return tuple(matches)


def _headline(matches: Sequence[Match], merit: Objective) -> Sentence:
    """How many published necks the search beat, and how many of those victories are evidence."""
    sign = 1 if merit.maximize else -1
    ahead = [m.comparison for m in matches if m.comparison is not None and m.comparison.difference * sign > 0]
    evident = sum(comparison.verdict == "better" for comparison in ahead)
    same = sum(m.comparison is not None and m.comparison.verdict == "same" for m in matches)
    facts = {"published necks": len(matches), "ahead of": len(ahead), "beyond seed noise": evident, "same as": same}
    if not ahead:
        none = "not even the one published neck" if len(matches) == 1 else f"none of the {len(matches)} published necks"
        return Sentence(f"The search beat {none} at no more cost under this protocol.", facts)
    share = "all" if len(ahead) == len(matches) else f"{len(ahead)} of the"
    necks = "the one published neck" if len(matches) == 1 else f"{share} {len(matches)} published necks"
    if evident == len(ahead):
        return Sentence(f"The search beat {necks} at no more cost under this protocol, beyond seed noise.", facts)
    sure = f"{evident} of them beyond seed noise" if evident else "not beyond seed noise so far"
    return Sentence(f"The search is ahead of {necks} at no more cost under this protocol, {sure}.", facts)


def _levels(evidence: Evidence, scatter: Scatter, published: pd.DataFrame) -> tuple[Match, ...]:
    ordered = evidence.front
    if evidence.costs:
        cost = evidence.costs[0]
        ordered = ordered.sort_values(cost.name, ascending=not cost.maximize, kind="stable")
    levels = []
    shown = ordered.iloc[evenly(len(ordered), LEVELS_SHOWN)].to_dict("records")
    searched = evidence.finished[evidence.finished["source"].isin(SEARCHED)]
    for member in shown:
        rival = None if member["source"] == "published" else _best(_within(published, member, evidence))
        found = None
        if rival:
            chances = len(_within(searched, member, evidence)) * len(shown)
            found = _compare(evidence, scatter, member, rival, chances)
        levels.append(Match(member, rival, found))
    return tuple(levels)


def _within(designs: pd.DataFrame, bound: Mapping[Any, Any], evidence: Evidence) -> pd.DataFrame:
    """The designs no worse than ``bound`` in every cost, most merit first."""
    allowed = np.ones(len(designs), dtype=bool)
    for cost in evidence.costs:
        values = designs[cost.name].to_numpy(dtype=np.float64)
        allowed &= values >= bound[cost.name] if cost.maximize else values <= bound[cost.name]
    return designs[allowed]


def _best(designs: pd.DataFrame) -> dict[Any, Any] | None:
    """The first, as a record; only that one is made, for designs are many and wide."""
    return designs.iloc[:1].to_dict("records")[0] if len(designs) else None


def _compare(
    evidence: Evidence,
    scatter: Scatter,
    a: Mapping[Any, Any],
    b: Mapping[Any, Any],
    chances: int,
    *,
    alike: bool = False,
) -> Comparison:
    """``a`` against ``b``, where that is one of so many comparisons that could have been shown.

    The searched neck is the best of all that were seen, picked by the very figures that are compared here. The share of
    error is therefore divided by how many there were to pick from, and by how many picks are shown (Bonferroni).
    """
    merit = evidence.merit
    margin = SAME_AP if merit.name == "ap" else 0.0
    return compare(
        _seeds(evidence, a),
        _seeds(evidence, b),
        direction=merit.direction,
        margin=margin,
        confidence=1 - (1 - CONFIDENCE) / max(1, chances),
        typical_sd=scatter.sd,
        typical_freedom=scatter.freedom,
        alike=alike,
    )


def _seeds(evidence: Evidence, design: Mapping[Any, Any]) -> list[float]:
    table, merit = evidence.table, evidence.merit
    same = (table["candidate"] == design["candidate"]) & (table["protocol"] == design["protocol"])
    done = table[same & (table["status"] == "complete")].drop_duplicates("seed")
    return [float(v) for v in done[merit.name].dropna()]


def _columns(evidence: Evidence, neck: str, rival: str, itself: str) -> tuple[Column, ...]:
    def rival_text(row: Mapping[str, Any]) -> str:
        return itself if itself and row["source"] == "published" else row["rival"] or "none as cheap"

    return (
        Column.neck(neck, "neck"),
        *(Column.number(o.name) for o in evidence.objectives),
        Column(rival, rival_text),
        _difference("Difference [interval]", evidence),
    )


def _difference(title: str, evidence: Evidence) -> Column:
    return Column(title, lambda row: difference_text(row, evidence.merit))


def _frame(matches: Sequence[Match], evidence: Evidence) -> pd.DataFrame:
    empty = {"difference": np.nan, "low": np.nan, "high": np.nan, "verdict": "", "count_a": 0, "count_b": 0}
    return pd.DataFrame(
        [
            {"key": m.neck["key"], "neck": m.neck["label"], "source": m.neck["source"]}
            | {o.name: m.neck[o.name] for o in evidence.objectives}
            | {"rival": m.rival["label"] if m.rival else "", "rival_key": m.rival["key"] if m.rival else ""}
            | ({name: getattr(m.comparison, name) for name in empty} if m.comparison else empty)
            for m in matches
        ]
    )


def difference_text(row: Mapping[str, Any], merit: Objective) -> str:
    """Signed difference with its verdict, e.g. ``+1.8 AP, better [+0.6, +3.0]`` or ``+1.8 AP, unclear (one seed)``."""
    if not row["verdict"]:
        return ""
    shown = quantity(merit.name)
    text = f"{row['difference'] * shown.scale:+.{shown.digits}f} {shown.unit or shown.label}, {row['verdict']}"
    if pd.isna(row["low"]):
        return f"{text} (one seed)"
    low, high = row["low"] * shown.scale, row["high"] * shown.scale
    pooled = ", one seed" if min(row["count_a"], row["count_b"]) < 2 else ""
    return f"{text} [{low:+.{shown.digits}f}, {high:+.{shown.digits}f}{pooled}]"


def _front_sentence(on_front: pd.DataFrame, cost: Objective) -> Sentence:
    searched, listed = int(on_front["source"].isin(SEARCHED).sum()), int((on_front["source"] == "listed").sum())
    published = len(on_front) - searched - listed
    low, high = float(on_front[cost.name].min()), float(on_front[cost.name].max())
    shown = quantity(cost.name)
    text = (
        f"The front holds {count(len(on_front), 'neck')}, {f'{listed} of a suite, ' if listed else ''}{searched} "
        f"searched and {published} published, from {shown.number(low)} to {shown.number(high)} {shown.unit} "
        f"{shown.within}."
    )
    facts = {"necks on the front": len(on_front), "searched": searched, "published": published, "listed": listed}
    return Sentence(text, facts | {f"lowest {cost.name}": low, f"highest {cost.name}": high})


def _seed_sentences(evidence: Evidence, scatter: Scatter, searched: int) -> list[Sentence]:
    designs = evidence.finished
    if not scatter.freedom:
        sentences = [Sentence(ONE_SEED)] if designs["seeds"].max() == 1 else []
    else:
        known = int(designs["ap_sd"].notna().sum())
        once = int((designs["seeds"] == 1).sum())
        least = float(stats.t.ppf(0.975, scatter.freedom)) * 2**0.5 * scatter.sd
        facts = {"pooled_sd_ap": scatter.sd, "necks with several seeds": known, "least_difference_ap": least}
        sentences = [
            Sentence(
                f"Seeds' standard deviation, pooled over {count(known, 'neck')}: {scatter.sd:.1f} AP; two results of "
                f"one seed each must differ by more than {least:.1f} AP to count.",
                facts,
            ),
            Sentence(
                f'"Same" means that the whole interval of the difference is within {SAME_AP:g} AP.',
                {"same_ap": SAME_AP},
            ),
        ]
        if once:
            text = f"{count(once, 'neck')} trained with one seed only: their intervals are by the pooled deviation."
            sentences.append(Sentence(text, {"one seed": once}))
    if searched > 1:
        text = (
            f"The best of {searched} searched necks was picked after seeing them: expect a little less again. The "
            "intervals of differences below allow for that and for one another (Bonferroni, 95 % together), so they "
            "are wide."
        )
        sentences.append(Sentence(text, {"searched necks": searched}))
    return sentences


def _value(name: str, value: Any) -> str:
    shown = quantity(name)
    return shown.text(value) + (f" {shown.label}" if shown.unit and not name.endswith("_ms") else "")

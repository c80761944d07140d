"""The answer, first: the best neck at each cost, and whether the search beat the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from fpn_bench.analysis import Comparison, Objective, Scatter, objective_values, seed_scatter
from fpn_bench.analysis.choice import choose
from fpn_bench.analysis.intervals import compare_drawn, compare_means
from fpn_bench.analysis.noise import simultaneous_factor, standard_errors
from fpn_bench.analysis.pareto import costs_no_more
from fpn_bench.analysis.rows import SEARCHED, STATUSES
from fpn_bench.analysis.uncertain_front import draw_values
from fpn_bench.analysis.words import count
from fpn_bench.metrics import metric_of
from fpn_bench.reports.blocks import Column, Section, Sentence, Table
from fpn_bench.reports.evidence import Evidence, evenly, several_protocols
from fpn_bench.reports.recommendation import recommendation
from fpn_bench.reports.units import quantity

LEVELS_SHOWN = 6
LISTED_SHOWN = 100
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Match:
    """A neck, and the best neck of the other kind (searched, published) that costs no more.

    Attributes:
        neck: the design.
        rival: None where none is as cheap, or where ``neck`` is published and only searched ones were held against
            published ones.
        comparison: in a list of levels ``neck`` against ``rival``; in a list of published necks ``rival`` against
            ``neck``.
        rival_first: whether it is ``rival`` that is compared with ``neck``.
    """

    neck: Mapping[Any, Any]
    rival: Mapping[Any, Any] | None
    comparison: Comparison | None
    rival_first: bool = False


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
        columns = (
            *_columns(evidence, "Candidate", "", "")[:-2],
            _difference("Difference to the best [95 %]", evidence),
        )
        blocks.append(Table("listed", "Each candidate against the best", _frame(info.listed, evidence), columns))
    return Section("answer", "", (*what_to_take(evidence), info.headline, *info.sentences), tuple(blocks))


def what_to_take(evidence: Evidence) -> tuple[Sentence, ...]:
    """Which neck to take; nothing where none finished, where several protocols mix, or where AP is not sought."""
    if evidence.merit.name != "ap" or evidence.front.empty or several_protocols(evidence.table):
        return ()
    searched = not (evidence.finished["source"] == "listed").all()
    return recommendation(choose(evidence.table, costs=evidence.costs), evidence.costs, searched=searched)


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
    scatter = seed_scatter(evidence.table, merit.name)
    if (known["source"] == "listed").all():
        return _benchmark(evidence, scatter, known)
    matches, levels = _judged(evidence, scatter, _matches(evidence, published, searched), _levels(evidence, published))
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
    return AnswerInfo(headline, tuple(sentences), levels, matches)


def _benchmark(evidence: Evidence, scatter: Scatter, known: pd.DataFrame) -> AnswerInfo:
    """Of a study whose candidates were all listed: which stand beside the best, as far as seeds can tell."""
    best, *others = known.iloc[:LISTED_SHOWN].to_dict("records")
    against = _against_best(evidence, scatter, known, others)
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
    if others:
        text = (
            f"Intervals of the differences to the best hold together with 95 %, for whichever is the best of "
            f"{len(known)} (Tukey)."
        )
        sentences.append(Sentence(text))
    return AnswerInfo(headline, tuple(sentences), listed=(Match(best, None, None), *against))


def status_counts(table: pd.DataFrame) -> dict[str, int]:
    """Rows of each status, in the order of a trial's life; statuses that do not occur are left out."""
    counts = table["status"].value_counts()
    return {s: int(counts[s]) for s in STATUSES if s in counts}


def _matches(evidence: Evidence, published: pd.DataFrame, searched: pd.DataFrame) -> list[Match]:
    return [
        Match(neck, _best(_within(searched, neck, evidence, within_noise=False)), None, rival_first=True)
        for neck in published.to_dict("records")
    ]


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


def _levels(evidence: Evidence, published: pd.DataFrame) -> list[Match]:
    ordered = evidence.front
    if evidence.costs:
        cost = evidence.costs[0]
        ordered = ordered.sort_values(cost.name, ascending=not cost.maximize, kind="stable")
    return [
        Match(member, None if member["source"] == "published" else _best(_within(published, member, evidence)), None)
        for member in ordered.iloc[evenly(len(ordered), LEVELS_SHOWN)].to_dict("records")
    ]


def _within(
    designs: pd.DataFrame, bound: Mapping[Any, Any], evidence: Evidence, *, within_noise: bool = True
) -> pd.DataFrame:
    """The designs that cost no more than ``bound`` in every cost, most merit first.

    What the search claims it claims against published necks that measurements cannot tell from as cheap.
    """
    allowed = np.ones(len(designs), dtype=bool)
    for cost in evidence.costs:
        values = designs[cost.name].to_numpy(dtype=np.float64)
        allowed &= costs_no_more(values, bound[cost.name], cost, within_noise=within_noise)
    return designs[allowed]


def _best(designs: pd.DataFrame) -> dict[Any, Any] | None:
    """The first, as a record; only that one is made, for designs are many and wide."""
    return designs.iloc[:1].to_dict("records")[0] if len(designs) else None


def _judged(evidence: Evidence, scatter: Scatter, *lists: Sequence[Match]) -> list[tuple[Match, ...]]:
    """The matches with their comparisons, all by the same draws of the true values.

    Both of a pair may have been picked as the best of many, by the very figures that are compared: draws allow for
    that (`fpn_bench.analysis.noise.Truths`).
    """
    merit = evidence.merit
    known = evidence.finished.dropna(subset=[merit.name])
    pairs = [(m.neck, m.rival) for of in lists for m in of if m.rival is not None]
    named = {str(design["key"]) for pair in pairs for design in pair if design is not None}
    which = known["key"].isin(named).to_numpy()
    values = objective_values(known, (merit,))
    errors = standard_errors(known, merit.name, scatter)[:, None]
    drawn = draw_values(known, values, errors, which, (merit,), (scatter,))[:, :, 0]
    column = {key: i for i, key in enumerate(known["key"][which])}

    def judged(match: Match) -> Match:
        if match.rival is None:
            return match
        pair = (match.rival, match.neck) if match.rival_first else (match.neck, match.rival)
        found = compare_drawn(
            drawn[:, [column[str(design["key"])] for design in pair]],
            (int(pair[0]["seeds"]), int(pair[1]["seeds"])),
            direction=merit.direction,
            margin=metric_of(merit.name).margin,
            confidence=CONFIDENCE,
        )
        return replace(match, comparison=found)

    return [tuple(judged(match) for match in of) for of in lists]


def _against_best(
    evidence: Evidence, scatter: Scatter, known: pd.DataFrame, others: Sequence[Mapping[Any, Any]]
) -> list[Match]:
    """Each of the others against the best of all, by intervals that hold together."""
    merit, best = evidence.merit, known.iloc[0].to_dict()
    errors = dict(zip(known["key"], standard_errors(known, merit.name, scatter), strict=True))
    factor = simultaneous_factor(len(known), scatter.freedom if metric_of(merit.name).noise == "seeds" else np.inf)
    return [
        Match(
            neck,
            best,
            compare_means(
                (float(neck[merit.name]), float(best[merit.name])),
                (int(neck["seeds"]), int(best["seeds"])),
                factor * float(np.hypot(errors[neck["key"]], errors[best["key"]])),
                direction=merit.direction,
                margin=metric_of(merit.name).margin,
            ),
        )
        for neck in others
    ]


def _columns(evidence: Evidence, neck: str, rival: str, itself: str) -> tuple[Column, ...]:
    def rival_text(row: Mapping[str, Any]) -> str:
        return itself if itself and row["source"] == "published" else row["rival"] or "none as cheap"

    return (
        Column.neck(neck, "neck"),
        *(Column.number(o.name) for o in evidence.objectives),
        Column(rival, rival_text),
        _difference("Expected difference [95 %]", evidence),
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
    """Signed difference with its verdict, e.g. ``+1.8 AP, better [+0.6, +3.0]``."""
    if not row["verdict"]:
        return ""
    shown = quantity(merit.name)
    text = f"{row['difference'] * shown.scale:+.{shown.digits}f} {shown.unit or shown.label}, {row['verdict']}"
    if pd.isna(row["low"]):
        return f"{text} (how it scatters is not known)"
    low, high = row["low"] * shown.scale, row["high"] * shown.scale
    return f"{text} [{low:+.{shown.digits}f}, {high:+.{shown.digits}f}]"


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
    designs, merit = evidence.finished, evidence.merit
    sentences = []
    if metric_of(merit.name).noise == "seeds" and scatter.freedom:
        several = int((designs["seeds"] > 1).sum())
        least = float(scatter.half_width(1, 1))
        facts = {f"pooled_sd_{merit.name}": scatter.sd, "necks with several seeds": several}
        facts[f"least_difference_{merit.name}"] = least
        label = quantity(merit.name).label
        if several:
            known = scatter.freedom - scatter.replicates
            facts |= {"degrees of freedom known from other tables": known, "degrees of freedom": scatter.freedom}
            text = (
                f"Seeds' standard deviation: {scatter.sd:.1f} {label}, pooled over {count(several, 'neck')} and what "
                f"is known from other tables ({known} of {scatter.freedom} degrees of freedom)"
            )
        else:
            text = (
                f"No neck has a second seed: the seeds' standard deviation is taken to be {scatter.sd:.1f} {label}, as "
                "in the tables that come with fpn_bench; a second seed of a few necks would measure it"
            )
        text += f"; any two results of one seed each must differ by more than {least:.1f} {label} to count."
        sentences = [Sentence(text, facts)]
        if margin := metric_of(merit.name).margin:
            same = f'"Same" means that the whole interval of the difference is within {margin:g} {label}.'
            sentences.append(Sentence(same, {"same_ap": margin}))
    if searched > 1:
        text = (
            f"The best of {searched} searched necks was picked after seeing them: expect a little less again. The "
            "differences below are what is expected of the true ones, given all necks, so they may be smaller than "
            "those of the figures beside them."
        )
        sentences.append(Sentence(text, {"searched necks": searched}))
    return sentences


def _value(name: str, value: Any) -> str:
    shown = quantity(name)
    return shown.text(value) + (f" {shown.label}" if shown.unit and not name.endswith("_ms") else "")

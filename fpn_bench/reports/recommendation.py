"""Which neck to take, in words (`fpn_bench.analysis.choose` found what they say)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fpn_bench.analysis import Objective
from fpn_bench.analysis.choice import MARGIN_AP, Choice
from fpn_bench.analysis.intervals import Comparison
from fpn_bench.analysis.rows import json_value
from fpn_bench.analysis.words import count
from fpn_bench.reports.blocks import Sentence
from fpn_bench.reports.units import quantity

LISTED = 5
"""Necks that are named where several cannot be told apart."""


def recommendation(choice: Choice, costs: Sequence[Objective], *, searched: bool = True) -> tuple[Sentence, ...]:
    """What to take, how it stands to the published necks, what cannot be told from it, and what it costs to know.

    Args:
        choice: what was found.
        costs: as `fpn_bench.analysis.choose` was given them.
        searched: whether a search made the candidates; a suite has nothing to hold against published necks.
    """
    neck, seeds = choice.neck, int(choice.neck["seeds"])
    figures = "".join(f", {quantity(o.name).text(neck[o.name])} {_of(o.name)}".rstrip() for o in costs)
    stated = {"trial": int(neck["trial"]), "ap": float(neck["ap"]), "seeds": seeds}
    stated |= {o.name: float(neck[o.name]) for o in costs}
    regret = max(choice.regret, 0.0)
    gained, of_gain = _against_baseline(choice)
    said = [
        Sentence(
            f"Take {neck['neck_label']} (trial {neck['trial']}): {neck['ap']:.1f} AP over {count(seeds, 'seed')}"
            f"{figures}{gained}.",
            stated | of_gain,
        ),
        Sentence(
            f"Its true AP is expected to be {choice.ap:.1f} [{choice.ap_low:.1f}, {choice.ap_high:.1f}], at most "
            f"{regret:.1f} below the best of {choice.allowed}.",
            {"expected AP": choice.ap, "low": choice.ap_low, "high": choice.ap_high, "expected regret": regret}
            | {"necks": choice.allowed},
        ),
    ]
    same_rival = choice.baseline is not None and choice.rival is not None and _is_same(choice.baseline, choice.rival)
    if searched and not same_rival:
        said.append(_against_published(choice))
    others = [str(row["neck_label"]) for row in choice.alike if row["candidate"] != neck["candidate"]]
    if others:
        more = f" and {len(others) - LISTED} more" if len(others) > LISTED else ""
        text = f"These figures cannot tell it from {', '.join(others[:LISTED])}{more}"
        numbers: dict[str, float] = {"not told from it": len(others), "beyond those named": len(others) - LISTED}
        if choice.seeds:
            trainings = choice.seeds * len(choice.alike)
            text += f"; to tell them apart: {choice.seeds} more seeds of each, {trainings} trainings"
            numbers |= {"further seeds of each": choice.seeds, "trainings": trainings}
            if choice.seconds > 0:  # NaN, or 0 of a table's look-ups, is not known
                unit, share = _unit(choice.seconds)
                text += f", about {choice.seconds * share:.{1 if unit == 'hours' else 0}f} {unit}"
                numbers[unit] = choice.seconds * share
        said.append(Sentence(f"{text}.", numbers))
    return tuple(said)


def recommendation_record(choice: Choice, costs: Sequence[Objective]) -> dict[str, Any]:
    """The same as plain data for JSON."""
    names = ("trial", "candidate", "neck", "neck_label", "source", "seeds", "ap", *(o.name for o in costs))

    def described(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return None if row is None else {name: json_value(row[name]) for name in names}

    compared = ("verdict", "difference", "low", "high")

    def verdict(found: Comparison | None) -> dict[str, Any] | None:
        return None if found is None else {name: getattr(found, name) for name in compared}

    return {
        "take": described(choice.neck),
        "expected_ap": {"value": choice.ap, "low": choice.ap_low, "high": choice.ap_high},
        "expected_regret": choice.regret,
        "rival": described(choice.rival),
        "comparison": verdict(choice.comparison),
        "baseline": described(choice.baseline),
        "gain": verdict(choice.gain),
        "not_told_from_the_best": [described(row) for row in choice.alike],
        "to_tell_them_apart": {
            "seeds_of_each": choice.seeds,
            "trainings": choice.seeds * len(choice.alike),
            "seconds": json_value(choice.seconds),
        },
        "allowed": choice.allowed,
    }


def _against_baseline(choice: Choice) -> tuple[str, dict[str, float]]:
    """The verdict on the recommended neck beside FPN, and its numbers; nothing where there is no FPN to hold it to."""
    found, fpn = choice.gain, choice.baseline
    if found is None or fpn is None:
        return "", {}
    verdict = {"better": "better than", "worse": "worse than", "same": "the same as"}.get(found.verdict)
    words = f"{verdict} FPN" if verdict else "not shown to be better than FPN"
    text = f"; {words} ({fpn['neck_label']}), {found.difference:+.1f} AP [{found.low:+.1f}, {found.high:+.1f}]"
    return text, {"more AP than FPN": found.difference, "FPN low": found.low, "FPN high": found.high}


def _against_published(choice: Choice) -> Sentence:
    found, rival = choice.comparison, choice.rival
    published = choice.neck["source"] == "published"
    if found is None or rival is None:
        what = "It is a published neck; no searched neck finished" if published else "No published neck costs as little"
        return Sentence(f"{what}.")
    verdict = {
        "better": "It is better than",
        "worse": "It is worse than",
        "same": f"It is the same, within {MARGIN_AP:g} AP, as",
        "unclear": "It cannot be told from",
    }[found.verdict]
    if found.verdict == "unclear" and found.low >= -MARGIN_AP:
        verdict = f"It is at most {MARGIN_AP:g} AP worse than"
    of = "the best searched neck" if published else "the best published neck at no more cost"
    text = (
        f"{'It is a published neck. ' * published}{verdict} {of}, {rival['neck_label']}: {found.difference:+.1f} AP "
        f"[{found.low:+.1f}, {found.high:+.1f}]."
    )
    return Sentence(text, {"difference": found.difference, "low": found.low, "high": found.high})


def _is_same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return bool(a["candidate"] == b["candidate"])


def _of(name: str) -> str:
    """What a figure with a unit is a figure of."""
    return quantity(name).within if quantity(name).unit else ""


def _unit(seconds: float) -> tuple[str, float]:
    """What so many seconds are told in, and its share of a second."""
    if seconds < 90:
        return "seconds", 1.0
    return ("minutes", 1 / 60) if seconds < 5400 else ("hours", 1 / 3600)

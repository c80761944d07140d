"""What a report says, computed before anything is drawn: plain frozen data, testable without a page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fpn_bench.analysis import (
    CHOICE_PREFIX,
    Comparison,
    Objective,
    by_candidate,
    check_table,
    compare,
    front,
    hypervolume_over_trials,
    one_protocol,
    pareto_mask,
    parse_objectives,
    prediction_error,
    reference_point,
)
from fpn_bench.analysis.rows import STATUSES
from fpn_bench.reports.units import quantity

DEFAULT_OBJECTIVES = (Objective("ap", "maximize"), Objective("macs", "minimize"))
LEVELS_SHOWN = 6
NECKS_DRAWN = 24
NOISY_LATENCY = 0.1
"""Half an interval, as a share of the median, beyond which a latency deserves a warning."""
ONE_SEED = "One seed each: differences under the seeds' spread are not evidence."


@dataclass(frozen=True)
class FrontInfo:
    """The candidates in the plane of a cost and the merit.

    Attributes:
        x: the cost; None puts the trial's number there (a single objective).
        y: the merit.
        points: candidates that finished: ``x``, ``y``, their intervals, ``label``, ``source``, ``on_front``, ``hover``.
        line: the points on the front of this very plane, by ``x``.
        apart: rows without a merit (rejected, failed) whose cost is known: ``x``, ``status``, ``hover``.
        limit: hard constraint on ``x``, if there is one.
    """

    x: Objective | None
    y: Objective
    points: pd.DataFrame
    line: pd.DataFrame
    apart: pd.DataFrame
    limit: float | None


@dataclass(frozen=True)
class HypervolumeInfo:
    """Hypervolume after each trial, the reference point it is measured from, and the trials of published necks."""

    curve: pd.DataFrame
    reference: tuple[tuple[Objective, float], ...]
    published: int


@dataclass(frozen=True)
class Level:
    """A front member as one cost level, and the best published neck that costs no more.

    Attributes:
        neck: the front member.
        rival: that published neck; None when none is as cheap, or when ``neck`` is published itself.
        comparison: ``neck`` against ``rival``.
    """

    neck: Mapping[str, Any]
    rival: Mapping[str, Any] | None
    comparison: Comparison | None


@dataclass(frozen=True)
class Match:
    """A published neck, and the best searched one that costs no more (None when none is as cheap)."""

    published: Mapping[str, Any]
    searched: Mapping[str, Any] | None
    comparison: Comparison | None


@dataclass(frozen=True)
class Answer:
    """The answer, first: a headline, sentences that qualify it, the best neck at each cost, the published necks."""

    headline: str
    sentences: tuple[str, ...] = ()
    levels: tuple[Level, ...] = ()
    matches: tuple[Match, ...] = ()


@dataclass(frozen=True)
class ReportInfo:
    """Everything on the page."""

    title: str
    subtitle: str
    objectives: tuple[Objective, ...]
    loud: tuple[str, ...]
    warnings: tuple[str, ...]
    answer: Answer
    counts: Mapping[str, int]
    candidates: pd.DataFrame
    front: pd.DataFrame
    planes: tuple[FrontInfo, ...]
    hypervolume: HypervolumeInfo
    reasons: pd.DataFrame
    facts: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    notes: tuple[str, ...]
    space: str
    commands: tuple[str, ...]


def report_info(table: pd.DataFrame, meta: Mapping[str, Any], *, mix_protocols: bool = False) -> ReportInfo:
    """Everything a report says of ``table`` and its study's metadata; missing metadata is left out, not invented.

    Raises:
        ProtocolError: rows of two protocols, unless ``mix_protocols``.
        InputError: no table of fpn_bench (`check_table`).
    """
    table = check_table(table)
    protocol = one_protocol(table, mix_protocols=mix_protocols)
    objectives = parse_objectives(meta.get("objectives") or DEFAULT_OBJECTIVES)
    objectives = tuple(sorted(objectives, key=lambda o: o.name != "ap"))  # the merit first, then the costs
    candidates = by_candidate(table)
    on_front = front(table, objectives, mix_protocols=mix_protocols)
    keys = set(_keys(on_front))
    candidates = candidates.assign(on_front=[key in keys for key in _keys(candidates)])
    constraints = [str(c) for c in meta.get("constraints") or ()]
    curve = hypervolume_over_trials(table, objectives, mix_protocols=mix_protocols)
    return ReportInfo(
        title=str(meta.get("name") or _joined(table["study"]) or "study"),
        subtitle=_subtitle(table, protocol, meta),
        objectives=objectives,
        loud=loud_warnings(table),
        warnings=(*_warnings(table, candidates, objectives), *_texts(meta.get("warnings"))),
        answer=answer_info(table, candidates, on_front, objectives),
        counts=status_counts(table),
        candidates=candidates,
        front=on_front,
        planes=tuple(front_info(table, candidates, x, y, constraints) for x, y in _pairs(objectives)),
        hypervolume=HypervolumeInfo(
            curve,
            tuple(zip(objectives, reference_point(table, objectives), strict=True)),
            int((table.drop_duplicates(["study", "trial"])["source"] == "published").sum()),
        ),
        reasons=reasons_info(table),
        facts=_facts(table, objectives, constraints, meta, protocol),
        notes=_texts(meta.get("notes")),
        space=str(meta.get("space") or ""),
        commands=_texts(meta.get("commands")),
    )


# --------------------------------------------------------------------------------------------------------------
# The answer


def answer_info(
    table: pd.DataFrame, candidates: pd.DataFrame, on_front: pd.DataFrame, objectives: Sequence[Objective]
) -> Answer:
    """Best neck at each cost level, and whether the search beat the published necks under this protocol."""
    counts = status_counts(table)
    if on_front.empty:
        if not counts:
            return Answer("The study is empty: no trial has been run.")
        told = ", ".join(f"{n} {status}" for status, n in counts.items())
        return Answer(f"No candidate finished, so there is no front ({told}).")

    merit, costs = objectives[0], objectives[1:]
    shown = quantity(merit.name)
    best = on_front.iloc[0]
    published = candidates[candidates["source"] == "published"].dropna(subset=[o.name for o in objectives])
    searched = candidates[candidates["source"] != "published"].dropna(subset=[o.name for o in objectives])
    matches = _matches(table, published, searched, objectives)
    if published.empty:
        headline = f"{_count(len(on_front), 'neck')} on the front; no published neck finished to compare them with."
    elif searched.empty:
        headline = f"{_count(len(on_front), 'published neck')} on the front; no searched neck finished."
    else:
        headline = _headline(matches, merit)
    sentences = [f"Best {shown.label}: {best['neck_label']}, {_values(best, objectives)}."]
    if costs:
        sentences.append(_front_sentence(on_front, costs[0]))
    sentences += _seed_sentences(candidates, len(searched))
    return Answer(headline, tuple(sentences), _levels(table, on_front, published, objectives), matches)


def _matches(
    table: pd.DataFrame, published: pd.DataFrame, searched: pd.DataFrame, objectives: Sequence[Objective]
) -> tuple[Match, ...]:
    merit, costs = objectives[0], objectives[1:]
    matches = []
    for _, neck in published.sort_values(merit.name, ascending=not merit.maximize, kind="stable").iterrows():
        rival = _best_within(searched, neck, merit, costs)
        if rival is None:
            matches.append(Match(_record(neck), None, None))
        else:
            matches.append(Match(_record(neck), _record(rival), _compare(table, rival, neck, merit)))
    return tuple(matches)


def _headline(matches: Sequence[Match], merit: Objective) -> str:
    """How many published necks the search beat, and how many of those victories are evidence."""
    sign = 1 if merit.maximize else -1
    ahead = [m.comparison for m in matches if m.comparison is not None and m.comparison.difference * sign > 0]
    evident = sum(comparison.verdict == "better" for comparison in ahead)
    if not ahead:
        none = "not even the one published neck" if len(matches) == 1 else f"none of the {len(matches)} published necks"
        return f"The search beat {none} at no more cost under this protocol."
    share = "all" if len(ahead) == len(matches) else f"{len(ahead)} of the"
    necks = "the one published neck" if len(matches) == 1 else f"{share} {len(matches)} published necks"
    if evident == len(ahead):
        return f"The search beat {necks} at no more cost under this protocol, beyond seed noise."
    sure = f"{evident} of them beyond seed noise" if evident else "not beyond seed noise so far"
    return f"The search is ahead of {necks} at no more cost under this protocol, {sure}."


def _levels(
    table: pd.DataFrame, on_front: pd.DataFrame, published: pd.DataFrame, objectives: Sequence[Objective]
) -> tuple[Level, ...]:
    merit, costs = objectives[0], objectives[1:]
    ordered = on_front.sort_values(costs[0].name, ascending=not costs[0].maximize, kind="stable") if costs else on_front
    levels = []
    for _, member in _spread(ordered, LEVELS_SHOWN).iterrows():
        rival = None if member["source"] == "published" else _best_within(published, member, merit, costs)
        comparison = None if rival is None else _compare(table, member, rival, merit)
        levels.append(Level(_record(member), None if rival is None else _record(rival), comparison))
    return tuple(levels)


def _best_within(
    candidates: pd.DataFrame, bound: pd.Series[Any], merit: Objective, costs: Sequence[Objective]
) -> pd.Series[Any] | None:
    """The candidate of most merit among those no worse than ``bound`` in every cost."""
    allowed = candidates
    for cost in costs:
        worse = allowed[cost.name] < bound[cost.name] if cost.maximize else allowed[cost.name] > bound[cost.name]
        allowed = allowed[~worse.astype(bool)]
    if allowed.empty:
        return None
    return allowed.sort_values(merit.name, ascending=not merit.maximize, kind="stable").iloc[0]


def _compare(table: pd.DataFrame, a: pd.Series[Any], b: pd.Series[Any], merit: Objective) -> Comparison:
    return compare(_seeds(table, a, merit), _seeds(table, b, merit), direction=merit.direction)


def _seeds(table: pd.DataFrame, row: pd.Series[Any], merit: Objective) -> list[float]:
    same = (table["candidate"] == row["candidate"]) & (table["protocol"] == row["protocol"])
    done = table[same & (table["status"] == "complete")].drop_duplicates("seed")
    return [float(v) for v in done[merit.name].dropna()]


def difference_text(comparison: Comparison, merit: Objective) -> str:
    """Signed difference with its verdict, e.g. ``+1.8 AP, better [+0.6, +3.0]`` or ``+1.8 AP, unclear (one seed)``."""
    shown = quantity(merit.name)
    text = f"{comparison.difference * shown.scale:+.{shown.digits}f} {shown.unit or shown.label}, {comparison.verdict}"
    if min(comparison.count_a, comparison.count_b) < 2:
        return f"{text} (one seed)"
    low, high = comparison.low * shown.scale, comparison.high * shown.scale
    return f"{text} [{low:+.{shown.digits}f}, {high:+.{shown.digits}f}]"


def _front_sentence(on_front: pd.DataFrame, cost: Objective) -> str:
    searched = int((on_front["source"] != "published").sum())
    values = on_front[cost.name]
    shown = quantity(cost.name)
    return (
        f"The front holds {_count(len(on_front), 'neck')}, {searched} searched and {len(on_front) - searched} "
        "published, "
        f"from {shown.number(values.min())} to {shown.number(values.max())} {shown.unit} "
        f"{shown.label.replace('Latency', 'latency')}."
    )


def _seed_sentences(candidates: pd.DataFrame, searched: int) -> list[str]:
    if candidates["seeds"].max() == 1:
        sentences = [ONE_SEED]
    else:
        known = candidates.dropna(subset=["ap_sd"])
        weight = known["seeds"] - 1
        pooled = float(np.sqrt((known["ap_sd"] ** 2 * weight).sum() / weight.sum())) if len(known) else float("nan")
        once = int((candidates["seeds"] == 1).sum())
        # 1.96 standard deviations of the difference of two single draws.
        sentences = [
            f"Seeds' standard deviation, pooled over {_count(len(known), 'neck')}: {pooled:.1f} AP; two results of one "
            f"seed each must differ by more than {1.96 * 2**0.5 * pooled:.1f} AP to count."
        ]
        if once:
            sentences.append(f"{_count(once, 'neck')} trained with one seed only.")
    if searched > 1:
        sentences.append(
            f"The best of {searched} searched necks was picked after seeing them: expect a little less again."
        )
    return sentences


# --------------------------------------------------------------------------------------------------------------
# The planes


def front_info(
    table: pd.DataFrame,
    candidates: pd.DataFrame,
    x: Objective | None,
    y: Objective,
    constraints: Sequence[str] = (),
) -> FrontInfo:
    """The plane of cost ``x`` and merit ``y``; ``candidates`` is `by_candidate` with the column ``on_front``."""
    cost = x.name if x else "trial"
    known = candidates.dropna(subset=[cost, y.name])
    points = pd.DataFrame(
        {
            "x": known[cost].to_numpy(dtype=np.float64),
            "y": known[y.name].to_numpy(dtype=np.float64),
            "x_low": _bound(known, cost, "low"),
            "x_high": _bound(known, cost, "high"),
            "y_low": _bound(known, y.name, "low"),
            "y_high": _bound(known, y.name, "high"),
            "label": known["neck_label"].to_numpy(),
            "source": known["source"].to_numpy(),
            "on_front": known["on_front"].to_numpy(dtype=bool),
            "hover": [_hover(row) for row in known.to_dict("records")],
        }
    )
    directions = [x.direction if x else "minimize", y.direction]
    mask = pareto_mask(points[["x", "y"]].to_numpy(dtype=np.float64).reshape(len(points), 2), directions)
    line = points[mask].sort_values(["x", "y"], kind="stable").reset_index(drop=True)
    aside = table[table["status"].isin(["rejected", "failed"])].dropna(subset=[cost])
    apart = pd.DataFrame(
        {
            "x": aside[cost].to_numpy(dtype=np.float64),
            "status": aside["status"].to_numpy(),
            "hover": [_hover(row) for row in aside.to_dict("records")],
        }
    )
    return FrontInfo(x, y, points, line, apart, _limit(constraints, cost))


def _pairs(objectives: Sequence[Objective]) -> list[tuple[Objective | None, Objective]]:
    """The merit (first objective) against each of the others; against the trial number when it stands alone."""
    return [(cost, objectives[0]) for cost in objectives[1:]] or [(None, objectives[0])]


def _bound(rows: pd.DataFrame, name: str, side: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The end of the column's interval: of AP over seeds, of latency over repetitions; NaN where there is none."""
    column = {"ap": f"ap_{side}", "latency_ms": f"latency_{side}_ms"}.get(name)
    return rows[column].to_numpy(dtype=np.float64) if column else np.full(len(rows), np.nan)


def _limit(constraints: Sequence[str], name: str) -> float | None:
    for constraint in constraints:
        match = re.fullmatch(rf"\s*{re.escape(name)}\s*<=?\s*([0-9._eE+]+)\s*", constraint)
        if match:
            return float(match[1])
    return None


def _hover(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """Lines of text, the first a title."""
    lines = [f"{row['neck_label'] or row['candidate']}"]
    if row["status"] != "complete":
        lines.append(f"{row['status']}: {row['reason']}")
    ap = quantity("ap").text(row["ap"])
    if not pd.isna(row.get("ap_low", np.nan)):
        ap += f" [{row['ap_low']:.1f}, {row['ap_high']:.1f}]"
    lines.append(ap if row["status"] == "complete" else "not trained")
    lines.append(f"{quantity('params').text(row['params'])} parameters · {quantity('macs').text(row['macs'])} MACs")
    if not pd.isna(row["latency_ms"]):
        lines.append(f"latency {latency_text(row)} on {row['latency_device']}")
    seeds = row.get("seeds", 1)
    seed = f"{seeds} seeds" if seeds > 1 else "" if pd.isna(row["seed"]) else f"seed {row['seed']}"
    lines.append(" · ".join(part for part in (f"trial {row['trial']}", seed, row["source"]) if part))
    return tuple(lines)


def latency_text(row: Mapping[Any, Any]) -> str:
    """Median with its interval, e.g. ``14.02 ms [13.80, 14.31]``."""
    text = quantity("latency_ms").text(row["latency_ms"])
    if pd.isna(row["latency_low_ms"]) or pd.isna(row["latency_high_ms"]):
        return text
    return f"{text} [{row['latency_low_ms']:.2f}, {row['latency_high_ms']:.2f}]"


# --------------------------------------------------------------------------------------------------------------
# Counts, reasons, warnings, facts


def status_counts(table: pd.DataFrame) -> dict[str, int]:
    """Rows of each status, in the order of a trial's life; statuses that do not occur are left out."""
    counts = table["status"].value_counts()
    return {s: int(counts[s]) for s in STATUSES if s in counts}


def reasons_info(table: pd.DataFrame) -> pd.DataFrame:
    """Rejected and failed rows: ``status``, ``count`` and the first ``reason`` of those alike but for numbers."""
    rows = table[table["status"].isin(["rejected", "failed"])]
    kind = rows["reason"].str.replace(r"\d[\d.,]*(?:[eE][+-]?\d+)?", "#", regex=True)
    grouped = rows.assign(kind=kind).groupby(["status", "kind"], sort=False)
    reasons = grouped.agg(count=("reason", "size"), reason=("reason", "first")).reset_index()
    return reasons.sort_values(["status", "count"], ascending=[False, False], kind="stable")[
        ["status", "count", "reason"]
    ].reset_index(drop=True)


def loud_warnings(table: pd.DataFrame) -> tuple[str, ...]:
    """What must be read before any figure."""
    random = table[table["weights_random"].fillna(False).astype(bool)]
    if random.empty:
        return ()
    return (
        f"Random backbone weights: {_joined(random['backbone'])} is frozen and untrained in "
        f"{_count(len(random), 'row')}. Its features carry little, so AP says almost nothing about the necks. "
        "Give weights to the backbone and search again.",
    )


def _warnings(table: pd.DataFrame, candidates: pd.DataFrame, objectives: Sequence[Objective]) -> list[str]:
    warnings = []
    if table["protocol"].nunique() > 1:
        warnings.append(f"Rows of {table['protocol'].nunique()} protocols are mixed: their AP figures do not compare.")
    timed = table.dropna(subset=["latency_ms"])
    for name, noun in (("machine", "machines"), ("latency_device", "devices")):
        if timed[name].nunique() > 1:
            labels = _joined(timed["machine_label" if name == "machine" else name])
            warnings.append(f"Latency was measured on {timed[name].nunique()} {noun} ({labels}): it does not compare.")
    warnings += [
        f"Rows of several versions of {name}: {_joined(table[name])}."
        for name in ("torch", "fpn_bench")
        if table.loc[table[name] != "", name].nunique() > 1
    ]
    for objective in objectives:
        missing = int(candidates[objective.name].isna().sum())
        if missing:
            warnings.append(f"{_count(missing, 'finished candidate')} without {objective.name}: not on the front.")
    if any(objective.name == "latency_ms" for objective in objectives):
        half = (candidates["latency_high_ms"] - candidates["latency_low_ms"]) / 2
        noisy = int((half > NOISY_LATENCY * candidates["latency_ms"]).sum())
        if noisy:
            warnings.append(
                f"Latency of {_count(noisy, 'candidate')} is known no better than ±{NOISY_LATENCY:.0%}, so its order "
                "on the front is not sure: measure on an idle machine."
            )
    both = table.dropna(subset=["latency_ms", "latency_predicted_ms"])
    if table["latency_predicted_ms"].notna().any():
        error = prediction_error(both["latency_predicted_ms"].tolist(), both["latency_ms"].tolist())
        predicted = table["latency_ms"].isna() & table["latency_predicted_ms"].notna()
        alone = _count(int((predicted & (table["status"] == "rejected")).sum()), "candidate")
        warnings.append(
            f"{alone} rejected on predicted latency alone. Where it was measured afterwards, for {error.candidates}, "
            f"prediction missed by {error.median_ape:.0f} % at the median, with Kendall's tau {error.kendall_tau:.2f}."
            if error.candidates
            else f"{alone} rejected on predicted latency alone; none was measured after a prediction."
        )
    running = int((table["status"] == "running").sum())
    if running:
        warnings.append(f"{_count(running, 'trial')} still running or cut off: not counted.")
    return warnings


def _facts(
    table: pd.DataFrame,
    objectives: Sequence[Objective],
    constraints: Sequence[str],
    meta: Mapping[str, Any],
    protocol: str,
) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    study = {
        "objectives": ", ".join(f"{o.direction} {o.name}" for o in objectives),
        "hard constraints": ", ".join(constraints) or "none",
        "backbones": _joined(table["backbone"]),
        "weights": _joined(table["weights"]),
        "created": str(meta.get("created_at") or ""),
    }
    machine = dict(meta.get("machine") or {"machines": _joined(table["machine_label"])})
    machine.pop("versions", None)  # they have a block of their own
    versions = meta.get("versions") or {n: _joined(table[n]) for n in ("fpn_bench", "torch")}
    blocks = {
        "Study": study,
        "Protocol": {"id": protocol, **(meta.get("protocol") or {})},
        "Machine": machine,
        "Versions": versions,
    }
    flat = ((title, tuple((k, v) for k, v in _flatten(block) if v)) for title, block in blocks.items())
    return tuple((title, pairs) for title, pairs in flat if pairs)


def _flatten(data: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(data, Mapping):
        return [pair for k, v in data.items() for pair in _flatten(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(data, (list, tuple)):
        return [(prefix, " x ".join(map(str, data)) if prefix.endswith("size") else ", ".join(map(str, data)))]
    return [(prefix, "" if data is None else str(data))]


def _subtitle(table: pd.DataFrame, protocol: str, meta: Mapping[str, Any]) -> str:
    parts = [
        _joined(table["dataset"]),
        _joined(table["backbone"]),
        _count(len(table.drop_duplicates(["study", "trial"])), "trial"),
        f"protocol {protocol}" if protocol else "",
        str(meta.get("created_at") or "")[:10],
    ]
    return " · ".join(part for part in parts if part)


def choices_of(row: Mapping[Any, Any]) -> dict[str, str]:
    """The searched choices of a row that were active."""
    return {
        str(k).removeprefix(CHOICE_PREFIX): str(v)
        for k, v in row.items()
        if str(k).startswith(CHOICE_PREFIX) and v != ""
    }


def front_to_draw(on_front: pd.DataFrame) -> pd.DataFrame:
    """The front members to draw: all, or `NECKS_DRAWN` evenly spread over the front when there are more."""
    return _spread(on_front, NECKS_DRAWN)


def _spread(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most ``most`` rows, evenly spaced, both ends among them."""
    if len(rows) <= most:
        return rows
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))]


def _values(row: pd.Series[Any], objectives: Sequence[Objective]) -> str:
    return ", ".join(_value(o.name, row[o.name]) for o in objectives)


def _value(name: str, value: Any) -> str:
    shown = quantity(name)
    return shown.text(value) + (f" {shown.label}" if shown.unit and not name.endswith("_ms") else "")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _joined(values: pd.Series[Any]) -> str:
    return ", ".join(str(v) for v in dict.fromkeys(values.dropna()) if str(v))


def _texts(given: object) -> tuple[str, ...]:
    if not given:
        return ()
    return (given,) if isinstance(given, str) else tuple(str(text) for text in given)  # type: ignore[attr-defined]


def _keys(candidates: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(candidates["protocol"], candidates["candidate"], strict=True))


def _record(row: pd.Series[Any]) -> dict[str, Any]:
    return {str(k): v for k, v in row.items()}

"""What every section of a report is computed from: the rows, and each design they hold, once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from fpn_bench.analysis import (
    CHOICE_PREFIX,
    Objective,
    check_table,
    objective_values,
    one_protocol,
    pareto_mask,
    parse_objectives,
    with_front_probability,
)
from fpn_bench.analysis.comparable import DEFAULT_OBJECTIVES
from fpn_bench.analysis.rows import merit_first
from fpn_bench.analysis.words import numbered
from fpn_bench.errors import InputError
from fpn_bench.redact import redact, redact_text
from fpn_bench.reports.details import Detail, details, hover_text

_LONGEST_TRIAL_S = 1e9
"""Thirty years: what took longer is damage, and no date has room for it."""
MOST_SHOWN = 5_000
"""Designs a page draws and lists; what is beyond stands in the CSV."""
Samples = Mapping[str, Any] | Callable[[Collection[str]], Mapping[str, Any] | None] | None
"""Sample images and detections; or a function that gives them for these candidates, for they are large."""
StudyData = tuple[pd.DataFrame, Mapping[str, Any], Samples]
"""A study's table, metadata and samples."""
STATUSES_SHOWN = ("complete", "stopped", "continued", "running", "rejected", "failed")


@dataclass(frozen=True)
class Evidence:
    """What a report is computed from.

    Attributes:
        table: the rows (`fpn_bench.analysis.COLUMNS`).
        meta: the study's metadata; whatever is missing is left out, not invented.
        objectives: the merit (AP, where it is one) first, then the costs.
        constraints: hard ones, as text.
        protocol: id.
        designs: one row a distinct candidate: those that finished (`fpn_bench.analysis.by_candidate`), most merit
            first, then those stopped, running, rejected and failed. Added: ``key`` (names the design everywhere),
            ``label``, ``on_front``, ``front_probability``, ``shown`` (is drawn and listed) and ``hover`` (of what is
            shown: HTML of a few tags, with everything from files escaped).
        details: what is told of each design.
        samples: sample images with each design's detections, or what gives them for candidates
            (`fpn_bench.search.Study.samples`).
    """

    table: pd.DataFrame
    meta: Mapping[str, Any]
    objectives: tuple[Objective, ...]
    constraints: tuple[str, ...]
    protocol: str
    designs: pd.DataFrame
    details: tuple[Detail, ...]
    samples: Samples

    @property
    def merit(self) -> Objective:
        return self.objectives[0]

    @property
    def costs(self) -> tuple[Objective, ...]:
        return self.objectives[1:]

    @cached_property
    def finished(self) -> pd.DataFrame:
        """The designs that were trained to the end, most merit first."""
        return self.designs[self.designs["status"] == "complete"]

    @cached_property
    def front(self) -> pd.DataFrame:
        """The designs on the Pareto front, most merit first."""
        return self.designs[self.designs["on_front"]]

    @cached_property
    def shown(self) -> pd.DataFrame:
        return self.designs[self.designs["shown"]]

    @property
    def thinned(self) -> bool:
        return not bool(self.designs["shown"].all())


def gather(
    table: pd.DataFrame,
    meta: Mapping[str, Any],
    *,
    samples: Samples = None,
    mix_protocols: bool = False,
    most: int = MOST_SHOWN,
) -> Evidence:
    """The evidence in a table and its study's metadata.

    Raises:
        ProtocolError: rows of two protocols, unless ``mix_protocols``.
        InputError: no table of fpn_bench (`check_table`).
    """
    table = check_table(table)
    table["reason"] = table["reason"].map(redact_text)
    meta = redact(meta)
    protocol = one_protocol(table, mix_protocols=mix_protocols)
    parsed = parse_objectives(meta.get("objectives") or DEFAULT_OBJECTIVES)
    objectives = merit_first(parsed)
    designs = _designs(table, objectives)
    designs["shown"] = _thinned(designs, most)
    told = details(designs, objectives)
    designs["hover"] = ""
    shown = designs["shown"].to_numpy()
    designs.loc[shown, "hover"] = [hover_text(row, told) for row in designs[shown].to_dict("records")]
    constraints = tuple(str(c) for c in meta.get("constraints") or ())
    return Evidence(table, meta, objectives, constraints, protocol, designs, told, samples)


def merge_studies(studies: Sequence[StudyData]) -> tuple[pd.DataFrame, dict[str, Any], Samples]:
    """Several studies as one: their rows, what their metadata say together, their samples where the images are the
    same.

    Studies of one name are told apart by a number behind it.

    Args:
        studies: at least one.

    Raises:
        InputError: their objectives differ.
    """
    if len(studies) == 1:
        table, meta, samples = studies[0]
        return table, dict(meta), samples
    metas = [meta for _, meta, _ in studies]
    named = numbered([str(meta.get("name") or "study") for meta in metas])
    wanted = [
        sorted((o.name, o.direction) for o in parse_objectives(meta.get("objectives") or DEFAULT_OBJECTIVES))
        for meta in metas
    ]
    for name, objectives in zip(named, wanted, strict=True):
        if objectives != wanted[0]:
            said = [", ".join(f"{direction} {column}" for column, direction in w) for w in (wanted[0], objectives)]
            raise InputError(
                f"expected the same objectives in all studies of a front, got {said[0]} in {named[0]} and {said[1]} in "
                f"{name}; report them apart"
            )
    merged = dict(metas[0]) | {"name": " + ".join(named)}
    merged.pop("proxy", None)  # of one of them alone
    for key in ("constraints", "warnings", "notes", "commands"):
        merged[key] = list(dict.fromkeys(line for meta in metas for line in texts(meta.get(key))))
    if len({str(meta.get("constraints")) for meta in metas}) > 1:
        merged["warnings"].append("The studies have different hard constraints: what one rejects another may keep.")
    for key in ("machine", "versions", "created_at"):
        if any(meta.get(key) != metas[0].get(key) for meta in metas):
            merged[key] = {name: meta.get(key) for name, meta in zip(named, metas, strict=True)}
    merged["space"] = "\n".join(f"# {n}\n{m.get('space') or ''}" for n, m in zip(named, metas, strict=True))
    tables = pd.concat(
        [
            table if name == str(meta.get("name") or "study") else table.assign(study=name)
            for name, (table, meta, _) in zip(named, studies, strict=True)
        ],
        ignore_index=True,
    )
    choices = [c for c in tables.columns if str(c).startswith(CHOICE_PREFIX)]
    tables[choices] = tables[choices].fillna("")
    given = [samples for _, _, samples in studies if samples is not None]
    return tables, merged, partial(_joined_samples, given) if given else None


def _joined_samples(given: Sequence[Samples], candidates: Collection[str]) -> Mapping[str, Any] | None:
    """The detections of several studies on the images of the first that has some; others' images are other images."""
    joined: dict[str, Any] | None = None
    for samples in given:
        own = samples(candidates) if callable(samples) else samples
        if own and joined is None:
            joined = dict(own)
        elif own and joined and (own["images"], own["classes"]) == (joined["images"], joined["classes"]):
            joined["detections"] = {**own["detections"], **joined["detections"]}
    return joined


def _designs(table: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    finished = with_front_probability(table, objectives)
    directions = [o.direction for o in objectives]
    finished["on_front"] = pareto_mask(objective_values(finished, objectives), directions)
    merit = objectives[0]
    finished = finished.sort_values(merit.name, ascending=not merit.maximize, kind="stable")

    known = set(zip(finished["protocol"], finished["candidate"], strict=True))
    several = several_protocols(table)
    names = set(finished["candidate"])
    done = [
        (protocol, candidate) in known
        if several
        else candidate in names  # a row that has not finished may lack its own
        for protocol, candidate in zip(table["protocol"], table["candidate"], strict=True)
    ]
    others = table[~table["status"].isin(["complete", "repeat"]) & ~np.array(done, dtype=bool)]
    # Of several rows of one candidate (a rung and what followed, a retry) the last says most.
    others = others.assign(key=keys_of(others, several), seeds=0, on_front=False).drop_duplicates("key", keep="last")
    order = {status: i for i, status in enumerate(STATUSES_SHOWN)}
    others = others.sort_values("status", key=lambda s: s.map(order), kind="stable")

    designs = pd.concat([finished.assign(key=keys_of(finished, several)), others], ignore_index=True)
    for name in ("ap_sd", "ap_low", "ap_high", "front_probability"):
        designs[name] = designs[name].astype("float64")
    designs["seeds"] = designs["seeds"].astype("int64")
    designs["on_front"] = designs["on_front"].astype(bool)
    designs["key"] = designs["key"].astype(str)
    designs["label"] = [
        row["neck_label"] or row["candidate"] or f"trial {row['trial']}"
        for row in designs[["neck_label", "candidate", "trial"]].to_dict("records")
    ]
    return designs


def several_protocols(table: pd.DataFrame) -> bool:
    """Whether designs are told apart by their protocol; a row that has not finished may lack its own."""
    return bool(table.loc[table["protocol"] != "", "protocol"].nunique() > 1)


def keys_of(rows: pd.DataFrame, several: bool) -> pd.Series[Any]:
    """The ``key`` of each row's design: its candidate, or study and trial of one that has none, for it was not built.

    Args:
        rows: of a table.
        several: whether that table holds `several_protocols`: then the protocol is part of the key.
    """
    own = rows["study"] + " #" + rows["trial"].astype(str)
    keys = rows["candidate"].where(rows["candidate"] != "", own)
    return keys + "@" + rows["protocol"] if several else keys


def began_at(rows: pd.DataFrame) -> pd.Series[Any]:
    """When each row's trial began; NaT where that is unknown."""
    return pd.to_datetime(rows["started_at"], errors="coerce", utc=True, format="ISO8601")


def ended_at(rows: pd.DataFrame) -> pd.Series[Any]:
    """When each row's trial ended, as far as its start and its seconds are known; NaT elsewhere."""
    seconds = rows["total_s"].where(rows["total_s"].abs() < _LONGEST_TRIAL_S)
    return began_at(rows) + pd.to_timedelta(seconds, unit="s")


def _thinned(designs: pd.DataFrame, most: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The front and the published necks, and of the rest as many as there is room for, evenly over their order."""
    shown = (designs["on_front"] | (designs["source"] == "published")).to_numpy(dtype=bool, copy=True)
    rest = np.flatnonzero(~shown)
    room = max(0, most - int(shown.sum()))
    if len(rest) > room:
        rest = rest[evenly(len(rest), room)]
    shown[rest] = True
    return shown


def evenly(count: int, most: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """At most ``most`` of the positions 0..count-1, evenly spaced, both ends among them."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.intp)) if most > 0 else np.arange(0)


def texts(given: object) -> tuple[str, ...]:
    """Lines of text in the metadata: none, one, or a list."""
    if not given:
        return ()
    return (given,) if isinstance(given, str) else tuple(str(text) for text in given)  # type: ignore[attr-defined]


def joined(values: pd.Series[Any]) -> str:
    """The distinct values that are not empty, in order, with commas."""
    return ", ".join(str(v) for v in dict.fromkeys(values.dropna()) if str(v))

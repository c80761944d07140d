"""What the live page reads: studies as they are now, the rows that pass its filters, the report on these."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from fpn_bench.analysis import Objective
from fpn_bench.analysis.words import count
from fpn_bench.errors import FpnBenchError, InputError
from fpn_bench.redact import redact_text
from fpn_bench.reports.blocks import Plot, Section, Sentence
from fpn_bench.reports.dashboard_blocks import Page
from fpn_bench.reports.evidence import Evidence, StudyData, gather, merge_studies
from fpn_bench.reports.report import Report, report_info
from fpn_bench.reports.sections.front import front_figure, front_info
from fpn_bench.reports.units import quantity
from fpn_bench.search.database import DATABASE_ERRORS

_READ_ERRORS = (*DATABASE_ERRORS, FpnBenchError, LookupError, OSError, RuntimeError, TypeError, ValueError)
Read = Callable[[], Sequence[StudyData]]

MOST_LIVE = 1_000
"""Designs drawn and listed at most: a page that is drawn anew every few seconds has less room than a report."""
PICKED = {"backbone": "Backbone", "neck": "Neck family", "source": "Source", "status": "Status"}
"""Columns that rows are filtered by, and what they are called."""


@dataclass(frozen=True)
class Filters:
    """What is left of the studies.

    Attributes:
        studies: positions of those shown; none: all.
        picked: of a column of `PICKED`, the values kept; none: all.
        bounds: of a cost objective, the worst value kept.
    """

    studies: tuple[int, ...] = ()
    picked: tuple[tuple[str, tuple[str, ...]], ...] = ()
    bounds: tuple[tuple[str, float], ...] = ()

    def describe(self, costs: Sequence[Objective]) -> str:
        """In words; ``""`` where nothing is left out but whole studies."""
        maximize = {cost.name: cost.maximize for cost in costs}
        words = [f"{PICKED[name].lower()} {' or '.join(values)}" for name, values in self.picked]
        words += [
            f"{quantity(name).label} at {'least' if maximize[name] else 'most'} {quantity(name).text(bound)}"
            for name, bound in self.bounds
        ]
        return "; ".join(words)


def narrow(rows: pd.DataFrame, filters: Filters, costs: Sequence[Objective]) -> pd.DataFrame:
    """The rows that pass. No row changes, so that what was rejected stays so.

    A candidate's further seeds have the source ``confirmed`` and a latency of their own: they go with its first row.
    A row whose cost is not known passes every bound.
    """
    own = "#" + rows.index.astype(str).to_series(index=rows.index)
    names = rows["candidate"].where(rows["candidate"] != "", own)
    passes = pd.Series(True, index=rows.index)
    for name, values in filters.picked:
        column = rows[name] if name == "status" else rows.groupby(names)[name].transform("first")
        passes &= column.isin(values)
    maximize = {cost.name: cost.maximize for cost in costs}
    for name, bound in filters.bounds:
        known = rows.groupby(names)[name].transform("first").astype("float64")
        passes &= known.isna() | (known.ge(bound) if maximize[name] else known.le(bound))
    return rows[passes]


def parse_filters(given: Mapping[str, Any]) -> Filters:
    """`Filters` out of what the page holds, which is JSON."""
    return Filters(
        tuple(int(i) for i in given["studies"]),
        tuple((name, tuple(str(v) for v in values)) for name, values in given["picked"] if name in PICKED),
        tuple((str(name), float(bound)) for name, bound in given["bounds"]),
    )


@dataclass
class Feed:
    """What was last read of the studies, and what was computed of it, for all who look.

    Args:
        read: gives each study anew.
        every_s: not read again sooner, nor before twice the time that reading took.
        mix_protocols: let rows of several protocols stand side by side.

    Attributes:
        studies: as last read.
        version: a digest of them, equal where nothing changed.
        problem: why they cannot be read at the moment; ``""`` where they can.
    """

    read: Read
    every_s: float = 1.0
    mix_protocols: bool = False
    studies: Sequence[StudyData] = ()
    version: str = ""
    problem: str = ""
    _next_s: float = 0.0
    _reading: threading.Lock = field(default_factory=threading.Lock)
    _drawing: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Read once, so that what cannot be shown at all is said at once.

        Raises:
            InputError: no study was given, they have different objectives, or rows of two protocols.
        """
        self._take(self.read())
        self._reports = lru_cache(maxsize=4)(self._report)
        self._pages = lru_cache(maxsize=4)(self._page)
        merged = merge_studies(self.studies)
        self.objectives = gather(merged[0], merged[1], mix_protocols=self.mix_protocols).objectives

    def refresh(self) -> None:
        """Read again if it is time to. Who comes while another reads goes on with what is there."""
        if not self._reading.acquire(blocking=False):
            return
        try:
            began = time.monotonic()
            if began < self._next_s:
                return
            try:
                self._take(self.read())
                self.problem = ""
            except _READ_ERRORS as error:  # whatever a database says while it is away: shown, and tried again
                reason = redact_text(" ".join(str(error).split()))[:300] or type(error).__name__
                self.problem = f"The study cannot be read at the moment, what is shown is older: {reason}"
            now = time.monotonic()
            self._next_s = max(began + 0.9 * self.every_s, now + 2 * (now - began))
        finally:
            self._reading.release()

    def _take(self, studies: Sequence[StudyData]) -> None:
        if not studies:
            raise InputError("expected at least one study, got none")
        digest = hashlib.blake2b(digest_size=12)
        for rows, meta, _ in studies:
            digest.update(pd.util.hash_pandas_object(rows[["trial", "status", "seed", "ap"]]).to_numpy().tobytes())
            digest.update(repr(meta).encode(errors="replace"))
        self.studies, self.version = studies, digest.hexdigest()

    @property
    def rows(self) -> pd.DataFrame:
        """Of all studies."""
        return merge_studies(self.studies)[0]

    def report(self, filters: Filters) -> Report | None:
        """The report of what passes the filters; None where nothing does."""
        with self._drawing:  # what one looker has computed the next one finds
            return self._reports(self.version, filters)

    def page(self, filters: Filters, chosen: str | None) -> Page | None:
        """The report as components, with a design selected; None where nothing passes the filters."""
        with self._drawing:
            return self._pages(self.version, filters, chosen)

    def _page(self, version: str, filters: Filters, chosen: str | None) -> Page | None:
        report = self._reports(version, filters)
        return Page(report.evidence, report.sections, chosen) if report else None

    def _report(self, version: str, filters: Filters) -> Report | None:
        chosen = [self.studies[i] for i in filters.studies if i < len(self.studies)] or self.studies
        costs = self.objectives[1:]
        all_rows, meta, samples = merge_studies(chosen)
        rows = narrow(all_rows, filters, costs)
        if rows.empty and not all_rows.empty:
            return None
        report = report_info(rows, meta, samples=samples, mix_protocols=self.mix_protocols, most=MOST_LIVE)
        if len(chosen) < 2:
            return report
        each = {
            str(own.get("name") or i): gather(narrow(own_rows, filters, costs), own, mix_protocols=True, most=MOST_LIVE)
            for i, (own_rows, own, _) in enumerate(chosen, 1)
        }
        opening, *rest = report.sections
        return replace(report, sections=(opening, side_by_side(report.evidence, each), *rest))


def side_by_side(all_of_them: Evidence, each: Mapping[str, Evidence]) -> Section:
    """The front of each study by itself, on the same axes."""
    plots = []
    for i, whole in enumerate(front_info(all_of_them)):
        frame = front_figure(whole).layout
        for j, (name, evidence) in enumerate(each.items()):
            plane = front_info(evidence)[i]
            plots.append(
                Plot(
                    f"study-{j}-{i}",
                    partial(_small_front, plane, frame),
                    f"Front of {name}",
                    caption=f"{name}: {count(len(evidence.finished), 'design')}, {len(evidence.front)} on its front",
                    size="small",
                )
            )
    told = Sentence(
        "Each with the front of its own designs, on the same axes; above and below, they are taken together."
    )
    return Section("studies", "Studies side by side", (told,), tuple(plots))


def _small_front(plane: Any, frame: go.Layout) -> go.Figure:
    figure = front_figure(plane)
    figure.update_traces(selector={"mode": "markers+text"}, mode="markers")
    for axis in ("xaxis", "yaxis"):
        figure.update_layout({axis: {"type": frame[axis].type, "range": frame[axis].range}})
    return figure.update_layout(showlegend=False, annotations=[], margin={"l": 48, "r": 8, "t": 8, "b": 44})

"""The live page over running studies: the report's own sections, refreshed, filtered, several studies side by side.

It only ever reads. Nothing is loaded from another host, and the page may load nothing from one.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from fpn_bench.analysis import Objective
from fpn_bench.analysis.words import count
from fpn_bench.errors import FpnBenchError, InputError
from fpn_bench.metrics import metric_of
from fpn_bench.redact import redact_text
from fpn_bench.reports.blocks import Column, Plot, Section, Sentence, Table
from fpn_bench.reports.details import choices_of, merit_text
from fpn_bench.reports.evidence import Evidence, StudyData, ended_at, gather, keys_of, several_protocols, together
from fpn_bench.reports.html import script_hash
from fpn_bench.reports.plain import template_text
from fpn_bench.reports.report import Report, report_info
from fpn_bench.reports.sections.answer import status_counts
from fpn_bench.reports.sections.front import front_figure, front_info
from fpn_bench.reports.units import quantity
from fpn_bench.search.database import DATABASE_ERRORS

try:
    import dash
except ImportError as error:
    raise InputError('the dashboard needs dash: pip install "fpn-bench[dashboard]"') from error
from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from fpn_bench.reports.dashboard_blocks import LIVE, Listing, Page, bullets, listing, selected_panel, table

_READ_ERRORS = (*DATABASE_ERRORS, FpnBenchError, LookupError, OSError, RuntimeError, TypeError, ValueError)
Read = Callable[[], Sequence[StudyData]]

MOST_LIVE = 1_000
"""Designs drawn and listed at most: a page that is drawn anew every few seconds has less room than a report."""
LAST_FINISHED = 4
PICKED = {"backbone": "Backbone", "neck": "Neck family", "source": "Source", "status": "Status"}
"""Columns that rows are filtered by, and what they are called."""
_UNFINISHED = ("running", "repeat")
_INDEX = """<!DOCTYPE html>
<html lang="en"><head>{%metas%}<meta name="color-scheme" content="light dark">
<title>{%title%}</title>{%favicon%}{%css%}<style>CSS</style></head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}<script>JS</script></footer></body></html>"""


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

    def said(self, costs: Sequence[Objective]) -> str:
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
        merged = together(self.studies)
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
        return together(self.studies)[0]

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
        all_rows, meta, samples = together(chosen)
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


def _ended(rows: pd.DataFrame) -> pd.Series[Any]:
    """When each row's trial ended; NaT where it has not, or where that is unknown."""
    return ended_at(rows).where(~rows["status"].isin(_UNFINISHED))


def told(feed: Feed, now: datetime) -> list[str]:
    """How the studies stand, one line each, and how fast they go; changes only where something did."""
    lines = []
    for rows, meta, _ in feed.studies:
        counts = ", ".join(f"{n} {status}" for status, n in status_counts(rows).items()) or "no trial yet"
        lines.append(f"{meta.get('name') or 'study'}: {counts}" if len(feed.studies) > 1 else counts)
    rows = feed.rows
    ended = _ended(rows)
    recent = rows[(ended > now - pd.Timedelta(hours=1)) & (ended <= now + pd.Timedelta(minutes=5))]
    lines.append(f"{count(len(recent.drop_duplicates(['study', 'trial'])), 'trial')} finished in the last hour")
    if ended.notna().any():
        lines.append(f"the last one at {ended.max():%Y-%m-%d %H:%M:%S} UTC")
    return lines


def running_now(rows: pd.DataFrame, objectives: Sequence[Objective]) -> tuple[Table, ...]:
    """The trials under way, and those that finished last."""
    keys = keys_of(rows, several_protocols(rows))
    rows = rows.assign(key=keys, ended=_ended(rows), ap_low=float("nan"))
    trial = Column("Trial", lambda row: str(row["trial"]), numeric=True)
    study = [Column("Study", lambda row: str(row["study"]))] if rows["study"].nunique() > 1 else []
    neck = Column(
        "Neck", lambda row: str(row["neck_label"]) or " · ".join(map(" ".join, choices_of(row).items())) or "–"
    )
    running = rows[rows["status"] == "running"]
    tables: list[Table] = []
    if len(running):
        tables.append(
            Table("running", f"Running now: {len(running)}", running.drop(columns="key"), (neck, *study, trial))
        )
    finished = rows[~rows["status"].isin(_UNFINISHED)].sort_values("ended", kind="stable", na_position="first")
    if len(finished):
        columns = [neck, *study, trial, Column("Status", lambda row: str(row["status"]))]
        columns += [Column(quantity(o.name).title, partial(_figure_of, o.name), numeric=True) for o in objectives]
        last = finished.iloc[::-1][:LAST_FINISHED]
        tables.append(Table("finished", "Finished last", last, tuple(columns)))
    return tuple(tables)


def _figure_of(name: str, row: Mapping[str, Any]) -> str:
    return merit_text(row, name) if metric_of(name).noise == "seeds" else quantity(name).number(row[name])


def make_app(read: Read, *, every_s: float = 1.0, mix_protocols: bool = False) -> Dash:
    """The dashboard over studies, to be served by `serve` or any WSGI server (its ``server``).

    Args:
        read: gives table, metadata and samples (or None) of each study, as they are now. It may raise while they
            cannot be read: the page says so and goes on with what it has.
        every_s: seconds between two looks.
        mix_protocols: let rows of several protocols stand side by side, which the page then says.

    Raises:
        InputError: no study, or studies whose figures do not compare.
    """
    feed = Feed(read, every_s, mix_protocols)
    style = template_text("report.css") + template_text("dashboard.css")
    script = template_text("dashboard.js")
    names = [str(meta.get("name") or "study") for _, meta, _ in feed.studies]
    app = Dash(
        __name__,
        title=escape(" + ".join(names)).replace("%", "&#37;") + " – fpn_bench",
        update_title="",
        assets_folder="",
        include_assets_files=False,
        serve_locally=True,
        suppress_callback_exceptions=True,
        enable_mcp=False,
        index_string=_INDEX.replace("CSS", style).replace("JS", script),
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.layout = _layout(feed, names)
    _callbacks(app, feed)
    hashes = " ".join([*app.csp_hashes(), script_hash(script)])
    policy = (
        f"default-src 'none'; script-src 'self' {hashes}; connect-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    def guarded(response: Any) -> Any:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    app.server.after_request(guarded)
    return app


def _layout(feed: Feed, names: Sequence[str]) -> Component:
    filters: list[Component] = []
    if len(names) > 1:
        options = [{"label": name, "value": i} for i, name in enumerate(names)]
        filters.append(html.Label(["Studies", dcc.Dropdown(options, id="live-studies", multi=True, placeholder="all")]))
    for name, title in PICKED.items():
        place = {"type": "pick-rows", "at": name}
        filters.append(html.Label([title, dcc.Dropdown([], id=place, multi=True, placeholder="all")]))
    for cost in feed.objectives[1:]:
        title = f"{quantity(cost.name).title}, at {'least' if cost.maximize else 'most'}"
        place = {"type": "bound", "at": cost.name}
        entry = dcc.Input(id=place, type="number", debounce=0.6, placeholder="any", step="any")
        filters.append(html.Label([title, entry]))
    close_said: dict[str, Any] = {"aria-label": "Close"}
    panel_said: dict[str, Any] = {"aria-label": "Selected design"}
    close = html.Button("×", id="selected-close", **close_said)
    return html.Div(
        [
            dcc.Interval(id="live-tick", interval=1000 * feed.every_s),
            dcc.Store(id="live-told"),
            dcc.Store(id="live-version"),
            dcc.Store(id="live-held"),
            dcc.Store(id="live-shown"),
            dcc.Store(id="live-chosen"),
            dcc.Store(id="live-zoomed"),
            dcc.Store(id="live-listed"),
            html.Header(
                [
                    html.P("fpn_bench dashboard", className="kicker"),
                    html.H1(" + ".join(names)),
                    html.P(id="live-subtitle", className="sub"),
                    html.Div(id="live-head"),
                    html.Div(filters, className="filters"),
                ]
            ),
            html.Main([html.Div(id="live-notes"), html.Div(id="live-page")]),
            html.Aside([close, html.Div(id="live-panel")], id="selected", hidden=True, **panel_said),
        ],
        id="live-dashboard",
    )


def _callbacks(app: Dash, feed: Feed) -> None:
    picks = Input({"type": "pick-rows", "at": ALL}, "value")
    bounds = Input({"type": "bound", "at": ALL}, "value")
    studies = [Input("live-studies", "value")] if len(feed.studies) > 1 else []

    @app.callback(
        Output("live-told", "data"), Output("live-version", "data"), Input("live-tick", "n_intervals"),
        State("live-told", "data"), State("live-version", "data"),
    )  # fmt: skip
    def look(_: int, known: list[str] | None, version: str | None) -> tuple[Any, Any]:
        feed.refresh()
        now = [*told(feed, datetime.now(UTC)), feed.problem]
        return now if now != known else no_update, feed.version if feed.version != version else no_update

    @app.callback(
        Output("live-head", "children"), Output({"type": "pick-rows", "at": ALL}, "options"),
        Input("live-told", "data"), State({"type": "pick-rows", "at": ALL}, "id"),
    )  # fmt: skip
    def head(lines: list[str] | None, places: list[dict[str, str]]) -> tuple[Any, Any]:
        *lines, problem = lines or [""]
        rows = feed.rows
        alarm = [html.P(problem, className="loud", role="alert")] if problem else []
        counts = html.Div([html.Span(line) for line in lines], className="counts")
        tables = [table(given, None) for given in running_now(rows, feed.objectives)]
        options = [sorted({str(v) for v in rows[place["at"]] if v}) for place in places]
        return [*alarm, counts, html.Div(tables, className="live")], options

    @app.callback(
        Output("live-page", "children"), Output("live-held", "data"), Output("live-shown", "data"),
        Output("live-notes", "children"), Output("live-subtitle", "children"),
        Output("live-zoomed", "data", allow_duplicate=True), Input("live-version", "data"), picks, bounds, *studies,
        State("live-held", "data"), State("live-chosen", "data"), State({"type": "pick-rows", "at": ALL}, "id"),
        State({"type": "bound", "at": ALL}, "id"), prevent_initial_call="initial_duplicate",
    )  # fmt: skip
    def arrange(version: str | None, picked: list[Any], limits: list[Any], *rest: Any) -> tuple[Any, ...]:
        *which, held, chosen, pick_ids, bound_ids = rest
        filters = {
            "studies": which[0] if which and which[0] else [],
            "picked": [[at["at"], values] for at, values in zip(pick_ids, picked, strict=True) if values],
            "bounds": [
                [at["at"], limit / quantity(at["at"]).scale]
                for at, limit in zip(bound_ids, limits, strict=True)
                if limit is not None
            ],
        }
        shown = {"version": version, "filters": filters}
        try:
            report, page = feed.report(parse_filters(filters)), feed.page(parse_filters(filters), chosen)
        except FpnBenchError as error:
            return [], {}, shown, [html.P(str(error), className="loud")], "", {}
        said = parse_filters(filters).said(feed.objectives[1:])
        if report is None or page is None:
            return [], {}, shown, [html.P(f"Nothing passes the filters ({said}).", className="note")], "", {}
        notes: list[Component] = [html.P(sentence.text, className="loud", role="alert") for sentence in report.loud]
        if said:
            words = f"Filtered: {len(report.evidence.table)} of {len(feed.rows)} rows ({said}). "
            notes.append(html.P(words + "Every front below is the front of the filtered designs.", className="note"))
        if report.mind:
            notes.append(html.Div([html.Strong("Mind"), *bullets(report.mind)], className="note"))
        if page.digests.keys() == (held or {}).keys():
            return no_update, no_update, shown, notes, report.subtitle, no_update
        return page.children, page.digests, shown, notes, report.subtitle, {}

    @app.callback(
        *[Output({"type": kind, "at": ALL}, name) for kind, names in LIVE.items() for name in names],
        Output("live-held", "data", allow_duplicate=True), Input("live-shown", "data"), Input("live-chosen", "data"),
        State("live-held", "data"), State("live-zoomed", "data"), prevent_initial_call=True,
    )  # fmt: skip
    def fill(
        shown: dict[str, Any] | None,
        chosen: str | None,
        held: dict[str, int] | None,
        zoomed: dict[str, dict[str, Any]] | None,
    ) -> list[Any]:
        """What differs from what the page holds."""
        try:
            page = feed.page(parse_filters(shown["filters"]), chosen) if shown else None
        except FpnBenchError:
            page = None  # said where the page is arranged
        held = held or {}
        news = {place: digest for place, digest in (page.digests if page else {}).items() if held.get(place) != digest}
        values: list[Any] = []
        *groups, _ = ctx.outputs_list
        for name, places in zip((name for names in LIVE.values() for name in names), groups, strict=True):
            wanted = [f"{at['id']['type']} {at['id']['at']}" for at in places]
            new = [getattr(page.live[place], name) if page and place in news else no_update for place in wanted]
            if name == "figure":
                ranges = [(zoomed or {}).get(at["id"]["at"]) for at in places]
                new = [looked_at(f, r) if r and f is not no_update else f for f, r in zip(new, ranges, strict=True)]
            values.append(new)
        # What the page has no place for yet is not held: it comes when the page is arranged anew.
        return [*values, {place: news.get(place, digest) for place, digest in held.items()}]

    @app.callback(
        Output("live-zoomed", "data"), Input({"type": "plot", "at": ALL}, "relayoutData"), State("live-zoomed", "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    def zoom(_: Any, known: dict[str, dict[str, Any]] | None) -> dict[str, dict[str, Any]]:
        known = dict(known or {})
        for event in ctx.triggered:
            plot = json.loads(event["prop_id"].rpartition(".")[0])["at"]
            known[plot] = ranges_after(known.get(plot) or {}, event["value"] or {})
        return known

    @app.callback(
        Output({"type": "designs", "at": ALL}, "children"), Input("live-shown", "data"), Input("live-chosen", "data"),
        Input("live-listed", "data"), Input({"type": "find", "at": ALL}, "value"), prevent_initial_call=True,
    )  # fmt: skip
    def enlist(
        shown: dict[str, Any] | None, chosen: str | None, listed: dict[str, Any] | None, words: list[str | None]
    ) -> list[Any]:
        report = _report_of(feed, shown)
        if report is None:
            return [no_update for _ in words]
        asked = Listing(**(listed or {}))
        return [listing(report.evidence, replace(asked, words=text or ""), chosen) for text in words]

    @app.callback(
        Output("live-panel", "children"), Output("selected", "hidden"), Output("live-dashboard", "className"),
        Input("live-shown", "data"), Input("live-chosen", "data"),
    )  # fmt: skip
    def panel(shown: dict[str, Any] | None, chosen: str | None) -> tuple[Any, bool, str]:
        if chosen is None:
            return [], True, ""
        report = _report_of(feed, shown)
        if report is None:
            return [html.P("Nothing passes the filters.")], False, "with-selected"
        return selected_panel(report.evidence, chosen), False, "with-selected"

    @app.callback(
        Output("live-chosen", "data"), Input({"type": "plot", "at": ALL}, "clickData"),
        Input({"type": "pick", "at": ALL}, "value"),
        Input("selected-close", "n_clicks"), prevent_initial_call=True,
    )  # fmt: skip
    def choose(*_: Any) -> Any:
        if ctx.triggered_id == "selected-close":
            return None
        for event in ctx.triggered:
            key = key_of(event["value"])
            if key is not None and ctx.triggered_id:
                # Cleared, so that another click on the same point is an event again.
                dash.set_props(ctx.triggered_id, {event["prop_id"].rpartition(".")[2]: None})
                return key
        return no_update


def ranges_after(ranges: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
    """The axes' ranges that a plot's user set, after an event of it.

    plotly keeps them by itself only while the figure's own ranges stay, which grow with the data here.
    """
    after = {axis: list(ends) for axis, ends in ranges.items()}
    for name, value in event.items():
        match = re.fullmatch(r"([xy]axis\d*)\.(range|autorange)(?:\[([01])\])?", name)
        if match is None:
            continue
        axis, what, end = match.groups()
        if what == "autorange":
            after.pop(axis, None)
        elif end is None:
            after[axis] = list(value)
        else:
            after.setdefault(axis, [None, None])[int(end)] = value
    return after


def looked_at(figure: go.Figure, ranges: Mapping[str, Any]) -> go.Figure:
    """A copy of the figure that opens on these ranges of its axes."""
    return go.Figure(figure).update_layout({axis: {"range": ends} for axis, ends in ranges.items()})


def key_of(event: Any) -> str | None:
    """The design that a click means: on a plot's point or an entry of a menu."""
    if isinstance(event, str):
        return event or None
    if not isinstance(event, Mapping):
        return None
    keys = [point.get("customdata") for point in event.get("points", ())]
    return next((key for key in keys if isinstance(key, str)), None)


def parse_filters(given: Mapping[str, Any]) -> Filters:
    """`Filters` out of what the page holds, which is JSON."""
    return Filters(
        tuple(int(i) for i in given["studies"]),
        tuple((name, tuple(str(v) for v in values)) for name, values in given["picked"] if name in PICKED),
        tuple((str(name), float(bound)) for name, bound in given["bounds"]),
    )


def _report_of(feed: Feed, shown: Mapping[str, Any] | None) -> Report | None:
    if not shown:
        return None
    try:
        return feed.report(parse_filters(shown["filters"]))
    except FpnBenchError:
        return None  # said where the page is arranged


class _Quiet(WSGIRequestHandler):
    """Says nothing of requests that went well: a page that looks every second makes many."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing."""


def listen(host: str, port: int | None) -> socket.socket:
    """A listening socket on ``port``; with None on 8050 or the next one free.

    Raises:
        InputError: the port is taken, or this machine has no such address.
    """
    reason = ""
    for candidate in (port,) if port is not None else range(8050, 8150):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            return socket.create_server((host, candidate), family=family)
        except (OSError, OverflowError) as error:
            reason = str(error)
    where = f"port {port}" if port is not None else "none of the ports 8050 to 8149"
    raise InputError(f"{where} can be used on {host} ({reason}); name a free one with --port, or leave it out")


def server_of(app: Dash, listening: socket.socket) -> BaseWSGIServer:
    """What answers on a listening socket, a thread a request."""
    host, port = listening.getsockname()[:2]
    if is_loopback(host):  # another site's name that leads here is none of ours
        app.server.config["TRUSTED_HOSTS"] = ["localhost", "127.0.0.1", "[::1]", host]
    return make_server(host, port, app.server, threaded=True, request_handler=_Quiet, fd=listening.detach())


def serve(app: Dash, listening: socket.socket) -> None:
    """Serve until Ctrl-C."""
    server_of(app, listening).serve_forever()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    return host == "localhost" or host == "::1" or host.startswith("127.")

"""What the live page does by itself and when it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import dash
import plotly.graph_objects as go
from dash import ALL, Dash, Input, Output, State, ctx, html, no_update
from dash.development.base_component import Component

from fpn_bench.errors import FpnBenchError
from fpn_bench.reports.dashboard_blocks import LIVE, Listing, bullets, listing, selected_panel, table
from fpn_bench.reports.dashboard_feed import Feed, parse_filters
from fpn_bench.reports.dashboard_status import running_now, status_lines
from fpn_bench.reports.report import Report
from fpn_bench.reports.units import quantity


def add_callbacks(app: Dash, feed: Feed) -> None:
    """All that the page does by itself and when it is used."""
    _add_looking(app, feed)
    _add_drawing(app, feed)
    _add_selecting(app, feed)


def _add_looking(app: Dash, feed: Feed) -> None:
    """Reads the studies, and arranges the page where its sections change."""
    picks = Input({"type": "pick-rows", "at": ALL}, "value")
    bounds = Input({"type": "bound", "at": ALL}, "value")
    studies = [Input("live-studies", "value")] if len(feed.studies) > 1 else []

    @app.callback(
        Output("live-told", "data"), Output("live-version", "data"), Input("live-tick", "n_intervals"),
        State("live-told", "data"), State("live-version", "data"),
    )  # fmt: skip
    def look(_: int, known: list[str] | None, version: str | None) -> tuple[Any, Any]:
        feed.refresh()
        now = [*status_lines(feed, datetime.now(UTC)), feed.problem]
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
        said = parse_filters(filters).describe(feed.objectives[1:])
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


def _add_drawing(app: Dash, feed: Feed) -> None:
    """Sends what changed in the arranged page, with the axes where its user left them."""

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
                new = [with_ranges(f, r) if r and f is not no_update else f for f, r in zip(new, ranges, strict=True)]
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


def _add_selecting(app: Dash, feed: Feed) -> None:
    """Lists designs, and shows the one that was chosen."""

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


def with_ranges(figure: go.Figure, ranges: Mapping[str, Any]) -> go.Figure:
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


def _report_of(feed: Feed, shown: Mapping[str, Any] | None) -> Report | None:
    if not shown:
        return None
    try:
        return feed.report(parse_filters(shown["filters"]))
    except FpnBenchError:
        return None  # said where the page is arranged

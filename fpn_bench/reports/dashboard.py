"""The live page over running studies: the report's own sections, refreshed, filtered, several studies side by side.

It only ever reads. Nothing is loaded from another host, and the page may load nothing from one.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from fpn_bench.errors import InputError

try:
    from dash import Dash, dcc, html
except ImportError as error:
    raise InputError('the dashboard needs dash: pip install "fpn-bench[dashboard]"') from error
from dash.development.base_component import Component

from fpn_bench.reports.dashboard_callbacks import add_callbacks
from fpn_bench.reports.dashboard_feed import PICKED, Feed, Read
from fpn_bench.reports.html import script_hash
from fpn_bench.reports.plain import template_text
from fpn_bench.reports.units import quantity

_INDEX = """<!DOCTYPE html>
<html lang="en"><head>{%metas%}<meta name="color-scheme" content="light dark">
<title>{%title%}</title>{%favicon%}{%css%}<style>CSS</style></head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}<script>JS</script></footer></body></html>"""


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
    add_callbacks(app, feed)
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

"""What each kind of block is on the live page: Dash components. No section is known by name.

Dash makes components anew where a callback gives a place other children: a plot would lose its zoom, what was unfolded
would fold. So a page is given as a whole only when its *shape* changes; else the `live` components take new values
where they stand. Text from files is only ever a string child, a value in data or inside an image: never markup.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any
from zlib import crc32

from dash import dcc, html
from dash.development.base_component import Component
from plotly.io.json import to_json_plotly

from fpn_bench.reports import style
from fpn_bench.reports.blocks import (
    Block,
    Code,
    Column,
    Designs,
    Drawing,
    Drawings,
    Facts,
    Gallery,
    Plot,
    Record,
    Section,
    Sentence,
    Table,
)
from fpn_bench.reports.details import Detail
from fpn_bench.reports.evidence import Evidence
from fpn_bench.reports.sections.necks import drawing

LIVE = {
    "part": ("children",),
    "plot": ("figure", "style"),
}
"""Kinds of live components, and which of their properties take new values."""
DESIGNS_A_PAGE = 25
QUIET_INK = "#7c8796"
"""Of text in WebGL, which style sheets do not reach: legible on white and on near black."""
_GRAPH: Any = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}


class Page:
    """A report as components.

    Args:
        evidence: what the sections were computed from.
        sections: as a report gives them.
        chosen: key of the selected design.

    Attributes:
        children: the whole page.
        live: the components that can take new values, by kind (of `LIVE`) and name, e.g. ``"plot front-macs"``.
    """

    def __init__(self, evidence: Evidence, sections: Iterable[Section], chosen: str | None) -> None:
        """See the class."""
        self._evidence, self._chosen = evidence, chosen
        self.live: dict[str, Component] = {}
        self.children = [self._section(section) for section in sections]

    @cached_property
    def digests(self) -> dict[str, int]:
        """Of each live component, by kind and name. Two pages with the same keys differ in values alone."""
        return {
            place: crc32(to_json_plotly([getattr(component, name) for name in LIVE[place.partition(" ")[0]]]).encode())
            for place, component in self.live.items()
        }

    def _live(self, kind: str, name: str, component: Component) -> Component:
        setattr(component, "id", {"type": kind, "at": name})  # noqa: B010 - each component class declares its own
        self.live[f"{kind} {name}"] = component
        return component

    def _section(self, section: Section) -> Component:
        told = self._live("part", f"{section.id} sentences", html.Div(_sentences(section)))
        title = [html.H2(section.title)] if section.title else []
        blocks = [self._block(block, f"{section.id} {i}") for i, block in enumerate(section.blocks)]
        return html.Section([*title, told, *blocks], id=section.id)

    def _block(self, block: Block, name: str) -> Component:
        match block:
            case Plot():
                return self._plot(block)
            case Table(folded=True):
                title = self._live("part", f"{name} title", html.Summary(block.title))
                return html.Details([title, self._live("part", name, html.Div(_table(block, self._chosen)))])
            case Table():
                heading = [html.H3(block.title)] if block.title else []
                return self._live("part", name, html.Div([*heading, *_table(block, self._chosen)]))
            case Drawings():
                cards = [_card(card, self._chosen) for card in block.drawings]
                return self._live("part", name, html.Div(cards, className="cards"))
            case Gallery():
                return self._live("part", name, html.Div(_gallery(block, self._chosen)))
            case Designs():
                return html.Div(self._designs(block), className="designs")
            case Facts():
                told = [html.H3(block.title), facts(block.pairs)]
                return self._live("part", name, html.Div(told, className="facts"))
            case Code():
                text = self._live("part", name, html.Pre(block.text))
                return html.Details([html.Summary(block.title), text], open=block.open)

    def _plot(self, plot: Plot) -> Component:
        figure = _figure(plot, self._chosen)
        # A wide plot is as high as it has lines; the place of any other gives its height.
        height = f"{figure.layout.height}px" if plot.size == "wide" else "100%"
        graph = self._live("plot", plot.id, dcc.Graph(figure=figure, config=_GRAPH, style={"height": height}))
        caption = self._live("part", f"{plot.id} caption", html.Figcaption(plot.caption))
        spoken: dict[str, Any] = {"aria-label": plot.alt}
        return html.Figure([html.Div(graph, className="figure"), caption], className=f"plot {plot.size}", **spoken)

    def _designs(self, block: Designs) -> Component:
        find = dcc.Input(id={"type": "find", "at": block.id}, type="search", debounce=0.3, placeholder="Find a design")
        listed = html.Div(listing(self._evidence, Listing(), self._chosen), id={"type": "designs", "at": block.id})
        return html.Div([html.Div(find, className="tools"), listed], id=block.id)


@dataclass(frozen=True)
class Listing:
    """Which designs a list shows.

    Attributes:
        by: name of the column it is sorted by; ``""``: in the evidence's own order.
        up: least first.
        page: from 0.
        words: what a design's texts hold.
    """

    by: str = ""
    up: bool = False
    page: int = 0
    words: str = ""


def listing(evidence: Evidence, asked: Listing, chosen: str | None) -> list[Component]:
    """A page of the list of designs. What a button asks for stands in its ``data-list``, as JSON."""
    told = evidence.details
    shown = [d for d in told if d.listed or d.name == "status"]
    rows = [(row, {d.name: d.text(row) for d in told}) for row in evidence.shown.to_dict("records")]
    words = asked.words.lower()
    rows = [(row, texts) for row, texts in rows if words in "\n".join(texts.values()).lower()]
    by = next((d for d in shown if d.name == asked.by), None)
    if by is not None:
        known = [r for r in rows if r[1][by.name]]
        missing = [r for r in rows if not r[1][by.name]]  # last either way
        rows = sorted(known, key=lambda r: _order(by, r[1][by.name]), reverse=not asked.up) + missing
    page = max(0, min(asked.page, (len(rows) - 1) // DESIGNS_A_PAGE))
    first = page * DESIGNS_A_PAGE
    part = rows[first : first + DESIGNS_A_PAGE]
    heads = []
    for d in shown:
        up = not asked.up if d is by else not d.numeric
        sort = html.Button(d.title, **_asks({"by": d.name, "up": up, "page": 0}))
        order: dict[str, Any] = {"aria-sort": "ascending" if asked.up else "descending"} if d is by else {}
        heads.append(html.Th(sort, className="n" if d.numeric else "", **order))
    lines = []
    for row, texts in part:
        cells = [html.Td(texts[d.name], className="n" if d.numeric else "") for d in shown]
        if texts["reason"]:
            cells[-1] = html.Td([texts["status"], html.Br(), html.Small(texts["reason"])])
        lines.append(html.Tr(cells, **_selectable(str(row["key"]), chosen, "front" if row["on_front"] else "")))
    turn = [
        html.Button(text, disabled=not there, **_asks({"by": asked.by, "up": asked.up, "page": to}))
        for text, to, there in (
            ("← back", page - 1, page > 0),
            ("next →", page + 1, first + len(part) < len(rows)),
        )
    ]
    range_shown = f"{first + 1} to {first + len(part)} of {len(rows)}" if part else "none"
    body = html.Table([html.Thead(html.Tr(heads)), html.Tbody(lines)])
    pager = html.P([html.Span(range_shown, className="quiet"), *turn], className="tools pager")
    return [html.Div(body, className="scroll"), pager]


def _asks(state: Record) -> dict[str, Any]:
    return {"data-list": json.dumps(state)}


def _order(detail: Detail, text: str) -> tuple[float, str]:
    return (float(text), "") if detail.numeric else (0.0, text.lower())


def _sentences(section: Section) -> list[Component]:
    """A section without a title opens the page: its first sentence is the headline."""
    if section.title or not section.sentences:
        return [html.P(sentence.text, className="quiet") for sentence in section.sentences]
    headline, *rest = section.sentences
    return [html.P(headline.text, className="headline"), *bullets(rest)]


def bullets(sentences: Sequence[Sentence]) -> list[Component]:
    """Sentences as a list; nothing where there are none."""
    return [html.Ul([html.Li(s.text) for s in sentences], className="sentences")] if sentences else []


def _figure(plot: Plot, chosen: str | None) -> Any:
    """Drawn with the selected design ringed. What its user zoomed, turned or hid stays when the data change."""
    figure = plot.draw()
    if chosen is not None:
        style.select(figure, chosen)
    figure.update_layout(
        uirevision=plot.id,
        height=figure.layout.height if plot.size == "wide" else None,
        font_color=QUIET_INK,
        hoverlabel={"bgcolor": "#1d2430", "font": {"color": "#f2f4f7"}},
    )
    if any(trace.type == "scatter3d" for trace in figure.data):
        figure.update_scenes({f"{axis}axis_backgroundcolor": "rgba(0,0,0,0)" for axis in "xyz"})
    return figure


def table(block: Table, chosen: str | None) -> Component:
    """A table with its title, rows of designs to be selected."""
    return html.Div([html.H3(block.title), *_table(block, chosen)])


def _table(block: Table, chosen: str | None) -> list[Component]:
    head = html.Thead(html.Tr([html.Th(c.title, className="n" if c.numeric else "") for c in block.columns]))
    body = html.Tbody([_row(block.columns, record, chosen) for record in _records(block)])
    note = [html.P(block.note, className="quiet after")] if block.note else []
    return [html.Div(html.Table([head, body]), className="scroll"), *note]


def _records(block: Table) -> list[Record]:
    return [{str(name): value for name, value in row.items()} for row in block.rows.to_dict("records")]


def _row(columns: Sequence[Column], record: Record, chosen: str | None) -> Component:
    cells = [
        html.Td(_tagged(c.text(record), c.tag(record) if c.tag else ""), className="n" * c.numeric) for c in columns
    ]
    return html.Tr(cells, **(_selectable(str(record["key"]), chosen) if "key" in record else {}))


def _selectable(key: str, chosen: str | None, names: str = "") -> dict[str, Any]:
    """Attributes of what selects a design when it is clicked: the page's script reads the key."""
    return {"data-key": key, "tabIndex": "0", "className": f"{names} selected" if key == chosen else names}


def _tagged(text: str, tag: str) -> list[Any]:
    return [text, " ", html.Span(tag, className="tag")] if tag else [text]


def _card(card: Drawing, chosen: str | None) -> Component:
    left = picture(card.svg, card.title) if card.svg else html.P(f"No drawing: {card.problem}.", className="quiet")
    right = html.Div([facts(card.figures.items()), html.P(card.note, className="quiet small")])
    parts = [html.H3(_tagged(card.title, card.tag)), html.Div([left, right], className="split")]
    return html.Article(parts, **_selectable(card.key, chosen, "card"))


def picture(svg: str, alt: str) -> Component:
    """An SVG as an image, in which no script runs and nothing is loaded."""
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    return html.Div(html.Img(src=source, alt=alt), className="drawing")


def facts(pairs: Iterable[tuple[str, str]]) -> Component:
    """Names and values, one a line."""
    return html.Dl([html.Div([*([html.Dt(name)] if name else []), html.Dd(value)]) for name, value in pairs])


def _gallery(gallery: Gallery, chosen: str | None) -> list[Component]:
    shown = chosen if chosen is not None and chosen in gallery.detections else gallery.chosen
    options = [{"label": label, "value": key} for key, label in gallery.labels.items()]
    pick = dcc.Dropdown(
        options, id={"type": "pick", "at": gallery.id}, placeholder=gallery.labels[shown], clearable=False
    )
    images = [
        html.Figure(
            [
                picture(_annotated(image, gallery.classes, found), str(image["name"])),
                html.Figcaption(str(image["name"])),
            ],
            className="image",
        )
        for image, found in zip(gallery.images, gallery.detections[shown], strict=True)
    ]
    return [html.P(html.Label(["Neck", pick]), className="pick"), html.Div(images, className="images")]


def _annotated(image: Record, classes: Sequence[str], found: Sequence[Sequence[float]]) -> str:
    """An image with its annotated boxes (white dashes) and the detections on it, as SVG."""
    width, height = float(image["width"]), float(image["height"])
    size = 0.036 * width
    sides = f'width="{width:g}" height="{height:g}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {sides} viewBox="0 0 {width:g} {height:g}" fill="none" '
        f'stroke-width="{width / 160:g}" font-family="system-ui, sans-serif" font-weight="600">'
        f'<image href="data:image/jpeg;base64,{escape(str(image["jpeg"]))}" {sides} preserveAspectRatio="none"/>'
    ]
    for x1, y1, x2, y2, *_ in image["truth"]:
        parts.append(f'{_box(x1, y1, x2, y2)} stroke="#fff" stroke-dasharray="{width / 60:g}"/>')
    for x1, y1, x2, y2, label, score in found:
        colour = f"hsl({int(label) * 137 % 360} 85% 55%)"
        parts.append(
            f'{_box(x1, y1, x2, y2)} stroke="{colour}"/><text x="{x1 + size / 6:g}" y="{max(y1, 0) + size:g}" '
            f'font-size="{size:g}" fill="{colour}" stroke="#000" stroke-width="{size / 4:g}" paint-order="stroke">'
            f"{escape(classes[int(label)])} {score:.2f}</text>"
        )
    return "".join([*parts, "</svg>"])


def _box(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<rect x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}"'


def selected_panel(evidence: Evidence, key: str) -> list[Component]:
    """The selected design: its drawing and all that is known of it."""
    rows = evidence.designs[evidence.designs["key"] == key].to_dict("records")
    if not rows:
        return [html.H2("Selected design"), html.P("It is not among the designs that pass the filters.")]
    row = rows[0]
    drawn = drawing(row)
    picture_or_why = picture(drawn.svg, drawn.title) if drawn.svg else html.P(f"No drawing: {drawn.problem}.")
    told = [(d.title, text) for d in evidence.details if d.name != "label" and (text := d.text(row))]
    return [html.H2(drawn.title), picture_or_why, facts(told)]

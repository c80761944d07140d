"""A neck graph as text and as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as escape_tags

from fpn_bench.graph.cost import GraphCost
from fpn_bench.graph.neck_graph import NeckGraph
from fpn_bench.graph.node import Edge, Node, input_name
from fpn_bench.graph.path_ops import Resample
from fpn_bench.graph.spec import Op


def escape(text: str) -> str:
    """As XML text; what XML has no way to say (control characters in a name) is a question mark."""
    return escape_tags("".join(c if c.isprintable() else "?" for c in text))


def _chain_text(chain: Sequence[Op]) -> str:
    return " ".join(op.symbol for op in chain)


def _title(graph: NeckGraph) -> str:
    inputs = " ".join(f"C{s.level}:{s.channels}" for s in graph.inputs)
    outputs = " ".join(f"P{s.level}:{s.channels}" for s in graph.out_features)
    return f"{inputs} -> {outputs}"


def as_text(graph: NeckGraph) -> str:
    """The graph as lines: one a node in the order they run, with level, channels, inputs and operations."""
    rows = [("node", "level", "channels", "made of")]
    outputs = set(graph.outputs)
    for node in graph.nodes:
        parts = [f"{edge.source} > {_chain_text(edge.ops)}" if edge.ops else edge.source for edge in node.inputs]
        merge = f" {node.merge.symbol} " if len(parts) > 1 else ""
        made = merge.join(f"({part})" if len(parts) > 1 and ">" in part else part for part in parts)
        if len(parts) == 1 and not node.merge.is_identity_of_one:
            made = f"{node.merge.symbol}({made})"
        if node.ops:
            made += f" => {_chain_text(node.ops)}"
        if node.shared:
            made += f"   (weights shared: {node.shared})"
        mark = " *" if node.name in outputs else ("" if node.name in graph.reachable else " (unused)")
        rows.append((node.name + mark, f"P{node.level}", str(graph.channels_of(node.name)), made))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"neck {graph.id}: {_title(graph)}   (* output)"]
    lines += [
        "  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2].rjust(widths[2]), row[3]]) for row in rows
    ]
    return "\n".join(lines) + "\n"


_ROW, _BOX_H, _PAD, _GAP = 64, 34, 20, 28
_LETTER_W = 6.6  # of a bold letter at the size of the names


def as_svg(graph: NeckGraph, costs: GraphCost | None = None) -> str:
    """The live part of the graph as one standalone `<svg>`: levels as rows, coarsest on top; time runs to the right.

    Colours follow the text colour of the page (`currentColor`), outputs are drawn with a heavier frame, and every box
    and arrow has a `<title>` with its operations.

    Args:
        graph: the neck.
        costs: of the graph (`fpn_bench.graph.cost`); each box then says its params and MACs.
    """
    cost_of = {node.name: node for node in costs.nodes} if costs else {}
    box_h = _BOX_H + (12 if costs else 0)
    nodes = [node for node in graph.nodes if node.name in graph.reachable]
    inputs = [input_name(s.level) for s in graph.inputs if input_name(s.level) in graph.reachable]
    column = _columns(nodes, inputs)
    levels = sorted({graph.level_of(name) for name in column}, reverse=True)
    row = {level: i for i, level in enumerate(levels)}
    box_w = max(84, round(_LETTER_W * max(map(len, column)) + 12))

    def corner(name: str) -> tuple[float, float]:
        return 34 + _PAD + column[name] * (box_w + _GAP), _PAD + row[graph.level_of(name)] * _ROW

    width = 34 + 2 * _PAD + max(column.values()) * (box_w + _GAP) + box_w
    height = 2 * _PAD + (len(levels) - 1) * _ROW + box_h
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="neck {escape(_title(graph))}" font-family="system-ui, sans-serif" font-size="11" '
        'fill="none" stroke="currentColor">',
        f'<defs><marker id="arrow-{graph.id}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto">'
        '<path d="M0 1 7 4 0 7z" fill="currentColor" stroke="none"/></marker></defs>',
    ]
    for level in levels:
        y = _PAD + row[level] * _ROW + box_h / 2
        parts.append(f'<text x="6" y="{y + 4:g}" fill="currentColor" stroke="none" opacity=".6">P{level}</text>')
        parts.append(f'<path d="M34 {y:g}H{width}" stroke-dasharray="1 5" opacity=".35"/>')
    for node in nodes:
        parts += [
            _arrow(graph.id, edge, corner(edge.source), corner(node.name), (box_w, box_h)) for edge in node.inputs
        ]
    outputs = set(graph.outputs)
    for name in inputs:
        parts.append(
            _box(corner(name), (box_w, box_h), name, [str(graph.channels_of(name))], "backbone map", name in outputs)
        )
    for node in nodes:
        merge = node.merge.symbol if len(node.inputs) > 1 or not node.merge.is_identity_of_one else ""
        inner = " ".join(t for t in (merge, _chain_text(node.ops)) if t)
        if not inner and len(node.inputs) == 1:
            inner = _chain_text(node.inputs[0].ops)
        detail = f"{graph.channels_of(node.name)} channels: {inner}"
        lines = [inner]
        if node.name in cost_of:
            paid = cost_of[node.name]
            lines.append(f"{_short(paid.params)} · {_short(paid.macs)}")
            detail += f", {paid.params:,} params, {paid.macs:,} MACs"
        parts.append(_box(corner(node.name), (box_w, box_h), node.name, lines, detail, node.name in outputs))
    return "".join(parts) + "</svg>"


def _columns(nodes: Sequence[Node], inputs: Sequence[str]) -> dict[str, int]:
    """Column of each box: one right of its last source, and right of every earlier box of its own level."""
    column = dict.fromkeys(inputs, 0)
    for node in nodes:
        column[node.name] = 1 + max(column[edge.source] for edge in node.inputs)
    taken: set[tuple[int, int]] = set()
    for node in nodes:
        at = max(column[node.name], 1 + max(column[edge.source] for edge in node.inputs))
        while (node.level, at) in taken:
            at += 1
        taken.add((node.level, at))
        column[node.name] = at
    return column


def _short(count: int) -> str:
    """Three digits at most, e.g. ``73.8k``."""
    value = float(count)
    for sign in ("", "k", "M", "G", "T"):
        if value < 999.5 or sign == "T":
            break
        value /= 1000
    return f"{value:.3g}{sign}"


def _box(
    corner: tuple[float, float], size: tuple[int, int], name: str, lines: Sequence[str], detail: str, is_output: bool
) -> str:
    """A rectangle with the name and one line or two of small text below it."""
    (x, y), (box_w, box_h) = corner, size
    most = int(box_w / 5.2)
    shown = [line if len(line) <= most else line[: most - 1] + "…" for line in lines]
    small = "".join(
        f'<text x="{x + box_w / 2:g}" y="{y + 27 + 12 * i:g}" font-size="9" opacity=".75">{escape(line)}</text>'
        for i, line in enumerate(shown)
    )
    return (
        f'<g><title>{escape(name)}: {escape(detail)}</title><rect x="{x:g}" y="{y:g}" width="{box_w}" '
        f'height="{box_h}" rx="5" fill="var(--neck-box, white)" fill-opacity=".92" '
        f'stroke-width="{2.4 if is_output else 1}"/><g fill="currentColor" stroke="none" text-anchor="middle">'
        f'<text x="{x + box_w / 2:g}" y="{y + 14:g}" font-weight="600">{escape(name)}</text>{small}</g></g>'
    )


def _arrow(marker: str, edge: Edge, start: tuple[float, float], end: tuple[float, float], size: tuple[int, int]) -> str:
    box_w, box_h = size
    x0, y0 = start[0] + box_w, start[1] + box_h / 2
    x1, y1 = end[0] - 1, end[1] + box_h / 2
    bend = max((x1 - x0) / 2, 12)
    far = x1 - x0 > box_w and y0 == y1
    lift = _ROW * 0.42 if far else 0  # a long arrow along one level passes above the boxes between
    path = f"M{x0:g} {y0:g}C{x0 + bend:g} {y0 - lift * 1.6:g} {x1 - bend:g} {y1 - lift * 1.6:g} {x1:g} {y1:g}"
    dash = ' stroke-dasharray="5 3"' if any(isinstance(op, Resample) for op in edge.ops) else ""
    title = f"<title>{escape(edge.source)}: {escape(_chain_text(edge.ops) or 'as it is')}</title>"
    return f'<path d="{path}" marker-end="url(#arrow-{marker})" opacity=".8"{dash}>{title}</path>'

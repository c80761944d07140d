"""Where the work of a profile is, module by module: parts, stages of the backbone, nodes of the neck."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from fpn_bench.errors import InputError
from fpn_bench.paths import write_text_atomic
from fpn_bench.reports.units import Quantity, quantity

if TYPE_CHECKING:  # it would import torch, which reports do without
    from fpn_bench.profiling import StaticProfile

ROOT = "all"
"""Path of the row that holds the parts."""

_SHOWN = {
    "macs": quantity("macs"),
    "params": quantity("params"),
    "other_ops": Quantity("Other operations", "G", 1e-9),
    "activation_elements": Quantity("Activations", "M", 1e-6),
}


def profile_info(profile: StaticProfile | Mapping[str, Any]) -> pd.DataFrame:
    """One row a module, each below what holds it.

    Args:
        profile: a static profile, or one as plain data: ``{"parts": {name: {"modules": {path: costs}}}}``, or a row of
            `fpn-bench profile --json`, which has that as ``static``.

    Returns:
        ``path`` (``all``, then the part and the words of its path, with slashes), ``parent`` (its path, ``""`` for
        ``all``), and what the module costs with all that it holds: ``macs``, ``params``, ``other_ops``,
        ``activation_elements``. The first row is the sum of the parts.

    Raises:
        InputError: no profile, or one without modules.
    """
    plain: Any = profile if isinstance(profile, Mapping) else dataclasses.asdict(profile)
    try:
        plain = plain.get("static", plain)
        rows = [
            _row("/".join([ROOT, part, *path.split(".")] if path else [ROOT, part]), costs)
            for part, profiled in plain["parts"].items()
            for path, costs in profiled["modules"].items()
        ]
    except (AttributeError, KeyError, TypeError):
        raise InputError(
            "expected a profile with modules, got one without; make one with fpn-bench profile --json"
        ) from None
    top = [row for row in rows if row["parent"] == ROOT]
    whole = {name: sum(row[name] for row in top) for name in _SHOWN}
    return pd.DataFrame([_row(ROOT, whole), *rows])


def write_profile_view(profile: StaticProfile | Mapping[str, Any], path: str | Path) -> Path:
    """Write a page that opens offline: the modules by MACs, parameters, other operations and activations.

    Args:
        profile: as in `profile_info`.
        path: of the page.

    Raises:
        InputError: no profile, or one without modules.
        OSError: the page cannot be written.
    """
    info = profile_info(profile)
    figures = [profile_figure(info, value) for value in _SHOWN]
    blocks = [pio.to_html(f, include_plotlyjs=i == 0, full_html=False) for i, f in enumerate(figures)]
    page = '<!doctype html><meta charset="utf-8"><title>Profile</title><body>' + "".join(blocks)
    write_text_atomic(Path(path), page)
    return Path(path)


def _row(path: str, costs: Mapping[str, Any]) -> dict[str, Any]:
    return {"path": path, "parent": path.rpartition("/")[0]} | {name: int(costs[name]) for name in _SHOWN}


def profile_figure(info: pd.DataFrame, value: str = "macs") -> go.Figure:
    """The modules as bars below one another, as wide as their share; a click goes into one. In the order they are held.

    Args:
        info: from `profile_info`.
        value: what the width is: ``macs``, ``params``, ``other_ops`` or ``activation_elements``.

    Raises:
        InputError: another `value`.
    """
    shown = _SHOWN.get(value)
    if shown is None:
        raise InputError(f"expected value to be one of {', '.join(_SHOWN)}, got {value!r}")
    rows = info[(info[value] > 0) | (info["path"] == ROOT)]
    whole = max(int(rows[value].iloc[0]), 1)
    hover = [
        "<br>".join(
            [f"<b>{escape(path.replace('/', ' / '))}</b>", f"{100 * row[value] / whole:.1f} % of {shown.label}"]
            + [f"{q.label}: {q.text(row[name])}" for name, q in _SHOWN.items()]
        )
        for path, (_, row) in zip(rows["path"], rows.iterrows(), strict=True)
    ]
    figure = go.Figure(
        go.Icicle(
            ids=rows["path"],
            parents=rows["parent"],
            labels=[escape(path.rpartition("/")[2]) for path in rows["path"]],
            values=rows[value] * shown.scale,
            branchvalues="total",
            sort=False,
            tiling={"orientation": "v"},
            maxdepth=5,
            hovertext=hover,
            hoverinfo="text",
            textinfo="label+percent root",
        )
    )
    return figure.update_layout(
        template=go.layout.Template(),
        paper_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 8, "r": 8, "t": 40, "b": 8},
        title={"text": shown.title, "font": {"size": 14}},
        height=540,
    )

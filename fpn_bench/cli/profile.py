"""`fpn-bench profile`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table

from fpn_bench.cli.app import Adapter, app, err, human, out, parse_image_size, parse_levels
from fpn_bench.errors import InputError
from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo import create_graph


@app.command()
def profile(
    backbone: Annotated[str, typer.Option(help="timm name (fpn-bench backbones).")],
    neck: Annotated[str, typer.Option(help="Name of a neck (fpn-bench necks), or a graph as a JSON file.")] = "fpn",
    image_size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "640x640",
    levels: Annotated[str, typer.Option(help="Levels the backbone hands over, FIRST-LAST.")] = "3-5",
    out_levels: Annotated[str | None, typer.Option(help="Levels the neck returns; default: the backbone's.")] = None,
    adapter: Annotated[Adapter, typer.Option(help="What makes levels that the backbone lacks.")] = "simple",
    channels: Annotated[int, typer.Option(min=1, help="Width of the neck.")] = 256,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="Option of the neck, KEY=VALUE; may be repeated.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="A file, hub, or pip:PACKAGE; costs do not depend on it.")] = None,
    device: Annotated[str | None, typer.Option(help="Measure latency there: cpu, cuda, cuda:N.")] = None,
    budget: Annotated[float, typer.Option(help="Seconds of sampling the latency.")] = 2.0,
    verify: Annotated[bool, typer.Option("--verify", help="Count MACs by fvcore too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Params, MACs and latency of a backbone with a neck, for one image.

    What makes levels that the backbone lacks is listed as a part, the adapter.
    MACs are multiply-adds of convolutions and matrix products (FLOPs would be twice that); norm layers, activations,
    pooling and resampling are left out.
    """
    size = parse_image_size(image_size)
    wanted = parse_levels(levels)
    chosen = dict(_option(text) for text in option or [])
    from fpn_bench.backbones import create_backbone
    from fpn_bench.neck import build_neck
    from fpn_bench.profiling import profile

    hub = weights == "hub"
    loaded = create_backbone(
        backbone, wanted, pretrained=hub, weights=None if hub else weights, image_size=size, adapter=adapter
    )
    graph = _graph(neck, loaded.features, parse_levels(out_levels) if out_levels else None, channels, chosen)
    result = profile(
        loaded, build_neck(graph, loaded.features), image_size=size, device=device, budget_s=budget, verify=verify
    )
    if as_json:
        print(json.dumps(result.to_dict() | {"graph": graph.to_dict()}, indent=2))
        return
    title = f"{backbone} + {neck} {graph.id} at {size[0]}x{size[1]}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("part", "params", "MACs"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, part in result.static.parts.items():
        table.add_row(name, f"{part.params:,}", human(part.macs))
    table.add_row("all", f"{result.static.params:,}", human(result.static.macs))
    out.print(table)
    if result.static.uncounted:
        err.print("not counted: " + ", ".join(f"{name} x{n}" for name, n in result.static.uncounted.items()))
    if result.fvcore is not None:
        out.print(
            f"fvcore: {human(result.fvcore.macs)} MACs, {human(result.fvcore.macs_fvcore_style)} in its own style"
        )
    if result.latency is not None:
        lat = result.latency
        settled = "" if lat.converged else "; budget spent before the interval was under 1 %"
        out.print(
            f"latency on {lat.device}: median {lat.median_ms:.2f} ms (95 % {lat.low_ms:.2f} to {lat.high_ms:.2f}), p90 "
            f"{lat.p90_ms:.2f} ms, {lat.samples} samples, {lat.threads} threads, {result.machine.label}{settled}",
            soft_wrap=True,
            markup=False,
        )


def _graph(
    neck: str,
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...] | None,
    channels: int,
    chosen: dict[str, Any],
) -> NeckGraph:
    if not neck.endswith(".json"):
        return create_graph(neck, features, out_levels, channels, **chosen)
    if chosen:
        raise InputError(f"--option came with the graph {neck}: a graph has no options, edit the file instead")
    try:
        text = Path(neck).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"graph {neck} cannot be read: {error}") from None
    return NeckGraph.from_json(text)


def _option(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise InputError(f"--option {text!r} came; KEY=VALUE is wanted, e.g. --option merge=concat")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value

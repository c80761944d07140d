"""`fpn-bench backbones`, `necks` and `spaces`: what there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from fpn_bench.cli.app import app, err, human, out, parse_image_size, parse_levels
from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import NeckGraph, as_svg, as_text, cost
from fpn_bench.pyramid import FeatureSpec, ImageSize, check_features
from fpn_bench.vocabulary import AdapterName
from fpn_bench.zoo import create_graph, describe, list_necks, list_unfit, options

if TYPE_CHECKING:
    from torch import nn

    from fpn_bench.backbones import Backbone

PROBED_AT_MOST = 40
"""Names of a pattern that are tried out unasked: each takes a fraction of a second."""
RESNET50 = "3:512,4:1024,5:2048"

Features = Annotated[str, typer.Option(help="The backbone's maps, LEVEL:CHANNELS,...; default: ResNet-50's C3 to C5.")]
Size = Annotated[str, typer.Option(help="HEIGHTxWIDTH that MACs are counted at.")]
Width = Annotated[int, typer.Option(min=1, help="Width.")]

necks_app = typer.Typer(help="The published necks.", invoke_without_command=True)
spaces_app = typer.Typer(help="The shipped search spaces.", invoke_without_command=True)


def _table(*columns: str, numbers: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=column == columns[0])
    return table


@app.command()
def backbones(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, quoted, e.g. 'convnext*'.")] = "*",
    levels: Annotated[str, typer.Option(help="Levels handed to the neck, FIRST-LAST.")] = "3-5",
    image_size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the images.")] = "256x256",
    adapter: Annotated[AdapterName, typer.Option(help="What makes levels that the backbone lacks.")] = "simple",
    max_params: Annotated[
        float | None, typer.Option(help="Only those of at most so many parameters, e.g. 3e7.")
    ] = None,
    sort: Annotated[Literal["name", "params", "macs"] | None, typer.Option(help="Order of the list.")] = None,
    check: Annotated[
        str | None, typer.Option(metavar="NAME", help="Try out this one backbone, and print all that was found.")
    ] = None,
) -> None:
    """List timm's backbones: family, levels with channels, params, MACs, licence of the weights.

    More than 40 are listed by name only, unless --max-params or --sort asks for what the names do not say; each then
    takes a fraction of a second.
    """
    size, wanted = parse_image_size(image_size), parse_levels(levels)
    if check is not None:
        if pattern != "*" or max_params is not None or sort is not None:
            raise InputError(
                f"expected --check {check} alone, got it with a pattern, --max-params or --sort; leave these out"
            )
        _check(check, wanted, size, adapter)
        return
    from fpn_bench.backbones import list_backbones

    names = list_backbones(pattern)
    if not names:
        raise UnknownNameError("backbone", pattern, list_backbones(), hint="fpn-bench backbones")
    if len(names) > PROBED_AT_MOST and max_params is None and sort is None:
        for name in names:
            print(name)
        err.print(
            f"{len(names)} backbones; a pattern that leaves at most {PROBED_AT_MOST}, --max-params or --sort shows "
            "levels and channels"
        )
        return
    lines = [
        _inspected(name, wanted, size, adapter)
        for name in track(names, "probing", console=err, transient=True, disable=not err.is_terminal)
    ]
    if max_params is not None:
        lines = [line for line in lines if line.params is not None and line.params <= max_params]
    lines.sort(key=lambda line: _sort_key(line, sort))
    table = _table("backbone", "family", "params", "MACs", "licence", "levels: channels", numbers=("params", "MACs"))
    for line in lines:
        numbers = ["-" if number is None else human(number) for number in (line.params, line.macs)]
        table.add_row(line.name, line.family, *numbers, line.licence or "-", escape(line.maps))
    out.print(table)
    out.print(
        f"{len(lines)} of {len(names)} backbones at {_hxw(size)}, without classifier; levels with a * are not the "
        "model's own: an adapter, which params and MACs include, makes them"
    )


@dataclass(frozen=True)
class _Line:
    """A backbone as it is listed; what is not known is None, and `maps` says why."""

    name: str
    family: str
    params: int | None
    macs: int | None
    licence: str | None
    maps: str


def _sort_key(line: _Line, sort: str | None) -> tuple[bool, float, str]:
    """Its place in the list, those that do not have the number last."""
    number = {"params": line.params, "macs": line.macs}.get(sort or "name", 0)
    return number is None, number or 0, line.name


def _inspected(name: str, levels: tuple[int, ...], size: ImageSize, adapter: AdapterName) -> _Line:
    """One backbone tried out on the meta device."""
    import torch

    from fpn_bench.backbones import create_backbone, describe_backbone
    from fpn_bench.profiling import count_params

    info = describe_backbone(name, size)
    try:
        backbone = create_backbone(name, levels, image_size=size, device="meta", adapter=adapter)
    except InputError as error:
        return _Line(name, info.family, None, None, None, str(error))
    return _Line(
        name,
        info.family,
        count_params(backbone),
        _macs(backbone, torch.zeros(1, 3, *size)),
        _licence(backbone),
        _maps(backbone.features, info.features),
    )


def _maps(features: tuple[FeatureSpec, ...], own: tuple[FeatureSpec, ...]) -> str:
    """``P3: 96*  P4: 192``: channels of each level, with a star where it is none of the model's own."""
    levels = {spec.level for spec in own}
    return "  ".join(f"P{s.level}: {s.channels}{'' if s.level in levels else '*'}" for s in features)


def _macs(module: nn.Module, inputs: Any) -> int | None:
    """For one image; None where the module's code reads values, which the meta device does not have."""
    from fpn_bench.profiling import count_macs

    try:
        return count_macs(module, (inputs,))
    except RuntimeError:
        return None


def _licence(backbone: Backbone) -> str | None:
    """Of the weights that timm publishes under the name, where timm knows it."""
    config: Any = backbone.model.pretrained_cfg
    licence: str | None = config.get("license")
    return licence


def _check(name: str, levels: tuple[int, ...], size: ImageSize, adapter: AdapterName) -> None:
    """Probe one backbone, confirm it by a real forward, and print what was found."""
    import torch

    from fpn_bench.backbones import create_backbone, describe_backbone
    from fpn_bench.latency import backbone_parts
    from fpn_bench.profiling import count_params

    info = describe_backbone(name, size)
    if info.probe is None:
        raise InputError(info.reason)
    backbone = create_backbone(name, levels, image_size=size, adapter=adapter)
    image = torch.zeros(1, 3, *size)
    with torch.no_grad():
        trunk_maps, maps = backbone.trunk(image), backbone(image)

    padded = backbone.recipe.padded(size)
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (backbone.mean, backbone.std))
    facts = {
        "family": info.family,
        "published at": _hxw(info.probe.default_size),
        "licence": _licence(backbone) or "timm does not say",
        "recipe": str(backbone.recipe),
        "images": f"{_hxw(size)}" + (f", run as {_hxw(padded)}" if padded != size else ""),
        "normalised": f"mean {mean}, std {std}, resized {backbone.interpolation}",
        "maps": f"{info.probe.maps}" + (", all of one stride and width" if info.probe.columnar else ""),
    }
    if backbone.recipe != info.probe.recipe:
        facts["passed over"] = f"{info.probe.recipe}: on shapes alone it works, on values it fails"
    if backbone.adapter is None:
        facts["adapter"] = "none is needed"
    width = max(map(len, facts)) + 2
    print(backbone.name)
    for fact, text in facts.items():
        print(f"  {fact:<{width}}{text}")

    print()
    declared: Any = backbone.model.feature_info
    claims = [entry["reduction"] for entry in declared]
    strides = _table(
        *("own level", "map", "channels", "stride claimed", "stride", "on the level's grid"),
        numbers=("map", "channels", "stride claimed", "stride"),
    )
    for spec, stride in zip(info.probe.features, info.probe.strides, strict=True):
        index = info.probe.indices[spec.level]
        claimed = str(claims[index]) if len(claims) == info.probe.maps else "?"
        placed = "as it is" if stride == spec.stride else "by sampling"
        strides.add_row(f"P{spec.level}", str(index), str(spec.channels), claimed, f"{stride:g}", placed)
    out.print(strides)

    if backbone.adapter is not None:
        print(f"\nadapter {adapter!r}\n{as_text(backbone.adapter.graph)}")
    costs = _table("part", "params", "MACs", numbers=("params", "MACs"))
    for (part, module), inputs in zip(backbone_parts(backbone).items(), (image, list(trunk_maps)), strict=False):
        macs = _macs(module, inputs)
        costs.add_row(part, f"{count_params(module):,}", "-" if macs is None else human(macs))
    print()
    out.print(costs)
    shapes = "  ".join(
        f"P{s.level}: {s.channels}x{_hxw(x.shape[-2:])}" for s, x in zip(backbone.features, maps, strict=True)
    )
    print(f"\none real forward: {shapes}")


def _hxw(size: Sequence[int]) -> str:
    """(256, 320) -> ``"256x320"``."""
    return "x".join(map(str, size))


@necks_app.callback()
def necks(
    ctx: typer.Context,
    image_size: Size = "640x640",
    out_levels: Annotated[str, typer.Option(help="Levels returned, FIRST-LAST.")] = "3-7",
    channels: Width = 256,
    features: Features = RESNET50,
) -> None:
    """List the necks with params and MACs, and the published ones that cannot be a graph."""
    if ctx.invoked_subcommand is not None:
        _refuse_options_before(ctx)
        return
    size, levels, specs = parse_image_size(image_size), parse_levels(out_levels), _features(features)
    table = _table("neck", "params", "MACs", "what it is", numbers=("params", "MACs"))
    for name in list_necks():
        what = describe(name).splitlines()[0]
        try:
            costs = cost(create_graph(name, specs, levels, channels), size)
        except InputError as error:  # these levels or this width are not for every family; the others are listed still
            table.add_row(name, "-", "-", escape(f"not here: {error}"))
        else:
            table.add_row(name, human(costs.params), human(costs.macs), escape(what))
    out.print(table)
    inputs = " ".join(f"C{s.level}:{s.channels}" for s in specs)
    out.print(
        f"over {inputs} at {size[0]}x{size[1]}, P{levels[0]}-P{levels[-1]}, {channels} channels; "
        "fpn-bench necks show NAME draws one"
    )
    unfit = _table("published, but no graph", "why")
    for name, reason in list_unfit().items():
        unfit.add_row(name, escape(reason))
    out.print()
    out.print(unfit)


def _refuse_options_before(ctx: typer.Context) -> None:
    """Refuse options of the list that stand in front of a subcommand, which would not see them."""
    for parameter in ctx.params:
        source = ctx.get_parameter_source(parameter)
        if source is not None and source.name == "COMMANDLINE":
            option = "--" + parameter.replace("_", "-")
            raise InputError(f"expected {option} behind {ctx.invoked_subcommand!r}, if it takes it, got it in front")


@necks_app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a neck.")],
    out_levels: Annotated[str, typer.Option(help="Levels returned, FIRST-LAST.")] = "3-5",
    channels: Width = 256,
    chosen: Annotated[
        list[str] | None,
        typer.Option("--set", "--option", "-o", help="Option of the neck, KEY=VALUE; may be repeated."),
    ] = None,
    image_size: Size = "640x640",
    features: Features = RESNET50,
    svg: Annotated[Path | None, typer.Option(help="Write the drawing to this file.")] = None,
    graph_json: Annotated[Path | None, typer.Option("--json", help="Write the graph to this file.")] = None,
) -> None:
    """Show one neck: what it is, its options, its graph as text with what each node costs, and as SVG or JSON."""
    size, settings = parse_image_size(image_size), _settings(name, chosen or [])
    graph = create_graph(name, _features(features), parse_levels(out_levels), channels, **settings)
    print(describe(name), end="\n\n")
    print("options: " + ", ".join(f"{k}={v}" for k, v in (options(name) | settings).items()), end="\n\n")
    print(as_text(graph))
    _print_costs(graph, size)
    for path, text in ((svg, as_svg), (graph_json, lambda graph: json.dumps(graph.to_dict(), indent=2) + "\n")):
        if path is None:
            continue
        try:
            path.write_text(text(graph), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None
        print(f"wrote {path}")


def _print_costs(graph: NeckGraph, size: ImageSize) -> None:
    """Plain lines: rich lays out thousands of rows in seconds."""
    costs = cost(graph, size)
    rows = [("node", "level", "size", "params", "MACs")]
    rows += [(n.name, f"P{n.level}", _hxw(n.size), f"{n.params:,}", human(n.macs)) for n in costs.nodes]
    rows.append(("all", "", _hxw(size), f"{costs.params:,}", human(costs.macs)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, level, *numbers in rows:
        cells = [name.ljust(widths[0]), level.ljust(widths[1])]
        cells += [number.rjust(width) for number, width in zip(numbers, widths[2:], strict=True)]
        print("  ".join(cells))


def _features(text: str) -> tuple[FeatureSpec, ...]:
    """``"3:512,4:1024"`` -> the maps of a backbone whose strides are powers of two."""
    try:
        pairs = [(int(level), int(channels)) for level, channels in (part.split(":") for part in text.split(","))]
    except ValueError:
        raise InputError(f"expected features as LEVEL:CHANNELS,..., e.g. {RESNET50}, got {text!r}") from None
    if any(level < 0 or channels < 1 for level, channels in pairs):
        raise InputError(f"expected features with levels from 0 and channels from 1, e.g. {RESNET50}, got {text!r}")
    return check_features(FeatureSpec(level, channels, 2**level) for level, channels in pairs)


def _settings(name: str, texts: list[str]) -> dict[str, Any]:
    """The options of a neck from KEY=VALUE texts, each of its default's type."""
    defaults, settings = options(name), {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise InputError(f"expected --set as KEY=VALUE, e.g. --set norm=batch, got {text!r}")
        if key not in defaults:
            raise UnknownNameError(f"option of neck {name!r}", key, defaults, hint=f"fpn-bench necks show {name}")
        settings[key] = _typed(text, value, defaults[key])
    return settings


def _typed(text: str, value: str, default: object) -> object:
    """A value as YAML reads it, where that has the default's type; names stay text, so that `none` is no null."""
    if isinstance(default, str):
        return value
    try:
        parsed = _frozen(yaml.safe_load(value))
    except yaml.YAMLError:
        parsed = value
    if isinstance(default, float) and type(parsed) is int:
        parsed = float(parsed)
    if default is not None and type(parsed) is not type(default):
        kind = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a list"}.get(type(default))
        raise InputError(f"expected {kind or type(default).__name__}, as in the default {default}, got --set {text!r}")
    return parsed


def _frozen(value: object) -> object:
    """Lists as tuples, all the way down, as the options' defaults are."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@spaces_app.callback()
def spaces(ctx: typer.Context) -> None:
    """List the shipped search spaces, and the suites that `fpn-bench bench` runs."""
    if ctx.invoked_subcommand is None:
        list_all_spaces()


@spaces_app.command("list")
def list_all_spaces() -> None:
    """The same list."""
    from fpn_bench.search import Space, list_spaces, list_suites

    table = _table("space", "backbone", "data", "choice sets", "trials", numbers=("choice sets", "trials"))
    for name in [*list_spaces(), *list_suites()]:
        space = Space.load(name)
        name += " (suite)" if space.listed else ""
        size = "continuous" if space.size is None else f"{space.size:,}" if space.size < 10**9 else f"{space.size:.1e}"
        names = ", ".join(entry.name for entry in space.backbones)
        table.add_row(name, names, space.data.kind, size, str(space.budget.trials))
    out.print(table)


@spaces_app.command("show")
def show_space(name: Annotated[str, typer.Argument(help="Shipped name, or a YAML file to check.")]) -> None:
    """Check a search space and print it."""
    from fpn_bench.search import Space

    space = Space.load(name)
    space.check()
    print(space.text, end="")


app.add_typer(necks_app, name="necks")
app.add_typer(spaces_app, name="spaces")

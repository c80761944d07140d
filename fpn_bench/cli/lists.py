"""`fpn-bench backbones`, `necks` and `spaces`: what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from fpn_bench.cli.app import app, err, human, out, parse_image_size, parse_levels
from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import NeckGraph, as_svg, as_text, cost
from fpn_bench.pyramid import FeatureSpec, ImageSize, check_features
from fpn_bench.zoo import create_graph, describe, list_necks, list_unfit, options

PROBED_AT_MOST = 40
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
    image_size: Annotated[str, typer.Option(help="HEIGHTxWIDTH that the maps are probed at.")] = "256x256",
) -> None:
    """List timm's backbones; where a pattern leaves few, probe what each gives a neck."""
    size = parse_image_size(image_size)
    from fpn_bench.backbones import describe_backbone, list_backbones

    names = list_backbones(pattern)
    if not names:
        raise UnknownNameError("backbone", pattern, list_backbones(), hint="fpn-bench backbones")
    if len(names) > PROBED_AT_MOST:
        for name in names:
            print(name)
        err.print(f"{len(names)} backbones; a pattern that leaves at most {PROBED_AT_MOST} shows levels and channels")
        return
    table = _table("backbone", "family", "params", "levels: channels (stride)", numbers=("params",))
    for name in names:
        info = describe_backbone(name, size)
        maps = "  ".join(f"P{s.level}: {s.channels} ({s.stride})" for s in info.features)
        table.add_row(name, info.family, human(info.params), escape(maps or info.reason))
    out.print(table)


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
    came = " ".join(f"C{s.level}:{s.channels}" for s in specs)
    out.print(
        f"over {came} at {size[0]}x{size[1]}, P{levels[0]}-P{levels[-1]}, {channels} channels; "
        "fpn-bench necks show NAME draws one"
    )
    unfit = _table("published, but no graph", "why")
    for name, reason in list_unfit().items():
        unfit.add_row(name, escape(reason))
    out.print()
    out.print(unfit)


def _refuse_options_before(ctx: typer.Context) -> None:
    """Refuse options of the list that came in front of a subcommand, which would not see them."""
    for parameter in ctx.params:
        source = ctx.get_parameter_source(parameter)
        if source is not None and source.name == "COMMANDLINE":
            option = "--" + parameter.replace("_", "-")
            raise InputError(f"{option} came before {ctx.invoked_subcommand!r}; put it behind, if it takes it")


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
    for path, text in ((svg, as_svg(graph)), (graph_json, json.dumps(graph.to_dict(), indent=2) + "\n")):
        if path is None:
            continue
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None
        print(f"wrote {path}")


def _print_costs(graph: NeckGraph, size: ImageSize) -> None:
    costs = cost(graph, size)
    table = _table("node", "level", "size", "params", "MACs", numbers=("size", "params", "MACs"))
    for node in costs.nodes:
        table.add_row(node.name, f"P{node.level}", "x".join(map(str, node.size)), f"{node.params:,}", human(node.macs))
    table.add_row("all", "", "x".join(map(str, size)), f"{costs.params:,}", human(costs.macs))
    out.print(table)


def _features(text: str) -> tuple[FeatureSpec, ...]:
    """``"3:512,4:1024"`` -> the maps of a backbone whose strides are powers of two."""
    try:
        pairs = [(int(level), int(channels)) for level, channels in (part.split(":") for part in text.split(","))]
    except ValueError:
        raise InputError(f"features {text!r} came; LEVEL:CHANNELS,... is wanted, e.g. {RESNET50}") from None
    if any(level < 0 or channels < 1 for level, channels in pairs):
        raise InputError(f"features {text!r} came; levels from 0 and channels from 1 are wanted, e.g. {RESNET50}")
    return check_features(FeatureSpec(level, channels, 2**level) for level, channels in pairs)


def _settings(name: str, texts: list[str]) -> dict[str, Any]:
    """The options of a neck from KEY=VALUE texts, each of its default's type."""
    defaults, settings = options(name), {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise InputError(f"--set {text!r} came; KEY=VALUE is wanted, e.g. --set norm=batch")
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
        raise InputError(
            f"--set {text!r} came; {kind or type(default).__name__} is wanted, as in its default {default}"
        )
    return parsed


def _frozen(value: object) -> object:
    """Lists as tuples, all the way down, as the options' defaults are."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@spaces_app.callback()
def spaces(ctx: typer.Context) -> None:
    """List the shipped search spaces."""
    if ctx.invoked_subcommand is not None:
        return
    from fpn_bench.search import Space, list_spaces

    table = _table("space", "backbone", "data", "choice sets", "trials", numbers=("choice sets", "trials"))
    for name in list_spaces():
        space = Space.load(name)
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

"""`fpn-bench backbones`, `necks` and `spaces`: what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fpn_bench.cli.app import app, err, human, out, parse_image_size, parse_levels
from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import as_svg, as_text, cost
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo import create_graph, describe, list_necks, options

PROBED_AT_MOST = 40
RESNET50 = (FeatureSpec(3, 512, 8), FeatureSpec(4, 1024, 16), FeatureSpec(5, 2048, 32))

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
    image_size: Annotated[str, typer.Option(help="HEIGHTxWIDTH that MACs are counted at.")] = "640x640",
    out_levels: Annotated[str, typer.Option(help="Levels returned, FIRST-LAST.")] = "3-7",
    channels: Annotated[int, typer.Option(min=1, help="Width.")] = 256,
) -> None:
    """List the necks with params and MACs over ResNet-50's C3 to C5."""
    if ctx.invoked_subcommand is not None:
        return
    size, levels = parse_image_size(image_size), parse_levels(out_levels)
    table = _table("neck", "params", "MACs", "what it is", numbers=("params", "MACs"))
    for name in list_necks():
        costs = cost(create_graph(name, RESNET50, levels, channels), size)
        table.add_row(name, human(costs.params), human(costs.macs), escape(describe(name).splitlines()[0]))
    out.print(table)
    out.print(
        f"over ResNet-50 C3-C5 at {size[0]}x{size[1]}, P{levels[0]}-P{levels[-1]}, {channels} channels; "
        "fpn-bench necks show NAME draws one"
    )


@necks_app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a neck.")],
    out_levels: Annotated[str, typer.Option(help="Levels returned, FIRST-LAST.")] = "3-5",
    channels: Annotated[int, typer.Option(min=1, help="Width.")] = 256,
    svg: Annotated[Path | None, typer.Option(help="Write the drawing to this file.")] = None,
    graph_json: Annotated[Path | None, typer.Option("--json", help="Write the graph to this file.")] = None,
) -> None:
    """Show one neck: what it is, its options, its graph as text, and as SVG or JSON."""
    graph = create_graph(name, RESNET50, parse_levels(out_levels), channels)
    print(describe(name), end="\n\n")
    print("options: " + ", ".join(f"{key}={value}" for key, value in options(name).items()), end="\n\n")
    print(as_text(graph), end="")
    for path, text in ((svg, as_svg(graph)), (graph_json, json.dumps(graph.to_dict(), indent=2) + "\n")):
        if path is None:
            continue
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None
        print(f"wrote {path}")


@spaces_app.callback()
def spaces(ctx: typer.Context) -> None:
    """List the shipped search spaces."""
    if ctx.invoked_subcommand is not None:
        return
    from fpn_bench.search import Space, list_spaces

    table = _table("space", "backbone", "data", "choice sets", "trials", numbers=("choice sets", "trials"))
    for name in list_spaces():
        space = Space.load(name)
        size = "continuous" if space.size is None else f"{space.size:,}"
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

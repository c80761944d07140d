"""`fpn-bench data`: look at a data set, or write it in another format."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from fpn_bench.cli.app import app, err, out, parse_image_size
from fpn_bench.cli.running import AllowImagesFrom, ValFraction
from fpn_bench.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from fpn_bench.data.annotations import OnProgress
    from fpn_bench.data.check import DatasetCheck

SHOWN_CLASSES = 20
"""Classes that are printed, the most frequent first; --json has all."""
SHOWN_EXAMPLES = 2
"""Of each finding; --json has more."""
_BAR = 24

data_app = typer.Typer(help="Your data set: look at it, or write it in another format.", no_args_is_help=True)

Dir = Annotated[
    str, typer.Argument(metavar="DIR", help="Folder of a data set in COCO, Pascal VOC or YOLO format, or a data.yaml.")
]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="coco, voc or yolo; found out from the folder when left out.")
]
ZeroBased = Annotated[
    bool, typer.Option("--zero-based", help="VOC: the tool wrote corners counted from 0, not pixels counted from 1.")
]
KeepDifficult = Annotated[
    bool, typer.Option("--keep-difficult", help="VOC: difficult objects are objects, not regions to ignore.")
]
FormatOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="KEY=VALUE", help="What a format reads beside that, e.g. one_based=false; repeat it."
    ),
]


@data_app.command()
def check(
    root: Dir,
    format: FormatOption = None,
    image_size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH that a search resizes images to: measures boxes as it sees them.")
    ] = None,
    zero_based: ZeroBased = False,
    keep_difficult: KeepDifficult = False,
    option: FormatOptions = None,
    val_fraction: ValFraction = None,
    allow_images_from: AllowImagesFrom = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Count what is in a data set, and look for what is wrong with it.

    Images and boxes of each split, balance of the classes, sizes and shapes of the boxes; images that cannot be read or
    occur twice, within a split or across; boxes that are outside, tiny, repeated, or all of an image.

    Exit code 0: a search takes the data set as it is, whatever was found; 1: it would refuse it; 2: there is nothing
    to check, for the annotations cannot be read.
    """
    from fpn_bench.data.check import check_dataset

    size = None if image_size is None else parse_image_size(image_size)
    with _progress("looking at images") as on_progress:
        options = _options(root, format, zero_based, keep_difficult, option, val_fraction, allow_images_from)
        found = check_dataset(root, format, image_size=size, on_progress=on_progress, **options)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found)
    if not found.is_usable:
        raise typer.Exit(1)


@data_app.command()
def convert(
    root: Dir,
    target: Annotated[str, typer.Argument(metavar="OUT", help="Folder that is made.")],
    to: Annotated[str, typer.Option("--to", help="coco, voc or yolo.")],
    format: FormatOption = None,
    zero_based: ZeroBased = False,
    keep_difficult: KeepDifficult = False,
    option: FormatOptions = None,
    val_fraction: ValFraction = None,
    allow_images_from: AllowImagesFrom = None,
    skip_unreadable: Annotated[bool, typer.Option(help="Leave out images that cannot be read.")] = False,
) -> None:
    """Write a data set in another format, its images copied, and say what that loses."""
    from fpn_bench.data.formats import load_dataset, write_dataset

    with _progress("reading images") as on_progress:
        options = {
            **_options(root, format, zero_based, keep_difficult, option, val_fraction, allow_images_from),
            "skip_unreadable": skip_unreadable,
        }
        dataset = load_dataset(root, format, on_progress=on_progress, **options)
    with _progress("copying images") as on_progress:
        lost = write_dataset(dataset, target, to, on_progress=on_progress)
    for line in dataset.notes:
        out.print(f"read: {line}", soft_wrap=True, markup=False)
    for line in lost:
        out.print(f"lost: {line}", soft_wrap=True, markup=False)
    out.print(target, soft_wrap=True, markup=False)


def _options(
    root: str,
    format: str | None,
    zero_based: bool,
    keep_difficult: bool,
    option: list[str] | None,
    val_fraction: float | None,
    allow_images_from: list[str] | None,
) -> dict[str, Any]:
    """Of the reader, only those that were given: not every format has all of them."""
    given = {
        "one_based": False if zero_based else None,
        "difficult": "keep" if keep_difficult else None,
        "val_fraction": val_fraction,
        "allow_images_from": allow_images_from,
    }
    told = {name: value for name, value in given.items() if value is not None}
    return _read_options(root, format, option or ()) | told


def _read_options(root: str, format: str | None, option: Sequence[str]) -> dict[str, Any]:
    """What ``--option`` says, in the types of the format's settings."""
    from pydantic import ValidationError

    from fpn_bench.data.formats import FORMATS, find_format
    from fpn_bench.yaml_text import load_yaml

    given = {}
    for text in option:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise InputError(f"expected --option KEY=VALUE, e.g. --option one_based=false, got {text!r}")
        given[name] = load_yaml(value, f"--option {name}")
    if not given:
        return {}
    chosen = FORMATS[format] if format in FORMATS else find_format(root)
    for name in given:
        if name not in chosen.options:
            raise UnknownNameError(f"option of {chosen.name} data sets", name, chosen.options)
    try:
        settings = chosen.settings(kind=chosen.name, **given)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise InputError(f"--option {where}: {problem['msg']}, got {problem['input']!r}") from error
    return {name: getattr(settings, name) for name in given}


@contextmanager
def _progress(words: str) -> Iterator[OnProgress]:
    """A bar on a terminal, nothing elsewhere; on stderr, so that JSON can be piped."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task(words, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _print(found: DatasetCheck) -> None:
    names = [row["split"] for row in found.splits]
    title = f"{found.name}: {found.format}, {len(found.classes)} classes"
    out.print(Text(title, style="bold"))
    out.print(_splits(found.splits))

    balance = sorted(found.balance, key=lambda row: -row["boxes"]["train"])
    shown = balance[:SHOWN_CLASSES]
    out.print(_counts("class", [row["class"] for row in shown], shown, names))
    if len(balance) > len(shown):
        out.print(f"and {len(balance) - len(shown)} classes more (--json has them)")

    seen = "files" if found.image_size is None else f"images of {found.image_size[0]}x{found.image_size[1]}"
    sizes = [
        f"{row['size']} ({_span(math.sqrt(row['area_from']), row['area_to'] and math.sqrt(row['area_to']))}²)"
        for row in found.sizes
    ]
    out.print(_counts("area in px of the files", sizes, found.sizes, names))
    sides = [
        _span(row["side_from_px"], row["side_to_px"]) + (f"  P{row['level']}" if (row["level"] or 0) >= 2 else "")
        for row in found.sides
    ]
    out.print(_counts(f"longer side in px of {seen}, level", sides, found.sides, names))
    ratios = [_span(row["ratio_from"], row["ratio_to"]) for row in found.ratios]
    out.print(_counts("width / height", ratios, found.ratios, names))

    for line in found.notes:
        out.print(Text(f"note: {line}"), soft_wrap=True)
    for finding in found.findings:
        word, style = ("refused", "bold red") if finding.refused else ("found", "yellow")
        text = Text.assemble((word, style), f": {finding.split}: {finding.count} {finding.text} ({finding.kind})")
        out.print(text, soft_wrap=True)
        for example in finding.examples[:SHOWN_EXAMPLES]:
            out.print(Text(f"  {example}", style="dim"), soft_wrap=True)
    if not found.is_usable:
        out.print("A search would refuse this data set as it is.")
    elif not found.findings:
        out.print("Nothing looks wrong.")


def _splits(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = (
        "split",
        "images",
        "unreadable",
        "without boxes",
        "boxes",
        "to ignore",
        "boxes an image",
        "width px",
        "height px",
    )
    table = _table(*columns)
    for row in rows:
        spans = [
            f"{low}" if low == high else f"{low} to {high}, median {row[f'{axis}_median_px']}"
            for axis in ("width", "height")
            for low, high in [(row[f"{axis}_min_px"], row[f"{axis}_max_px"])]
        ]
        counts = (row["images"], row["images"] - row["readable"], row["without_boxes"], row["boxes"], row["to_ignore"])
        mean = f"{row['boxes_an_image']:.1f}, at most {row['boxes_at_most']}"
        table.add_row(row["split"], *(f"{count:,}" for count in counts), mean, *spans)
    return table


def _counts(title: str, labels: Sequence[str], rows: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> Table:
    """Boxes of each split beside a bar of the train split's shares."""
    table = _table(title, *splits, "share of train")
    total = max(1, sum(row["boxes"]["train"] for row in rows))
    largest = max((row["boxes"]["train"] for row in rows), default=0) or 1
    for label, row in zip(labels, rows, strict=True):
        boxes = row["boxes"]
        share = row.get("train_share", boxes["train"] / total)
        bar = Text("█" * round(_BAR * boxes["train"] / largest), style="cyan")
        table.add_row(Text(label), *(f"{boxes[split]:,}" for split in splits), Text.assemble(f"{share:5.1%} ", bar))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="left" if name.startswith("share") else "right")
    return table


def _span(low: float, high: float | None) -> str:
    return f"from {low:.3g}" if high is None else f"{low:.3g} to {high:.3g}"


app.add_typer(data_app, name="data")

"""What the commands that train share: progress, what is printed at the end, the exit code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fpn_bench.cli.app import err, out
from fpn_bench.cli.tally import Tally
from fpn_bench.errors import UnknownNameError

if TYPE_CHECKING:
    from fpn_bench.search import Event, Study
    from fpn_bench.search.executors import Executor

Data = Annotated[
    str | None, typer.Option(help="Folder of a data set in COCO, Pascal VOC or YOLO format (fpn-bench data check).")
]
Results = Annotated[str, typer.Option(help="Folder of studies.")]
Storage = Annotated[str | None, typer.Option(help="URL of a database server, instead of SQLite in the study's folder.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
SkipUnreadable = Annotated[bool, typer.Option(help="Leave out images that cannot be read.")]
ValFraction = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Hold out this share of the images, 0.2 for a fifth, where there is no val."),
]
AllowImagesFrom = Annotated[
    list[str] | None,
    typer.Option(metavar="DIR", help="A folder outside the data set's own that files may be read from; repeatable."),
]
Share = Annotated[bool, typer.Option(help="Take over what other studies there trained under the same protocol.")]
Test = Annotated[bool, typer.Option(help="When the search is over, evaluate what it chose on the test split, if any.")]
Workers = Annotated[int, typer.Option(min=1, help="Candidates assessed at a time.")]
ExecutorName = Annotated[
    str, typer.Option(help="Where workers run: local (this machine), or ray (a Ray cluster, see RAY_ADDRESS).")
]
Gpus = Annotated[float, typer.Option(min=0.0, help="Of each worker on Ray; a fraction shares one.")]
Cache = Annotated[
    str | None, typer.Option(help="Folder of features and drawn data; default $FPN_BENCH_CACHE or ~/.cache/fpn_bench.")
]
Trials = Annotated[int | None, typer.Option(min=1, help="Candidates to train in all, instead of the space's budget.")]
CacheGib = Annotated[
    float, typer.Option(min=0, help="Bound on the features kept; 0 keeps none and runs the backbone each time.")
]


def executor_of(kind: str, workers: int, gpus: float) -> Executor | None:
    from fpn_bench.search.executors import RayExecutor

    if kind not in ("local", "ray"):
        raise UnknownNameError("executor", kind, ("local", "ray"))
    return RayExecutor(gpus=gpus) if kind == "ray" else None


@contextmanager
def exit_when_interrupted() -> Iterator[None]:
    """Ctrl-C before the first or after the last trial; the driver itself sees to those in between."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("stopped; finished trials are kept, the same command goes on")
        raise typer.Exit(130) from None


def exit_with_status(study: Study) -> None:
    """End the command with the exit code of how the run ended."""
    assert study.result is not None
    if study.result.status == "interrupted":
        raise typer.Exit(130)
    if study.result.status in ("failing", "infeasible"):
        raise typer.Exit(1)


def write_and_print_report(study: Study, folder: Path, *, everything: bool = False) -> None:
    """Write the report, print where it is and the front, or with ``everything`` all that was trained."""
    from fpn_bench.analysis import with_front_probability
    from fpn_bench.reports import write_report

    assert study.result is not None
    table, metadata = study.table(), study.metadata()
    for note in metadata["notes"]:
        out.print(escape(f"data: {note}"), style="dim", soft_wrap=True)
    for warning in metadata["warnings"]:
        err.print(f"[bold yellow]warning:[/] {escape(warning)}")
    written = write_report(table, metadata, folder / "report.html", samples=study.samples)
    if everything:
        first = metadata["objectives"][0]
        ascending = first["direction"] == "minimize"
        shown = with_front_probability(table, metadata["objectives"]).sort_values(first["name"], ascending=ascending)
    else:
        shown = study.front()
    if len(shown):
        title = "All candidates, best first" if everything else "Pareto front"
        out.print(_table(shown, title, [objective["name"] for objective in metadata["objectives"]]))
    out.print(escape(study.result.message))
    out.print(f"report: {written[0]}", soft_wrap=True)


def _table(candidates: Any, title: str, objectives: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    backbones = candidates["backbone"].nunique() > 1
    several = candidates["seeds"].max() > 1
    for heading in ["neck", *(["backbone"] if backbones else [])]:
        table.add_column(heading)
    for heading in [*objectives, *(["seeds", "chance to be on the front"] if several else [])]:
        table.add_column(heading, justify="right")
    for _, row in candidates.iterrows():
        published = " (published)" if row["source"] == "published" else ""
        names = [escape(row["neck_label"] + published), *([escape(row["backbone"])] if backbones else [])]
        sure = [str(row["seeds"]), f"{row['front_probability']:.0%}"] if several else []
        table.add_row(*names, *(_with_interval(row, n) for n in objectives), *sure)
    return table


def _with_interval(row: Any, name: str) -> str:
    """The figure; what was trained with half its 95 % interval, where it has one."""
    half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2 if f"{name}_high" in row else float("nan")
    return f"{row[name]:.4g}" + (f" ± {half:.2g}" if half == half else "")


class Display:
    """Progress: bars and the state of the search on a terminal, a line a trial everywhere."""

    def __init__(self) -> None:
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=out,
        )
        self.tally: Tally | None = None
        self.live = None
        if out.is_terminal:
            self.live = Live(get_renderable=self._state, console=out, refresh_per_second=4, transient=True)
        self.load = self.bars.add_task("reading images", total=None, note="", visible=False)
        self.trials = self.bars.add_task("trials", total=None, note="", visible=False)
        self.step = self.bars.add_task("", total=None, note="", visible=False)
        self.started = time.monotonic()
        self.paid_at_start = 0.0

    def __enter__(self) -> None:
        if self.live is not None:
            self.live.start()

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def _state(self) -> Group:
        tally = [] if self.tally is None else self.tally.lines(time.monotonic() - self.started)
        return Group(self.bars, *tally)

    def on_load(self, done: int, total: int) -> None:
        self.bars.update(self.load, completed=done, total=total, visible=done < total)

    def on_event(self, event: Event) -> None:
        if event.kind == "start":
            self.started, self.paid_at_start = time.monotonic(), event.paid
            self.tally = Tally(event.data["objectives"])
        elif event.kind == "trial" and self.tally is not None:
            self.tally.add(event.data)
        self.bars.update(
            self.trials, completed=event.paid, total=event.budget, visible=True, note=self._time_left(event)
        )
        if event.kind in ("describe", "measure"):
            words = "costs of" if event.kind == "describe" else "latency of"
            label = escape(event.label) or "candidate"
            self.bars.update(self.step, description=f"{words} {label}", total=None, completed=0, visible=True)
        elif event.kind == "progress":
            self._progress(event.label, event.data)
        elif event.kind == "trial":
            self.bars.update(self.step, visible=False)
            out.print(_line(event.data), soft_wrap=True)

    def _progress(self, label: str, data: Any) -> None:
        if data.get("phase") == "workers":
            words = f"{len(data['doing'])} workers at work"
            self.bars.update(self.step, description=words, total=None, completed=0, note="", visible=True)
            return
        is_cache = data.get("phase") == "cache"
        words = "caching features (images)" if is_cache else f"{escape(label)} (epochs)"
        note = "" if is_cache else f"loss {data['loss']:.3f}"
        self.bars.update(
            self.step, description=words, completed=data["done"], total=data["total"], note=note, visible=True
        )

    def _time_left(self, event: Event) -> str:
        done = event.paid - self.paid_at_start
        if not done:
            return ""
        seconds = (time.monotonic() - self.started) / done * (event.budget - event.paid)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"


def _line(row: Any) -> str:
    """One finished trial on one line."""
    head = f"trial {row['trial']:>3}  {row['status']:<8}  {escape(str(row.get('neck_label', '')))}"
    if row["status"] != "complete":
        at = f"AP {row['ap']:.1f} " if row["status"] == "stopped" else ""
        return f"{head}  {at}{escape(row['reason'])}"
    facts = [f"AP {row['ap']:.1f}", f"{row['params'] / 1e6:.2f} M params", f"{row['macs'] / 1e9:.2f} GMAC"]
    if row.get("latency_ms") is not None:
        facts.append(f"{row['latency_ms']:.2f} ms")
    if row["source"] == "confirmed" or row["seed"]:
        facts.append(f"seed {row['seed']}")
    if row.get("shared_from"):
        facts.append(f"trained in {escape(row['shared_from'])}")
    return f"{head}  {', '.join(facts)}, {row['total_s']:.0f} s"

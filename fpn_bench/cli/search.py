"""`fpn-bench search`."""

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

from fpn_bench.cli.app import app, err, out
from fpn_bench.cli.tally import Tally
from fpn_bench.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from fpn_bench.search import Event, Space, Study
    from fpn_bench.search.workers import Executor


Cache = Annotated[
    str | None, typer.Option(help="Folder of features and drawn data; default $FPN_BENCH_CACHE or ~/.cache/fpn_bench.")
]
CacheGib = Annotated[
    float, typer.Option(min=0, help="Bound on the features kept; 0 keeps none and runs the backbone each time.")
]


@app.command()
def search(
    space: Annotated[
        str, typer.Argument(help="A search space: YAML file, or the name of a shipped one (fpn-bench spaces).")
    ] = "quickstart",
    data: Annotated[
        str | None, typer.Option(help="Data set in COCO format: folder with annotations/{train,val}.json and images/.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="timm name, instead of the space's backbone.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Of the backbone: a .safetensors or .pth file, hub, or pip:PACKAGE.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Candidates to train in all, instead of the space's budget.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the study; the space's name by default.")] = None,
    results: Annotated[str, typer.Option(help="Folder of studies.")] = "results",
    storage: Annotated[
        str | None, typer.Option(help="URL of a database server, instead of SQLite in the study's folder.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Insist on going on with a study (one that is there is always gone on with)."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the trainings.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    cache: Cache = None,
    cache_gib: CacheGib = 20.0,
    skip_unreadable: Annotated[bool, typer.Option(help="Leave out images that cannot be read.")] = False,
    sampler: Annotated[
        str | None,
        typer.Option(help="What proposes candidates, instead of the space's: known_cost, tpe, evolution..."),
    ] = None,
    rungs: Annotated[
        str | None,
        typer.Option(help="Epochs after which training stops unless it is worth more, e.g. 1,2,4; none: never."),
    ] = None,
    hours: Annotated[float | None, typer.Option(min=0.0, help="Stop after so much wall time.")] = None,
    until: Annotated[
        str | None, typer.Option(help="Also stop at a hypervolume-plateau: when the front hardly grows any more.")
    ] = None,
    confirm: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.9, help="Share of the budget for further seeds of uncertain front members."),
    ] = None,
    share: Annotated[
        bool, typer.Option(help="Take over what other studies there trained under the same protocol.")
    ] = True,
    workers: Annotated[int, typer.Option(min=1, help="Candidates assessed at a time.")] = 1,
    executor: Annotated[
        str, typer.Option(help="Where workers run: local (this machine), or ray (a Ray cluster, see RAY_ADDRESS).")
    ] = "local",
    gpus: Annotated[float, typer.Option(min=0.0, help="Of each worker on Ray; a fraction shares one.")] = 0.0,
) -> None:
    """Search a space for the Pareto front of necks, and write its report.

    Without arguments: the quickstart, offline, on two CPU cores, in minutes. The same command goes on with a study
    that was stopped, and finds finished trials as they were.
    """
    from fpn_bench.search import Space
    from fpn_bench.search.run import search

    loaded = _planned(Space.load(space), sampler, rungs, hours, until, confirm)
    study_name = name or loaded.name
    folder = Path(results) / study_name
    if resume and storage is None and not (folder / "study.db").is_file():
        raise InputError(f"--resume came, but there is no study in {folder}; leave it out to begin one")
    display = _Display()
    with display, _said_when_stopped():
        study = search(
            loaded,
            data=data,
            backbone=backbone,
            weights=weights,
            trials=trials,
            name=name,
            results=results,
            storage=storage,
            seed=seed,
            device=device,
            cache=cache,
            cache_gib=cache_gib,
            skip_unreadable=skip_unreadable,
            share=share,
            workers=workers,
            executor=_executor(executor, workers, gpus),
            on_load=display.on_load,
            on_event=display.on_event,
        )
    assert study.result is not None
    _finish(study, folder)
    if study.result.status == "interrupted":
        raise typer.Exit(130)
    if study.result.status in ("failing", "infeasible"):
        raise typer.Exit(1)


@app.command()
def worker(
    storage: Annotated[str, typer.Argument(help="The study: its folder, its database file, or a storage URL.")],
    name: Annotated[str | None, typer.Option(help="Of the study, where the storage holds several.")] = None,
    data: Annotated[str | None, typer.Option(help="Where its data set lies on this machine.")] = None,
    weights: Annotated[str | None, typer.Option(help="Of its backbone, on this machine.")] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Candidates to train in all, instead of what the last search said.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    cache: Cache = None,
    cache_gib: CacheGib = 20.0,
) -> None:
    """Help with a study that was begun elsewhere: any number of workers on any number of machines.

    `fpn-bench search SPACE --storage postgresql://... --name NAME` begins it; each machine that can reach the database
    then runs `fpn-bench worker postgresql://... --name NAME`. Any of them may be killed at any time. What is searched
    and for how much is what the last `search` said.
    """
    from fpn_bench.search.run import join

    display = _Display()
    with display, _said_when_stopped():
        study = join(
            storage,
            name=name,
            data=data,
            weights=weights,
            trials=trials,
            device=device,
            cache=cache,
            cache_gib=cache_gib,
            on_load=display.on_load,
            on_event=display.on_event,
        )
    assert study.result is not None
    out.print(escape(study.result.message))
    if study.result.status == "interrupted":
        raise typer.Exit(130)
    if study.result.status in ("failing", "infeasible"):
        raise typer.Exit(1)


def _planned(
    space: Space, sampler: str | None, rungs: str | None, hours: float | None, until: str | None, confirm: float | None
) -> Space:
    """The space with what the command line says of the plan."""
    from fpn_bench.search.plan import SAMPLERS

    raw = space.raw
    changes: dict[str, Any] = {}
    if sampler is not None:
        if sampler not in SAMPLERS:
            raise UnknownNameError("sampler", sampler, SAMPLERS)
        changes["sampler"] = {**raw.get("sampler", {}), "kind": sampler}
    if rungs is not None:
        changes["rungs"] = {**raw.get("rungs", {}), "epochs": _epochs(rungs)}
    budget = {"hours": hours, "until": until, "confirm": confirm}
    given = {key: value for key, value in budget.items() if value is not None}
    if given:
        changes["budget"] = {**raw.get("budget", {}), **given}
    return space.replace(**changes) if changes else space


def _epochs(text: str) -> list[int]:
    try:
        return [] if text == "none" else [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"rungs {text!r} came; ascending epochs are wanted, e.g. 1,2,4, or none") from None


def _executor(kind: str, workers: int, gpus: float) -> Executor | None:
    from fpn_bench.search.workers import RayExecutor

    if kind not in ("local", "ray"):
        raise UnknownNameError("executor", kind, ("local", "ray"))
    return RayExecutor(gpus=gpus) if kind == "ray" else None


@contextmanager
def _said_when_stopped() -> Iterator[None]:
    """Ctrl-C before the first or after the last trial; the driver itself sees to those in between."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("stopped; finished trials are kept, the same command goes on")
        raise typer.Exit(130) from None


def _finish(study: Study, folder: Path) -> None:
    """Write the report, print the front and where the report is."""
    from fpn_bench.reports import write_report

    assert study.result is not None
    table, metadata = study.table(), study.metadata()
    for note in metadata["notes"]:
        out.print(escape(f"data: {note}"), style="dim", soft_wrap=True)
    for warning in metadata["warnings"]:
        err.print(f"[bold yellow]warning:[/] {escape(warning)}")
    written = write_report(table, metadata, folder / "report.html", samples=study.samples)
    front = study.front()
    if len(front):
        names = [objective["name"] for objective in metadata["objectives"]]
        shown = Table(title="Pareto front", title_justify="left", box=None, pad_edge=False)
        shown.add_column("neck")
        several = front["seeds"].max() > 1
        for heading in [*names, *(["seeds", "chance to be on it"] if several else [])]:
            shown.add_column(heading, justify="right")
        for _, row in front.iterrows():
            published = " (published)" if row["source"] == "published" else ""
            sure = [str(row["seeds"]), f"{row['front_probability']:.0%}"] if several else []
            values = (_with_interval(row, n) for n in names)
            shown.add_row(escape(row["neck_label"] + published), *values, *sure)
        out.print(shown)
    out.print(escape(study.result.message))
    out.print(f"report: {written[0]}", soft_wrap=True)


def _with_interval(row: Any, name: str) -> str:
    """The figure; AP with half its 95 % interval, where it has one."""
    half = (row["ap_high"] - row["ap_low"]) / 2 if name == "ap" else float("nan")
    return f"{row[name]:.4g}" + (f" ± {half:.2g}" if half == half else "")


class _Display:
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
    if row["source"] == "confirmed":
        facts.append(f"seed {row['seed']}")
    if row.get("shared_from"):
        facts.append(f"trained in {escape(row['shared_from'])}")
    return f"{head}  {', '.join(facts)}, {row['total_s']:.0f} s"

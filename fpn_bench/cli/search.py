"""`fpn-bench search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fpn_bench.cli.app import app, out
from fpn_bench.cli.running import (
    AllowImagesFrom,
    Cache,
    CacheGib,
    Data,
    Device,
    Display,
    ExecutorName,
    Gpus,
    Results,
    Share,
    SkipUnreadable,
    Storage,
    Test,
    Trials,
    ValFraction,
    Workers,
    executor_of,
    exit_when_interrupted,
    exit_with_status,
    write_and_print_report,
)
from fpn_bench.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from fpn_bench.search import Space

Resume = Annotated[
    bool, typer.Option("--resume", help="Fail unless the study exists; an existing study is continued anyway.")
]
Sampler = Annotated[
    str | None, typer.Option(help="What proposes candidates, instead of the space's: known_cost, tpe, evolution...")
]
Rungs = Annotated[
    str | None,
    typer.Option(help="Epochs after which a training stops unless it is promising, e.g. 1,2,4; none: never."),
]
Until = Annotated[str | None, typer.Option(help="hypervolume-plateau: also stop when the front hardly grows any more.")]
Confirm = Annotated[
    float | None,
    typer.Option(min=0.0, max=0.9, help="Share of the budget for further seeds of uncertain front members."),
]


@app.command()
def search(
    space: Annotated[
        str, typer.Argument(help="A search space: YAML file, or the name of a shipped one (fpn-bench spaces).")
    ] = "quickstart",
    data: Data = None,
    backbone: Annotated[str | None, typer.Option(help="timm name, instead of the space's backbone.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Of the backbone: a .safetensors or .pth file, hub, or pip:PACKAGE.")
    ] = None,
    trials: Trials = None,
    name: Annotated[str | None, typer.Option(help="Of the study; the space's name by default.")] = None,
    results: Results = "results",
    storage: Storage = None,
    resume: Resume = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the trainings.")] = 0,
    device: Device = "cpu",
    cache: Cache = None,
    cache_gib: CacheGib = 20.0,
    skip_unreadable: SkipUnreadable = False,
    val_fraction: ValFraction = None,
    allow_images_from: AllowImagesFrom = None,
    sampler: Sampler = None,
    rungs: Rungs = None,
    hours: Annotated[float | None, typer.Option(min=0.0, help="Stop after so much wall time.")] = None,
    until: Until = None,
    confirm: Confirm = None,
    share: Share = True,
    test: Test = True,
    workers: Workers = 1,
    executor: ExecutorName = "local",
    gpus: Gpus = 0.0,
) -> None:
    """Search a space for the Pareto front of necks, and write its report.

    Without arguments: the quickstart, offline, on two CPU cores, in minutes. The same command goes on with a study
    that was stopped, and finds finished trials as they were.
    """
    from fpn_bench.search import Space
    from fpn_bench.search.api import search

    loaded = _with_plan(Space.load(space), sampler, rungs, hours, until, confirm)
    study_name = name or loaded.name
    folder = Path(results) / study_name
    if resume and storage is None and not (folder / "study.db").is_file():
        raise InputError(f"expected a study in {folder} to resume, got none; leave out --resume to start one")
    display = Display()
    with display, exit_when_interrupted():
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
            val_fraction=val_fraction,
            allow_images_from=allow_images_from,
            share=share,
            test=test,
            workers=workers,
            executor=executor_of(executor, workers, gpus),
            on_load=display.on_load,
            on_event=display.on_event,
        )
    write_and_print_report(study, folder)
    exit_with_status(study)


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
    from fpn_bench.search.api import join

    display = Display()
    with display, exit_when_interrupted():
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
    exit_with_status(study)


def _with_plan(
    space: Space, sampler: str | None, rungs: str | None, hours: float | None, until: str | None, confirm: float | None
) -> Space:
    """The space with what the command line says of the plan."""
    from fpn_bench.search.samplers import SAMPLERS

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
        raise InputError(f"expected rungs as ascending epochs, e.g. 1,2,4, or none, got {text!r}") from None

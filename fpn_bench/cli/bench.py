"""`fpn-bench bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

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
    ValFraction,
    Workers,
    executor_of,
    exit_as,
    finish,
    said_when_stopped,
)
from fpn_bench.errors import InputError

if TYPE_CHECKING:
    from fpn_bench.analysis.proxy import Agreement, ProxyTrust
    from fpn_bench.search import Space


OF_A_SUITE = ("results", "storage", "seed", "share", "skip_unreadable", "val_fraction", "allow_images_from")
"""Options that a study, which was begun with its own, does not take."""


@app.command()
def bench(
    ctx: typer.Context,
    suite: Annotated[
        str,
        typer.Argument(
            help="A suite: YAML file, or the name of a shipped one (necks, backbones, ablation, smoke). With "
            "--correlate also a study that is there."
        ),
    ],
    data: Data = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="BACKBONE=WHERE, once for each: a .safetensors or .pth file, hub, or pip:PACKAGE; of a suite with one "
            "backbone WHERE alone."
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Trainings of each candidate, instead of the suite's; of a study, longer ones (1)."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the study; the suite's name by default.")] = None,
    results: Results = "results",
    storage: Storage = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first training; the others follow.")] = 0,
    device: Device = "cpu",
    cache: Cache = None,
    cache_gib: CacheGib = 20.0,
    skip_unreadable: SkipUnreadable = False,
    val_fraction: ValFraction = None,
    allow_images_from: AllowImagesFrom = None,
    share: Share = True,
    workers: Workers = 1,
    executor: ExecutorName = "local",
    gpus: Gpus = 0.0,
    correlate: Annotated[
        bool,
        typer.Option(
            "--correlate", help="Then train a sample longer, and say how far the short training's ranking holds."
        ),
    ] = False,
    times: Annotated[int, typer.Option(min=2, help="With --correlate: so many times the epochs.")] = 4,
    sample: Annotated[int, typer.Option(min=5, help="With --correlate: candidates trained longer.")] = 30,
) -> None:
    """Train every candidate that a suite lists, with several seeds, under one protocol, and write the report.

    The same command goes on with a study that was stopped. Lines or seeds added to the suite later are trained then.
    """
    running: dict[str, Any] = {
        "device": device,
        "cache": cache,
        "cache_gib": cache_gib,
        "workers": workers,
        "executor": executor_of(executor, workers, gpus),
    }
    if correlate and _is_study(suite):
        for option in OF_A_SUITE:
            source = ctx.get_parameter_source(option)
            if source is not None and source.name == "COMMANDLINE":
                text = option.replace("_", "-")
                raise InputError(
                    f"expected --{text} with a suite only, got it with a study, which has its own; leave it out"
                )
        _correlate(suite, name, running | {"data": data}, weights, seeds or 1, times, sample)
        return
    from fpn_bench.search import Space, api

    loaded = Space.load(suite)
    display = Display()
    with display, said_when_stopped():
        study = api.bench(
            loaded,
            seeds=seeds,
            weights=_weights_of(weights, loaded),
            data=data,
            name=name,
            results=results,
            storage=storage,
            seed=seed,
            skip_unreadable=skip_unreadable,
            val_fraction=val_fraction,
            allow_images_from=allow_images_from,
            share=share,
            on_load=display.on_load,
            on_event=display.on_event,
            **running,
        )
    finish(study, Path(results) / study.name, everything=True)
    exit_as(study)
    if correlate:
        target = storage or str(Path(results) / study.name)
        _correlate(target, study.name, running | {"data": data}, weights, 1, times, sample)


def _is_study(text: str) -> bool:
    """Whether this is a study that is there, and no suite."""
    from fpn_bench.search.database import DATABASE, is_url

    return is_url(text) or (Path(text) / DATABASE).is_file() or Path(text).name == DATABASE


def _weights_of(given: list[str] | None, space: Space) -> dict[str, str]:
    """Backbone -> where its weights are."""
    found = {}
    for text in given or []:
        backbone, sign, where = text.partition("=")
        if not sign and len(space.backbones) == 1:
            backbone, where = space.backbones[0].name, text
        elif not (sign and backbone and where):
            raise InputError(f"expected --weights as BACKBONE=WHERE, e.g. mobilenetv2_100=hub, got {text!r}")
        found[backbone] = where
    return found


def _correlate(
    study: str,
    name: str | None,
    running: dict[str, Any],
    weights: list[str] | None,
    seeds: int,
    times: int,
    sample: int,
) -> None:
    from fpn_bench.analysis import proxy_trust, retrained_of
    from fpn_bench.reports import write_report
    from fpn_bench.search import load_study
    from fpn_bench.search.proxy import correlate

    space = load_study(study, name).space()
    display = Display()
    with display, said_when_stopped():
        longer = correlate(
            study,
            name=name,
            times=times,
            sample=sample,
            seeds=seeds,
            weights=_weights_of(weights, space),
            on_load=display.on_load,
            on_event=display.on_event,
            **running,
        )
    short = load_study(study, name)
    kept = short.metadata().get("proxy", {}).get(str(times))
    if kept is not None:
        out.print(_trust_table(proxy_trust(retrained_of(kept)), f"Short against {times} times as long"))
    if short.path is not None:
        written = write_report(short.table(), short.metadata(), short.path / "report.html", samples=short.samples)
        out.print(f"report: {written[0]}", soft_wrap=True)
    exit_as(longer)


def _trust_table(trust: ProxyTrust, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("Kendall tau of the two rankings")
    for heading in ("tau", "95 % interval", "candidates"):
        table.add_column(heading, justify="right")
    for words, found in trust.told():
        table.add_row(words, *_told(found))
    return table


def _told(found: Agreement | None) -> tuple[str, str, str]:
    if found is None or found.tau != found.tau:
        return "", "", "too few" if found is None else f"{found.candidates}, too few"
    return f"{found.tau:.2f}", f"{found.low:.2f} to {found.high:.2f}", str(found.candidates)

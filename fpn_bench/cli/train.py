"""`fpn-bench train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fpn_bench.cli.app import app, err, out
from fpn_bench.cli.running import Cache
from fpn_bench.errors import InputError

if TYPE_CHECKING:
    from fpn_bench.candidates.study_candidate import StudyCandidate
    from fpn_bench.training.full import FullProgress
    from fpn_bench.training.full_recipe import FullRecipe

Trial = Annotated[
    str | None, typer.Option(help="Its number, or how its candidate's id begins; default the front's best AP.")
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Images a step, of all processes together; default the study's.")
]


@app.command()
def train(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="Folder of a study (results/NAME), study.db file, or storage URL.")
    ],
    trial: Trial = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training split.")] = 24,
    unfreeze: Annotated[
        str, typer.Option(help="What of the backbone is trained along: none, all, or K for what is behind level CK.")
    ] = "none",
    batch_size: BatchSize = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the schedule; default the study's.")] = None,
    amp: Annotated[str, typer.Option(help="Arithmetic: none (float32), bf16 or fp16.")] = "none",
    flip: Annotated[bool, typer.Option(help="Mirror images at random.")] = True,
    scale: Annotated[
        str, typer.Option(help="Factors by which images are scaled at random, then cropped or padded; 1-1: none.")
    ] = "0.8-1.25",
    photometric: Annotated[bool, typer.Option(help="Change brightness and colours at random.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial weights and the training.")] = 0,
    out_folder: Annotated[
        str | None, typer.Option("--out", help="Folder of the training; default trained/trial-N in the study's.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Where the data set lies, or another one of the same form.")] = None,
    weights: Annotated[str | None, typer.Option(help="Where the backbone's weights lie.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; cuda is a GPU each under torchrun.")] = "cpu",
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images; 0 loads them in between.")] = 2,
    eval_every: Annotated[int, typer.Option(min=1, help="AP on val after every so many epochs, and the last.")] = 1,
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0.0, help="Between checkpoints within an epoch; each epoch ends with one anyway.")
    ] = 10.0,
    cache: Cache = None,
) -> None:
    """Train a detector that a search found to the end, on images, and keep it in one file.

    The same command goes on with a training that was stopped or killed, as if it had not been. Several GPUs:
    torchrun --nproc-per-node N $(which fpn-bench) train STUDY --device cuda ...
    """
    from fpn_bench.candidates.full_training import train_full
    from fpn_bench.search.load import load_candidate
    from fpn_bench.training.processes import Processes

    processes = Processes.here()
    out.quiet = not processes.is_first  # one of them speaks; each may complain
    changes = {
        "epochs": epochs,
        "freeze": _freeze(unfreeze),
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "amp": amp,
        "flip": flip,
        "scale": _factors(scale),
        "photometric": photometric,
    }
    display = _Display()
    try:
        with display:
            hit = load_candidate(study, trial, data=data, weights=weights, cache=cache, on_load=display.on_load)
            recipe = _recipe(hit, {name: value for name, value in changes.items() if value is not None})
            _print_start(hit, recipe)
            done = train_full(
                hit,
                out_folder,
                recipe=recipe,
                seed=seed,
                device=device,
                workers=workers,
                eval_every=eval_every,
                checkpoint_minutes=checkpoint_minutes,
                processes=processes,
                on_progress=display.on_progress,
            )
    except KeyboardInterrupt:
        err.print(f"stopped {display.where}; the same command goes on from the last checkpoint")
        raise typer.Exit(130) from None
    if not done.fresh:
        out.print("this training is finished; give --out DIR for another")
    about = done.about
    out.print(f"AP {about['ap']:.1f}, AP50 {about['ap50']:.1f} after {about['epochs']} epochs{_comparison_text(about)}")
    out.print(f"detector: {done.model}", soft_wrap=True, markup=False)


def _freeze(unfreeze: str) -> str | int:
    """``"none"`` -> ``"all"``: what is frozen where this is what is not."""
    opposite = {"none": "all", "all": "none"}
    if unfreeze in opposite:
        return opposite[unfreeze]
    if unfreeze.isdecimal() and int(unfreeze) > 0:
        return int(unfreeze)
    raise InputError(f"expected --unfreeze to be none, all or the last frozen level, e.g. --unfreeze 3, got {unfreeze}")


def _factors(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    try:
        return float(low), float(high or low)
    except ValueError:
        raise InputError(f"expected --scale as SMALLEST-LARGEST, e.g. 0.8-1.25, got {text}") from None


def _recipe(hit: StudyCandidate, changes: Mapping[str, Any]) -> FullRecipe:
    from pydantic import ValidationError

    from fpn_bench.training.full_recipe import FullRecipe

    try:
        return FullRecipe.after(hit.context.protocol.training, **changes)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ")
        if first["loc"]:
            option = "--" + ".".join(map(str, first["loc"])).replace("_", "-")
            message = f"{option}: {message}, got {first['input']!r}"
        raise InputError(message) from None


def _print_start(hit: StudyCandidate, recipe: FullRecipe) -> None:
    row = hit.row
    ap = "" if row.get("ap") is None else f", AP {row['ap']:.1f} in the search"
    out.print(escape(f"trial {row['trial']}: {row.get('neck_label', '')} ({row['candidate']}){ap}"))
    frozen = {"all": "frozen", "none": "trained along"}.get(
        str(recipe.freeze), f"trained along behind C{recipe.freeze}"
    )
    out.print(escape(f"backbone {hit.backbone.name} ({frozen}), {len(hit.context.dataset.splits['train'])} images"))
    for field, there, here in hit.differences:
        err.print(
            f"[bold yellow]note:[/] {escape(f'{field} is {here} here, {there} in the study: APs do not compare')}"
        )


def _comparison_text(about: Mapping[str, Any]) -> str:
    best = max((ap for _, ap in about["ap_curve"]), default=about["ap"])
    epoch = next(epoch for epoch, ap in about["ap_curve"] if ap == best)
    search = "" if about["search_ap"] is None else f"; {about['search_ap']:.1f} in the search"
    return f" (best {best:.1f} after epoch {epoch}, chosen on val{search})"


class _Display:
    """A bar of steps with the time left on a terminal, a line an epoch everywhere."""

    def __init__(self) -> None:
        self.where = "before the first step"
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self.load = self.bars.add_task("reading images", total=None, note="", visible=False)
        self.steps = self.bars.add_task("steps", total=None, note="", visible=False)

    def __enter__(self) -> None:
        self.bars.start()

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def on_load(self, done: int, total: int) -> None:
        self.bars.update(self.load, completed=done, total=total, visible=done < total)

    def on_progress(self, now: FullProgress) -> None:
        self.where = f"in epoch {now.epoch}"
        note = f"epoch {now.epoch}, loss {now.loss:.3f}, {now.images_per_s:.0f} images/s"
        if now.left_s is not None:
            note += f", {_duration(now.left_s)} left"
        self.bars.update(self.steps, completed=now.step, total=now.steps, note=note, visible=True)
        if now.row is not None:
            out.print(_line(now.row, now.epochs))


def _line(row: Mapping[str, Any], epochs: int) -> str:
    ap = "" if row["ap"] is None else f"  AP {row['ap']:.1f}  AP50 {row['ap50']:.1f}"
    pace = f"{_duration(row['seconds'])}, {row['images_per_s']:.0f} images/s"
    return f"epoch {row['epoch']:>3}/{epochs}  loss {row['loss']:.3f}{ap}  {pace}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

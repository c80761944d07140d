"""`fpn-bench export`, and the detector that it and `fpn-bench predict` start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fpn_bench.cli.app import app, err, out
from fpn_bench.cli.running import Cache
from fpn_bench.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from fpn_bench.candidates.model import ImageDetector
    from fpn_bench.data.dataset import DetectionDataset

TARGETS = ("torchvision", "onnx", "python", "mmdet")
"""Those of `fpn_bench.export`, which takes a while to import."""

Trial = Annotated[
    str | None, typer.Option(help="Its number, or how its candidate's id begins; default the front's best AP.")
]
Weights = Annotated[str | None, typer.Option(help="Where the backbone's weights lie.")]


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|MODEL", help="Study (results/NAME, study.db, storage URL), or a model.safetensors."
        ),
    ],
    to: Annotated[str, typer.Option("--to", help=f"One of {', '.join(TARGETS)}.")],
    trial: Trial = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the files; default exported/TARGET, here, or exported/TARGET-2 ... where that has others.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Weights of that trial, where they are not in trained/trial-N of the study.")
    ] = None,
    ap: Annotated[
        bool, typer.Option("--ap/--no-ap", help="Compare AP on val before and after, where a data set is known.")
    ] = True,
    data: Annotated[str | None, typer.Option(help="Where the data set lies.")] = None,
    weights: Weights = None,
    cache: Cache = None,
) -> None:
    """Take a detector away: as files that run without fpn_bench, each checked against what it was made from.

    torchvision: a module that gives FCOS with the trained weights, RetinaNet and Faster R-CNN. onnx: RGB images in 0..1
    to boxes and scores, of any size and number where the backbone allows it. python: neck, head and decoding in one
    file that needs torch alone. mmdet: a module and a config.
    """
    if to not in TARGETS:
        raise UnknownNameError("target", to, TARGETS)
    taken = load_model(source, trial, model=model, data=data, weights=weights, cache=cache)
    from fpn_bench.export import export as write
    from fpn_bench.export import unused_folder

    records = taken.dataset.splits["val"] if ap and taken.dataset is not None else ()
    target = folder if folder is not None else unused_folder(taken.model, to, Path("exported") / to)
    written = write(taken.model, to, target, records=records)
    for note in written.notes:
        out.print(note, soft_wrap=True, markup=False)
    out.print(f"agrees with its source to {written.error:.1g}")
    if written.ap_before is not None and written.ap_after is not None:
        out.print(f"AP on val {written.ap_before:.2f} before, {written.ap_after:.2f} after")
    for path in written.files[:-1]:  # the last one is the record of the export
        out.print(str(path), soft_wrap=True, markup=False)


@dataclass(frozen=True)
class LoadedModel:
    """A detector, and the data set that it was made on where that is known."""

    model: ImageDetector
    dataset: DetectionDataset | None = None


def load_model(
    source: str,
    trial: str | None,
    *,
    model: str | None = None,
    data: str | None = None,
    weights: str | None = None,
    cache: str | None = None,
) -> LoadedModel:
    """The detector of a file, or of a trial of a study.

    Of a trial it has the weights of `fpn-bench train`, or of `model`; where there are none the short training of the
    search is done again.
    """
    from fpn_bench.candidates.model import ImageDetector

    if source.endswith(".safetensors"):
        for option, value in (("--trial", trial), ("--model", model), ("--weights", weights)):
            if value is not None:
                raise InputError(f"expected a study with {option} {value}, got the file {source}; leave out {option}")
        loaded = ImageDetector.load(source)
        return LoadedModel(loaded, _checked(_dataset(data), loaded.spec.classes))
    from fpn_bench.search.load import load_candidate

    hit = load_candidate(source, trial, data=data, weights=weights, cache=cache)
    row, dataset = hit.row, hit.context.dataset
    if model is None and hit.study.path is not None:
        kept = Path(hit.study.path) / "trained" / f"trial-{int(row['trial'])}" / "model.safetensors"
        model = str(kept) if kept.is_file() else None
    if model is not None:
        loaded = ImageDetector.load(model)
        if loaded.spec.graph.id != hit.spec.graph.id or loaded.spec.backbone != hit.spec.backbone:
            raise InputError(f"{model} is another detector than trial {row['trial']} of study {hit.study.name!r}")
        err.print(f"weights: {model}", soft_wrap=True, markup=False)
        return LoadedModel(loaded, _checked(dataset, loaded.spec.classes))
    err.print(f"trial {row['trial']} was not trained to the end: the search's short training is done again")
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=err, transient=True
    ) as bars:
        task = bars.add_task("", total=None)

        def on_progress(now: Mapping[str, Any]) -> None:
            bars.update(task, description=now["phase"], completed=now["done"], total=now["total"])

        seed = int(row["seed"])
        built, result = hit.context.trained(hit.candidate, seed, on_progress)
    known = row.get("ap")
    same = "which the study does not know" if known is None else f"as in the study ({known:.2f})"
    rung, full = row.get("epochs"), hit.context.protocol.training.epochs
    if known is not None and rung is not None and rung < full:
        same = f"{known:.2f} in the study, which stopped it after {rung} of {full} epochs"
    elif known is not None and known != result.ap.ap:
        same = f"{known:.2f} in the study, of another device, release or data set"
    err.print(f"AP {result.ap.ap:.2f}, {same}", soft_wrap=True, markup=False)
    built.about = {
        "study": hit.study.name,
        "trial": row["trial"],
        "seed": seed,
        "epochs": full,
        "ap": result.ap.ap,
    }
    return LoadedModel(built, dataset)


def _dataset(data: str | None) -> DetectionDataset | None:
    if data is None:
        return None
    from fpn_bench.data.formats import load_dataset

    return load_dataset(data)


def _checked(dataset: DetectionDataset | None, classes: Sequence[str]) -> DetectionDataset | None:
    """The data set, whose labels must mean what the detector's do."""
    if dataset is not None and tuple(dataset.classes) != tuple(classes):
        raise InputError(
            f"the data set has the classes {', '.join(dataset.classes)}, the detector {', '.join(classes)}: give "
            "--data of the latter, or --no-ap without it"
        )
    return dataset

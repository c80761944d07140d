"""`fpn-bench predict`."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fpn_bench.cli.app import app, err, out
from fpn_bench.cli.export import Trial, Weights, load_model
from fpn_bench.cli.running import Cache
from fpn_bench.errors import InputError
from fpn_bench.paths import write_bytes_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from fpn_bench.candidates.model import ImageDetector
    from fpn_bench.export.to_onnx import OnnxDetector


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files, folders, or patterns in quotes.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="model.safetensors, an exported detector.onnx, or a study.")
    ],
    trial: Trial = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for the drawings; default predictions, with --json none.")
    ] = None,
    score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Lowest score shown.")] = 0.3,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N.")] = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: pixels of the image, turned as viewers do.")
    ] = False,
    data: Annotated[str | None, typer.Option(help="Where a study's data set lies.")] = None,
    weights: Weights = None,
    cache: Cache = None,
) -> None:
    """Show a detector images, of any size: what it finds is drawn and printed.

    An image that cannot be read is told of, the others go on, and the command exits with 1.
    """

    from fpn_bench.data.images import read_upright
    from fpn_bench.export.pictures import draw, image_files, png_bytes

    files = image_files(images)
    drawings = folder or (None if as_json else Path("predictions"))
    if drawings is not None:
        _check_apart(files, drawings)
    detector = _detector(model, trial, device, data, weights, cache)
    classes = detector.spec.classes
    if drawings is not None:
        drawings.mkdir(parents=True, exist_ok=True)
    told: list[dict[str, Any]] = []
    taken = {_path_key(path) for path in files}
    unread = 0
    for path in files:
        try:
            image = read_upright(path)
        except InputError as error:
            err.print(f"fpn-bench: {error}", markup=False)
            unread += 1
            continue
        found = detector.detect([image], score_threshold=score)[0]
        entry: dict[str, Any] = {
            "image": str(path),
            "width": image.width,
            "height": image.height,
            "detections": _listed(found, classes),
        }
        if drawings is not None:
            drawn = _unused_path(drawings, path.stem, taken)
            write_bytes_atomic(drawn, png_bytes(draw(image, found, classes)))
            entry["drawing"] = str(drawn)
        told.append(entry)
        if not as_json:
            _print(entry)
    if as_json:
        print(json.dumps({"classes": list(classes), "images": told}, indent=2))
    if unread:
        raise typer.Exit(1)


def _detector(
    model: str, trial: str | None, device: str, data: str | None, weights: str | None, cache: str | None
) -> ImageDetector | OnnxDetector:
    from fpn_bench.profiling import check_device

    place = check_device(device)
    if model.endswith(".onnx"):
        from fpn_bench.export.to_onnx import OnnxDetector

        if place.type != "cpu" or trial is not None:
            raise InputError(
                f"expected neither --trial nor --device with {model}: an ONNX file runs on the CPU; leave them out"
            )
        return OnnxDetector(model)
    return load_model(model, trial, data=data, weights=weights, cache=cache).model.to(place)


def _check_apart(files: Iterable[Path], folder: Path) -> None:
    """Refuse a folder that images come from: drawings would lie among them, or be taken for them the next time."""
    within = next((path for path in files if _path_key(path.parent) == _path_key(folder)), None)
    if within is not None:
        raise InputError(f"drawings would go to {folder}, where {within} lies: give another folder with --out DIR")


def _unused_path(folder: Path, stem: str, taken: set[str]) -> Path:
    """Where a drawing goes: ``STEM.png``, or ``STEM-2.png`` and so on where another has that place, of this call or of
    one before."""
    numbered = (folder / f"{stem}-{number}.png" for number in itertools.count(2))
    path = next(
        path
        for path in itertools.chain([folder / f"{stem}.png"], numbered)
        if _path_key(path) not in taken and not os.path.lexists(path)
    )
    taken.add(_path_key(path))
    return path


def _path_key(path: Path) -> str:
    """What two paths to one file have in common, also where the file system knows no case."""
    return str(path.resolve()).casefold()


def _listed(found: dict[str, Tensor], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    boxes, scores, labels = (found[name].tolist() for name in ("boxes", "scores", "labels"))
    return [
        {"class": classes[label], "label": label, "score": round(score, 4), "box": [round(side, 2) for side in box]}
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]


def _print(entry: dict[str, Any]) -> None:
    size = f"{entry['width']}x{entry['height']}"
    drawing = f" -> {entry['drawing']}" if "drawing" in entry else ""
    out.print(f"{entry['image']} ({size}): {len(entry['detections'])} found{drawing}", soft_wrap=True, markup=False)
    for one in entry["detections"]:
        x1, y1, x2, y2 = one["box"]
        out.print(f"  {one['class']:<16} {one['score']:.2f}  {x1:.0f} {y1:.0f} {x2:.0f} {y2:.0f}", markup=False)

"""A detection set the package draws itself: textured shapes over clutter, in COCO format, the same on every machine.

It exists so that necks can be compared with nothing downloaded, and it is drawn so that the comparison means
something: no single pyramid level is enough.

- A class is a shape AND a texture. Discs, squares and triangles each come striped and chequered, and every texture
  comes on every shape. The texture has a period of a few pixels whatever the object's size: only fine maps show it.
  The shape is a matter of the whole outline: on a large object only coarse maps see enough of it at once, on a small
  one only fine maps resolve it.
- Every class is spread evenly (on a log scale) over three octaves of size and more (12 to 112 pixels in the default
  set), so that no class can be learned at one level.
- Colour is no cue: object and background colours are drawn from one distribution.
- The clutter has what the objects have, in part: plain shapes without texture, fragments with textures of no class,
  lines, and uneven grounds with noise. Neither "has an outline" nor "has a texture" finds an object. Objects may hide
  parts of one another; a box is the tight box of what can be seen.

Everything is drawn with integer arithmetic and correctly rounded float operations (no libm functions, no BLAS) from
PCG64, and stored as BMP, whose bytes do not depend on the version of a compressor: settings determine
`DetectionDataset.hash`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fpn_bench.errors import DataError

GENERATOR_VERSION = 1
"""Counts changes of what is drawn from equal settings."""

SHAPES = ("disc", "square", "triangle")
TEXTURES = ("striped", "chequered")
CLASSES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)

_SUPERSAMPLING = 2
_MIN_SIDE = 12
_PLACEMENTS_TRIED = 30
_MIN_VISIBLE = 0.6
_SPLITS = ("train", "val")

_Pixels = npt.NDArray[np.uint8]
_Mask = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float64]
_Outline = Callable[[_Floats, _Floats], _Mask]
"""Which points (u, v) are inside a shape of the unit circle's size."""
_Pattern = Callable[[_Floats, _Floats, float], _Mask]
"""Which points (u, v) have the first of two colours, with a period in the same unit."""


@dataclass(frozen=True, slots=True)
class _Settings:
    """Everything the pixels depend on."""

    seed: int
    train_images: int
    val_images: int
    image_size: tuple[int, int]
    sides: tuple[int, int]
    objects: tuple[int, int]
    clutter: tuple[int, int]

    def check(self) -> None:
        height, width = self.image_size
        low, high = self.sides
        if self.train_images < 1 or self.val_images < 1:
            raise DataError(f"expected at least 1 train and 1 val image, got {self.train_images} and {self.val_images}")
        if self.seed < 0:
            raise DataError(f"expected seed to be 0 or more, got {self.seed}")
        if not 8 <= low <= high <= min(height, width):
            raise DataError(
                f"expected sides with 8 <= smallest <= largest <= {min(height, width)} (the image's shorter side), got "
                f"{self.sides}"
            )
        if not 1 <= self.objects[0] <= self.objects[1] or not 0 <= self.clutter[0] <= self.clutter[1]:
            raise DataError(
                "expected (least, most) of an image, at least one object, got "
                f"objects {self.objects} and clutter {self.clutter}"
            )

    @property
    def id(self) -> str:
        data = {"generator_version": GENERATOR_VERSION, **asdict(self)}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def write_synthetic(
    root: str | os.PathLike[str],
    *,
    seed: int = 0,
    train_images: int = 240,
    val_images: int = 80,
    image_size: tuple[int, int] = (160, 160),
    sides: tuple[int, int] | None = None,
    objects: tuple[int, int] = (1, 5),
    clutter: tuple[int, int] = (4, 10),
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw the set into a folder under ``root`` named by its settings, unless it is there already.

    The folder appears complete or not at all. It holds ``images/*.bmp``, ``annotations/{train,val}.json`` and
    ``settings.json``; `load_coco` reads it.

    Args:
        root: folder of synthetic sets; made when missing.
        seed: another seed is another set of the same kind.
        train_images: images of the training split. Image i is the same whatever the number.
        val_images: images of the validation split.
        image_size: (height, width) in pixels.
        sides: smallest and largest longer side of an object before others hide parts of it, in pixels; evenly spread
            on a log scale; 12 to 7/10 of the image's shorter side when omitted.
        objects: least and most objects tried for an image; one that finds no place is left out.
        clutter: least and most things an image that are no objects.
        on_progress: called with (images drawn, images in all).

    Returns:
        The folder of the set.

    Raises:
        DataError: settings that cannot be drawn, or a folder that cannot be written.
    """
    if sides is None:
        sides = (_MIN_SIDE, 7 * min(image_size) // 10)
    settings = _Settings(seed, train_images, val_images, image_size, sides, objects, clutter)
    settings.check()
    target = Path(root) / f"synthetic-{settings.id}"
    if (target / "settings.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise DataError(
            f"synthetic set cannot be written under {root}: {error.strerror}; name another folder"
        ) from error
    try:
        _write(draft, settings, on_progress)
        draft.chmod(0o755)
        with contextlib.suppress(OSError):
            target.rmdir()  # an empty one: only POSIX renames onto it
        draft.rename(target)
    except OSError as error:
        if not (target / "settings.json").is_file():  # another process may have been first
            raise DataError(f"synthetic set cannot be written at {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _write(folder: Path, settings: _Settings, on_progress: Callable[[int, int], None] | None) -> None:
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    counts = (settings.train_images, settings.val_images)
    done = 0
    for split_number, (split, count) in enumerate(zip(_SPLITS, counts, strict=True)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            rng = np.random.Generator(np.random.PCG64([settings.seed, split_number, index]))
            pixels, boxes, labels, areas = draw_scene(
                rng, settings.image_size, settings.sides, settings.objects, settings.clutter
            )
            file_name = f"{split}_{index:05d}.bmp"
            Image.fromarray(pixels).save(folder / "images" / file_name)
            height, width = settings.image_size
            images.append({"id": index + 1, "file_name": file_name, "height": height, "width": width})
            for (x1, y1, x2, y2), label, area in zip(boxes, labels, areas, strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": label + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": area,
                        "iscrowd": 0,
                    }
                )
            done += 1
            if on_progress is not None:
                on_progress(done, sum(counts))
        categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
        coco = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco))
    manifest = {"generator_version": GENERATOR_VERSION, **asdict(settings)}
    (folder / "settings.json").write_text(json.dumps(manifest, indent=2) + "\n")


def draw_scene(
    rng: np.random.Generator,
    image_size: tuple[int, int],
    sides: tuple[int, int],
    objects: tuple[int, int],
    clutter: tuple[int, int],
) -> tuple[_Pixels, list[tuple[int, int, int, int]], list[int], list[int]]:
    """One image.

    Returns:
        Pixels uint8 [H, W, 3]; for each object the box x1 y1 x2 y2 of its visible pixels, its label, and its number
        of visible pixels.
    """
    canvas = _ground(rng, image_size)
    for _ in range(int(rng.integers(clutter[0], clutter[1] + 1))):
        _draw_clutter(rng, canvas, sides)
    steps = _log_steps(*sides)
    owner = np.full(image_size, -1, np.int16)  # which object each pixel shows
    drawn_pixels: list[int] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(objects[0], objects[1] + 1))):
        label = int(rng.integers(len(CLASSES)))
        shape, texture = divmod(label, len(TEXTURES))
        side = steps[int(rng.integers(len(steps)))]
        coverage, u, v = _outline(rng, _SHAPE_TESTS[SHAPES[shape]], side)
        place = _find_place(rng, coverage, owner, drawn_pixels)
        if place is None:
            continue
        paint = _textured(rng, _TEXTURE_TESTS[TEXTURES[texture]], u, v)
        solid = _blend(canvas, place, coverage, paint)
        y, x = place
        window = owner[y : y + coverage.shape[0], x : x + coverage.shape[1]]
        window[solid] = len(labels)
        drawn_pixels.append(int(solid.sum()))
        labels.append(label)
    noise = rng.integers(-6, 7, size=canvas.shape, dtype=np.int16)
    pixels = np.clip(canvas + noise, 0, 255).astype(np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    areas: list[int] = []
    for number in range(len(labels)):
        ys, xs = np.nonzero(owner == number)
        boxes.append((int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
        areas.append(len(xs))
    return pixels, boxes, labels, areas


def _log_steps(low: int, high: int) -> list[int]:
    """Whole numbers from ``low`` to ``high`` about 1/16 apart: an even draw from them is even on a log scale."""
    steps = [low]
    while steps[-1] < high:
        steps.append(min(high, steps[-1] + max(1, steps[-1] // 16)))
    return steps


def _colour(rng: np.random.Generator) -> npt.NDArray[np.int16]:
    return rng.integers(20, 236, size=3, dtype=np.int16)


def _colour_pair(rng: np.random.Generator) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Two colours that can be told apart in luminance."""
    while True:
        first, second = _colour(rng), _colour(rng)
        if abs(int((first - second).sum())) >= 180:
            return first, second


def _direction(rng: np.random.Generator) -> tuple[float, float]:
    """(cosine, sine) of a random angle, through the rational points of the circle: no libm."""
    t = 2 * rng.random() - 1
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    quarter = int(rng.integers(4))
    return ((cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine))[quarter]


def _ground(rng: np.random.Generator, image_size: tuple[int, int]) -> npt.NDArray[np.int16]:
    """An uneven ground: a few colours, blended between the knots of a coarse grid."""
    height, width = image_size
    knots = int(rng.integers(2, 6))
    base = _colour(rng).astype(np.float64)
    grid = base + rng.integers(-50, 51, size=(knots + 1, knots + 1, 3))

    def weights(length: int) -> tuple[npt.NDArray[np.intp], _Floats]:
        position = np.arange(length) * (knots / length)
        low = position.astype(np.intp)
        return low, np.asarray(position - low, np.float64)

    rows, fy = weights(height)
    columns, fx = weights(width)
    fy, fx = fy[:, None, None], fx[None, :, None]
    top = grid[rows][:, columns] * (1 - fx) + grid[rows][:, columns + 1] * fx
    bottom = grid[rows + 1][:, columns] * (1 - fx) + grid[rows + 1][:, columns + 1] * fx
    canvas = top * (1 - fy) + bottom * fy
    grain = int(rng.integers(0, 25))
    coarse = rng.integers(-grain, grain + 1, size=((height + 2) // 3, (width + 2) // 3, 1))
    canvas += np.repeat(np.repeat(coarse, 3, axis=0), 3, axis=1)[:height, :width]
    return np.clip(canvas, 0, 255).astype(np.int16)


def _in_disc(u: _Floats, v: _Floats) -> _Mask:
    return np.asarray(u * u + v * v <= 1)


def _in_square(u: _Floats, v: _Floats) -> _Mask:
    return np.asarray(np.maximum(np.abs(u), np.abs(v)) <= 0.8)


def _in_triangle(u: _Floats, v: _Floats) -> _Mask:
    """Equilateral, corners on the unit circle."""
    slope = 1.7320508075688772
    return np.asarray((v >= -0.5) & (v <= 1 - slope * np.abs(u)))


def _in_line(u: _Floats, v: _Floats, thickness: float) -> _Mask:
    return np.asarray((np.abs(v) <= thickness) & (np.abs(u) <= 1))


def _in_fragment(u: _Floats, v: _Floats, a: float, b: float) -> _Mask:
    """What two straight cuts leave of a disc."""
    return np.asarray((u <= a + 0.5 * v) & (v <= b) & (u * u + v * v <= 1))


_SHAPE_TESTS: dict[str, _Outline] = {
    "disc": _in_disc,
    "square": _in_square,
    "triangle": _in_triangle,
}


def _stripes(u: _Floats, v: _Floats, period: float) -> _Mask:
    return np.asarray(np.floor(u * (2 / period)) % 2 == 0)


def _chequers(u: _Floats, v: _Floats, period: float) -> _Mask:
    return np.asarray((np.floor(u * (2 / period)) + np.floor(v * (2 / period))) % 2 == 0)


def _dots(u: _Floats, v: _Floats, period: float) -> _Mask:
    du, dv = u - period * np.floor(u / period) - period / 2, v - period * np.floor(v / period) - period / 2
    return np.asarray(du * du + dv * dv <= period * period / 9)


def _bricks(u: _Floats, v: _Floats, period: float) -> _Mask:
    row = np.floor(v / period)
    shifted = u / (2 * period) + row / 2
    return np.asarray((v / period - row < 0.3) | (shifted - np.floor(shifted) < 0.15))


def _plain(u: _Floats, v: _Floats, period: float) -> _Mask:
    return np.ones(u.shape, np.bool_)


_TEXTURE_TESTS: dict[str, _Pattern] = {"striped": _stripes, "chequered": _chequers}
_CLUTTER_TEXTURES: tuple[_Pattern, ...] = (_dots, _bricks, _plain, _plain)


def _outline(rng: np.random.Generator, inside: _Outline, side: int) -> tuple[npt.NDArray[np.int16], _Floats, _Floats]:
    """A shape turned by a random angle, about ``side`` pixels across.

    Returns:
        Coverage of each pixel int16 [h, w] in 0 .. 4 subpixels, cut tight; and the coordinates of the subpixels
        [2h, 2w], in pixels along the shape's own axes.
    """
    cosine, sine = _direction(rng)
    s = _SUPERSAMPLING
    extent = side + 2
    offset = (np.arange(extent * s) + 0.5) / s - extent / 2
    x, y = offset[None, :], offset[:, None]
    u, v = x * cosine + y * sine, y * cosine - x * sine
    mask = inside(u * (2 / side), v * (2 / side))
    coverage = mask.reshape(extent, s, extent, s).sum(axis=(1, 3), dtype=np.int16)
    ys, xs = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
    rows, columns = slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1)
    fine = (slice(rows.start * s, rows.stop * s), slice(columns.start * s, columns.stop * s))
    return coverage[rows, columns], u[fine], v[fine]


def _textured(rng: np.random.Generator, pattern: _Pattern, u: _Floats, v: _Floats) -> npt.NDArray[np.int16]:
    """Two colours in a pattern of 5 to 8 pixels' period, int16 [h, w, 3]; fine whatever the size of what it is on."""
    first, second = _colour_pair(rng)
    cosine, sine = _direction(rng)
    period = 5 + 3 * rng.random()
    phase = period * rng.random()
    mask = pattern(u * cosine + v * sine + phase, v * cosine - u * sine + phase, period)
    s = _SUPERSAMPLING
    h, w = mask.shape[0] // s, mask.shape[1] // s
    share = mask.reshape(h, s, w, s).sum(axis=(1, 3), dtype=np.int16)[..., None]
    return np.asarray((first * share + second * (s * s - share)) // (s * s), np.int16)


def _blend(
    canvas: npt.NDArray[np.int16],
    place: tuple[int, int],
    coverage: npt.NDArray[np.int16],
    paint: npt.NDArray[np.int16],
) -> _Mask:
    """Paint onto the canvas; returns which pixels of the patch now show mostly the paint."""
    (y, x), (h, w), full = place, coverage.shape, _SUPERSAMPLING**2
    window = canvas[y : y + h, x : x + w]
    alpha = coverage[..., None]
    window[...] = (window * (full - alpha) + paint * alpha) // full
    return np.asarray(coverage * 2 >= full)


def _find_place(
    rng: np.random.Generator, coverage: npt.NDArray[np.int16], owner: npt.NDArray[np.int16], drawn_pixels: list[int]
) -> tuple[int, int] | None:
    """A place (y, x) that leaves enough of every object in sight, or None after some attempts."""
    (h, w), (height, width) = coverage.shape, owner.shape
    if h > height or w > width:
        return None
    solid = coverage * 2 >= _SUPERSAMPLING**2
    visible = [int((owner == number).sum()) for number in range(len(drawn_pixels))]
    for _ in range(_PLACEMENTS_TRIED):
        y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        hidden = np.bincount(owner[y : y + h, x : x + w][solid] + 1, minlength=len(visible) + 1)[1:]
        if all(
            seen - lost >= _MIN_VISIBLE * drawn for seen, lost, drawn in zip(visible, hidden, drawn_pixels, strict=True)
        ):
            return y, x
    return None


def _draw_clutter(rng: np.random.Generator, canvas: npt.NDArray[np.int16], sides: tuple[int, int]) -> None:
    """One thing that is no object: a line, a plain shape, or a fragment with a texture of no class."""
    height, width = canvas.shape[:2]
    steps = _log_steps(sides[0], max(sides[0], sides[1] // 2))
    side = steps[int(rng.integers(len(steps)))]
    kind = ("line", "shape", "fragment")[int(rng.integers(3))]
    inside: _Outline
    pattern: _Pattern = _plain
    if kind == "line":
        inside = partial(_in_line, thickness=(1 + int(rng.integers(3))) / side)
    elif kind == "shape":
        inside = _SHAPE_TESTS[SHAPES[int(rng.integers(len(SHAPES)))]]
    else:
        inside = partial(_in_fragment, a=rng.random() - 0.3, b=rng.random() + 0.4)
        pattern = _CLUTTER_TEXTURES[int(rng.integers(len(_CLUTTER_TEXTURES)))]
    coverage, u, v = _outline(rng, inside, side)
    h, w = coverage.shape
    if h <= height and w <= width:
        place = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        _blend(canvas, place, coverage, _textured(rng, pattern, u, v))

"""Image files of people, and what was found on them, drawn."""

from __future__ import annotations

import colorsys
import glob
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fpn_bench.data.images import IMAGE_SUFFIXES
from fpn_bench.errors import InputError

_GOLDEN = 0.618034  # neighbouring classes get hues far apart


def image_files(named: Iterable[str]) -> list[Path]:
    """Files, those in folders, and those that patterns match; each once, in the order of their naming.

    Raises:
        InputError: a folder holds no image, a pattern matches nothing, or there is no such file.
    """
    files: dict[Path, None] = {}
    for name in named:
        path = Path(name)
        if path.is_dir():
            matched = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            problem = "holds no image"
        elif path.exists():
            matched, problem = [path], ""
        else:
            matched = [p for p in map(Path, sorted(glob.glob(name, recursive=True))) if p.is_file()]
            problem = "does not exist" if not glob.has_magic(name) else "matches no file"
        if not matched:
            raise InputError(f"{name} {problem}; expected images, folders of them or patterns, e.g. photos/*.jpg")
        files |= dict.fromkeys(matched)
    return list(files)


def png_bytes(image: Image.Image) -> bytes:
    """The image as the content of a PNG file."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class, the same for ever."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1.0, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(image: Image.Image, found: Mapping[str, Tensor], classes: Sequence[str]) -> Image.Image:
    """A copy of the image with its detections, the most confident on top.

    Args:
        image: RGB.
        found: ``boxes`` [D, 4] in its pixels, ``scores`` [D], ``labels`` [D], best first.
        classes: names.
    """
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    side = min(image.size)
    width = max(2, side // 250)
    font = ImageFont.load_default(max(11, side // 35))
    boxes, scores, labels = (found[name].tolist() for name in ("boxes", "scores", "labels"))
    for (x1, y1, x2, y2), score, label in reversed(list(zip(boxes, scores, labels, strict=True))):
        ink = colour(label)
        # A box of no extent is drawn as a point; what detectors give may end a hair before it begins.
        pen.rectangle([x1, y1, max(x1, x2), max(y1, y2)], outline=ink, width=width)
        text = f"{classes[label]} {score:.2f}"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        wide, high = right - left + 2 * width, bottom - top + 2 * width
        x = min(max(0, x1), max(0, image.width - wide))
        y = y1 - high if y1 >= high else min(max(0, y1), max(0, image.height - high))
        pen.rectangle([x, y, x + wide, y + high], fill=ink)
        dark = 0.299 * ink[0] + 0.587 * ink[1] + 0.114 * ink[2] > 140
        pen.text((x + width - left, y + width - top), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)
    return drawn

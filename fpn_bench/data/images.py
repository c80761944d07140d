"""Image files: the one way in which data sets, predictions and samples decode them, and checking that they decode.

Only formats that Pillow decodes itself are opened, whatever a file is called: EPS would start Ghostscript. Images of
more than 8 bits a channel are scaled from the range that their file states to 0 .. 255, not clipped as Pillow does;
where that range is in doubt they are refused.
"""

from __future__ import annotations

import hashlib
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fpn_bench.data.dataset import ImageRecord
from fpn_bench.errors import DataError

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow's names. PPM stands for PBM, PGM and PPM; a GIF's or TIFF's first picture is read."""
IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
MAX_PIXELS = 178_956_970
"""Pillow's own bound, above which it raises: 0.5 GB as RGB."""
MAX_BYTES = 2**30

_EXIF_ORIENTATION = 0x0112
_EXIF_QUARTER_TURNS = (5, 6, 7, 8)
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
_DEEP_MODES = frozenset(("I;16", "I;16L", "I;16B", "I;16N"))
_FULL = 65535
# A picture of 16 bits none of whose values needs the upper two: is it dark, or are 10, 12 or 14 bits stored in 16?
_DOUBTFUL = (_FULL + 1) // 4


class UnreadableImageError(DataError):
    """An image file cannot be used; the message says why, without naming the file."""


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """What one reading of an image file found.

    Attributes:
        digest: sha256 of the file's bytes; empty when the file could not be read.
        size: (height, width) in pixels as stored, before EXIF rotation.
        orientation: EXIF's; 1 is upright, and above 4 viewers turn it by a quarter, so that they show (width, height).
        problem: why it cannot be used; None when it can.
    """

    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    problem: str | None = None

    @property
    def has_orientation(self) -> bool:
        """Viewers turn or mirror it."""
        return self.orientation in range(2, 9)

    @property
    def turned(self) -> bool:
        """Viewers turn it by a quarter."""
        return self.orientation in _EXIF_QUARTER_TURNS


def load_image(record: ImageRecord) -> Image.Image:
    """The image as 8-bit RGB, pixels as stored in the file: boxes are in this frame, so EXIF rotation is not applied.

    Raises:
        DataError: the file has gone, cannot be decoded, or no longer has the size of the record.
    """
    try:
        rgb, _ = _decode(read_image_bytes(record.path))
    except UnreadableImageError as error:
        raise DataError(f"image {record.path} was readable when the data set was loaded, now: {error}") from error
    if (rgb.height, rgb.width) != record.size:
        raise DataError(
            f"image {record.path} is {rgb.width}x{rgb.height} now, {record.size[1]}x{record.size[0]} when the data set "
            "was loaded: load the data set again"
        )
    return rgb


def read_upright(path: Path) -> Image.Image:
    """The image as 8-bit RGB, turned as its EXIF orientation says and viewers show it.

    Raises:
        DataError: it cannot be read.
    """
    try:
        rgb, orientation = _decode(read_image_bytes(path))
    except UnreadableImageError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    rgb.getexif()[_EXIF_ORIENTATION] = orientation
    return ImageOps.exif_transpose(rgb)


def check_image(path: Path) -> ImageCheck:
    """Read the file once and decode it to its end: a truncated file has a perfectly good header."""
    try:
        data = read_image_bytes(path)
        with _opened(data) as image:
            size = (image.height, image.width)
            # JPEG only: at an eighth of the size all of the file is still entropy-decoded, but few pixels are made.
            image.draft("L", (1, 1))
            _check_depth(image)
            orientation = _orientation(image)
    except UnreadableImageError as error:
        return ImageCheck(problem=str(error))
    return ImageCheck(hashlib.sha256(data).digest(), size, orientation)


def check_and_load_image(path: Path) -> tuple[ImageCheck, Image.Image | None]:
    """`check_image`, and the image as 8-bit RGB as stored; None where it cannot be used."""
    try:
        data = read_image_bytes(path)
        rgb, orientation = _decode(data)
    except UnreadableImageError as error:
        return ImageCheck(problem=str(error)), None
    return ImageCheck(hashlib.sha256(data).digest(), (rgb.height, rgb.width), orientation), rgb


def read_image_bytes(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        UnreadableImageError: it is not there, no regular file, larger than `MAX_BYTES`, or cannot be read.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableImageError("not a regular file")
        if found.st_size > MAX_BYTES:
            raise UnreadableImageError(f"{found.st_size:,} bytes; expected at most {MAX_BYTES:,}: save it smaller")
        return path.read_bytes()
    except FileNotFoundError:
        raise UnreadableImageError("no such file") from None
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error)) from error
    except ValueError as error:  # a name that cannot be one
        raise UnreadableImageError(str(error)) from error


# --------------------------------------------------------------------------------------------------------------
# Decoding


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The image in a file's bytes, its pixels not decoded yet.

    Raises:
        UnreadableImageError: it is none of `IMAGE_FORMATS`, too large, or damaged; also what is raised while it is
            open.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            yield image
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        formats = f"{', '.join(IMAGE_FORMATS[:-1])} or {IMAGE_FORMATS[-1]}"
        raise UnreadableImageError(f"not an image (expected {formats})") from None
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"more than {MAX_PIXELS:,} pixels: save it smaller, or cut it up") from None
    # Decoders fed with arbitrary bytes raise nearly anything (OSError, SyntaxError, struct.error, zlib.error ...).
    except Exception as error:
        raise UnreadableImageError(" ".join(str(error).split()) or type(error).__name__) from error


def _decode(data: bytes) -> tuple[Image.Image, int]:
    """8-bit RGB as stored, and EXIF's orientation."""
    with _opened(data) as image:
        _check_depth(image)
        orientation = _orientation(image)  # after the depth: of a PNG this decodes the pixels
        if _is_deep(image):
            return Image.fromarray(_eight_bits(image)).convert("RGB"), orientation
        return image.convert("RGB"), orientation


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(_EXIF_ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def _is_deep(image: Image.Image) -> bool:
    """One channel of more than 8 bits, of a known range. Pillow scales PGM to 0 .. 65535 itself."""
    return image.mode in _DEEP_MODES or (image.mode == "I" and image.format == "PPM")


def _check_depth(image: Image.Image) -> None:
    """Decode all pixels.

    Raises:
        UnreadableImageError: what they stand for in 8 bits cannot be said.
    """
    cut = _cut_to_8_bits(image)
    image.load()
    if _is_deep(image):
        _eight_bits(image)
    elif image.mode not in _MODES:
        what = {"F": "floating-point pixels", "I": "32-bit or signed pixels"}.get(image.mode, f"mode {image.mode}")
        raise UnreadableImageError(f"{what}, of which nobody can say what is white: save it with 8 bits a channel")
    elif cut:
        bands: Any = image.getextrema()
        bands = bands if isinstance(bands[0], tuple) else (bands,)
        colours = bands[:-1] if image.mode in ("LA", "RGBA") else bands
        _refuse_doubtful(max(high for _, high in colours) << 8)


def _cut_to_8_bits(image: Image.Image) -> bool:
    """Whether Pillow reads the upper 8 bits of each 16-bit channel; known before it has decoded."""
    if image.format not in ("PNG", "TIFF") or image.mode in _DEEP_MODES:
        return False
    args: Any = image.tile[0][3] if image.tile else ()  # type: ignore[attr-defined]
    return ";16" in str(args if isinstance(args, str) else (args or ("",))[0])


def _eight_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Pixels [H, W], the file's range scaled to 0 .. 255."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_TIFF_BITS, (16,))[0]
    full = 2**bits - 1 if 8 < bits < 16 else _FULL
    values = np.asarray(image).astype(np.uint32)
    if full == _FULL:
        _refuse_doubtful(int(values.max()))
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # 0 is white
        values = full - np.minimum(values, full)
    return ((np.minimum(values, full) * 255 + full // 2) // full).astype(np.uint8)


def _refuse_doubtful(peak: int) -> None:
    if 0 < peak < _DOUBTFUL:
        raise UnreadableImageError(
            f"16-bit pixels none of which is brighter than {peak / _FULL:.1%}: fewer bits are likely stored in 16, and "
            "the file does not say how many; save it with 8 bits a channel"
        )

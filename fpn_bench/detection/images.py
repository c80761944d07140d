"""Image files: decoding one for use, and checking that it can be decoded at all."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from fpn_bench.detection.dataset import ImageRecord
from fpn_bench.errors import DataError

_EXIF_ORIENTATION = 0x0112
_EXIF_QUARTER_TURNS = (5, 6, 7, 8)


def load_image(record: ImageRecord) -> Image.Image:
    """The image as 8-bit RGB, pixels as stored in the file: boxes are in this frame, so EXIF rotation is not applied.

    Raises:
        DataError: the file has gone, cannot be decoded, or no longer has the size of the record.
    """
    try:
        with Image.open(record.path) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"image {record.path} was readable when the data set was loaded, now: {error}") from error
    if (rgb.height, rgb.width) != record.size:
        raise DataError(
            f"image {record.path} is {rgb.width}x{rgb.height} now, {record.size[1]}x{record.size[0]} when the data set "
            "was loaded: load the data set again"
        )
    return rgb


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


def check_image(path: Path) -> ImageCheck:
    """Read the file once and decode it to its end: a truncated file has a perfectly good header."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ImageCheck(problem="no such file")
    except OSError as error:
        return ImageCheck(problem=error.strerror or str(error))
    except ValueError as error:  # a name that cannot be one
        return ImageCheck(problem=str(error))
    try:
        with Image.open(io.BytesIO(data)) as image:
            size = (image.height, image.width)
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
            # JPEG only: at an eighth of the size all of the file is still entropy-decoded, but few pixels are made.
            image.draft("L", (1, 1))
            image.load()
    # Decoders fed with arbitrary bytes raise nearly anything (OSError, SyntaxError, struct.error, zlib.error ...).
    except Exception as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error).split("\n")[0]
        return ImageCheck(problem=reason or type(error).__name__)
    return ImageCheck(hashlib.sha256(data).digest(), size, orientation)

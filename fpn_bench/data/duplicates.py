"""Images that a data set holds twice: the same bytes, the same pixels, or nearly the same pixels."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fpn_bench.data.annotations import AnnotatedSet
from fpn_bench.data.images import ImageCheck, check_and_load_image

THUMB_PX = 16  # side of the thumbnails by which near-duplicates are found, in pixels
_NEAR_BITS = 3  # of 64, by which their gradients may differ
_NEAR_LEVELS = 4.0  # of 255, by which they may differ in the mean
_KEPT_DISTINCT, _KEPT_RECENT = 64, 8


@dataclass(frozen=True, slots=True, eq=False)
class ImageDigest:
    """Identifies the content of an image file: its check, a hash of its pixels, a thumbnail for near-duplicates."""

    check: ImageCheck
    pixels: bytes = b""
    gradient: int = 0
    thumb: npt.NDArray[np.uint8] | None = None


def digest_of(path: Path) -> ImageDigest:
    """Decode a whole file. Its pixels identify copies saved again without loss, its thumbnail those saved with loss."""
    check, rgb = check_and_load_image(path)
    if rgb is None:
        return ImageDigest(check)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}".encode() + rgb.tobytes()).digest()
    grey = rgb.convert("L")
    # Is each of 8 x 8 places brighter than its left neighbour? (difference hash: N. Krawetz 2013, "Kind of Like That")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    gradient = int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")
    thumb = np.asarray(grey.resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX), np.uint8).reshape(-1)
    return ImageDigest(check, digest, gradient, thumb)


class Duplicate(NamedTuple):
    """An image that occurred before, as a finding reports it."""

    kind: str
    split: str
    text: str
    example: str


def find_duplicates(annotated: AnnotatedSet, digests: Sequence[ImageDigest]) -> list[Duplicate]:
    """Images that occurred before, in their own split or an earlier one: same bytes, same pixels or nearly."""
    found: list[Duplicate] = []
    places = [(split.name, image.path) for split in annotated.splits for image in split.images]
    readable = [i for i, digest in enumerate(digests) if digest.check.problem is None]
    reported: set[tuple[int, str]] = set()

    def report(kind: str, words: str, i: int, j: int) -> None:
        (split, path), (other, twin) = places[i], places[j]
        if (i, other) in reported:
            return
        reported.add((i, other))
        where = "in their own split" if split == other else f"in {other}"
        leak = "" if split == other else ": what is measured on them is known from there"
        suffix = "" if split == other else f"_{other}"
        text = f"images that are {words} {where}{leak}"
        found.append(Duplicate(f"{kind}{suffix}", split, text, f"{path} and {twin}"))

    kinds: tuple[tuple[str, str, Callable[[ImageDigest], bytes]], ...] = (
        ("same_file", "a copy of one", lambda image: image.check.digest),
        ("same_pixels", "another file with the pixels of one", lambda image: image.pixels),
    )
    for kind, words, key in kinds:
        first: dict[tuple[bytes, str], int] = {}
        twins: dict[bytes, list[int]] = defaultdict(list)  # the first of each split
        for i in readable:
            content = key(digests[i])
            for j in twins[content]:
                report(kind, words, i, j)
            if first.setdefault((content, places[i][0]), i) == i:
                twins[content].append(i)
    for i, j in near_duplicates((i, places[i][0], digests[i]) for i in readable):
        report("near_duplicate", "nearly one", i, j)
    return found


def near_duplicates(digests: Iterable[tuple[int, str, ImageDigest]]) -> Iterator[tuple[int, int]]:
    """Pairs (later, earlier) of nearly equal images, at most one for each image and split.

    Gradients that differ by at most 3 bits of 64 share one of four pieces of 16 bits, and mean brightness differs by no
    more than the pictures do: an image is compared with those only that share a piece in its own and the two
    neighbouring steps of brightness. A cell of that table keeps the last `_KEPT_RECENT` images of a split, and the last
    `_KEPT_DISTINCT` of those that were like none before, so that the frames of a static camera stay few.
    """
    cells: dict[tuple[int, int, int], dict[str, _Cell]] = defaultdict(lambda: defaultdict(_Cell))
    for number, split, digest in digests:
        if digest.thumb is None:
            continue
        step = int(digest.thumb.mean() // _NEAR_LEVELS)
        pieces = [(piece, digest.gradient >> (16 * piece) & 0xFFFF) for piece in range(_NEAR_BITS + 1)]
        found: dict[str, int] = {}
        for piece, key in pieces:
            for near in (step, step - 1, step + 1):
                for other, cell in cells[piece, key, near].items() if (piece, key, near) in cells else ():
                    if other not in found and (twin := cell.twin(digest)) is not None:
                        found[other] = twin
        for twin in found.values():
            yield number, twin
        for piece, key in pieces:
            cells[piece, key, step][split].add(number, digest, is_distinct=split not in found)


class _Cell:
    """Images of one split that may be alike."""

    def __init__(self) -> None:
        self._distinct: deque[tuple[int, ImageDigest]] = deque(maxlen=_KEPT_DISTINCT)
        self._recent: deque[tuple[int, ImageDigest]] = deque(maxlen=_KEPT_RECENT)

    def add(self, number: int, digest: ImageDigest, *, is_distinct: bool) -> None:
        (self._distinct if is_distinct else self._recent).append((number, digest))

    def twin(self, digest: ImageDigest) -> int | None:
        """The number of an image that is nearly this one."""
        assert digest.thumb is not None
        for number, other in chain(self._distinct, self._recent):
            if other.thumb is None or (digest.gradient ^ other.gradient).bit_count() > _NEAR_BITS:
                continue
            if np.abs(digest.thumb.astype(np.int16) - other.thumb).mean() <= _NEAR_LEVELS:
                return number
        return None

"""What flows between a backbone and a neck: levels, channels, strides and the sizes of their maps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fpn_bench.errors import InputError

ImageSize = tuple[int, int]
"""(height, width) in pixels."""
MAX_LEVEL = 30
"""The coarsest level a neck may have: one pixel of it stands for more than any image holds."""


@dataclass(frozen=True, order=True, slots=True)
class FeatureSpec:
    """One pyramid level: map ``Pk`` has stride ``2**k``.

    Attributes:
        level: k of ``Pk`` / ``Ck``.
        channels: channels of the map.
        stride: input pixels per map pixel. ``2**level`` unless the backbone's own stride is no power of two.
    """

    level: int
    channels: int
    stride: int

    def __post_init__(self) -> None:
        if self.level < 0 or self.channels < 1 or self.stride < 1:
            raise InputError(f"expected a feature of level >= 0, channels >= 1 and stride >= 1, got {self}")


def check_features(features: Iterable[FeatureSpec]) -> tuple[FeatureSpec, ...]:
    """The features as a tuple, finest first, each level once.

    Raises:
        InputError: no features, a level twice, or not finest first.
    """
    specs = tuple(features)
    levels = [s.level for s in specs]
    if not specs:
        raise InputError("expected features of at least one level, e.g. levels=(3, 4, 5), got none")
    if levels != sorted(set(levels)):
        raise InputError(f"expected each feature level once, finest first, got {levels}")
    return specs


def map_size(image_size: ImageSize, level: int) -> ImageSize:
    """Size of the map at ``level`` of an image, halved ``level`` times and rounded up each time.

    This is what stride-2 convolutions with 'same'-like padding give; some backbones round down instead, so code
    that has the tensors takes the size from them.
    """
    height, width = image_size
    return -(-height // 2**level), -(-width // 2**level)


def level_sizes(inputs: Mapping[int, ImageSize], levels: Collection[int]) -> dict[int, ImageSize]:
    """Size of every level wanted, from the sizes of the input maps.

    A level with an input has the input's size. A level without one is half (rounded up) the next finer level that
    has a size, or, finer than every input, twice the next coarser one.

    Args:
        inputs: level -> (height, width) of the input maps; not empty.
        levels: the levels wanted.
    """
    sizes = dict(inputs)
    finest = min(sizes)
    for level in range(finest - 1, min(levels, default=finest) - 1, -1):
        sizes[level] = (2 * sizes[level + 1][0], 2 * sizes[level + 1][1])
    for level in range(finest + 1, max(levels, default=finest) + 1):
        if level not in sizes:
            height, width = sizes[level - 1]
            sizes[level] = (-(-height // 2), -(-width // 2))
    return sizes

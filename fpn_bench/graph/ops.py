"""The vocabulary of a neck: what may stand on an edge or behind a merge, and how inputs are merged.

Every word is a frozen dataclass of plain values, so that it can be written to JSON, compared and hashed; what it
computes in torch stands in `fpn_bench.layers`, what it costs in `fpn_bench.graph.cost`. To add a word, add its
dataclass here, its cost there, its module there and a line in `fpn_bench.neck` and `fpn_bench.graph.draw`; a test over
`OPS` and every value of its fields finds what is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

UpKind = Literal["nearest", "bilinear"]
DownKind = Literal["max_pool", "avg_pool", "subsample"]
NormKind = Literal["batch", "group"]
ActivationKind = Literal["relu", "relu6", "silu", "leaky_relu", "gelu"]
MergeKind = Literal["sum", "mean", "max", "fast_normalised", "softmax", "concat"]


def _as_floats(item: object, *names: str) -> None:
    """Whole numbers in float fields become floats: 0 and 0.0 are equal, and must be spelled alike."""
    for name in names:
        value = getattr(item, name)
        if type(value) is int and abs(value) < 2**53:
            object.__setattr__(item, name, float(value))


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution, 'same'-padded.

    Attributes:
        channels: output channels.
        kernel: side of the square kernel.
        stride: a power of two; 2**n moves the map n levels up the pyramid. 1 behind a merge.
        groups: channel groups.
        dilation: spacing of the kernel's taps.
        bias: a bias per output channel.
        separable: depthwise kernel x kernel (no bias) followed by a pointwise 1x1 (Chollet 2017).
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    bias: bool = True
    separable: bool = False

    word: ClassVar[str] = "conv"

    @property
    def tiles(self) -> bool:
        """Whether the kernel's windows lie side by side, without overlap."""
        return self.kernel == self.stride

    @property
    def padding(self) -> int:
        """Zeros on each side; none where the kernel tiles the map."""
        return 0 if self.tiles else self.dilation * (self.kernel - 1) // 2

    def problem(self, channels_in: int) -> str | None:
        """What is wrong with these numbers behind `channels_in` channels, or None."""
        if self.channels < 1:
            return f"conv has channels={self.channels}; at least 1 is wanted"
        if self.kernel < 1 or self.dilation < 1:
            return f"conv has kernel={self.kernel}, dilation={self.dilation}; both at least 1 are wanted"
        if self.stride < 1 or self.stride & (self.stride - 1):
            return f"conv has stride={self.stride}; a power of two is wanted"
        if self.kernel % 2 == 0 and not self.tiles:
            return f"conv has an even kernel={self.kernel}; an odd one, or kernel == stride, is wanted"
        if self.tiles and self.dilation > 1:
            return f"conv has dilation={self.dilation} and kernel == stride; dilation=1 is wanted there"
        if self.groups < 1 or channels_in % self.groups or self.channels % self.groups:
            return f"conv has groups={self.groups}; a divisor of {channels_in} and {self.channels} channels is wanted"
        if self.separable and self.groups != 1:
            return f"conv is separable and has groups={self.groups}; separable convs want groups=1"
        return None


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation layer with one scale and one shift per channel.

    Attributes:
        kind: ``"batch"`` or ``"group"`` (Wu & He 2018).
        eps: added to the variance.
        momentum: of the running statistics, torch's convention (batch only).
        groups: most groups there may be (group only). A group has at least eight channels, so that narrow necks
            do not end up with one channel a group, whose normalised one-pixel map would be zero.
    """

    kind: NormKind = "batch"
    eps: float = 1e-5
    momentum: float = 0.1
    groups: int = 32

    word: ClassVar[str] = "norm"

    def __post_init__(self) -> None:
        _as_floats(self, "eps", "momentum")

    def problem(self, channels_in: int) -> str | None:
        """What is wrong with these numbers, or None."""
        if not 0 <= self.eps < math.inf or self.groups < 1 or not 0 <= self.momentum <= 1:
            return (
                f"norm has eps={self.eps}, groups={self.groups}, momentum={self.momentum}; eps >= 0, groups >= 1 "
                "and momentum in 0..1 are wanted"
            )
        return None


@dataclass(frozen=True, slots=True)
class Activation:
    """An element-wise nonlinearity."""

    kind: ActivationKind = "relu"

    word: ClassVar[str] = "activation"

    def problem(self, channels_in: int) -> str | None:
        """Nothing can be wrong with an activation."""
        return None


@dataclass(frozen=True, slots=True)
class Resample:
    """Brings a map to its node's level; stands on edges only.

    It covers the part of the level difference that strided convs on the same edge do not. The target's size is taken
    from the maps at run time, so any input size works: up-sampling interpolates straight to it, and where a pool's
    own rounding differs from the level's size by a row or column, the surplus is cut and the missing repeated.

    Attributes:
        kind: up ``"nearest"``, ``"bilinear"`` (align_corners=False); down ``"max_pool"``, ``"avg_pool"``,
            ``"subsample"`` (every stride-th pixel, torchvision's `LastLevelMaxPool`).
        kernel: ``"stride"`` pools windows that tile the map; ``"stride+1"`` overlaps them by one pixel and pads
            (EfficientDet's 3x3 stride 2). Pools only.
    """

    kind: UpKind | DownKind
    kernel: Literal["stride", "stride+1"] = "stride"

    word: ClassVar[str] = "resample"

    @property
    def direction(self) -> int:
        """-1 towards finer levels (up-sampling), +1 towards coarser ones."""
        return -1 if self.kind in ("nearest", "bilinear") else 1

    def problem(self, channels_in: int) -> str | None:
        """What is wrong with these values, or None."""
        if self.kernel != "stride" and self.kind not in ("max_pool", "avg_pool"):
            return f"resample {self.kind!r} has kernel={self.kernel!r}; only pools take one, leave it out"
        return None


Op = Conv | Norm | Activation | Resample
OPS: dict[str, type[Conv] | type[Norm] | type[Activation] | type[Resample]] = {
    cls.word: cls for cls in (Conv, Norm, Activation, Resample)
}


@dataclass(frozen=True, slots=True)
class Merge:
    """How a node makes one map of its inputs.

    Attributes:
        kind: ``"sum"``; ``"mean"``; ``"max"`` (element-wise); ``"fast_normalised"``: relu(w_i) x_i / (sum relu(w) +
            eps), one scalar per edge (EfficientDet, Tan et al. 2020, section 3.3); ``"softmax"``: softmax over the same
            scalars; ``"concat"``: along channels, in the order of the edges (a 1x1 conv behind it mixes them).
        eps: of ``"fast_normalised"``.
    """

    kind: MergeKind = "sum"
    eps: float = 1e-4

    def __post_init__(self) -> None:
        _as_floats(self, "eps")

    def problem(self) -> str | None:
        """What is wrong with these values, or None."""
        return None if 0 <= self.eps < math.inf else f"merge has eps={self.eps}; at least 0 is wanted"

    @property
    def commutes(self) -> bool:
        """Whether the order of the inputs is only spelling."""
        return self.kind != "concat"

    @property
    def is_weighted(self) -> bool:
        """Whether every input has a learned scalar."""
        return self.kind in ("fast_normalised", "softmax")

    @property
    def is_identity_of_one(self) -> bool:
        """Whether a merge of one input is that input."""
        return not self.is_weighted

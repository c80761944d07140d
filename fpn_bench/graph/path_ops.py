"""Operations on the way of one map: what may stand on an edge or behind a merge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fpn_bench.graph.kinds import ActivationKind, DownKind, InterpolationKind, NormKind, PoolKind, PoolWindow, UpKind
from fpn_bench.graph.spec import Op, register
from fpn_bench.pyramid import ImageSize


@register
@dataclass(frozen=True, slots=True)
class Conv(Op):
    """A convolution, 'same'-padded.

    Attributes:
        channels: output channels.
        kernel: side of the square kernel.
        stride: a power of two; 2**n moves the map n levels up the pyramid. 1 behind a merge.
        groups: channel groups.
        dilation: spacing of the kernel's taps.
        bias: a bias per output channel.
        separable: depthwise kernel x kernel (no bias) followed by a pointwise 1x1 (Chollet 2017).
        gain: factor on the initial weights; small where the map that is made steers something, as offsets do.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    bias: bool = True
    separable: bool = False
    gain: float = 1.0

    op_type: ClassVar[str] = "conv"
    learns: ClassVar[bool] = True
    idle_fields: ClassVar[tuple[str, ...]] = ()

    @property
    def tiles(self) -> bool:
        """Whether the kernel's windows lie side by side, without overlap."""
        return self.kernel == self.stride

    @property
    def padding(self) -> int:
        """Zeros on each side; none where the kernel tiles the map."""
        return 0 if self.tiles else self.dilation * (self.kernel - 1) // 2

    def validate(self, channels: int, levels: int) -> str | None:
        if self.channels < 1:
            return f"conv has channels={self.channels}; expected at least 1"
        if self.kernel < 1 or self.dilation < 1:
            return f"conv has kernel={self.kernel}, dilation={self.dilation}; expected at least 1 for both"
        if self.stride < 1 or self.stride & (self.stride - 1):
            return f"conv has stride={self.stride}; expected a power of two, e.g. stride=2"
        if self.kernel % 2 == 0 and not self.tiles:
            return f"conv has an even kernel={self.kernel}; expected an odd one, or kernel == stride"
        if self.tiles and self.dilation > 1:
            return f"conv has dilation={self.dilation} and kernel == stride; expected dilation=1 there"
        if self.groups < 1 or channels % self.groups or self.channels % self.groups:
            return (
                f"conv has groups={self.groups}; expected a divisor of its {channels} input and {self.channels} "
                "output channels"
            )
        if self.separable and self.groups != 1:
            return f"conv is separable and has groups={self.groups}; expected groups=1"
        if not 0 < self.gain < math.inf:
            return f"conv has gain={self.gain}; expected a finite number above 0"
        return None

    @property
    def levels_moved(self) -> int:
        return self.stride.bit_length() - 1

    @property
    def symbol(self) -> str:
        text = f"{'sep ' if self.separable else ''}{self.kernel}x{self.kernel}"
        text += f"/{self.stride}" if self.stride > 1 else ""
        text += f" dil{self.dilation}" if self.dilation > 1 else ""
        return text + (f" g{self.groups}" if self.groups > 1 else "")

    def out_width(self, channels: int, levels: int) -> int:
        return self.channels

    def cost(self, channels: int, size: ImageSize) -> tuple[int, int]:
        height, width = map(self._side, size)
        if self.separable:
            weights = self.kernel**2 * channels + channels * self.channels
        else:
            weights = self.kernel**2 * channels * self.channels // self.groups
        return weights + self.channels * self.bias, weights * height * width

    def _side(self, side: int) -> int:
        """Of the map that the convolution itself makes, before it is fitted to the level's size."""
        if self.tiles:
            return -(-side // self.stride)
        return (side + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1


@register
@dataclass(frozen=True, slots=True)
class TransposedConv(Op):
    """A transposed convolution; stands on edges only and moves the map down the pyramid, to finer levels.

    Attributes:
        channels: output channels.
        kernel: side of the square kernel: the stride (windows side by side), twice the stride, or an odd number above
            the stride.
        stride: a power of two from 2; 2**n moves the map n levels down the pyramid.
        groups: channel groups.
        bias: a bias per output channel.
    """

    channels: int
    kernel: int = 2
    stride: int = 2
    groups: int = 1
    bias: bool = True

    op_type: ClassVar[str] = "transposed_conv"
    learns: ClassVar[bool] = True
    idle_fields: ClassVar[tuple[str, ...]] = ()

    @property
    def padding(self) -> int:
        """Rows cut from each side, so that the map is `stride` times as large (with `output_padding`)."""
        return (self.kernel - self.stride + 1) // 2

    @property
    def output_padding(self) -> int:
        """Rows added at the far side."""
        return 2 * self.padding - (self.kernel - self.stride)

    def validate(self, channels: int, levels: int) -> str | None:
        if self.channels < 1:
            return f"transposed conv has channels={self.channels}; expected at least 1"
        if self.stride < 2 or self.stride & (self.stride - 1):
            return f"transposed conv has stride={self.stride}; expected a power of two of at least 2"
        if self.kernel not in (self.stride, 2 * self.stride) and (self.kernel % 2 == 0 or self.kernel < self.stride):
            return (
                f"transposed conv has kernel={self.kernel}, stride={self.stride}; expected kernel={self.stride}, "
                f"kernel={2 * self.stride} or an odd one above the stride"
            )
        if self.groups < 1 or channels % self.groups or self.channels % self.groups:
            return (
                f"transposed conv has groups={self.groups}; expected a divisor of its {channels} input and "
                f"{self.channels} output channels"
            )
        return None

    @property
    def levels_moved(self) -> int:
        return 1 - self.stride.bit_length()

    @property
    def symbol(self) -> str:
        return f"{self.kernel}x{self.kernel}*{self.stride}"

    def out_width(self, channels: int, levels: int) -> int:
        return self.channels

    def cost(self, channels: int, size: ImageSize) -> tuple[int, int]:
        weights = self.kernel**2 * channels * self.channels // self.groups
        return weights + self.channels * self.bias, weights * size[0] * size[1]


@register
@dataclass(frozen=True, slots=True)
class Norm(Op):
    """A normalisation layer with one scale and one shift per channel.

    Attributes:
        kind: ``"batch"``, ``"group"`` (Wu & He 2018) or ``"layer"``: over the channels of each pixel.
        eps: added to the variance.
        momentum: of the running statistics, torch's convention (batch only).
        groups: most groups there may be (group only). A group has at least eight channels, so that narrow necks
            do not end up with one channel a group, whose normalised one-pixel map would be zero.
    """

    kind: NormKind = "batch"
    eps: float = 1e-5
    momentum: float = 0.1
    groups: int = 32

    op_type: ClassVar[str] = "norm"
    learns: ClassVar[bool] = True
    levels_moved: ClassVar[int] = 0

    def validate(self, channels: int, levels: int) -> str | None:
        if not 0 <= self.eps < math.inf or self.groups < 1 or not 0 <= self.momentum <= 1:
            return (
                f"norm has eps={self.eps}, groups={self.groups}, momentum={self.momentum}; expected eps >= 0, "
                "groups >= 1 and momentum from 0 to 1"
            )
        return None

    @property
    def symbol(self) -> str:
        return {"batch": "BN", "group": "GN", "layer": "LN"}[self.kind]

    @property
    def idle_fields(self) -> tuple[str, ...]:
        idle = {"batch": ("groups",), "group": ("momentum",), "layer": ("groups", "momentum")}
        return idle[self.kind]

    def out_width(self, channels: int, levels: int) -> int:
        return channels

    def cost(self, channels: int, size: ImageSize) -> tuple[int, int]:
        return 2 * channels, 0


@dataclass(frozen=True, slots=True)
class _Weightless(Op):
    """One without weights and MACs that keeps the width, and of itself the level."""

    learns: ClassVar[bool] = False
    levels_moved: ClassVar[int] = 0

    def out_width(self, channels: int, levels: int) -> int:
        return channels

    def cost(self, channels: int, size: ImageSize) -> tuple[int, int]:
        return 0, 0


@register
@dataclass(frozen=True, slots=True)
class Activation(_Weightless):
    """An element-wise nonlinearity.

    Attributes:
        kind: which.
        slope: below zero (leaky_relu only).
    """

    kind: ActivationKind = "relu"
    slope: float = 0.01

    op_type: ClassVar[str] = "activation"

    def validate(self, channels: int, levels: int) -> str | None:
        return None if math.isfinite(self.slope) else f"activation has slope={self.slope}; expected a finite number"

    @property
    def symbol(self) -> str:
        return self.kind.replace("_", "-")

    @property
    def idle_fields(self) -> tuple[str, ...]:
        return () if self.kind == "leaky_relu" else ("slope",)


@register
@dataclass(frozen=True, slots=True)
class Resample(_Weightless):
    """Brings a map to its node's level; stands on edges only.

    It covers the part of the level difference that strided convs on the same edge do not. The target's size is taken
    from the maps at run time, so any input size works: up-sampling interpolates straight to it, and where a pool's
    own rounding differs from the level's size by a row or column, the surplus is cut and the missing repeated.

    Attributes:
        kind: up ``"nearest"``, ``"bilinear"`` (align_corners=False), ``"pixel_shuffle"`` (4 channels make one of twice
            the side, Shi et al. 2016); down ``"max_pool"``, ``"avg_pool"``, ``"subsample"`` (every stride-th pixel,
            torchvision's `LastLevelMaxPool`), ``"adaptive_max_pool"``, ``"adaptive_avg_pool"`` (as many windows as
            the target has pixels).
        kernel: ``"stride"`` pools windows that tile the map; ``"stride+1"`` overlaps them by one pixel and pads
            (EfficientDet's 3x3 stride 2); ``"3"`` is 3x3 at any stride. `max_pool` and `avg_pool` only.
    """

    kind: UpKind | DownKind
    kernel: PoolWindow = "stride"

    op_type: ClassVar[str] = "resample"
    idle_fields: ClassVar[tuple[str, ...]] = ()

    @property
    def direction(self) -> int:
        """-1 towards finer levels (up-sampling), +1 towards coarser ones."""
        return -1 if self.kind in ("nearest", "bilinear", "pixel_shuffle") else 1

    def validate(self, channels: int, levels: int) -> str | None:
        if self.kernel != "stride" and self.kind not in ("max_pool", "avg_pool"):
            return f"resample {self.kind!r} has kernel={self.kernel!r}; only pools take one, leave it out"
        if self.kind == "pixel_shuffle" and channels % 4 ** max(-levels, 0):
            return f"pixel_shuffle by {-levels} level(s) has {channels} channels; expected a multiple of {4**-levels}"
        return None

    @property
    def symbol(self) -> str:
        return self.kind.replace("_", "-") + {"stride": "", "stride+1": "+1", "3": " 3x3"}[self.kernel]

    def out_width(self, channels: int, levels: int) -> int:
        return channels // 4 ** max(-levels, 0) if self.kind == "pixel_shuffle" else channels

    def over(self, levels: int) -> Resample:
        """The same over so many levels, as it stands in the identity: a window may have two spellings."""
        return Resample(self.kind, "stride+1") if self.kernel == "3" and levels == 1 else self


@register
@dataclass(frozen=True, slots=True)
class AdaptivePool(_Weightless):
    """Pools a map into bins x bins cells, whatever its size; the `ResizeToLevel` behind it on the same edge ends this.

    Attributes:
        bins: cells a side; 1 is the global pool.
        kind: of pool.
    """

    bins: int = 1
    kind: PoolKind = "avg"

    op_type: ClassVar[str] = "adaptive_pool"
    idle_fields: ClassVar[tuple[str, ...]] = ()

    def validate(self, channels: int, levels: int) -> str | None:
        return None if self.bins >= 1 else f"adaptive pool has bins={self.bins}; expected at least 1"

    @property
    def symbol(self) -> str:
        return f"{self.kind}-pool to {self.bins}x{self.bins}"


@register
@dataclass(frozen=True, slots=True)
class ResizeToLevel(_Weightless):
    """Brings the cells of an `AdaptivePool` back to the size of its level.

    Attributes:
        kind: of interpolation.
    """

    kind: InterpolationKind = "bilinear"

    op_type: ClassVar[str] = "restore"
    idle_fields: ClassVar[tuple[str, ...]] = ()
    symbol: ClassVar[str] = "restore"

    def validate(self, channels: int, levels: int) -> str | None:
        return None


@register
@dataclass(frozen=True, slots=True)
class PositionalEncoding(_Weightless):
    """Adds sines and cosines of the column and the row, a quarter of the channels each (Vaswani et al. 2017, in 2-D).

    Attributes:
        temperature: of the frequencies.
    """

    temperature: float = 10000.0

    op_type: ClassVar[str] = "positional_encoding"
    idle_fields: ClassVar[tuple[str, ...]] = ()
    symbol: ClassVar[str] = "+position"

    def validate(self, channels: int, levels: int) -> str | None:
        if not 1 < self.temperature < math.inf:
            return f"positional encoding has temperature={self.temperature}; expected a finite number above 1"
        if channels % 4:
            return f"positional encoding has {channels} channels; expected a multiple of 4"
        return None

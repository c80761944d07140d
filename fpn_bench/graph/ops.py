"""The vocabulary of a neck: what may stand on an edge or behind a merge, and how inputs are merged.

Every word is a frozen dataclass of plain values, so that it can be written to JSON, compared and hashed; what it
computes in torch stands in `fpn_bench.nn`, what it costs in `fpn_bench.graph.cost`. To add a word, add its
dataclass here, its cost there, its module there and a line in `fpn_bench.nn.neck` and `fpn_bench.graph.draw`; a test
over `OPS`, `MERGES` and every value of their fields finds what is missing.

Blocks (CSP, RepVGG, a transformer layer ...) are no words: they are nodes made of these, see `fpn_bench.zoo.blocks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

UpKind = Literal["nearest", "bilinear", "pixel_shuffle"]
DownKind = Literal["max_pool", "avg_pool", "subsample", "adaptive_max_pool", "adaptive_avg_pool"]
NormKind = Literal["batch", "group", "layer"]
ActivationKind = Literal["relu", "relu6", "silu", "leaky_relu", "gelu", "hard_swish", "sigmoid"]
MergeKind = Literal["sum", "mean", "max", "product", "weighted", "fast_normalised", "softmax", "concat"]


def _as_floats(item: object, *names: str) -> None:
    """Numbers in float fields become floats, and -0.0 becomes 0.0: what is equal must be spelled alike."""
    for name in names:
        value = getattr(item, name)
        if type(value) is float or (type(value) is int and abs(value) < 2**53):
            object.__setattr__(item, name, float(value) + 0.0)


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

    word: ClassVar[str] = "conv"

    def __post_init__(self) -> None:
        _as_floats(self, "gain")

    @property
    def tiles(self) -> bool:
        """Whether the kernel's windows lie side by side, without overlap."""
        return self.kernel == self.stride

    @property
    def padding(self) -> int:
        """Zeros on each side; none where the kernel tiles the map."""
        return 0 if self.tiles else self.dilation * (self.kernel - 1) // 2

    def problem(self, channels_in: int, levels: int = 0) -> str | None:
        """What is wrong with these numbers behind `channels_in` channels, or None."""
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
        if self.groups < 1 or channels_in % self.groups or self.channels % self.groups:
            return (
                f"conv has groups={self.groups}; expected a divisor of its {channels_in} input and {self.channels} "
                "output channels"
            )
        if self.separable and self.groups != 1:
            return f"conv is separable and has groups={self.groups}; expected groups=1"
        if not 0 < self.gain < math.inf:
            return f"conv has gain={self.gain}; expected a finite number above 0"
        return None


@dataclass(frozen=True, slots=True)
class TransposedConv:
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

    word: ClassVar[str] = "transposed_conv"

    @property
    def padding(self) -> int:
        """Rows cut from each side, so that the map is `stride` times as large (with `output_padding`)."""
        return (self.kernel - self.stride + 1) // 2

    @property
    def output_padding(self) -> int:
        """Rows added at the far side."""
        return 2 * self.padding - (self.kernel - self.stride)

    def problem(self, channels_in: int, levels: int = 0) -> str | None:
        """What is wrong with these numbers behind `channels_in` channels, or None."""
        if self.channels < 1:
            return f"transposed conv has channels={self.channels}; expected at least 1"
        if self.stride < 2 or self.stride & (self.stride - 1):
            return f"transposed conv has stride={self.stride}; expected a power of two of at least 2"
        if self.kernel not in (self.stride, 2 * self.stride) and (self.kernel % 2 == 0 or self.kernel < self.stride):
            return (
                f"transposed conv has kernel={self.kernel}, stride={self.stride}; expected kernel={self.stride}, "
                f"kernel={2 * self.stride} or an odd one above the stride"
            )
        if self.groups < 1 or channels_in % self.groups or self.channels % self.groups:
            return (
                f"transposed conv has groups={self.groups}; expected a divisor of its {channels_in} input and "
                f"{self.channels} output channels"
            )
        return None


@dataclass(frozen=True, slots=True)
class Norm:
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

    word: ClassVar[str] = "norm"

    def __post_init__(self) -> None:
        _as_floats(self, "eps", "momentum")

    def problem(self, channels_in: int, levels: int = 0) -> str | None:
        """What is wrong with these numbers, or None."""
        if not 0 <= self.eps < math.inf or self.groups < 1 or not 0 <= self.momentum <= 1:
            return (
                f"norm has eps={self.eps}, groups={self.groups}, momentum={self.momentum}; expected eps >= 0, "
                "groups >= 1 and momentum from 0 to 1"
            )
        return None


@dataclass(frozen=True, slots=True)
class Activation:
    """An element-wise nonlinearity.

    Attributes:
        kind: which.
        slope: below zero (leaky_relu only).
    """

    kind: ActivationKind = "relu"
    slope: float = 0.01

    word: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        _as_floats(self, "slope")

    def problem(self, channels_in: int, levels: int = 0) -> str | None:
        """What is wrong with these values, or None."""
        return None if math.isfinite(self.slope) else f"activation has slope={self.slope}; expected a finite number"


@dataclass(frozen=True, slots=True)
class Resample:
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
    kernel: Literal["stride", "stride+1", "3"] = "stride"

    word: ClassVar[str] = "resample"

    @property
    def direction(self) -> int:
        """-1 towards finer levels (up-sampling), +1 towards coarser ones."""
        return -1 if self.kind in ("nearest", "bilinear", "pixel_shuffle") else 1

    def problem(self, channels_in: int, levels: int = 0) -> str | None:
        """What is wrong with these values behind `channels_in` channels and over `levels` levels, or None."""
        if self.kernel != "stride" and self.kind not in ("max_pool", "avg_pool"):
            return f"resample {self.kind!r} has kernel={self.kernel!r}; only pools take one, leave it out"
        if self.kind == "pixel_shuffle" and channels_in % 4 ** max(-levels, 0):
            return (
                f"pixel_shuffle by {-levels} level(s) has {channels_in} channels; expected a multiple of {4**-levels}"
            )
        return None


@dataclass(frozen=True, slots=True)
class AdaptivePool:
    """Pools a map into bins x bins cells, whatever its size; the `Restore` behind it on the same edge ends this.

    Attributes:
        bins: cells a side; 1 is the global pool.
        kind: of pool.
    """

    bins: int = 1
    kind: Literal["avg", "max"] = "avg"

    word: ClassVar[str] = "adaptive_pool"

    def problem(self, channels_in: int, levels: int = 0) -> str | None:
        """What is wrong with these values, or None."""
        return None if self.bins >= 1 else f"adaptive pool has bins={self.bins}; expected at least 1"


@dataclass(frozen=True, slots=True)
class Restore:
    """Brings the cells of an `AdaptivePool` back to the size of its level.

    Attributes:
        kind: of interpolation.
    """

    kind: Literal["nearest", "bilinear"] = "bilinear"

    word: ClassVar[str] = "restore"

    def problem(self, channels_in: int, levels: int = 0) -> str | None:
        """Nothing can be wrong with the values."""
        return None


@dataclass(frozen=True, slots=True)
class PositionalEncoding:
    """Adds sines and cosines of the column and the row, a quarter of the channels each (Vaswani et al. 2017, in 2-D).

    Attributes:
        temperature: of the frequencies.
    """

    temperature: float = 10000.0

    word: ClassVar[str] = "positional_encoding"

    def __post_init__(self) -> None:
        _as_floats(self, "temperature")

    def problem(self, channels_in: int, levels: int = 0) -> str | None:
        """What is wrong with these values behind `channels_in` channels, or None."""
        if not 1 < self.temperature < math.inf:
            return f"positional encoding has temperature={self.temperature}; expected a finite number above 1"
        if channels_in % 4:
            return f"positional encoding has {channels_in} channels; expected a multiple of 4"
        return None


Op = Conv | TransposedConv | Norm | Activation | Resample | AdaptivePool | Restore | PositionalEncoding
OPS: dict[str, type[Op]] = {
    cls.word: cls
    for cls in (Conv, TransposedConv, Norm, Activation, Resample, AdaptivePool, Restore, PositionalEncoding)
}


def levels_moved(op: Op, resample_levels: int = 0) -> int:
    """Levels up the pyramid that one operation moves its map, of which a `Resample` covers `resample_levels`."""
    if isinstance(op, Resample):
        return resample_levels
    if isinstance(op, Conv):
        return op.stride.bit_length() - 1
    return 1 - op.stride.bit_length() if isinstance(op, TransposedConv) else 0


class Stop(NamedTuple):
    """One operation on its way: the level and channels of the map before and behind it."""

    op: Op
    level: int
    channels: int
    level_after: int
    channels_after: int


def trace(ops: Sequence[Op], level: int, channels: int, resample_levels: int = 0) -> Iterator[Stop]:
    """The way of a map of `channels` at `level` through `ops`, whose `Resample` moves it `resample_levels` up."""
    for op in ops:
        after, width = level + levels_moved(op, resample_levels), channels
        if isinstance(op, (Conv, TransposedConv)):
            width = op.channels
        elif isinstance(op, Resample) and op.kind == "pixel_shuffle":
            width = channels // 4 ** max(-resample_levels, 0)
        yield Stop(op, level, channels, after, width)
        level, channels = after, width


# -- merges ------------------------------------------------------------------------------------------------------
#
# Each says of the widths of its inputs: what is wrong with them (`problem`), and how wide the merged map is
# (`channels`). `commutes`: the order of the inputs is only spelling. `is_identity_of_one`: a merge of one input is it.


@dataclass(frozen=True, slots=True)
class Merge:
    """How a node makes one map of any number of inputs that are alike.

    Attributes:
        kind: ``"sum"``; ``"mean"``; ``"max"`` and ``"product"`` (element-wise); ``"weighted"``: sum w_i x_i;
            ``"fast_normalised"``: relu(w_i) x_i / (sum relu(w) + eps) (EfficientDet, Tan et al. 2020, section 3.3);
            ``"softmax"``: softmax over the w_i; ``"concat"``: along channels, in the order of the edges (a 1x1 conv
            behind it mixes them).
        eps: of ``"fast_normalised"``.
        per_channel: one learned w_i an input and channel, not one an input; of the three weighted kinds.
    """

    kind: MergeKind = "sum"
    eps: float = 1e-4
    per_channel: bool = False

    word: ClassVar[str] = "merge"

    def __post_init__(self) -> None:
        _as_floats(self, "eps")

    def problem(self, widths: Sequence[int]) -> str | None:
        """What is wrong with these values over inputs of `widths` channels, or None."""
        if not 0 <= self.eps < math.inf:
            return f"merge has eps={self.eps}; expected a finite number of at least 0"
        if self.per_channel and not self.is_weighted:
            return f"merge {self.kind!r} has per_channel=True; only weighted, fast_normalised and softmax take it"
        if self.kind != "concat" and len(set(widths)) > 1:
            return f"merges maps of unequal channels by {self.kind}"
        return None

    def channels(self, widths: Sequence[int]) -> int:
        """Channels of the merged map."""
        return sum(widths) if self.kind == "concat" else widths[0]

    @property
    def commutes(self) -> bool:
        """Whether the order of the inputs is only spelling."""
        return self.kind != "concat"

    @property
    def is_weighted(self) -> bool:
        """Whether every input has learned weights."""
        return self.kind in ("weighted", "fast_normalised", "softmax")

    @property
    def is_identity_of_one(self) -> bool:
        """Whether a merge of one input is that input."""
        return not self.is_weighted


@dataclass(frozen=True, slots=True)
class _Steered:
    """A merge whose last input says, pixel by pixel, what happens to the others."""

    commutes: ClassVar[bool] = False
    is_weighted: ClassVar[bool] = False
    is_identity_of_one: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class SpatialSoftmax(_Steered):
    """Maps x_1 ... x_n and logits of n channels: sum softmax(logits)_i x_i at each pixel (ASFF, Liu et al. 2019)."""

    word: ClassVar[str] = "spatial_softmax"

    def problem(self, widths: Sequence[int]) -> str | None:
        """What is wrong over inputs of `widths` channels, or None."""
        if len(widths) < 2:
            return "merges 1 input by spatial_softmax; expected at least one map, then the logits"
        if len(set(widths[:-1])) > 1:
            return "merges maps of unequal channels by spatial_softmax"
        if widths[-1] != len(widths) - 1:
            return (
                f"merges {len(widths) - 1} map(s) by spatial_softmax, and its last input, the logits, has {widths[-1]} "
                f"channels; expected {len(widths) - 1}, one for each map"
            )
        return None

    def channels(self, widths: Sequence[int]) -> int:
        """Channels of the merged map."""
        return widths[0]


@dataclass(frozen=True, slots=True)
class Attention(_Steered):
    """Query, key and value maps: softmax(query . key) value over all pixels (Vaswani et al. 2017; Wang et al. 2018).

    Attributes:
        heads: groups of channels that attend on their own.
        scaled: the products are divided by the square root of a head's channels.
    """

    heads: int = 1
    scaled: bool = True

    word: ClassVar[str] = "attention"

    def problem(self, widths: Sequence[int]) -> str | None:
        """What is wrong with these values over inputs of `widths` channels, or None."""
        if len(widths) != 3:
            return f"merges {len(widths)} input(s) by attention; expected three: query, key, value"
        if widths[0] != widths[1]:
            return "merges query and key of unequal channels by attention"
        if self.heads < 1 or widths[0] % self.heads or widths[2] % self.heads:
            return (
                f"attention has heads={self.heads}; expected a divisor of the {widths[0]} channels of its query and "
                f"the {widths[2]} of its value"
            )
        return None

    def channels(self, widths: Sequence[int]) -> int:
        """Channels of the merged map."""
        return widths[2]


@dataclass(frozen=True, slots=True)
class Reassemble(_Steered):
    """A map and, for each of its pixels, the softmax logits of a kernel x kernel filter (CARAFE, Wang et al. 2019).

    Attributes:
        kernel: side of the neighbourhood that each pixel is made of.
        dilation: spacing of the neighbours; 2**n on a map upsampled (nearest) by n levels is CARAFE's upsampling.
    """

    kernel: int = 5
    dilation: int = 1

    word: ClassVar[str] = "reassemble"

    def problem(self, widths: Sequence[int]) -> str | None:
        """What is wrong with these values over inputs of `widths` channels, or None."""
        if self.kernel < 1 or self.kernel % 2 == 0 or self.dilation < 1:
            return (
                f"reassemble has kernel={self.kernel}, dilation={self.dilation}; expected an odd kernel and a dilation "
                "of at least 1"
            )
        if len(widths) != 2:
            return f"merges {len(widths)} input(s) by reassemble; expected two: map, filters"
        if widths[1] != self.kernel**2:
            return f"reassembles by filters of {widths[1]} channels; expected {self.kernel}**2 = {self.kernel**2}"
        return None

    def channels(self, widths: Sequence[int]) -> int:
        """Channels of the merged map."""
        return widths[0]


@dataclass(frozen=True, slots=True)
class DeformableConv(_Steered):
    """A map and its offsets: a convolution whose taps are moved, pixel by pixel (Dai et al. 2017; Zhu et al. 2019).

    The offsets have 2 * kernel**2 channels a group (row and column of each tap); with `modulated`, kernel**2 more a
    group behind all of these, whose sigmoid weighs the taps. Channels are deformed in as many groups as that gives.

    Attributes:
        channels_out: output channels.
        kernel: side of the square kernel, odd.
        bias: a bias per output channel.
        modulated: DCNv2.
    """

    channels_out: int
    kernel: int = 3
    bias: bool = True
    modulated: bool = True

    word: ClassVar[str] = "deformable_conv"

    @property
    def offset_channels(self) -> int:
        """Channels of the offsets of one group."""
        return (3 if self.modulated else 2) * self.kernel**2

    def problem(self, widths: Sequence[int]) -> str | None:
        """What is wrong with these values over inputs of `widths` channels, or None."""
        if self.channels_out < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            return (
                f"deformable conv has channels_out={self.channels_out}, kernel={self.kernel}; expected "
                "channels_out of at least 1 and an odd kernel"
            )
        if len(widths) != 2:
            return f"merges {len(widths)} input(s) by deformable_conv; expected two: map, offsets"
        groups, rest = divmod(widths[1], self.offset_channels)
        if rest or not groups or widths[0] % groups:
            return (
                f"deforms {widths[0]} channels by offsets of {widths[1]}; expected {self.offset_channels} times a "
                f"divisor of {widths[0]}"
            )
        return None

    def channels(self, widths: Sequence[int]) -> int:
        """Channels of the merged map."""
        return self.channels_out


AnyMerge = Merge | SpatialSoftmax | Attention | Reassemble | DeformableConv
MERGES: dict[str, type[AnyMerge]] = {
    cls.word: cls for cls in (Merge, SpatialSoftmax, Attention, Reassemble, DeformableConv)
}

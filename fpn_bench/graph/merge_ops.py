"""Merge operations: how a node makes one map of its inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fpn_bench.graph.kinds import MergeKind
from fpn_bench.graph.spec import MergeOp, register
from fpn_bench.pyramid import ImageSize

_SYMBOLS: dict[MergeKind, str] = {
    "sum": "+",
    "mean": "mean",
    "max": "max",
    "product": "x",
    "weighted": "w+",
    "fast_normalised": "w+",
    "softmax": "softmax",
    "concat": "cat",
}


@register
@dataclass(frozen=True, slots=True)
class Merge(MergeOp):
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

    op_type: ClassVar[str] = "merge"

    def validate(self, widths: Sequence[int]) -> str | None:
        if not 0 <= self.eps < math.inf:
            return f"merge has eps={self.eps}; expected a finite number of at least 0"
        if self.per_channel and not self.learns:
            return f"merge {self.kind!r} has per_channel=True; only weighted, fast_normalised and softmax take it"
        if self.kind != "concat" and len(set(widths)) > 1:
            return f"merges maps of unequal channels by {self.kind}"
        return None

    def out_width(self, widths: Sequence[int]) -> int:
        return sum(widths) if self.kind == "concat" else widths[0]

    @property
    def commutes(self) -> bool:
        return self.kind != "concat"

    @property
    def learns(self) -> bool:
        return self.kind in ("weighted", "fast_normalised", "softmax")

    @property
    def is_identity_of_one(self) -> bool:
        return not self.learns

    @property
    def symbol(self) -> str:
        return _SYMBOLS[self.kind]

    @property
    def idle_fields(self) -> tuple[str, ...]:
        return () if self.kind == "fast_normalised" else ("eps",)

    def cost(self, widths: Sequence[int], size: ImageSize) -> tuple[int, int]:
        return len(widths) * (widths[0] if self.per_channel else 1) if self.learns else 0, 0


@dataclass(frozen=True, slots=True)
class _Steered(MergeOp):
    """A merge whose last input says, pixel by pixel, what happens to the others."""

    commutes: ClassVar[bool] = False
    is_identity_of_one: ClassVar[bool] = False
    idle_fields: ClassVar[tuple[str, ...]] = ()


@register
@dataclass(frozen=True, slots=True)
class SpatialSoftmax(_Steered):
    """Maps x_1 ... x_n and logits of n channels: sum softmax(logits)_i x_i at each pixel (ASFF, Liu et al. 2019)."""

    op_type: ClassVar[str] = "spatial_softmax"
    learns: ClassVar[bool] = False
    symbol: ClassVar[str] = "spatial softmax"

    def validate(self, widths: Sequence[int]) -> str | None:
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

    def out_width(self, widths: Sequence[int]) -> int:
        return widths[0]

    def cost(self, widths: Sequence[int], size: ImageSize) -> tuple[int, int]:
        return 0, 0


@register
@dataclass(frozen=True, slots=True)
class Attention(_Steered):
    """Query, key and value maps: softmax(query . key) value over all pixels (Vaswani et al. 2017; Wang et al. 2018).

    Attributes:
        heads: groups of channels that attend on their own.
        scaled: the products are divided by the square root of a head's channels.
    """

    heads: int = 1
    scaled: bool = True

    op_type: ClassVar[str] = "attention"
    learns: ClassVar[bool] = False
    symbol: ClassVar[str] = "attention"

    def validate(self, widths: Sequence[int]) -> str | None:
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

    def out_width(self, widths: Sequence[int]) -> int:
        return widths[2]

    def cost(self, widths: Sequence[int], size: ImageSize) -> tuple[int, int]:
        return 0, (size[0] * size[1]) ** 2 * (widths[0] + widths[2])


@register
@dataclass(frozen=True, slots=True)
class Reassemble(_Steered):
    """A map and, for each of its pixels, the softmax logits of a kernel x kernel filter (CARAFE, Wang et al. 2019).

    Attributes:
        kernel: side of the neighbourhood that each pixel is made of.
        dilation: spacing of the neighbours; 2**n on a map upsampled (nearest) by n levels is CARAFE's upsampling.
    """

    kernel: int = 5
    dilation: int = 1

    op_type: ClassVar[str] = "reassemble"
    learns: ClassVar[bool] = False
    symbol: ClassVar[str] = "reassemble"

    def validate(self, widths: Sequence[int]) -> str | None:
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

    def out_width(self, widths: Sequence[int]) -> int:
        return widths[0]

    def cost(self, widths: Sequence[int], size: ImageSize) -> tuple[int, int]:
        return 0, 0


@register
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

    op_type: ClassVar[str] = "deformable_conv"
    learns: ClassVar[bool] = True
    symbol: ClassVar[str] = "deformable conv"

    @property
    def offset_channels(self) -> int:
        """Channels of the offsets of one group."""
        return (3 if self.modulated else 2) * self.kernel**2

    def validate(self, widths: Sequence[int]) -> str | None:
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

    def out_width(self, widths: Sequence[int]) -> int:
        return self.channels_out

    def cost(self, widths: Sequence[int], size: ImageSize) -> tuple[int, int]:
        weights = self.kernel**2 * widths[0] * self.channels_out
        return weights + self.channels_out * self.bias, weights * size[0] * size[1]

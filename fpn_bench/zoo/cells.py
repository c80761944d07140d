"""EfficientDet's cells: what BiFPN, PAN and QuFPN in its reference code have in common (Tan et al. 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from fpn_bench.errors import InputError
from fpn_bench.graph import Conv, Edge, Merge, NeckGraph, Op, Resample, input_name
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.blocks import check_factor, gain
from fpn_bench.zoo.parts import (
    POOLS,
    UPS,
    ActivationOption,
    NormOption,
    PoolOption,
    UpOption,
    activation_ops,
    begin,
    check_option,
    extend,
    norm_ops,
)

FusionOption = Literal["fast_normalised", "softmax", "sum"]
LateralOption = Literal["edge", "level"]
ExtraOption = Literal["conv_pool", "strided_conv"]
FUSIONS: tuple[FusionOption, ...] = ("fast_normalised", "softmax", "sum")
LATERALS: tuple[LateralOption, ...] = ("edge", "level")
EXTRAS: tuple[ExtraOption, ...] = ("conv_pool", "strided_conv")


class Cells:
    """A graph written cell by cell, each from level -> name to level -> name. Options as in `bifpn`."""

    def __init__(
        self,
        features: tuple[FeatureSpec, ...],
        out_levels: tuple[int, ...],
        channels: int,
        *,
        fusion: FusionOption,
        lateral: LateralOption,
        norm: NormOption,
        activation: ActivationOption,
        separable: bool,
        pre_activation: bool,
        redundant_bias: bool,
        up: UpOption,
        down: PoolOption,
        eps: float,
        per_channel: bool,
        extra: ExtraOption,
    ) -> None:
        check_option("fusion", fusion, FUSIONS)
        check_option("lateral", lateral, LATERALS)
        check_option("up", up, UPS)
        check_option("down", down, POOLS)
        check_option("extra", extra, EXTRAS)
        check_factor("eps", eps)
        if per_channel and fusion == "sum":
            raise InputError(
                "expected a fusion with weights for per_channel=True, got fusion='sum'; try fusion='fast_normalised'"
            )
        self.quad = Merge("fast_normalised", eps)
        self.merge = Merge(fusion, per_channel=per_channel)
        if fusion == "fast_normalised":
            self.merge = Merge(fusion, eps, per_channel)
        self.up, self.down = Resample(up), Resample(down, "stride+1")
        self.normed = normed = norm_ops(norm, eps=1e-3, momentum=0.01)
        biased = redundant_bias or not normed
        self.reduce: tuple[Op, ...] = (Conv(channels, 1, bias=biased), *normed)
        self.activation, self.pre_activation = activation, pre_activation
        self.conv = Conv(channels, 3, bias=biased and (pre_activation or not normed), separable=separable)
        self.builder, used = begin(features, out_levels)
        self.channels, self.out_levels = channels, out_levels
        self.cell = 0
        self.maps = {level: input_name(level) for level in used if level <= out_levels[-1]}
        top = max(self.maps)
        ops = (*self._reduction(self.maps[top]), self.down)
        if extra == "strided_conv":
            ops = (Conv(channels, 3, stride=2, bias=biased), *normed)
        extend(self.builder, self.maps, out_levels[-1], ops, then=(self.down,))
        if lateral == "level":
            for level in range(out_levels[0], top + 1):
                ops = self._reduction(self.maps[level])
                self.maps[level] = self.builder.then(f"lateral{level}", self.maps[level], *ops)

    def _reduction(self, source: str) -> tuple[Op, ...]:
        return () if self.builder.channels(source) == self.channels else self.reduce

    def begin(self) -> dict[int, str]:
        """Begin a cell; level -> name of its input."""
        self.cell += 1
        return dict(self.maps)

    def node(self, name: str, level: int, sources: Sequence[str], merge: Merge | None = None) -> str:
        """One node: sources reduced to the width, brought to the level, merged, and convolved."""
        edges = []
        for source in sources:
            step = level - self.builder.level(source)
            move = () if step == 0 else (self.down,) if step > 0 else (self.up,)
            edges.append(Edge(source, (*self._reduction(source), *move)))
        merge = merge or self.merge
        if merge.kind == "softmax" and len(edges) == 1:  # the softmax of one weight gives it no gradient
            merge = Merge("sum")
        conv, activated = self.conv, activation_ops(self.activation)
        if not self.normed:  # no norm keeps the spread of the maps from cell to cell: the initial weights do
            conv = dataclasses.replace(conv, gain=gain(self.activation, merge.kind, len(edges)))
        ops = (*activated, conv, *self.normed) if self.pre_activation else (conv, *self.normed, *activated)
        return self.builder.add(f"cell{self.cell}_{name}", level, *edges, merge=merge, ops=ops)

    def end(self, outputs: dict[int, str]) -> None:
        """End a cell; its outputs are the next one's inputs."""
        self.maps = outputs

    def graph(self) -> NeckGraph:
        """The graph, whose outputs are the last cell's."""
        return self.builder.graph(self.maps[level] for level in self.out_levels)

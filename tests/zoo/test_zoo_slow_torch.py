"""Whole necks against plain torch: each written down a second time, its layers spelled out; and FPN's figures.

A slow neck is a function of the maps. It makes torch's own layers with literal arguments, in the order in which the
graph lists its nodes, and `Weights` gives each the built neck's next tensors. So kernels, strides, groups, biases,
norms with their eps and momentum, activations and interpolations are all said independently of the graph.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

from fpn_bench.graph import cost
from fpn_bench.nn.neck import build_neck
from fpn_bench.pyramid import FeatureSpec, map_size
from fpn_bench.zoo import create_graph

Maps = list[torch.Tensor]


class Weights:
    """The tensors of a neck in order, handed to plain layers as these are made."""

    def __init__(self, neck: nn.Module) -> None:
        self._training = neck.training
        self.left = iter(neck.state_dict().values())
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def take(self) -> torch.Tensor:
        return next(self.left)

    def __call__(self, layer: nn.Module) -> nn.Module:
        layer.double().train(self._training)
        for own in layer.state_dict().values():
            theirs = self.take()
            assert own.shape == theirs.shape, (layer, tuple(theirs.shape))
            own.copy_(theirs)
            self.pairs.append((theirs, own))
        return layer

    def conv(self, x, channels, kernel=1, stride=1, groups=1, bias=True) -> torch.Tensor:
        """An odd kernel with zeros around."""
        return self(nn.Conv2d(x.shape[1], channels, kernel, stride, kernel // 2, groups=groups, bias=bias))(x)

    def batch_norm(self, x) -> torch.Tensor:
        """As torch has it."""
        return self(nn.BatchNorm2d(x.shape[1], eps=1e-5, momentum=0.1))(x)

    def yolo_norm(self, x) -> torch.Tensor:
        """As YOLOX and DAMO-YOLO have it."""
        return self(nn.BatchNorm2d(x.shape[1], eps=1e-3, momentum=0.03))(x)

    def group_norm(self, groups, x) -> torch.Tensor:
        return self(nn.GroupNorm(groups, x.shape[1], eps=1e-5))(x)

    def layer_norm(self, x, eps) -> torch.Tensor:
        """Over the channels of each pixel."""
        return self(nn.LayerNorm(x.shape[1], eps=eps))(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def conv_bn(self, x, *args, **kwargs) -> torch.Tensor:
        return self.batch_norm(self.conv(x, *args, **kwargs, bias=False))

    def conv_bn_relu(self, x, *args, **kwargs) -> torch.Tensor:
        return self.conv_bn(x, *args, **kwargs).relu()


def cat(*maps) -> torch.Tensor:
    return torch.cat(maps, dim=1)


def twice(x) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def nearest(x, like) -> torch.Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="nearest")


def bilinear(x, like) -> torch.Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def every_second(x) -> torch.Tensor:
    return F.max_pool2d(x, 1, 2)


def fpn_merged(w: Weights, maps: Maps, channels: int) -> Maps:
    """Laterals and the top-down path, finest first."""
    merged = [w.conv(x, channels) for x in maps]
    for i in reversed(range(len(maps) - 1)):
        merged[i] = merged[i] + nearest(merged[i + 1], merged[i])
    return merged


# -- FPN, PAFPN ----------------------------------------------------------------------------------------------------


def slow_fpn(rule: str, relu: bool) -> Callable:
    def run(w: Weights, maps: Maps, channels: int) -> Maps:
        merged = fpn_merged(w, maps, channels)
        outs = [w.conv(x, channels, 3) for x in merged]
        if rule == "subsample":
            return [*outs, outs[-1][:, :, ::2, ::2], outs[-1][:, :, ::4, ::4]]
        if rule == "max_pool":
            p6 = F.max_pool2d(outs[-1], 3, stride=2, padding=1)
            return [*outs, p6, F.max_pool2d(p6, 3, stride=2, padding=1)]
        source = {"on_input": maps, "on_lateral": merged, "on_output": outs}[rule][-1]
        p6 = w.conv(source, channels, 3, stride=2)
        return [*outs, p6, w.conv(p6.relu() if relu else p6, channels, 3, stride=2)]

    return run


def slow_pafpn(w: Weights, maps: Maps, channels: int) -> Maps:
    sums = [w.conv(x, channels, 3) for x in fpn_merged(w, maps, channels)]
    for i in range(1, len(sums)):
        sums[i] = sums[i] + w.conv(sums[i - 1], channels, 3, stride=2)
    outs = [sums[0], *(w.conv(x, channels, 3) for x in sums[1:])]
    return [*outs, every_second(outs[-1])]


# -- concatenating paths -------------------------------------------------------------------------------------------


def yolo_paths(maps: Maps, unit: Callable, fuse: Callable) -> Maps:
    """Both paths over three maps; `unit` (x, channels, kernel, stride) and `fuse` (x, channels) are the network's."""
    c3, c4, c5 = maps
    n3, n4, n5 = (x.shape[1] for x in maps)
    f5 = unit(c5, n4)
    t4 = fuse(cat(twice(f5), c4), n4)
    f4 = unit(t4, n3)
    p3 = fuse(cat(twice(f4), c3), n3)
    p4 = fuse(cat(unit(p3, n3, 3, 2), f4), n4)
    p5 = fuse(cat(unit(p4, n4, 3, 2), f5), n5)
    return [p3, p4, p5]


def slow_csp_pafpn(w: Weights, maps: Maps, channels: int) -> Maps:
    def unit(x, c, kernel=1, stride=1):
        return F.silu(w.yolo_norm(w.conv(x, c, kernel, stride, bias=False)))

    def csp(x, c):
        short, main = unit(x, c // 2), unit(x, c // 2)
        for _ in range(2):
            main = unit(unit(main, c // 2), c // 2, 3)
        return unit(cat(main, short), c)

    return [unit(x, channels) for x in yolo_paths(maps, unit, csp)]


def slow_cspnext_pafpn(w: Weights, maps: Maps, channels: int) -> Maps:
    def unit(x, c, kernel=1, stride=1, groups=1):
        return F.silu(w.yolo_norm(w.conv(x, c, kernel, stride, groups, bias=False)))

    def csp(x, c):
        half = c // 2
        short, main = unit(x, half), unit(x, half)
        for _ in range(2):
            main = unit(unit(unit(main, half, 3), half, 5, groups=half), half)
        return unit(cat(main, short), c)

    return [unit(x, channels, 3) for x in yolo_paths(maps, unit, csp)]


def slow_hybrid_encoder(wide: int) -> Callable:
    """`wide`: channels of a CSP layer's paths."""

    def run(w: Weights, maps: Maps, channels: int) -> Maps:
        def unit(x, c, kernel=1, stride=1):
            return F.silu(w.conv_bn(x, c, kernel, stride))

        def csp_rep(x, c):
            short, main = unit(x, wide), unit(x, wide)
            for _ in range(3):
                main = F.silu(w.conv_bn(main, wide, 3) + w.conv_bn(main, wide))
            return main + short if wide == c else unit(main + short, c)

        c3, c4, c5 = (w.conv_bn(x, channels) for x in maps)
        return yolo_paths([c3, c4, slow_encoder_layer(w, c5, heads=8, feedforward=40)], unit, csp_rep)

    return run


def slow_encoder_layer(w: Weights, x: torch.Tensor, *, heads: int, feedforward: int) -> torch.Tensor:
    """Post-norm; of the position, first the column's sines and cosines, then the row's."""
    n, c, height, width = x.shape
    rows, columns = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    step = 10000 ** (-torch.arange(c // 4).double() / (c // 4))
    column, row = columns.reshape(-1, 1) * step, rows.reshape(-1, 1) * step
    tokens = x.flatten(2).transpose(1, 2)
    placed = tokens + torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)
    attention = nn.MultiheadAttention(c, heads, batch_first=True).double()
    weights, biases = zip(*((w.take().flatten(1), w.take()) for _ in range(4)), strict=True)  # query, key, value, out
    attention.in_proj_weight.copy_(torch.cat(weights[:3]))
    attention.in_proj_bias.copy_(torch.cat(biases[:3]))
    attention.out_proj.weight.copy_(weights[3])
    attention.out_proj.bias.copy_(biases[3])
    mixed = attention(placed, placed, tokens, need_weights=False)[0]
    x = w.layer_norm(x + mixed.transpose(1, 2).reshape(n, c, height, width), eps=1e-5)
    hidden = F.gelu(w.conv(x, feedforward), approximate="none")
    return w.layer_norm(x + w.conv(hidden, c), eps=1e-5)


def slow_rep_gfpn(deploy: bool) -> Callable:
    def run(w: Weights, maps: Maps, channels: int) -> Maps:
        def norm(x):
            return w.yolo_norm(x)

        def unit(x, c, kernel=1, stride=1):
            return norm(w.conv(x, c, kernel, stride, bias=False)).relu()

        def rep(x, c):
            if deploy:
                return w.conv(x, c, 3).relu()
            return (norm(w.conv(x, c, 3, bias=False)) + norm(w.conv(x, c, bias=False))).relu()

        def stage(x, c):
            half = c // 2
            parts = [unit(x, half)]
            main = unit(x, c - half)
            for _ in range(3):
                main = main + unit(rep(main, int(0.75 * (c - half))), c - half, 3)
                parts.append(main)
            return unit(cat(*parts), c)

        def down(x):
            return unit(x, x.shape[1], 3, 2)

        c3, c4, c5 = maps
        n3, n4, n5 = (x.shape[1] for x in maps)
        t5 = stage(cat(c5, down(c4)), n5)
        t4 = stage(cat(c4, down(c3), twice(t5)), n4)
        p3 = stage(cat(c3, twice(t4)), n3)
        p4 = stage(cat(t4, down(p3)), n4)
        return [p3, p4, stage(cat(t5, down(t4), down(p4)), n5)]

    return run


# Of GiraffeDet with a depth multiplier of 2: number:level[inputs]; 0 to 4 are the features, the last five the outputs.
GIRAFFE = (
    "5:7[4,3] 6:6[3,5,4,2] 7:5[2,6,3,1] 8:4[1,7,2,0] 9:3[0,8,1] "
    "10:3[9,8] 11:4[8,10,7,9] 12:5[7,11,6,8] 13:6[6,12,5,7] 14:7[5,13,6] "
    "15:7[5,14,13] 16:6[6,13,15,14,12] 17:5[7,12,16,13,11] 18:4[8,11,17,12,10] 19:3[9,10,18,11] "
    "20:3[19] 21:4[18] 22:5[17] 23:6[16] 24:7[15]"
)


def slow_gfpn(w: Weights, maps: Maps, channels: int) -> Maps:
    nodes = list(zip(range(3, 8), maps, strict=True))
    for number, text in enumerate(GIRAFFE.split(), start=5):
        level, inputs = text.removesuffix("]").removeprefix(f"{number}:").split("[")
        resized = []
        for near, x in (nodes[int(i)] for i in inputs.split(",")):
            if near < int(level):
                x = F.max_pool2d(x, 3, stride=2, padding=1)
            resized.append(twice(x) if near > int(level) else x)
        width = channels if number >= 20 else 14  # int(0.7 * 20)
        mixed = w.conv(cat(*resized), width, bias=False)
        nodes.append((int(level), w.conv_bn(F.silu(mixed), width, 3)))
    return [x for _, x in nodes[20:]]


# -- progressive and residual --------------------------------------------------------------------------------------


def slow_afpn(w: Weights, maps: Maps, channels: int) -> Maps:
    widths = [x.shape[1] // 8 for x in maps]
    own = [w.conv_bn_relu(w.conv_bn_relu(x, c), c) for x, c in zip(maps, widths, strict=True)]

    def resized(x, c, levels):
        if levels > 0:  # to a finer level
            return F.interpolate(w.conv_bn_relu(x, c), scale_factor=2**levels, mode="bilinear", align_corners=False)
        if levels == 0:
            return x
        side = 2**-levels
        return w.batch_norm(w(nn.Conv2d(x.shape[1], c, side, stride=side, bias=False))(x)).relu()

    def fused(i, taking_part):
        c = widths[i]
        each = [resized(x, c, j - i) for j, x in enumerate(taking_part)]
        votes = [w.conv_bn_relu(x, 8) for x in each]
        shares = w.conv(cat(*votes), len(each)).softmax(1)
        x = w.conv_bn_relu(sum(shares[:, j, None] * x for j, x in enumerate(each)), c, 3)
        for _ in range(4):
            inner = w.batch_norm(w.conv(x, c, 3)).relu()
            x = (x + w.batch_norm(w.conv(inner, c, 3))).relu()
        return x

    for n in (2, 3, 4):
        own[:n] = [fused(i, own[:n]) for i in range(n)]
    outs = [w.conv_bn_relu(x, channels) for x in own]
    return [*outs, every_second(outs[-1])]


def slow_tpn(w: Weights, maps: Maps, channels: int) -> Maps:
    """Bottlenecks of 64 channels, of which GroupNorm makes 8 groups here as there (never of fewer than 8 channels)."""

    def active(x):
        return w.group_norm(8, x).relu()

    def bottleneck(x, stride=1):
        x = w.conv(active(x), 64)
        x = w.conv(active(x), 64, 3, stride)
        return w.conv(active(x), channels)

    def twice_processed(maps):
        for _ in range(2):
            maps = [x + bottleneck(x) for x in maps]
        return maps

    x = [w.conv(c, channels) for c in maps]
    x.append(w.conv(maps[-1], channels, 3, stride=2))
    x.append(w.conv(x[-1].relu(), channels, 3, stride=2))
    for _ in range(2):
        for i in (3, 2, 1, 0):
            x[i] = x[i] + bilinear(w.conv(active(x[i + 1]), channels), x[i])
        x = twice_processed(x)
        for i in (1, 2, 3, 4):
            x[i] = x[i] + bottleneck(x[i - 1], stride=2)
        x = twice_processed(x)
    return x


# -- one map of all ------------------------------------------------------------------------------------------------


def slow_upernet(w: Weights, maps: Maps, channels: int) -> Maps:
    *lower, c5 = maps
    merged = [w.conv_bn_relu(x, channels) for x in lower]
    pooled = [bilinear(w.conv_bn_relu(F.adaptive_avg_pool2d(c5, n), channels), c5) for n in (1, 2, 3, 6)]
    merged.append(w.conv_bn_relu(cat(c5, *pooled), channels, 3))
    for i in (2, 1, 0):
        merged[i] = merged[i] + bilinear(merged[i + 1], merged[i])
    outs = [*(w.conv_bn_relu(x, channels, 3) for x in merged[:3]), merged[3]]
    return [w.conv_bn_relu(cat(*(bilinear(x, outs[0]) for x in outs)), channels, 3)]


def slow_semantic_fpn(w: Weights, maps: Maps, channels: int) -> Maps:
    """256 channels, of which 32 groups have 8 each; of the paper's 128 they would have 4 there, and 8 here."""
    total = 0
    for level, x in enumerate(fpn_merged(w, maps, 64), start=2):
        x = w.conv(x, 64, 3)
        for _ in range(max(1, level - 2)):
            x = w.group_norm(32, w.conv(x, channels, 3, bias=False)).relu()
            if level > 2:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        total = total + x
    return [total]


def slow_simple_fpn(w: Weights, maps: Maps, channels: int) -> Maps:
    (x,) = maps
    d = x.shape[1]

    def up(x, c):
        return w(nn.ConvTranspose2d(x.shape[1], c, kernel_size=2, stride=2))(x)

    def out(x):
        x = w.layer_norm(w.conv(x, channels, bias=False), eps=1e-6)
        return w.layer_norm(w.conv(x, channels, 3, bias=False), eps=1e-6)

    p2 = out(up(F.gelu(w.layer_norm(up(x, d // 2), eps=1e-6), approximate="none"), d // 4))
    p3 = out(up(x, d // 2))
    p4 = out(x)
    p5 = out(F.max_pool2d(x, 2, 2))
    return [p2, p3, p4, p5, every_second(p5)]


# -- deformed and reassembled --------------------------------------------------------------------------------------


def slow_deformed(w: Weights, x: torch.Tensor, seen: torch.Tensor, groups: int) -> torch.Tensor:
    """A modulated deformable 3x3 of `x`, by offsets and logits that a 3x3 makes of `seen`."""
    rows, columns, logits = w.conv(seen, 27 * groups, 3).chunk(3, dim=1)
    deform = w(DeformConv2d(x.shape[1], x.shape[1], 3, padding=1))
    return deform(x, cat(rows, columns), logits.sigmoid())


def slow_nas_fcos(w: Weights, maps: Maps, channels: int) -> Maps:
    def deformed(x):
        return w.batch_norm(slow_deformed(w, x, x, groups=2)).relu()

    def cell(x, y):
        x, y = (x, bilinear(y, x)) if x.shape[-1] > y.shape[-1] else (bilinear(x, y), y)
        return w.conv(w.batch_norm(cat(x, y)).relu(), channels, groups=channels, bias=False)

    def summed(x, like):
        x = x + bilinear(c, x)
        return bilinear(x, like)

    c3, c4, c5 = (w.conv_bn_relu(x, channels) for x in maps)
    a = cell(deformed(c5), deformed(c5))
    c = cell(deformed(a), c5)
    d = cell(deformed(c3), c5)
    p3 = summed(cell(deformed(d), deformed(c4)), c3)
    p4 = summed(cell(deformed(a), deformed(d)), c4)
    b = cell(deformed(c5), deformed(c5))
    p5 = summed(cell(deformed(b), deformed(c5)), c5)
    p6 = w.conv(p5, channels, 3, stride=2)
    return [p3, p4, p5, p6, w.conv(p6.relu(), channels, 3, stride=2)]


def slow_fapn(normed: bool) -> Callable:
    def run(w: Weights, maps: Maps, channels: int) -> Maps:
        def conv(x, kernel, bias=not normed):
            x = w.conv(x, channels, kernel, bias=bias)
            return w.batch_norm(x) if normed else x

        merged = [conv(maps[-1], 1)]
        for x in reversed(maps[:-1]):
            attention = w.conv(F.avg_pool2d(x, x.shape[2:]), x.shape[1], bias=False).sigmoid()
            lateral = w.conv(x + x * attention, channels, bias=False)
            raised = bilinear(merged[0], lateral)
            seen = conv(cat(lateral, 2 * raised), 1, bias=False)
            merged.insert(0, slow_deformed(w, raised, seen, groups=8).relu() + lateral)
        outs = [*(conv(x, 3) for x in merged[:-1]), merged[-1]]
        return [*outs, every_second(outs[-1])]

    return run


def slow_fpn_carafe(w: Weights, maps: Maps, channels: int) -> Maps:
    def carafe(x):
        n, c, height, width = x.shape
        filters = F.pixel_shuffle(w.conv(w.conv(x, 64), 4 * 25, 3), 2).softmax(1)
        around = F.unfold(x, 5, padding=2).reshape(n, c * 25, height, width)
        return (twice(around).reshape(n, c, 25, 2 * height, 2 * width) * filters[:, None]).sum(2)

    merged = [w.conv(x, channels) for x in maps]
    merged.append(w.conv(maps[-1], channels, 3, stride=2))
    for i in reversed(range(len(maps))):
        merged[i] = merged[i] + carafe(merged[i + 1])
    return [w.conv(x, channels, 3) for x in merged]


# -- the comparison ------------------------------------------------------------------------------------------------

P2_P6, P3_P5, P3_P7 = range(2, 7), range(3, 6), range(3, 8)
FPN_RULES = ("subsample", "max_pool", "on_input", "on_lateral", "on_output")

# (neck, first level, features' channels, output levels, channels, image's sides, options, slow neck)
CASES = {
    **{
        f"fpn-{rule}-{relu}": (
            "fpn", 3, (8, 12, 16), P3_P7, 10, (72, 104), {"extra": rule, "extra_relu": relu}, slow_fpn(rule, relu),
        )
        for rule in FPN_RULES
        for relu in (False, True)
    },
    "pafpn": ("pafpn", 2, (6, 8, 12, 16), P2_P6, 10, (72, 104), {}, slow_pafpn),
    "csp_pafpn": ("csp_pafpn", 3, (8, 12, 18), P3_P5, 10, (64, 96), {"depth": 2}, slow_csp_pafpn),
    "cspnext_pafpn": ("cspnext_pafpn", 3, (8, 12, 18), P3_P5, 10, (64, 96), {"depth": 2}, slow_cspnext_pafpn),
    "rep_gfpn": ("rep_gfpn", 3, (8, 13, 18), P3_P5, 8, (64, 96), {"out_conv": False}, slow_rep_gfpn(False)),
    "rep_gfpn-deploy": (
        "rep_gfpn", 3, (8, 13, 18), P3_P5, 8, (64, 96), {"out_conv": False, "deploy": True}, slow_rep_gfpn(True),
    ),
    "hybrid_encoder": (
        "hybrid_encoder", 3, (8, 12, 18), P3_P5, 32, (96, 128), {"feedforward": 40}, slow_hybrid_encoder(32),
    ),
    "hybrid_encoder-half": (
        "hybrid_encoder", 3, (8, 12, 18), P3_P5, 32, (96, 128),
        {"feedforward": 40, "expansion": 0.5}, slow_hybrid_encoder(16),
    ),
    "gfpn": ("gfpn", 3, (6, 8, 10, 12, 16), P3_P7, 20, (128, 256), {"depth": 2}, slow_gfpn),
    "afpn": ("afpn", 2, (64, 72, 80, 96), P2_P6, 10, (64, 96), {}, slow_afpn),
    "tpn": ("tpn", 3, (8, 12, 16), P3_P7, 128, (104, 72), {"repeats": 2, "expansion": 0.5}, slow_tpn),
    "upernet": ("upernet", 2, (6, 8, 12, 16), (2,), 10, (104, 136), {}, slow_upernet),
    "semantic_fpn": ("semantic_fpn", 2, (6, 8, 12, 16), (2,), 256, (32, 64), {"expansion": 0.25}, slow_semantic_fpn),
    "simple_fpn": ("simple_fpn", 4, (20,), P2_P6, 10, (96, 128), {}, slow_simple_fpn),
    "nas_fcos": ("nas_fcos", 3, (8, 12, 16), P3_P7, 10, (64, 96), {}, slow_nas_fcos),
    "fapn": ("fapn", 2, (6, 8, 12, 16), P2_P6, 16, (72, 104), {}, slow_fapn(False)),
    "fapn-batch": ("fapn", 2, (6, 8, 12, 16), P2_P6, 16, (72, 104), {"norm": "batch"}, slow_fapn(True)),
    "fpn_carafe": ("fpn_carafe", 2, (6, 8, 12, 16), P2_P6, 10, (64, 128), {}, slow_fpn_carafe),
}  # fmt: skip
# They have no batch norm.
SAME_IN_TRAINING = {case for case in CASES if case.startswith("fpn")} | {
    "pafpn", "tpn", "semantic_fpn", "simple_fpn", "fapn",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Maps this small are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randomise(neck: nn.Module) -> None:
    """Other values than the initial ones everywhere, large enough to tell a ReLU from a ReLU6."""
    for name, tensor in neck.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.ndim > 1:
            offsets = len(tensor) in (2 * 27, 8 * 27)  # of deformable convs: a pixel or so
            tensor.normal_(std=(0.3 if offsets else 1.4) / tensor[0].numel() ** 0.5)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.3)
    for module in neck.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            module.weight.add_(2)


@pytest.mark.parametrize(
    ("case", "training"),
    [
        pytest.param(case, training, id=f"{case}-{'train' if training else 'eval'}")
        for case in CASES
        for training in ((False,) if case in SAME_IN_TRAINING else (False, True))
    ],
)
@torch.no_grad()
def test_neck_equals_plain_torch(case, training):
    name, first, widths, levels, channels, image_size, chosen, slow = CASES[case]
    torch.manual_seed(0)
    features = tuple(FeatureSpec(k, c, 2**k) for k, c in enumerate(widths, start=first))
    neck = build_neck(create_graph(name, features, tuple(levels), channels, **chosen)).double().train(training)
    randomise(neck)
    maps = [4 * torch.randn(2, s.channels, *map_size(image_size, s.level)).double() for s in features]
    weights = Weights(neck)
    expected = slow(weights, maps, channels)
    assert next(weights.left, None) is None  # no tensor of the neck's is left over
    outputs = neck(maps)
    assert len(outputs) == len(expected) == len(tuple(levels))
    tolerance = 1e-6 if name == "hybrid_encoder" else 1e-9  # positions are computed in float32
    running = weights.pairs if training else []  # the statistics moved alike
    for came, wanted in [*zip(outputs, expected, strict=True), *running]:
        torch.testing.assert_close(came, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))
    assert min(x.std() for x in expected) > 1e-2


# -- figures -------------------------------------------------------------------------------------------------------

R50 = (256, 512, 1024, 2048)
MAPPER = {"output_conv": False, "norm": "group", "extra": "on_input"}
FIGURES = [
    ("fpn", P2_P6, (640, 640), {}, 3_344_384, 23.200),
    ("fpn", P3_P7, (640, 640), {"extra": "on_input"}, 7_997_440, 6.909),
    ("fpn", P3_P7, (800, 1280), {"extra": "on_input"}, 7_997_440, 17.324),
    ("fpn", P3_P7, (640, 640), {"extra": "on_output"}, 3_868_672, 6.496),
    ("fpn", P3_P7, (640, 640), {"extra": "on_lateral"}, 3_868_672, 6.496),
    ("pafpn", P2_P6, (640, 640), {}, 6_884_864, 33.109),
    ("channel_mapper", range(3, 7), (640, 640), MAPPER, 5_638_144, 1.940),
]


@pytest.mark.parametrize(("name", "levels", "size", "chosen", "params", "gmacs"), FIGURES)
def test_figures(name, levels, size, chosen, params, gmacs):
    """Of ResNet-50's features at 256 channels, counted on mmdetection's modules; a GMAC is 10^9."""
    features = tuple(FeatureSpec(k, c, 2**k) for k, c in enumerate(R50, start=2) if k >= levels[0])
    costs = cost(create_graph(name, features, tuple(levels), 256, **chosen), size)
    assert costs.params == params
    assert costs.macs / 1e9 == pytest.approx(gmacs, abs=5e-4)

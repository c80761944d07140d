"""Necks made of blocks: published figures, wiring, and blocks against plain torch."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fpn_bench.errors import GraphError, InputError, UnknownNameError
from fpn_bench.graph import GraphBuilder, NeckGraph, cost
from fpn_bench.nn.neck import build_neck
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo import create_graph
from fpn_bench.zoo.blocks import SUM, Unit, csp_layer, rep_block, transformer_layer

FAMILIES = ["csp_pafpn", "cspnext_pafpn", "gfpn", "hybrid_encoder", "lc_pan", "rep_gfpn"]
R50 = (512, 1024, 2048)
SPACE_TO_DEPTH = (128, 256, 512, 1024, 2048)


def pyramid(widths, first=3) -> tuple[FeatureSpec, ...]:
    return tuple(FeatureSpec(level, width, 2**level) for level, width in enumerate(widths, first))


# -- figures -----------------------------------------------------------------------------------------------------

# The params of the reference implementations named in the families' documentation; MACs of convolutions and of the two
# products of each attention, which the figure quoted for the hybrid encoder leaves out (25.376, see below).
FIGURES = [
    ("csp_pafpn", (128, 256, 512), 128, {}, 2_950_144, 2.857),
    ("csp_pafpn", (192, 384, 768), 192, {"depth": 2}, 8_938_368, 8.788),
    ("csp_pafpn", (48, 96, 192), 48, {"separable": True}, 213_624, 0.2290),
    ("cspnext_pafpn", (128, 256, 512), 128, {}, 3_883_200, 4.348),
    ("cspnext_pafpn", (192, 384, 768), 192, {"depth": 2}, 11_049_408, 12.161),
    ("cspnext_pafpn", (192, 384, 768), 192, {"depth": 2, "separable": True}, 3_864_192, 4.187),
    ("rep_gfpn", (128, 256, 512), 128, {"deploy": True, "out_conv": False}, 11_519_184, 8.743),
    ("rep_gfpn", (128, 256, 512), 128, {"out_conv": False}, 11_902_656, 9.037),
    ("rep_gfpn", (96, 192, 384), 64, {"expansion": 1.0, "out_widen": 2 / 3, "out_conv": False}, 5_920_064, 4.248),
    ("rep_gfpn", (128, 256, 512), 128, {"depth": 4, "expansion": 1.0, "out_conv": False}, 17_829_888, 13.658),
    ("rep_gfpn", (40, 80, 160), 40, {"depth": 2, "separable": True, "out_conv": False}, 497_072, 0.4143),
    ("hybrid_encoder", R50, 256, {}, 11_950_848, 25.457),
    ("hybrid_encoder", (128, 256, 512), 256, {"expansion": 0.5}, 4_965_120, 8.628),
    ("hybrid_encoder", R50, 384, {"feedforward": 2048}, 26_577_536, 56.274),
    ("gfpn", SPACE_TO_DEPTH, 256, {}, 34_359_020, 131.488),
    ("gfpn", SPACE_TO_DEPTH, 256, {"depth": 11}, 54_911_621, 212.749),
    ("gfpn", (32, 64, 128, 256, 512), 64, {"depth": 4, "widen": 0.5, "separable": True}, 309_728, 0.9714),
    ("gfpn", (32, 64, 128, 256, 512), 64, {"depth": 3, "widen": 0.5, "skip": "dense"}, 609_472, 2.2228),
]


@pytest.mark.parametrize(("name", "widths", "channels", "chosen", "params", "gmacs"), FIGURES)
def test_params_and_macs_are_those_of_the_reference(name, widths, channels, chosen, params, gmacs):
    graph = create_graph(name, pyramid(widths), channels=channels, **chosen)
    expected = cost(graph, (1280, 768) if name == "gfpn" else (640, 640))
    assert expected.params == params
    assert expected.macs / 1e9 == pytest.approx(gmacs, rel=1e-3)


def test_the_published_macs_of_the_hybrid_encoder_leave_the_products_of_attention_out():
    expected = cost(create_graph("hybrid_encoder", pyramid(R50), channels=256), (640, 640))
    products = 2 * (20 * 20) ** 2 * 256
    assert (expected.macs - products) / 1e9 == pytest.approx(25.376, rel=1e-4)


def test_gfpn_pools_the_levels_that_the_features_lack():
    graph = create_graph("gfpn", pyramid((32, 64, 128)), (3, 4, 5, 6, 7), 64, depth=3)
    assert cost(graph, (640, 640)).params == 871_272
    assert cost(graph, (640, 640)).macs / 1e9 == pytest.approx(1.4033, rel=1e-3)


# -- wiring ------------------------------------------------------------------------------------------------------


def sources(graph: NeckGraph) -> dict[str, list[str]]:
    return {node.name: [edge.source for edge in node.inputs] for node in graph.nodes}


def test_gfpn_has_the_nodes_of_the_released_configuration():
    wired = sources(create_graph("gfpn", pyramid((8, 8, 8, 8, 8)), channels=8, depth=2))
    numbers = {f"C{level}": level - 3 for level in range(3, 8)}
    numbers |= {name: i for i, name in enumerate(wired, 5)}
    expected = (
        "5[4,3] 6[3,5,4,2] 7[2,6,3,1] 8[1,7,2,0] 9[0,8,1] "
        "10[9,8] 11[8,10,7,9] 12[7,11,6,8] 13[6,12,5,7] 14[5,13,6] "
        "15[5,14,13] 16[6,13,15,14,12] 17[7,12,16,13,11] 18[8,11,17,12,10] 19[9,10,18,11] "
        "20[19] 21[18] 22[17] 23[16] 24[15]"
    )
    assert " ".join(f"{numbers[n]}[{','.join(str(numbers[s]) for s in read)}]" for n, read in wired.items()) == expected


@pytest.mark.parametrize(
    ("skip", "expected"), [("log2n", [1, 3, 4]), ("dense", [1, 2, 3, 4]), ("none", [4])], ids=["log2n", "dense", "none"]
)
def test_gfpn_skips_layers(skip, expected):
    graph = create_graph("gfpn", pyramid((8, 8)), channels=8, depth=3, skip=skip, diagonals=False)
    read = sources(graph)["layer5_3"]
    assert read == [f"layer{i}_3" for i in expected] + ["layer5_4"]


@pytest.mark.parametrize("name", ["csp_pafpn", "cspnext_pafpn", "hybrid_encoder"])
def test_yolos_paths(name):
    graph = create_graph(name, pyramid((16, 24, 32)), channels=16)
    wired = sources(graph)
    finest, middle = ("C3", "C4") if name != "hybrid_encoder" else ("lateral3", "lateral4")
    assert wired["top_down4_in"] == ["reduced5", middle]
    assert wired["reduced4"] == ["top_down4"]
    assert wired["top_down3_in"] == ["reduced4", finest]
    assert wired["bottom_up4_in"] == ["top_down3", "reduced4"]
    assert wired["bottom_up5_in"] == ["bottom_up4", "reduced5"]
    assert [wired[f"P{level}"] for level in (3, 4, 5)] == [["top_down3"], ["bottom_up4"], ["bottom_up5"]]


def test_rep_gfpn_reads_the_finer_feature_and_both_maps_below():
    wired = sources(create_graph("rep_gfpn", pyramid((16, 24, 32)), channels=16))
    assert wired["top_down5_in"] == ["C5", "C4"]
    assert wired["top_down4_in"] == ["C4", "C3", "top_down5"]
    assert wired["top_down3_in"] == ["C3", "top_down4"]
    assert wired["bottom_up4_in"] == ["top_down4", "top_down3"]
    assert wired["bottom_up5_in"] == ["top_down5", "top_down4", "bottom_up4"]


@pytest.mark.parametrize(
    ("name", "chosen", "expected"),
    [
        ("csp_pafpn", {}, [16, 24, 32]),
        ("cspnext_pafpn", {"widen": 0.5}, [8, 12, 16]),
        ("rep_gfpn", {"out_widen": 2 / 3}, [10, 16, 21]),
    ],
)
def test_without_output_convs_each_level_has_its_own_width(name, chosen, expected):
    graph = create_graph(name, pyramid((16, 24, 32)), channels=20, out_conv=False, **chosen)
    assert [s.channels for s in graph.out_features] == expected


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("first", "widths", "out_levels"), [(3, (16, 24, 32), (4,)), (5, (16,), (5, 6)), (2, (9,), (2,))]
)
def test_one_level_is_enough(name, first, widths, out_levels):
    graph = create_graph(name, pyramid(widths, first), out_levels, 12)
    assert [(s.level, s.channels) for s in graph.out_features] == [(level, 12) for level in out_levels]
    assert set(graph.reachable) == {n.name for n in graph.nodes} | {
        f"C{s.level}" for s in graph.inputs if s.level >= out_levels[0]
    }


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"hybrid_encoder"}))
@pytest.mark.parametrize("channels", [1, 13])
def test_odd_channels(name, channels):
    graph = create_graph(name, pyramid((1, 7, 13)), channels=channels)
    neck = build_neck(graph).eval()
    assert {x.shape[1] for x in neck([torch.randn(1, c, 8 // 2**i, 8 // 2**i) for i, c in enumerate((1, 7, 13))])} == {
        channels
    }


def test_positions_need_a_multiple_of_four():
    with pytest.raises(GraphError, match=r"'encoder1_position'.*multiple of 4"):
        create_graph("hybrid_encoder", pyramid((16,)), channels=18)
    create_graph("hybrid_encoder", pyramid((16,)), channels=18, encoder_layers=0)


@pytest.mark.parametrize(
    ("name", "chosen", "error", "message"),
    [
        *(
            (name, {"depth": 0}, InputError, "expected depth to be a whole number from 1 to 2,000, got 0")
            for name in FAMILIES
        ),
        *((name, {"norm": "bach"}, UnknownNameError, "did you mean 'batch'") for name in FAMILIES),
        *((name, {"activation": "silo"}, UnknownNameError, "did you mean 'silu'") for name in FAMILIES),
        *((name, {"up": "neares"}, UnknownNameError, "did you mean 'nearest'") for name in FAMILIES),
        ("csp_pafpn", {"widen": 0}, InputError, "expected widen to be a finite number above 0, got 0"),
        ("cspnext_pafpn", {"expansion": float("nan")}, InputError, "expected expansion .* got nan"),
        ("cspnext_pafpn", {"kernel": 4}, GraphError, "even kernel=4"),
        ("rep_gfpn", {"out_widen": True}, InputError, "expected out_widen .* got True"),
        ("hybrid_encoder", {"encoder_layers": -1}, InputError, "a whole number from 0"),
        ("hybrid_encoder", {"heads": 0}, InputError, "expected heads to be a whole number from 1 to 65,536, got 0"),
        ("lc_pan", {"block": "cps"}, UnknownNameError, "did you mean 'csp'"),
        ("gfpn", {"skip": "log2"}, UnknownNameError, "did you mean 'log2n'"),
        ("gfpn", {"merge": "concta"}, UnknownNameError, "did you mean 'concat'"),
        ("gfpn", {"extra_input": "max"}, UnknownNameError, "did you mean 'max_pool'"),
    ],
)
def test_wrong_options_say_what_would_be_right(name, chosen, error, message):
    with pytest.raises(error, match=message):
        create_graph(name, pyramid((16, 24)), (3, 4, 5), 16, **chosen)


# -- blocks against plain torch ------------------------------------------------------------------------------------


def same_weights(*modules: nn.Module) -> None:
    """Parameters of equal shape (sides of 1 aside) become equal, in whatever order the modules hold them."""
    for module in modules:
        for parameter in module.parameters():
            shape = tuple(side for side in parameter.shape if side > 1) or (1,)
            drawn = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(repr(shape).encode())))
            fan_in = parameter[0].numel()
            with torch.no_grad():
                parameter.copy_((drawn / fan_in**0.5 if parameter.ndim > 1 else 1 + drawn / 4).reshape(parameter.shape))


def block_neck(width: int, add) -> nn.Module:
    b = GraphBuilder((FeatureSpec(3, width, 8),))
    return build_neck(b.graph([add(b)])).eval()


def conv_bn(channels_in, channels, kernel=1, stride=1, groups=1, act: nn.Module | None = None) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), *([act] if act else []))


def test_rep_block_folds_into_its_deploy_form():
    torch.manual_seed(0)
    unit = Unit(activation="silu")
    trained = block_neck(6, lambda b: rep_block(b, "out", "C3", 5, unit))
    deployed = block_neck(6, lambda b: rep_block(b, "out", "C3", 5, unit, deploy=True))
    kernel, bias = torch.zeros(5, 6, 3, 3), torch.zeros(5)
    for path, border in zip(trained.steps["out"].paths, (0, 1), strict=True):
        conv, norm = path.ops
        with torch.no_grad():
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.normal_()
            norm.bias.normal_()
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        kernel += F.pad(conv.weight * scale[:, None, None, None], [border] * 4)
        bias += norm.bias - norm.running_mean * scale
    x = torch.randn(2, 6, 7, 9)
    torch.testing.assert_close(trained([x])[0], F.silu(F.conv2d(x, kernel, bias, padding=1)), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        deployed.steps["out"].after[0].weight.copy_(kernel)
        deployed.steps["out"].after[0].bias.copy_(bias)
    torch.testing.assert_close(deployed([x])[0], trained([x])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("expansion", "merge"), [(0.5, None), (1.0, SUM), (0.5, SUM)])
def test_csp_layer_equals_plain_torch(expansion, merge):
    chosen = {} if merge is None else {"merge": merge}
    hidden = int(8 * expansion)
    unit = Unit(activation="relu")

    def add(b):
        def block(name, source):
            return b.then(name, source, *unit(hidden, 3))

        return csp_layer(b, "out", 3, ("C3", "C3"), 8, unit, block, depth=2, expansion=expansion, **chosen)

    neck = block_neck(5, add)
    one, three = conv_bn(10, hidden, act=nn.ReLU()), conv_bn(hidden, hidden, 3, act=nn.ReLU())
    last = conv_bn(hidden if merge else 2 * hidden, 8, act=nn.ReLU()) if not merge or hidden != 8 else nn.Identity()
    slow = nn.ModuleList([one, three, last]).eval()
    same_weights(neck, slow)
    x = torch.randn(2, 5, 6, 7)
    short = one(torch.cat([x, x], dim=1))  # the two paths' 1x1s are alike, so same_weights makes them equal
    main = three(three(short))
    expected = last(main + short if merge else torch.cat([main, short], dim=1))
    torch.testing.assert_close(neck([x])[0], expected)


@pytest.mark.parametrize(("heads", "right"), [(4, 4), (5, 4), (3, 2)])
def test_transformer_layer_equals_torchs_multihead_attention(heads, right):
    torch.manual_seed(0)
    width, hidden = 16, 24
    neck = block_neck(width, lambda b: transformer_layer(b, "out", "C3", heads=heads, feedforward=hidden))
    for parameter in neck.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, width, 3, 5)
    steps = neck.steps
    attention = nn.MultiheadAttention(width, right, batch_first=True)
    projections = [path.ops[0] for path in steps["out_attention"].paths]
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([conv.weight.flatten(1) for conv in projections]))
        attention.in_proj_bias.copy_(torch.cat([conv.bias for conv in projections]))
        attention.out_proj.weight.copy_(steps["out_attention"].after[0].weight.flatten(1))
        attention.out_proj.bias.copy_(steps["out_attention"].after[0].bias)

    def norm(tokens, layer):
        return F.layer_norm(tokens, (width,), layer.weight, layer.bias)

    tokens = x.flatten(2).transpose(1, 2)
    angles = 10000.0 ** (-torch.arange(4) / 4)
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(5.0), indexing="ij")
    column, row = columns.reshape(-1, 1) * angles, rows.reshape(-1, 1) * angles
    placed = tokens + torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)
    tokens = norm(tokens + attention(placed, placed, tokens)[0], steps["out_norm"].after[0])
    first, _, second = steps["out"].paths[1].ops
    inner = F.linear(
        F.gelu(F.linear(tokens, first.weight.flatten(1), first.bias)), second.weight.flatten(1), second.bias
    )
    expected = norm(tokens + inner, steps["out"].after[0]).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(neck([x])[0], expected, atol=1e-5, rtol=1e-4)


class SlowLCPAN(nn.Module):
    """LC-PAN over three levels and one more, in plain torch."""

    def __init__(self, widths: tuple[int, ...], c: int) -> None:
        super().__init__()

        def separable(channels_in, channels, stride=1):
            depthwise = conv_bn(channels_in, channels_in, 5, stride, channels_in, nn.Hardswish())
            return nn.Sequential(depthwise, conv_bn(channels_in, channels, act=nn.Hardswish()))

        def fuse():
            return nn.Sequential(separable(2 * c, 2 * c), separable(2 * c, c))

        self.laterals = nn.ModuleList(conv_bn(width, c, act=nn.Hardswish()) for width in widths)
        self.down, self.up = (nn.ModuleList(fuse() for _ in range(2)) for _ in range(2))
        self.steps = nn.ModuleList(separable(c, c, stride=2) for _ in range(4))

    def forward(self, maps):
        c3, c4, c5 = (lateral(x) for lateral, x in zip(self.laterals, maps, strict=True))
        t4 = self.down[0](torch.cat([F.interpolate(c5, scale_factor=2), c4], dim=1))
        p3 = self.down[1](torch.cat([F.interpolate(t4, scale_factor=2), c3], dim=1))
        p4 = self.up[0](torch.cat([self.steps[0](p3), t4], dim=1))
        p5 = self.up[1](torch.cat([self.steps[1](p4), c5], dim=1))
        return p3, p4, p5, self.steps[2](c5) + self.steps[3](p5)


def test_lc_pan_equals_plain_torch():
    widths = (16, 24, 32)
    graph = create_graph("lc_pan", pyramid(widths), (3, 4, 5, 6), 12)
    neck, slow = build_neck(graph), SlowLCPAN(widths, 12)
    assert cost(graph, (64, 64)).params == sum(p.numel() for p in slow.parameters())
    same_weights(neck, slow)
    torch.manual_seed(0)
    maps = [torch.randn(2, c, 32 >> i, 48 >> i) for i, c in enumerate(widths)]
    for x, expected in zip(neck(maps), slow(maps), strict=True):
        torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-4)


def test_csp_pan_has_a_csp_layer_of_depthwise_bottlenecks():
    c = 16
    graph = create_graph("lc_pan", pyramid((16, 24, 32)), channels=c, block="csp")

    def unit(channels_in, channels, kernel=1, groups=1):
        return kernel**2 * channels_in * channels // groups + 2 * channels

    def separable(width):
        return unit(width, width, 5, width) + unit(width, width)

    layer = 2 * unit(2 * c, c // 2) + unit(c // 2, c // 2) + separable(c // 2) + unit(c, c)
    laterals = sum(unit(width, c) for width in (16, 24, 32))
    assert cost(graph, (64, 64)).params == laterals + 4 * layer + 2 * separable(c)

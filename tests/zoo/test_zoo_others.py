"""nas_fcos, fapn, tpn, simple_fpn, unet, semantic_fpn, upernet: figures, wiring, slow computations; what is unfit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import DeformableConv, TransposedConv, cost
from fpn_bench.nn.neck import build_neck
from fpn_bench.pyramid import FeatureSpec, map_size
from fpn_bench.zoo import create_graph, list_necks, list_unfit, options, registry

R50 = tuple(FeatureSpec(k, c, 2**k) for k, c in ((2, 256), (3, 512), (4, 1024), (5, 2048)))
VIT = (FeatureSpec(4, 768, 16),)
SMALL = tuple(FeatureSpec(k, c, 2**k) for k, c in ((3, 24), (4, 32), (5, 48)))


# -- figures -----------------------------------------------------------------------------------------------------
#
# simple_fpn: built from detectron2's SimpleFeaturePyramid. semantic_fpn: FPN's 3,344,384 and mmsegmentation's head over
# it, less the classifier. upernet: mmsegmentation's head, less the classifier; its whole model has 66.52 M with a
# ResNet-50 of 23.53 M, 0.08 M of classes and 2.40 M of auxiliary head. The others: the reference code's convolutions,
# summed below.


def deformable(c: int, groups: int) -> tuple[int, int]:
    """(params, MACs a pixel) of a modulated deformable 3x3 conv and of the conv that makes its offsets."""
    weights, offsets = 9 * c * c, 9 * c * 27 * groups
    return weights + c + offsets + 27 * groups, weights + offsets


def nas_fcos_sums(c: int, p3: int, p4: int, p5: int, *extra: int) -> tuple[int, int]:
    params, macs = deformable(c, 2)
    laterals = 3584 * c + 3 * 2 * c
    cells = 7 * (4 * c + 2 * c)
    pixels = 3 * p3 + p4 + 8 * p5  # of the 12 deformable convs
    total = macs * pixels + 2 * c * (3 * p3 + 4 * p5) + c * (512 * p3 + 1024 * p4 + 2048 * p5)
    return laterals + 12 * (params + 2 * c) + cells + 2 * (9 * c * c + c), total + 9 * c * c * sum(extra)


def fapn_sums(c: int, p2: int, p3: int, p4: int, p5: int) -> tuple[int, int]:
    params, macs = deformable(c, 8)
    total, products = 2048 * c + c, 2048 * c * p5
    for width, pixels in ((256, p2), (512, p3), (1024, p4)):
        total += width * width + width * c + 2 * c * c + params + 9 * c * c + c
        products += width * width + (width * c + 2 * c * c + macs + 9 * c * c) * pixels
    return total, products


def tpn_sums(c: int, layers: int, depth: int, *pixels: int) -> tuple[int, int]:
    h = c // 4
    weights = c * h + 9 * h * h + h * c
    block = weights + 2 * h + c + 2 * (c + h + h)
    td = c * c + c + 2 * c
    p3, p4, p5, p6, p7 = pixels
    total = 3584 * c + 3 * c + (9 * 2048 * c + c) + (9 * c * c + c)
    total += layers * (4 * td + 2 * 5 * depth * block + 4 * block)
    products = c * (512 * p3 + 1024 * p4 + 2048 * p5) + 9 * 2048 * c * p6 + 9 * c * c * p7
    strided = sum(c * h * fine + (9 * h * h + h * c) * coarse for fine, coarse in itertools.pairwise(pixels))
    products += layers * (c * c * sum(pixels[1:]) + 2 * depth * weights * sum(pixels) + strided)
    return total, products


def unet_sums(c: int, *pixels: int) -> tuple[int, int]:
    params = macs = 0
    for i, (spec, n) in enumerate(zip(R50, pixels, strict=True)):
        above = 0 if i == 3 else c
        params += 9 * (spec.channels + above) * c + c + 9 * c * c + c + (4 * c * c + c if above else 0)
        macs += (9 * (spec.channels + above) * c + 9 * c * c) * n + (4 * c * c * pixels[i + 1] if above else 0)
    return params, macs


FIGURES = [
    ("simple_fpn", VIT, range(2, 7), 256, 1024, {}, (5_560_000, 71.672e9)),
    ("semantic_fpn", R50, (2,), 128, 640, {}, (3_344_384 + 1_623_808, 35.350e9)),
    ("upernet", R50, (2,), 512, 512, {}, (40_513_536, 213.995e9)),
    ("nas_fcos", R50[1:], range(3, 8), 256, 640, {}, nas_fcos_sums(256, 6400, 1600, 400, 100, 25)),
    ("nas_fcos", R50[1:], range(3, 8), 96, 512, {}, nas_fcos_sums(96, 4096, 1024, 256, 64, 16)),
    ("fapn", R50, range(2, 7), 256, 640, {}, fapn_sums(256, 25600, 6400, 1600, 400)),
    ("fapn", R50, range(2, 6), 128, 512, {}, fapn_sums(128, 16384, 4096, 1024, 256)),
    ("tpn", R50[1:], range(3, 8), 256, 640, {}, tpn_sums(256, 3, 2, 6400, 1600, 400, 100, 25)),
    (
        "tpn",
        R50[1:],
        range(3, 8),
        128,
        512,
        {"repeats": 1, "depth": 7},
        tpn_sums(128, 1, 7, 4096, 1024, 256, 64, 16),
    ),
    ("unet", R50, range(2, 6), 256, 640, {}, unet_sums(256, 25600, 6400, 1600, 400)),
    ("unet", R50, range(2, 6), 64, 512, {}, unet_sums(64, 16384, 4096, 1024, 256)),
]


@pytest.mark.parametrize(("name", "features", "levels", "channels", "side", "chosen", "expected"), FIGURES)
def test_figures(name, features, levels, channels, side, chosen, expected):
    costs = cost(create_graph(name, features, tuple(levels), channels, **chosen), (side, side))
    assert costs.params == expected[0]
    assert costs.macs == pytest.approx(expected[1], rel=1e-4)


# -- wiring and values -------------------------------------------------------------------------------------------


def sources(graph) -> dict[str, list[str]]:
    return {node.name: [edge.source for edge in node.inputs] for node in graph.nodes}


def built(name, features, levels, image_size=(96, 64), **chosen):
    """A neck in eval mode, its maps, its outputs by level, and a function that calls the operations of one node."""
    torch.manual_seed(0)
    neck = build_neck(create_graph(name, features, levels, 16, **chosen)).eval()
    for norm in neck.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    maps = {s.level: torch.randn(1, s.channels, *map_size(image_size, s.level)) for s in features}
    outputs = dict(zip(levels, neck(list(maps.values())), strict=True))

    def ops(node: str, path: int | None = None):
        """The operations behind a node's merge, or on one of its edges, as one function."""
        step = neck.steps[node]
        if path is None:
            return step.after
        return torch.nn.Sequential(*step.paths[path].ops)

    return neck, maps, outputs, ops


def up(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def deform(x, offsets, step):
    split = offsets.shape[1] // 3
    rows_columns, mask = offsets[:, : 2 * split], offsets[:, 2 * split :].sigmoid()
    return deform_conv2d(x, rows_columns, step.merge.weight, step.merge.bias, padding=1, mask=mask)


def test_nas_fcos_is_the_found_cell():
    neck, maps, outputs, ops = built("nas_fcos", SMALL, (3, 4, 5))
    f3, f4, f5 = (ops(f"lateral{k}")(maps[k]) for k in (3, 4, 5))

    def dcn(x, name):
        return ops(name)(deform(x, ops(f"{name}_offsets")(x), neck.steps[name]))

    def cell(name, x, y, plain=False):
        x, y = dcn(x, f"{name}_first"), y if plain else dcn(y, f"{name}_second")
        if x.shape[-1] != y.shape[-1]:
            x, y = (x, up(y, x)) if x.shape[-1] > y.shape[-1] else (up(x, y), y)
        return ops(name)(torch.cat([x, y], dim=1))

    a, b = cell("a", f5, f5), cell("b", f5, f5)
    c, d = cell("c", a, f5, plain=True), cell("d3", f3, f5, plain=True)
    p3, p4 = cell("cell3", d, f4), cell("cell4", a, d)
    p4 = p4 + up(c, p4)
    torch.testing.assert_close(outputs[5], cell("cell5", b, f5) + c)
    torch.testing.assert_close(outputs[4], F.interpolate(p4, scale_factor=0.5, mode="bilinear", align_corners=False))
    torch.testing.assert_close(outputs[3], p3 + up(c, p3))


def test_nas_fcos_reads_any_levels_by_the_same_rule():
    features = tuple(FeatureSpec(k, 8, 2**k) for k in (2, 3, 4, 5, 6))
    wired = sources(create_graph("nas_fcos", features, (2, 3, 4, 5, 6), 16))
    for level in (2, 3, 4):
        assert wired[f"cell{level}"] == [f"cell{level}_first", f"cell{level}_second"]
        assert wired[f"cell{level}_first"] == [f"d{level}", f"cell{level}_first_offsets"]
        assert wired[f"cell{level}_second"][0] == f"lateral{level + 1}"
    assert wired["cell5_first"][0] == "a"
    assert wired["cell5_second"][0] == "d4"
    assert wired["cell6_first"][0] == "b"
    two = sources(create_graph("nas_fcos", features[2:4], (4, 5), 16))
    assert two["cell4_second"][0] == "d4"
    one = create_graph("nas_fcos", features[:1], (2, 3), 16)
    assert one.outputs == ("P2", "P3")
    lean = create_graph("nas_fcos", features, (3, 4), 16)
    assert set(sources(lean)) | {"C2", "C3", "C4", "C5", "C6"} == set(lean.reachable) | {"C2"}


def test_nas_fcos_other_candidates_of_its_search():
    graph = create_graph("nas_fcos", SMALL, (3, 4, 5), 16, merge="weighted", separable=True)
    assert not any(isinstance(node.merge, DeformableConv) for node in graph.nodes)
    cells = [node for node in graph.nodes if node.name in ("a", "b", "c", "d3", "cell3", "cell4", "cell5")]
    assert all(node.merge.kind == "weighted" and node.merge.per_channel and not node.ops for node in cells)
    plain = create_graph("nas_fcos", SMALL, (3, 4, 5), 16, merge="sum", separable=True)
    assert cost(graph, (64, 64)).params - cost(plain, (64, 64)).params == 7 * 2 * 16


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_fapn_selects_aligns_and_adds(norm):
    neck, maps, outputs, ops = built("fapn", SMALL[1:], (4, 5), norm=norm)
    p5 = ops("lateral5")(maps[5])
    gate = neck.steps["weighed4"].paths[1].ops[1](maps[4].mean(dim=(2, 3), keepdim=True)).sigmoid()
    lateral = ops("lateral4")(maps[4] + maps[4] * gate)
    raised = up(p5, maps[4])
    offsets = ops("offsets4")(ops("both4")(torch.cat([lateral, 2 * raised], dim=1)))
    assert offsets.shape[1] == 27 * 8
    merged = deform(raised, offsets, neck.steps["aligned4"]).relu() + lateral
    torch.testing.assert_close(outputs[4], ops("P4")(merged))
    torch.testing.assert_close(outputs[5], p5)
    assert (neck.steps["P4"].after[0].bias is None) == (norm == "batch")


def test_fapn_groups_of_offsets_divide_the_width():
    for channels in (1, 12, 20, 64):
        graph = create_graph("fapn", SMALL, (3, 4, 5), channels)
        assert graph.channels_of("offsets4") == 27 * math.gcd(8, channels)


def test_fapn_without_both_modules_is_fpn_with_a_bare_top():
    graph = create_graph("fapn", SMALL, (3, 4, 5), 16, select=False, align=False, up="nearest")
    wired = sources(graph)
    assert wired["merge4"] == ["up4", "lateral4"]
    expected = cost(create_graph("fpn", SMALL, (3, 4, 5), 16), (64, 64)).params - (9 * 16 * 16 + 16)
    assert cost(graph, (64, 64)).params == expected


def test_tpn_is_residual_and_normalised_first():
    _, maps, outputs, ops = built("tpn", SMALL[1:], (4, 5, 6), repeats=1, depth=1)
    x4, x5 = (ops(f"lateral{k}")(maps[k]) for k in (4, 5))
    x6 = ops("extra6", 0)[0].conv(maps[5])

    def add(name, x, y, down=False):
        *before, strided, a, b, c = ops(name, 1) if down else [*ops(name, 1), None, None, None, None]
        for op in before:
            y = y if op is None else op(y)
        return x + (c(b(a(strided.conv(y)))) if down else y)

    def top_down(name, x, y):
        norm, relu, conv, _ = ops(name, 1)
        return x + up(conv(relu(norm(y))), x)

    x5 = top_down("top_down1_5", x5, x6)
    x4 = top_down("top_down1_4", x4, x5)
    x4, x5, x6 = (add(f"middle1_{k}", x, x) for k, x in ((4, x4), (5, x5), (6, x6)))
    x5 = add("bottom_up1_5", x5, x4, down=True)
    x6 = add("bottom_up1_6", x6, x5, down=True)
    for k, x in ((4, x4), (5, x5), (6, x6)):
        torch.testing.assert_close(outputs[k], add(f"P{k}", x, x))


def test_tpn_extra_levels_take_part_unless_made_of_the_output():
    for rule in ("on_input", "on_lateral", "subsample", "max_pool"):
        wired = sources(create_graph("tpn", SMALL, (3, 4, 5, 6, 7), 16, extra=rule))
        assert wired["extra6"] == ["C5" if rule == "on_input" else "lateral5"]
        assert wired["top_down1_6"] == ["extra6", "extra7"]
    wired = sources(create_graph("tpn", SMALL, (3, 4, 5, 6, 7), 16, extra="on_output"))
    assert wired["P6"] == ["P5"]
    for option, value in (("depth", 0), ("depth", 1.0), ("expansion", 0), ("expansion", "x")):
        with pytest.raises(InputError, match=rf"{option}.*{value!r}"):
            create_graph("tpn", SMALL, **{option: value})


def test_simple_fpn_makes_finer_levels_of_one_map():
    _, maps, outputs, ops = built("simple_fpn", VIT, (2, 3, 4, 5, 6))
    x = maps[4]
    first, norm, gelu, second = ops("scaled2", 0)
    p2 = second.conv(gelu(norm(first.conv(x))))
    expected = {2: p2, 3: ops("scaled3", 0)[0].conv(x), 4: x, 5: F.max_pool2d(x, 2)}
    for k, scaled in expected.items():
        torch.testing.assert_close(outputs[k], ops(f"P{k}")(ops(f"lateral{k}")(scaled)))
    torch.testing.assert_close(outputs[6], outputs[5][..., ::2, ::2])
    assert outputs[2].shape[-2:] == (24, 16)


def test_simple_fpn_reads_the_coarsest_map_alone():
    graph = create_graph("simple_fpn", (SMALL[0], SMALL[2]), (2, 3, 4, 5), 16)  # C4 is not missed
    assert [name for name in ("C3", "C5") if name in graph.reachable] == ["C5"]
    steps = {n.name: sum(isinstance(op, TransposedConv) for op in n.inputs[0].ops) for n in graph.nodes}
    assert [steps[f"scaled{k}"] for k in (2, 3, 4)] == [3, 2, 1]
    assert create_graph("simple_fpn", SMALL, (0, 1), 16).outputs == ("P0", "P1")
    with pytest.raises(InputError, match="begin at P5, where the features end"):
        create_graph("simple_fpn", SMALL, (6, 7))


def test_unet_concatenates_the_backbones_own_maps():
    _, maps, outputs, ops = built("unet", SMALL, (3, 4, 5))
    x = ops("P5")(maps[5])
    torch.testing.assert_close(outputs[5], x)
    for k in (4, 3):
        x = ops(f"P{k}")(torch.cat([maps[k], ops(f"P{k}", 1)[0].conv(x)], dim=1))
        torch.testing.assert_close(outputs[k], x)


def test_unet_has_as_many_convs_a_level_as_asked_for():
    params = [cost(create_graph("unet", SMALL, (3, 4, 5), 16, depth=depth), (64, 64)).params for depth in (1, 2, 3)]
    assert params[1] - params[0] == params[2] - params[1] == 3 * (9 * 16 * 16 + 16)
    with pytest.raises(InputError, match=r"depth .* got 0"):
        create_graph("unet", SMALL, depth=0)


def test_semantic_fpn_steps_up_to_the_finest_level():
    _, maps, outputs, ops = built("semantic_fpn", SMALL, (3, 4, 5, 6))
    laterals = {k: ops(f"lateral{k}")(x) for k, x in maps.items()}
    for k in (4, 3):
        laterals[k] = laterals[k] + F.interpolate(laterals[k + 1], size=laterals[k].shape[-2:])
    total = 0
    for k in (3, 4, 5):
        x = ops(f"fpn{k}")(laterals[k])
        if k == 3:
            x = ops("step3_3")(x)
        for at in range(k - 1, 2, -1):
            conv, norm, relu, _ = ops(f"step{k}_{at}", 0)
            x = F.interpolate(relu(norm(conv(x))), scale_factor=2, mode="bilinear", align_corners=False)
        total = total + x
    torch.testing.assert_close(outputs[3], total)
    for k in (4, 5, 6):
        pooled = F.avg_pool2d(total, 2 ** (k - 3), ceil_mode=True, count_include_pad=False)
        torch.testing.assert_close(outputs[k], ops(f"P{k}")(pooled))
    assert len(build_neck(create_graph("semantic_fpn", SMALL, (3,), 16)).out_features) == 1


def test_upernet_pools_the_top_fuses_all_levels():
    neck, maps, outputs, ops = built("upernet", SMALL, (3, 4))
    parts = [maps[5]]
    for i, bins in enumerate((1, 2, 3, 6), start=1):
        _, conv, norm, relu, _ = ops("pyramid5", i)
        parts.append(up(relu(norm(conv(F.adaptive_avg_pool2d(maps[5], bins)))), maps[5]))
    m5 = ops("pyramid5")(torch.cat(parts, dim=1))
    m4 = ops("lateral4")(maps[4])
    m4 = m4 + up(m5, m4)
    m3 = ops("lateral3")(maps[3])
    m3 = m3 + up(m4, m3)
    f3, f4 = ops("fpn3")(m3), ops("fpn4")(m4)
    fused = ops("P3")(torch.cat([f3, up(f4, f3), up(m5, f3)], dim=1))
    torch.testing.assert_close(outputs[3], fused)
    torch.testing.assert_close(outputs[4], ops("P4")(F.avg_pool2d(fused, 2)))
    assert [s.level for s in neck.out_features] == [3, 4]


def test_upernet_takes_other_bins():
    params = [cost(create_graph("upernet", SMALL, (3,), 16, bins=bins), (64, 64)).params for bins in ((), [1, 4])]
    assert params[1] - params[0] == 2 * (48 * 16 + 2 * 16 + 9 * 16 * 16)
    for bins in ((0,), "1", 3, (1.0,)):
        with pytest.raises(InputError, match="expected bins"):
            create_graph("upernet", SMALL, bins=bins)
    with pytest.raises(UnknownNameError, match="avg_pool"):
        create_graph("upernet", SMALL, pool="avg")


@pytest.mark.parametrize("name", ["nas_fcos", "fapn", "tpn", "simple_fpn", "unet", "semantic_fpn", "upernet"])
@pytest.mark.parametrize("channels", [1, 13])
def test_one_level_and_odd_widths(name, channels):
    for features, levels in ((SMALL[:1], (3,)), (SMALL[:1], (3, 4, 5)), (SMALL, (4,)), (SMALL, (5, 6))):
        graph = create_graph(name, features, levels, channels)
        assert [(s.level, s.channels) for s in graph.out_features] == [(level, channels) for level in levels]


# -- the registry ------------------------------------------------------------------------------------------------


def test_only_families_that_say_so_make_levels_the_features_lack():
    for name in list_necks():
        if name != "simple_fpn":
            with pytest.raises(InputError, match="P2, P3 asked for, but the features start at P4"):
                create_graph(name, VIT, (2, 3, 4))


def test_neck_registers_with_and_without_the_declaration(monkeypatch):
    monkeypatch.setattr(registry, "_NECKS", {})
    monkeypatch.setattr(registry, "_MAKE_LEVELS", set())

    def plain(features, out_levels, channels, *, norm="none"):
        """Plain."""

    def maker(features, out_levels, channels):
        """Maker."""

    assert registry.neck(plain) is plain
    assert registry.neck(makes_levels=True)(maker) is maker
    assert list_necks() == ["maker", "plain"]
    assert options("plain") == {"norm": "none"}
    create_graph("maker", VIT, (2, 3))
    with pytest.raises(InputError, match="P2, P3 asked for"):
        create_graph("plain", VIT, (2, 3))


def test_unfit_necks_give_their_reason():
    assert {"rfp", "dyhead"} <= set(list_unfit())
    assert not set(list_unfit()) & set(list_necks())
    for name, reason in list_unfit().items():
        with pytest.raises(InputError) as raised:
            create_graph(name, SMALL)
        assert reason in str(raised.value)
        assert "\n" not in str(raised.value)

"""fpg, bfp, hrfpn, fpn_carafe, asff, afpn, opa_fpn: figures, wiring, slow computations, genomes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import Conv, DeformableConv, Resample, cost
from fpn_bench.nn.neck import build_neck
from fpn_bench.pyramid import FeatureSpec, map_size
from fpn_bench.zoo import create_graph
from fpn_bench.zoo.opa_fpn import FOUND, PATHS, format_dag, parse_dag


def features(first: int, *channels: int) -> tuple[FeatureSpec, ...]:
    return tuple(FeatureSpec(k, c, 2**k) for k, c in enumerate(channels, start=first))


R50 = features(2, 256, 512, 1024, 2048)
R18 = features(2, 64, 128, 256, 512)
HRNET18 = features(2, 18, 36, 72, 144)
SMALL = features(2, 8, 12, 16, 20)
P2_P6 = (2, 3, 4, 5, 6)
FASTER = (640, 640)


# -- figures -----------------------------------------------------------------------------------------------------


def conv(c_in: int, c: int, kernel: int = 1, bias: bool = True) -> int:
    return kernel**2 * c_in * c + c * bias


def normed(c_in: int, c: int, kernel: int = 1) -> int:
    return conv(c_in, c, kernel, bias=False) + 2 * c


def afpn_params(widths: list[int], inputs: list[int], channels: int, depth: int = 4, compressed: int = 8) -> int:
    """The sum over the authors' modules."""
    total = sum(normed(c, w) + normed(w, w) + normed(w, channels) for c, w in zip(inputs, widths, strict=True))
    for size in range(2, len(widths) + 1):
        for i, w in enumerate(widths[:size]):
            for j, source in enumerate(widths[:size]):
                total += normed(source, w, 2 ** max(0, i - j)) if i != j else 0
            total += size * normed(w, compressed) + conv(compressed * size, size) + normed(w, w, 3)
            total += depth * 2 * (conv(w, w, 3) + 2 * w)
    return total


def opa_params(c: int, inputs: list[int]) -> int:
    """The sum over the authors' modules, less the offset convs that they build for the finest level and never call."""
    offsets = conv(c, 18, 3)
    path = 4 * conv(c, c, 3) + 3 * offsets
    fuse = conv(2 * c, c, 3) + conv(2 * c, 18, 3)
    return sum(conv(i, c) for i in inputs) + conv(c, c) + 7 * path + 2 * fuse + 3 * (conv(c, c, 3) + offsets)


FPG_GRID = 35 * 2 * normed(256, 256) + 56 * normed(256, 256, 3) + 5 * conv(256, 256, 3)
CARAFE = conv(256, 64) + conv(64, 100, 3)
FIGURES = [
    ("fpg", R50, P2_P6, 256, FASTER, {}, 41_616_640, 185.388e9),
    (  # RetinaNet form: P3 to P7, extra levels by convs
        "fpg",
        R50[1:],
        (3, 4, 5, 6, 7),
        256,
        FASTER,
        {"extra": "on_lateral"},
        sum(conv(c, 256) for c in (512, 1024, 2048)) + 2 * conv(256, 256, 3) + FPG_GRID,
        None,
    ),
    ("bfp", R50, P2_P6, 256, (800, 1280), {"refine": "none"}, 3_344_384, 57.999e9),
    ("bfp", R50, P2_P6, 256, (800, 1280), {}, 3_344_384 + 263_168, 57.999e9 + 9.241e9),
    ("hrfpn", HRNET18, P2_P6, 256, (800, 1280), {}, 3_019_776, 54.700e9),
    ("hrfpn", HRNET18, P2_P6, 256, (800, 1280), {"share_conv": True}, 270 * 256 + 256 + 590_080, 54.700e9),
    ("afpn", R50, P2_P6, 256, FASTER, {}, 11_392_069, 21.499e9),
    ("afpn", R18, P2_P6, 128, FASTER, {}, afpn_params([8, 16, 32, 64], [64, 128, 256, 512], 128), None),
    ("afpn", R50[1:], (3, 4, 5), 64, FASTER, {"depth": 2}, afpn_params([64, 128, 256], [512, 1024, 2048], 64, 2), None),
    (  # the authors' YOLOv5 form
        "afpn",
        features(3, 128, 256, 512),
        (3, 4, 5),
        128,
        FASTER,
        {"depth": 3, "reduction": 4, "activation": "silu"},
        afpn_params([32, 64, 128], [128, 256, 512], 128, 3),
        None,
    ),
    (
        "afpn",
        R18,
        P2_P6,
        128,
        FASTER,
        {"compressed": 16},
        afpn_params([8, 16, 32, 64], [64, 128, 256, 512], 128, compressed=16),
        None,
    ),
    # The authors' modules hold 5,033,874: each of the 7 top-down and bottom-up paths has an offset conv for the finest
    # level that is never called, so that no graph without dead convs has both this many params and these MACs.
    ("opa_fpn", R50, P2_P6, 112, FASTER, {}, 5_033_874 - 7 * (18 * 9 * 112 + 18), 39.587e9),
    ("opa_fpn", R50, P2_P6, 160, FASTER, {}, opa_params(160, [256, 512, 1024, 2048]), None),
    ("opa_fpn", R18, P2_P6, 64, FASTER, {}, opa_params(64, [64, 128, 256, 512]), None),
    (
        "fpn_carafe",
        R50,
        P2_P6,
        256,
        FASTER,
        {"up": "nearest"},
        3_344_384 + conv(2048, 256, 3) + conv(256, 256, 3),
        None,
    ),
    (
        "fpn_carafe",
        R50,
        P2_P6,
        256,
        FASTER,
        {},
        3_344_384 + conv(2048, 256, 3) + conv(256, 256, 3) + 4 * CARAFE,
        None,
    ),
]


@pytest.mark.parametrize(("name", "inputs", "levels", "channels", "size", "chosen", "params", "macs"), FIGURES)
def test_figures(name, inputs, levels, channels, size, chosen, params, macs):
    costs = cost(create_graph(name, inputs, levels, channels, **chosen), size)
    assert costs.params == params
    if macs is not None:
        assert costs.macs == pytest.approx(macs, rel=1e-3)


def test_asff_has_the_params_of_the_authors_three_modules():
    graph = create_graph("asff", features(3, 256, 512, 1024), (3, 4, 5), 256, inter="growing", widths=[256, 512, 1024])
    assert [s.channels for s in graph.out_features] == [256, 512, 1024]
    votes = {w: 3 * normed(w, 16) + conv(48, 3) for w in (256, 512)}
    finest = normed(512, 256) + votes[256] + normed(256, 256, 3)
    middle = normed(512, 256) + normed(256, 256, 3) + votes[256] + normed(256, 512, 3)
    coarsest = 2 * normed(256, 512, 3) + votes[512] + normed(512, 1024, 3)
    laterals = normed(256, 256) + normed(512, 256) + normed(1024, 512)
    assert cost(graph, (416, 416)).params == laterals + finest + middle + coarsest


# -- wiring ------------------------------------------------------------------------------------------------------


def sources(graph) -> dict[str, list[str]]:
    return {node.name: [edge.source for edge in node.inputs] for node in graph.nodes}


def test_fpg_is_a_triangle_of_pathways():
    graph = create_graph("fpg", R50, P2_P6, 16)
    came = sources(graph)
    grid = [name for name in came if name.startswith("path")]
    assert len(grid) == 5 + 6 + 7 + 8 + 9
    assert came["path1_6"] == ["lateral6", "lateral5", "lateral6"]  # level 5 has not begun: its lateral is passed on
    assert came["path5_2"] == ["lateral2", "path4_3", "lateral2"]
    assert came["path9_4"] == ["path8_4", "path9_3", "path8_5", "lateral4"]
    few = sources(create_graph("fpg", R50, P2_P6, 16, repeats=2))
    assert {f"path2_{k}" for k in P2_P6} <= set(few)
    assert "path1_5" not in few


def test_fpn_carafe_extra_levels_take_part_in_the_top_down_path():
    graph = create_graph("fpn_carafe", R50, (2, 3, 4, 5, 6, 7), 16)
    came = sources(graph)
    assert came["lateral6"] == ["C5"]
    assert came["lateral7"] == ["lateral6"]
    assert came["top_down6"] == ["lateral6", "up6"]
    assert came["up5"] == ["top_down6", "top_down6"]


def test_asff_resizes_as_the_authors_do():
    graph = create_graph("asff", R50, (2, 3, 4, 5), 16, inter="growing")
    ops = {node.name: node.inputs[0].ops for node in graph.nodes}
    assert ops["resized3_2"] == (Resample("nearest"),)  # widths are equal
    assert ops["resized5_2"][0] == Conv(16, 1, bias=False)
    assert ops["resized5_2"][-1] == Resample("nearest")
    assert ops["resized2_3"][0] == Conv(16, 3, stride=2, bias=False)
    assert ops["resized2_5"][:2] == (Resample("max_pool", kernel="stride+1"), Conv(64, 3, stride=2, bias=False))


def test_afpn_fuses_one_level_more_a_stage():
    came = sources(create_graph("afpn", R50, P2_P6, 16))
    fused = [name for name in came if "_fused" in name]
    assert fused == [f"stage{n}_fused{k}" for n in (2, 3, 4) for k in range(2, 2 + n)]
    assert came["stage2_3to2"] == ["base3"]
    assert came["stage3_4to2"] == ["base4"]
    assert came["stage3_fused2"] == ["stage2_block2_4", "stage3_3to2", "stage3_4to2", "stage3_logits2"]


def test_opa_fpn_deforms_all_but_the_finest_level():
    graph = create_graph("opa_fpn", R50, P2_P6, 16, dag="TD; BU none")
    plain = {n.name for n in graph.nodes if n.name.startswith("N") and any(isinstance(op, Conv) for op in n.ops)}
    assert {name for name in plain if "offsets" not in name} == {"N1_TD0_2", "N2_BU0_2"}
    deformed = [n for n in graph.nodes if isinstance(n.merge, DeformableConv)]
    assert {n.level for n in deformed} == {3, 4, 5}
    assert not any(n.merge.modulated for n in deformed)


def test_opa_fpn_first_extra_level_may_take_part():
    graph = create_graph("opa_fpn", R50[1:], (3, 4, 5, 6, 7), 16, extra_inside=True, extra="on_output")
    came = sources(graph)
    assert came["context"] == ["lateral6", "lateral6"]
    assert came["P7"] == ["P6"]
    assert came["P6"][0] == "N1_TD0_6"


# -- slow computations -------------------------------------------------------------------------------------------


def built(name, inputs=SMALL, levels=(2, 3, 4, 5), image_size=(96, 64), channels=16, **chosen):
    """Maps by level, outputs by level, and a function from a key of the state dict to the tensor."""
    torch.manual_seed(0)
    neck = build_neck(create_graph(name, inputs, levels, channels, **chosen)).eval()
    state = neck.state_dict()
    for key, value in state.items():
        if key.endswith("bias"):
            value.normal_()
    maps = {s.level: torch.randn(1, s.channels, *map_size(image_size, s.level)) for s in inputs}
    with torch.no_grad():
        outputs = dict(zip(levels, neck(list(maps.values())), strict=True))

    def conv(x: torch.Tensor, where: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"steps.{where}.weight"]
        return F.conv2d(x, weight, state.get(f"steps.{where}.bias"), stride, (weight.shape[-1] - 1) // 2)

    return maps, outputs, conv


def nearest(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def check(outputs, expected) -> None:
    for level, x in outputs.items():
        torch.testing.assert_close(x, expected[level], rtol=1e-4, atol=1e-5)


def test_fpg_adds_what_the_paper_says():
    maps, outputs, conv = built("fpg", repeats=2, norm="none", triangular=False)
    first = {k: conv(x, f"lateral{k}.after.0") for k, x in maps.items()}
    before = first
    for pathway in (1, 2):
        now = {}
        for k in (2, 3, 4, 5):
            node = f"path{pathway}_{k}"
            now[k] = conv(before[k].relu(), f"{node}.paths.0.ops.1")
            path = itertools.count(1)
            if k > 2:
                now[k] = now[k] + conv(now[k - 1].relu(), f"{node}.paths.{next(path)}.ops.1.conv", stride=2)
            if k < 5:
                now[k] = now[k] + conv(nearest(before[k + 1], before[k]).relu(), f"{node}.paths.{next(path)}.ops.2")
            now[k] = now[k] + conv(first[k].relu(), f"{node}.paths.{next(path)}.ops.1")
        before = now
    check(outputs, {k: conv(before[k].relu(), f"P{k}.after.1") for k in outputs})


@pytest.mark.parametrize("refine", ["none", "conv", "non_local"])
def test_bfp_gathers_refines_and_gives_back(refine):
    maps, outputs, conv = built("bfp", refine=refine)
    pyramid, above = {}, None
    for k in (5, 4, 3, 2):
        lateral = conv(maps[k], f"lateral{k}.after.0")
        above = lateral if above is None else lateral + nearest(above, lateral)
        pyramid[k] = conv(above, f"fpn{k}.after.0")
    size = pyramid[4].shape[-2:]
    gathered = [F.adaptive_max_pool2d(pyramid[k], size) for k in (2, 3)] + [pyramid[4], nearest(pyramid[5], pyramid[4])]
    mean = sum(gathered) / 4
    if refine == "conv":
        mean = conv(mean, "refined.after.0").relu()
    elif refine == "non_local":
        query, key, value = (conv(mean, f"attention.paths.{i}.ops.0").flatten(2) for i in range(3))
        mixed = value @ (query.transpose(1, 2) @ key).softmax(-1).transpose(1, 2)
        mean = mean + conv(mixed.reshape(mean.shape), "refined.paths.1.ops.0")
    back = {k: nearest(mean, pyramid[k]) for k in (2, 3, 4)} | {5: F.adaptive_max_pool2d(mean, pyramid[5].shape[-2:])}
    check(outputs, {k: pyramid[k] + back[k] for k in outputs})


@pytest.mark.parametrize("pool", ["avg_pool", "max_pool"])
def test_hrfpn_pools_one_map(pool):
    maps, outputs, conv = built("hrfpn", levels=P2_P6, image_size=(128, 64), pool=pool)
    size = maps[2].shape[-2:]
    resized = [maps[2]] + [F.interpolate(maps[k], size, mode="bilinear", align_corners=False) for k in (3, 4, 5)]
    fused = conv(torch.cat(resized, 1), "fused.after.0")
    pooled = {k: getattr(F, f"{pool}2d")(fused, 2 ** (k - 2)) if k > 2 else fused for k in P2_P6}
    check(outputs, {k: conv(x, f"P{k}.after.0") for k, x in pooled.items()})


@pytest.mark.parametrize("reach", [1, 2])
def test_carafe_equals_a_slow_loop(reach):
    maps, outputs, conv = built("fpn_carafe", SMALL[2:], (4, 5), (96, 128), reach=reach, compressed=6)
    top = conv(maps[5], "lateral5.after.0")
    filters = conv(conv(top, "up4.paths.1.ops.0"), "up4.paths.1.ops.1")
    filters = F.pixel_shuffle(filters, 2).softmax(1)
    merged = conv(maps[4], "lateral4.after.0")
    height, width = top.shape[-2:]
    for y, x in itertools.product(range(6), range(8)):
        for tap, (dy, dx) in enumerate(itertools.product(range(-reach, reach + 1), repeat=2)):
            row, column = y // 2 + dy, x // 2 + dx
            if 0 <= row < height and 0 <= column < width:
                merged[..., y, x] += filters[:, tap, y, x] * top[..., row, column]
    check(outputs, {4: conv(merged, "P4.after.0"), 5: conv(top, "P5.after.0")})


def test_asff_weighs_pixel_by_pixel():
    maps, outputs, conv = built("asff", norm="none")

    def act(x):
        return F.leaky_relu(x, 0.1)

    own = {k: act(conv(x, f"lateral{k}.after.0")) for k, x in maps.items()}
    pooled = F.max_pool2d(own[2], 3, 2, 1)
    each = [
        act(conv(pooled, "resized2_4.paths.0.ops.1.conv", stride=2)),
        act(conv(own[3], "resized3_4.paths.0.ops.0.conv", stride=2)),
        own[4],
        nearest(own[5], own[4]),
    ]
    votes = [act(conv(x, f"logits4.paths.{i}.ops.0")) for i, x in enumerate(each)]
    weights = conv(torch.cat(votes, 1), "logits4.after.0").softmax(1)
    fused = sum(weights[:, i : i + 1] * x for i, x in enumerate(each))
    torch.testing.assert_close(outputs[4], act(conv(fused, "P4.after.0")), rtol=1e-4, atol=1e-5)


def test_afpn_of_two_levels():
    maps, outputs, conv = built("afpn", SMALL[:2], (2, 3), norm="none", depth=1, reduction=1)
    own = {k: conv(conv(x, f"lateral{k}.after.0").relu(), f"base{k}.after.0").relu() for k, x in maps.items()}
    other = conv(own[3], "stage2_3to2.paths.0.ops.0").relu()
    other = F.interpolate(other, own[2].shape[-2:], mode="bilinear", align_corners=False)
    votes = [conv(x, f"stage2_logits2.paths.{i}.ops.0").relu() for i, x in enumerate((own[2], other))]
    weights = conv(torch.cat(votes, 1), "stage2_logits2.after.0").softmax(1)
    x = conv(weights[:, :1] * own[2] + weights[:, 1:] * other, "stage2_fused2.after.0").relu()
    x = (x + conv(conv(x, "stage2_block2_1_in.after.0").relu(), "stage2_block2_1.paths.1.ops.0")).relu()
    torch.testing.assert_close(outputs[2], conv(x, "P2.after.0").relu(), rtol=1e-4, atol=1e-5)


def slow_path(path, x, conv):
    """What a path makes of four maps, finest first, with plain convolutions."""

    def pool(x):
        return F.max_pool2d(x, 2)

    name = f"N1_{path}0_"
    if path == "TD":
        out = [conv(x[3], f"{name}5.after.0")]
        for i in (2, 1, 0):
            out.insert(0, conv(x[i] + nearest(out[0], x[i]), f"{name}{i + 2}.after.0"))
        return out
    if path == "BU":
        out = [conv(x[0], f"{name}2.after.0")]
        for i in (1, 2, 3):
            out.append(conv(x[i] + pool(out[-1]), f"{name}{i + 2}.after.0"))
        return out
    if path == "FS":
        low, high = x[1] + pool(x[0]), x[2] + nearest(x[3], x[2])
        middle = conv(torch.cat([low, nearest(high, low)], 1), f"{name}conv3.after.0")
        above = conv(torch.cat([pool(low), high], 1), f"{name}conv3.after.0")
        return [nearest(middle, x[0]), middle, above, pool(above)]
    out = []
    for i in range(4):
        total = conv(x[i], f"{name}same2.after.0")
        if i > 0:
            total = total + conv(x[i - 1], f"{name}down3.paths.0.ops.0.conv", stride=2)
        if i < 3:
            total = total + nearest(conv(x[i + 1], f"{name}up3.after.0"), total)
        out.append(total.relu())
    return out


@pytest.mark.parametrize("path", ["TD", "BU", "FS", "SE"])
def test_opa_fpn_paths_compute_what_the_authors_do(path):
    maps, outputs, conv = built("opa_fpn", image_size=(128, 64), dag=f"{path}; skip skip", deformable="none")
    pyramid = [conv(x, f"lateral{k}.after.0") for k, x in maps.items()]
    pyramid[3] = pyramid[3] + conv(pyramid[3], "context.paths.1.ops.0").mean((2, 3), keepdim=True)
    after = slow_path(path, pyramid, conv)
    check(outputs, {k: 2 * after[k - 2] + pyramid[k - 2] for k in outputs})


@pytest.mark.parametrize("path", ["TD", "BU", "FS"])
def test_opa_fpn_without_offsets_is_plain(path):
    plain, deformed = (
        build_neck(create_graph("opa_fpn", SMALL, (2, 3, 4, 5), 16, dag=path, deformable=kind))
        for kind in ("none", "coarser")
    )
    given = plain.state_dict()
    for key, value in deformed.state_dict().items():
        if "offsets" in key:
            value.zero_()
        else:
            value.copy_(given[key.replace("merge.", "after.0.")])
    maps = [torch.randn(1, s.channels, *map_size((96, 64), s.level)) for s in SMALL]
    for x, y in zip(plain(maps), deformed(maps), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


# -- genomes -----------------------------------------------------------------------------------------------------


def test_both_spellings_of_a_genome_are_one_graph():
    dag = parse_dag(FOUND)
    assert format_dag(dag) == FOUND
    assert parse_dag(dag) == parse_dag([list(types) for types in dag]) == parse_dag(FOUND.replace(" ", ",  ")) == dag
    as_list = create_graph("opa_fpn", R50, P2_P6, 16, dag=[list(types) for types in dag])
    assert as_list.id == create_graph("opa_fpn", R50, P2_P6, 16).id


@pytest.mark.parametrize("path", [p for p in PATHS if p != "none"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("deformable", ["none", "coarser", "all"])
def test_every_path_takes_any_number_of_levels(path, count, deformable):
    inputs = features(2, 8, 12, 16, 20, 24)[:count]
    levels = tuple(s.level for s in inputs)
    graph = create_graph("opa_fpn", inputs, levels, 8, dag=[[path], ["none", path]], deformable=deformable)
    neck = build_neck(graph)
    outputs = neck([torch.randn(1, s.channels, *map_size((97, 65), s.level)) for s in inputs])
    assert [x.shape[-2:] for x in outputs] == [map_size((97, 65), k) for k in levels]
    assert sum(p.numel() for p in neck.parameters()) == cost(graph, (97, 65)).params


@pytest.mark.parametrize(
    ("dag", "error", "message"),
    [
        ("", InputError, r"1 path\(s\) in pyramid N1 of the dag, .* got 0"),
        ((), InputError, "expected at least one pyramid"),
        (7, InputError, "as dag, .* got 7"),
        ("TD; TD", InputError, r"expected 2 path\(s\) in pyramid N2 of the dag, .* got 1: 'TD'"),
        ("TD; TD TD BU", InputError, r"2 path\(s\) in pyramid N2 of the dag, .* got 3"),
        ("TD; none none", InputError, "pyramid N2 of the dag has no path other than none"),
        ("TD; TD DT", UnknownNameError, "N1 -> N2 in the dag: 'DT'"),
        (["TD", ["TD", "BU"]], InputError, "pyramid N1 of the dag .* got 'TD'"),
        ([["TD"], [["TD"], "TD"]], UnknownNameError, "N0 -> N2"),
    ],
)
def test_a_bad_genome_is_named(dag, error, message):
    with pytest.raises(error, match=message):
        create_graph("opa_fpn", R50, P2_P6, 16, dag=dag)


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("asff", {"widths": [8, 8]}, "expected 4 widths, .* got 2"),
        ("asff", {"widths": "888"}, "positive whole numbers"),
        ("asff", {"compressed": 0}, r"compressed .* got 0"),
        ("afpn", {"depth": 0}, r"depth .* got 0"),
        ("afpn", {"compressed": 0}, r"compressed .* got 0"),
        ("fpn_carafe", {"reach": 1.5}, "expected reach .* got 1.5"),
        ("bfp", {"refine_level": "P4"}, "expected refine_level .* got 'P4'"),
        ("fpg", {"repeats": 0}, r"repeats .* got 0"),
        ("hrfpn", {"pool": "avgpool"}, "did you mean 'avg_pool'"),
    ],
)
def test_wrong_values_are_named(name, chosen, message):
    with pytest.raises(InputError, match=message):
        create_graph(name, R50, (2, 3, 4, 5), 16, **chosen)

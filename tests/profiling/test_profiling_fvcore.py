"""The second counter by hand, and the two counters against each other: backbones, necks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import fpn_bench as fb
from fpn_bench.profiling import count_macs, count_macs_fvcore, static_profile

_SWEEP = pd.read_csv(Path(__file__).parents[2] / "results" / "mac_counters.csv", keep_default_na=False)
# Small, and of many kinds: attention fused and not, words as padding, einsum, weights that are standardised, shuffles.
_SMALL = [
    "convmixer_768_32",
    "cs3darknet_s",
    "deit_tiny_patch16_224",
    "efficientvim_m1",
    "ghostnet_050",
    "inception_next_atto",
    "levit_128s",
    "mobilevit_xxs",
    "nf_regnet_b0",
    "pit_ti_224",
    "resnest14d",
    "tinynet_e",
]
# Those of deformable convolution, attention, reassembly, transposed convolution, pooling of all sizes.
_NECKS = ["fapn", "hybrid_encoder", "fpn_carafe", "simple_fpn", "upernet", "bifpn"]
_FEATURES = tuple(fb.FeatureSpec(level, width, 2**level) for level, width in ((3, 24), (4, 40), (5, 56)))


class _Call(nn.Module):
    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.call(*tensors)


_ADDED_BY_HAND = [
    (F.scaled_dot_product_attention, ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)), 2 * 3 * 5 * 7 * (8 + 4)),
    (lambda x, w: F.conv2d(x, w, padding="same", groups=2), ((2, 4, 5, 7), (6, 2, 3, 3)), 2 * 35 * 6 * 2 * 9),
    (torchvision.ops.deform_conv2d, ((2, 4, 5, 7), (2, 18, 3, 5), (6, 4, 3, 3)), 2 * 15 * 6 * 4 * 9),
    (torch.baddbmm, ((2, 3, 5), (2, 3, 4), (2, 4, 5)), 2 * 3 * 4 * 5),
]
_SHIPPED_BY_HAND = [
    (lambda x, y: torch.einsum("bihw,bjhw->bij", x, y), ((2, 3, 4, 5), (2, 6, 4, 5)), 2 * 3 * 6 * 20),
    (lambda x, y: x @ y, ((2, 3, 4), (4, 5)), 2 * 3 * 4 * 5),
    (lambda x, w: F.conv_transpose2d(x, w, stride=2), ((1, 3, 4, 5), (3, 2, 2, 2)), 20 * 3 * 2 * 4),
]


@pytest.mark.parametrize(("call", "shapes", "macs"), _ADDED_BY_HAND + _SHIPPED_BY_HAND)
def test_products_by_hand(call: Callable[..., Tensor], shapes: tuple[tuple[int, ...], ...], macs: int) -> None:
    inputs = tuple(torch.zeros(shape) for shape in shapes)
    report = count_macs_fvcore(_Call(call), inputs)
    assert (report.macs, report.macs_fvcore_style, report.uncounted) == (macs, macs, {})
    assert report.macs_as_shipped == (0 if call in [added for added, *_ in _ADDED_BY_HAND] else macs)
    assert count_macs(_Call(call), inputs) == macs


@pytest.mark.parametrize(
    "lstm",
    [nn.LSTM(6, 5), nn.LSTM(6, 5, 2, bias=False, bidirectional=True, batch_first=True), nn.LSTM(6, 5, proj_size=3)],
)
def test_lstm(lstm: nn.LSTM) -> None:
    matrices = sum(p.numel() for p in lstm.parameters() if p.dim() == 2)
    inputs = torch.zeros(7, 2, 6)
    assert count_macs_fvcore(lstm.eval(), inputs).macs == count_macs(lstm, inputs) == 7 * 2 * matrices


@pytest.mark.parametrize(
    ("call", "work"),
    [
        (lambda x: F.batch_norm(x, x.new_zeros(4), x.new_ones(4)), 1),
        (lambda x: F.batch_norm(x, *[x.new_ones(4)] * 4), 2),
        (lambda x: F.batch_norm(x, None, None, x.new_ones(4), training=True), 5),
        (lambda x: F.group_norm(x, 2), 4),
        (lambda x: F.layer_norm(x, (8,), x.new_ones(8)), 5),
        (lambda x: F.instance_norm(x, weight=x.new_ones(4)), 5),
        (lambda x: F.adaptive_avg_pool2d(x, 1), 1),
        (lambda x: F.interpolate(x, scale_factor=2), 4),
        (lambda x: F.interpolate(x, (4, 4), mode="bilinear"), 1),
        (lambda x: F.grid_sample(x, x.new_zeros(2, 8, 8, 2), align_corners=False), 4),
        (lambda x: F.max_pool2d(F.gelu(x), 2).mean((2, 3)).softmax(1), 0),
    ],
)
def test_what_fvcore_adds(call: Callable[[Tensor], Tensor], work: int) -> None:
    """`work` a value of the input, by both counters."""
    x = torch.randn(2, 4, 8, 8)
    profile = static_profile({"part": (_Call(call), x)})
    report = count_macs_fvcore(_Call(call), x)
    assert (profile.macs, profile.macs_fvcore_style) == (report.macs, report.macs_fvcore_style) == (0, work * x.numel())


def test_what_is_not_counted_is_named() -> None:
    report = count_macs_fvcore(_Call(torch.mv), (torch.zeros(3, 4), torch.zeros(4)))
    assert (report.macs, report.uncounted) == (0, {"aten::mv": 1})


def _agree(module: nn.Module, inputs: Tensor | tuple[list[Tensor]]) -> None:
    profile, report = static_profile({"part": (module, inputs)}), count_macs_fvcore(module, inputs)
    assert (profile.uncounted, report.uncounted) == ({}, {})
    # einsum is counted along numpy's path of contraction, in rounded figures.
    assert report.macs == pytest.approx(profile.macs, rel=1e-5)
    assert report.macs_fvcore_style == pytest.approx(profile.macs_fvcore_style, rel=1e-5)


@pytest.mark.parametrize("name", _NECKS)
def test_counters_agree_on_necks(name: str) -> None:
    _agree_on_neck(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(fb.list_necks()))
def test_counters_agree_on_every_neck(name: str) -> None:
    _agree_on_neck(name)


def _agree_on_neck(name: str) -> None:
    neck = fb.build_neck(fb.create_graph(name, _FEATURES, (3, 4, 5), 16)).eval()
    _agree(neck, ([torch.randn(1, s.channels, 96 // s.stride, 64 // s.stride) for s in _FEATURES],))


@pytest.mark.parametrize("name", _SMALL)
def test_counters_agree(name: str) -> None:
    _agree_on(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", _SWEEP["name"])
def test_counters_agree_on_every_family(name: str) -> None:
    """The names of the table that is cited, benchmarks/mac_counters.py."""
    _agree_on(name)


def _agree_on(name: str) -> None:
    model = timm.create_model(name).eval()
    _agree(model, torch.zeros(1, *model.pretrained_cfg["input_size"]))


def test_the_table_says_so() -> None:
    table = _SWEEP
    assert len(table) >= 110
    assert table["family"].nunique() >= 80
    assert ((table["macs_fvcore"] / table["macs"] - 1).abs() <= 0.005).all()
    assert (table["macs_flop_counter"] == table["macs"]).all()
    assert (table["uncounted"] + table["uncounted_by_fvcore"] == "").all()

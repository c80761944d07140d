"""Parameters and MACs against closed forms, a second counter and published figures."""

import logging
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fpn_bench.errors import InputError
from fpn_bench.profiling import count_macs, count_macs_fvcore, count_params, static_profile


def test_macs_of_one_convolution_by_hand() -> None:
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)
    assert count_macs(conv, torch.zeros(2, 6, 9, 7)) == 2 * 5 * 4 * 8 * 3 * 9


def test_macs_of_a_deformable_convolution_by_hand() -> None:
    class Deformable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))
            self.offsets = nn.Conv2d(4, 18, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torchvision.ops.deform_conv2d(x, self.offsets(x), self.weight, padding=1)

    module, x = Deformable().eval(), torch.randn(2, 4, 5, 7)
    expected = 2 * 5 * 7 * 9 * 4 * (6 + 18)
    assert count_macs(module, x) == expected
    report = count_macs_fvcore(module, x)
    assert (report.macs, report.uncounted) == (expected, {})


def test_macs_of_attention_by_hand() -> None:
    class Attention(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(q, k, v)

    inputs = (torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8), torch.zeros(2, 3, 7, 4))
    assert count_macs(Attention(), inputs) == 2 * 3 * 5 * 7 * (8 + 4)
    assert count_macs_fvcore(Attention(), inputs).macs == 2 * 3 * 5 * 7 * (8 + 4)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        ("mobilenetv3_small_050", 65),
        ("convnext_atto", 64),
        ("mobilevit_xxs", 64),
        ("vit_tiny_patch16_224", 224),
        ("convmixer_768_32", 32),
    ],
)
def test_two_counters_agree(name: str, size: int) -> None:
    model = timm.create_model(name).eval()
    images = torch.zeros(1, 3, size, size)
    report = count_macs_fvcore(model, images)
    assert report.uncounted == {}
    assert count_macs(model, images) == pytest.approx(report.macs, rel=1e-4)
    assert report.macs <= report.macs_fvcore_style < 1.3 * report.macs


def test_batch_norm_shortcut_changes_no_count_and_no_shape() -> None:
    model = timm.create_model("regnetx_002").eval().requires_grad_(False)
    images = torch.zeros(2, 3, 65, 97)
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert count_macs(model, images) == counter.get_total_flops() // 2
    assert count_macs(model.train(), images) == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "weights", ["ResNet50_Weights", "MobileNet_V3_Large_Weights", "Swin_T_Weights", "ViT_B_16_Weights"]
)
def test_published_figures_of_torchvision(weights: str) -> None:
    meta = torchvision.models.get_weight(f"{weights}.IMAGENET1K_V1").meta
    name = weights.removesuffix("_Weights").lower()
    with torch.device("meta"):
        model = torchvision.models.get_model(name).eval()
    macs = count_macs(model, torch.zeros(1, 3, 224, 224))
    assert macs / 1e9 == pytest.approx(meta["_ops"], abs=6e-4)
    assert count_params(model) == meta["num_params"]


def test_published_figure_of_a_detector() -> None:
    """FCOS without its post-processing; the figure is for one image of 800x800."""
    meta = torchvision.models.detection.FCOS_ResNet50_FPN_Weights.COCO_V1.meta
    with torch.device("meta"):
        fcos = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None).eval()

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fcos = fcos

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            outputs: dict[str, Tensor] = self.fcos.head(list(self.fcos.backbone(images).values()))
            return outputs

    macs = count_macs(Dense(), torch.zeros(1, 3, 800, 800))
    assert macs / 1e9 == pytest.approx(meta["_ops"], rel=1e-3)


class _Leaves(nn.Module):
    """Leaves a tensor of the last call behind, and holds one that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.scale = torch.ones(4, 1, 1)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.norm(self.conv(x)) * self.scale
        return self.last


def test_module_is_left_as_it_was() -> None:
    module = _Leaves()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    assert count_macs(module, torch.randn(2, 3, 5, 5)) == 2 * 25 * 12
    assert module.last is None
    assert module.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert module.scale.device.type == "cpu"


def test_parameter_given_to_a_submodule() -> None:
    """FlopCounterMode alone raises on this one unless gradients are off."""
    model = timm.create_model("cait_xxs24_224")
    assert count_macs(model, torch.zeros(1, 3, 224, 224)) > 1e9


def test_one_argument_or_several() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)

        def forward(self, maps: list[Tensor]) -> Tensor:
            out: Tensor = sum(self.conv(m).sum() for m in maps)  # type: ignore[assignment]
            return out

    maps = [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2)]
    assert count_macs(Sum(), maps) == count_macs(Sum(), (maps,)) == 9 * 20
    assert count_macs(nn.MultiheadAttention(4, 1), (torch.zeros(3, 4),) * 3) == 3 * 4 * 4 * 4 + 3 * 3 * 4 * 2


@pytest.mark.parametrize(
    ("call", "op"),
    [
        (lambda x: torch.mv(x[0, 0], x[0, 0, 0]), "aten.mv"),
        (lambda x: nn.functional.bilinear(x, x, x.new_zeros(2, 8, 8)), "aten._trilinear"),
    ],
)
def test_what_is_not_counted_is_named(
    call: Callable[[Tensor], Tensor], op: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call(x)

    profile = static_profile({"odd": (Odd(), torch.zeros(1, 3, 8, 8))})
    assert profile.uncounted == profile.parts["odd"].uncounted == {op: 1}
    with caplog.at_level(logging.WARNING):
        count_macs(Odd(), torch.zeros(1, 3, 8, 8))
    assert f"MACs of Odd leave out {op} x1" in caplog.text


def test_elementwise_work_is_not_mistaken_for_a_product() -> None:
    class Cheap(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
            x = nn.functional.interpolate(x[:, None], scale_factor=1.5, mode="trilinear")[:, 0]
            x = nn.functional.group_norm(nn.functional.gelu(x), 1) * x + x
            return nn.functional.max_pool2d(x, 2).softmax(1).half().float().contiguous()

    profile = static_profile({"cheap": (Cheap(), torch.zeros(1, 4, 8, 8))})
    assert (profile.macs, profile.uncounted, profile.params) == (0, {}, 0)


def test_profile_by_parts_counts_shared_parameters_once() -> None:
    shared = nn.Conv2d(3, 5, 1)
    frozen = nn.Linear(5, 2).requires_grad_(False)
    image = torch.zeros(1, 3, 4, 4)
    profile = static_profile(
        {"a": (shared, image), "b": (nn.Sequential(shared), image), "head": (frozen, torch.zeros(1, 5))}
    )
    assert [p.params for p in profile.parts.values()] == [20, 20, 12]
    assert (profile.params, profile.trainable_params) == (32, 20)
    assert profile.parts["head"].frozen_params == 12
    assert [p.macs for p in profile.parts.values()] == [240, 240, 10]
    assert profile.macs == 490
    with pytest.raises(InputError, match="no parts came"):
        static_profile({})


def test_count_params() -> None:
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    assert count_params(tied) == 9
    tied.requires_grad_(False)
    assert (count_params(tied, trainable=True), count_params(tied, trainable=False)) == (0, 9)
    assert count_params(nn.ReLU()) == 0

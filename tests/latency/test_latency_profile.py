"""`profile`: where the modules may be, and what it leaves behind."""

import pytest
import torch
from torch import Tensor, nn

from fpn_bench.errors import InputError
from fpn_bench.latency import profile

SIZE = (9, 12)
BACKBONE_MACS = 5 * 6 * 4 * 3 * 9
NECK_MACS = 5 * 6 * 2 * 4


class _Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.norm(self.conv(images)),)


class _Neck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self.lateral(x) for x in maps)


def _modules(device: str) -> tuple[nn.Module, nn.Module]:
    with torch.device(device):
        return _Backbone(), _Neck()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_counts_wherever_the_modules_are_and_again(device: str) -> None:
    backbone, neck = _modules(device)
    for _ in range(2):
        result = profile(backbone, neck, image_size=SIZE)
        assert {name: part.macs for name, part in result.static.parts.items()} == {
            "backbone": BACKBONE_MACS,
            "neck": NECK_MACS,
        }
        assert (result.latency, result.fvcore) == (None, None)
    assert {p.device.type for m in (backbone, neck) for p in m.parameters()} == {device}


def test_latency_and_second_counter_and_again() -> None:
    backbone, neck = _modules("cpu")
    for _ in range(2):
        result = profile(backbone, neck, image_size=SIZE, device="cpu", budget_s=0.01, verify=True)
        assert result.latency is not None
        assert result.fvcore is not None
        assert result.fvcore.macs == result.static.macs == BACKBONE_MACS + NECK_MACS


def test_modes_gradients_and_values_are_left_as_they_were() -> None:
    backbone, neck = _Backbone(), _Neck().eval()
    backbone.norm.eval()
    backbone.norm.requires_grad_(False)
    modes = [(m, m.training) for m in (*backbone.modules(), *neck.modules())]
    gradients = [p.requires_grad for p in backbone.parameters()]
    state = {k: v.clone() for k, v in backbone.state_dict().items()}
    profile(backbone, neck, image_size=SIZE, device="cpu", budget_s=0.01, verify=True)
    with pytest.raises(TypeError):
        profile(backbone, nn.Linear(1, 1), image_size=SIZE)
    assert all(m.training == mode for m, mode in modes)
    assert [p.requires_grad for p in backbone.parameters()] == gradients
    assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())


def test_what_has_no_values_cannot_run() -> None:
    meta_backbone, meta_neck = _modules("meta")
    backbone, neck = _modules("cpu")
    for pair in ((meta_backbone, meta_neck), (meta_backbone, neck), (backbone, meta_neck)):
        with pytest.raises(InputError, match="is on meta, which holds no values to run"):
            profile(*pair, image_size=SIZE, device="cpu")
        with pytest.raises(InputError, match="is on meta, which holds no values to run"):
            profile(*pair, image_size=SIZE, verify=True)
    assert {p.device.type for p in backbone.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"device": "tpu"}, "got 'tpu'"), ({"image_size": (0, 5)}, r"expected image_size .* got \(0, 5\)")],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        profile(*_modules("cpu"), **({"image_size": SIZE} | arguments))  # type: ignore[arg-type]


@pytest.mark.gpu
def test_modules_on_a_gpu() -> None:
    backbone, neck = _modules("cpu")
    for arguments in ({"device": "cuda"}, {"device": "cuda"}, {"verify": True}, {}):
        result = profile(backbone, neck, image_size=SIZE, budget_s=0.01, **arguments)
        assert result.static.macs == BACKBONE_MACS + NECK_MACS
        assert {p.device.type for m in (backbone, neck) for p in m.parameters()} == {"cpu"}


class _Adapted(_Backbone):
    """A backbone whose last module makes another map of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter: nn.Module | None = _Twice()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = super().forward(images)
        return maps if self.adapter is None else self.adapter(maps)


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.finer = nn.ConvTranspose2d(4, 4, 2, stride=2, bias=False)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.finer(maps[0]), maps[0]


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.boxes = nn.Conv2d(2, 5, 1, bias=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        assert isinstance(maps, list)
        return torch.cat([self.boxes(x).flatten(2) for x in maps], dim=2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_adapter_and_head_are_parts_of_their_own(device: str) -> None:
    with torch.device(device):
        backbone, neck, head = _Adapted(), _Neck(), _Head()
    coarse, fine = 5 * 6, 10 * 12
    result = profile(backbone, neck, head, image_size=SIZE).static
    assert {name: (part.params, part.macs) for name, part in result.parts.items()} == {
        "backbone": (4 * 3 * 9 + 8, BACKBONE_MACS),
        "adapter": (4 * 4 * 4, coarse * 4 * 4 * 4),
        "neck": (2 * 4, (coarse + fine) * 2 * 4),
        "head": (5 * 2, (coarse + fine) * 5 * 2),
    }
    assert result.params == sum(p.numel() for m in (backbone, neck, head) for p in m.parameters())
    assert backbone.adapter is not None


def test_latency_and_second_counter_are_of_all_parts() -> None:
    result = profile(_Adapted(), _Neck(), _Head(), image_size=SIZE, device="cpu", budget_s=0.01, verify=True)
    assert result.fvcore is not None
    assert result.fvcore.macs == result.static.macs
    assert result.latency is not None

"""Static profiles against closed forms, torch's own counter and its own allocator."""

import logging
from collections.abc import Callable
from dataclasses import astuple, fields

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import fpn_bench as fb
from fpn_bench.errors import InputError
from fpn_bench.profiling import ModuleProfile, count_macs, count_params, operations, static_profile


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

    assert count_macs(Deformable().eval(), torch.randn(2, 4, 5, 7)) == 2 * 5 * 7 * 9 * 4 * (6 + 18)


def test_macs_of_attention_by_hand() -> None:
    class Attention(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(q, k, v)

    inputs = (torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8), torch.zeros(2, 3, 7, 4))
    assert count_macs(Attention(), inputs) == 2 * 3 * 5 * 7 * (8 + 4)


def test_macs_of_an_lstm_by_hand() -> None:
    assert count_macs(nn.LSTM(6, 5), torch.zeros(7, 2, 6)) == 7 * 2 * 4 * 5 * (6 + 5)


def test_batch_norm_shortcut_changes_no_count_and_no_shape() -> None:
    model = timm.create_model("regnetx_002").eval().requires_grad_(False)
    images = torch.zeros(2, 3, 65, 97)
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert count_macs(model, images) == counter.get_total_flops() // 2
    assert count_macs(model.train(), images) == counter.get_total_flops() // 2


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
    with pytest.raises(InputError, match="expected at least one part to profile"):
        static_profile({})


def test_count_params() -> None:
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    assert count_params(tied) == 9
    tied.requires_grad_(False)
    assert (count_params(tied, trainable=True), count_params(tied, trainable=False)) == (0, 9)
    assert count_params(nn.ReLU()) == 0


_WIDTHS = {3: 24, 4: 40, 5: 56}
_FEATURES = tuple(fb.FeatureSpec(level, width, 2**level) for level, width in _WIDTHS.items())


def _neck(name: str, **options: object) -> tuple[nn.Module, tuple[list[Tensor]]]:
    """A small neck and what it is called with."""
    neck = fb.build_neck(fb.create_graph(name, _FEATURES, (3, 4, 5), 16, **options)).eval()
    return neck, ([torch.zeros(1, s.channels, 96 // s.stride, 64 // s.stride) for s in _FEATURES],)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilevit_xxs", "vit_tiny_patch16_224"])
def test_modules_have_what_torchs_own_counter_says(name: str) -> None:
    model = timm.create_model(name).eval().requires_grad_(False)
    images = torch.zeros(1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.to("meta")(images.to("meta"))
    modules = static_profile({"model": (model, images)}).parts["model"].modules
    root = type(model).__name__
    theirs = {path: sum(ops.values()) // 2 for path, ops in counter.get_flop_counts().items() if path != "Global"}
    ours = {f"{root}.{path}".removesuffix("."): module.macs for path, module in modules.items()}
    assert {path: macs for path, macs in ours.items() if macs} == {path: macs for path, macs in theirs.items() if macs}


@pytest.mark.parametrize("make", [lambda: _neck("bifpn"), lambda: _neck("nas_fpn"), lambda: _tied()])
def test_a_module_has_what_its_children_have_and_its_own(make: Callable[[], tuple[nn.Module, object]]) -> None:
    """Leaves have nothing but their own, so that adding up from them must give the part, field by field."""
    module, inputs = make()
    part = static_profile({"part": (module, inputs)}).parts["part"]
    names = [field.name for field in fields(ModuleProfile)]
    assert astuple(part.modules[""]) == tuple(getattr(part, name) for name in names)
    assert part.params == count_params(module)
    assert part.macs == count_macs(module, inputs) > 0
    own = {path: list(astuple(held)) for path, held in part.modules.items()}
    for path, held in part.modules.items():
        if path:
            for i, value in enumerate(astuple(held)):
                own[path.rpartition(".")[0]][i] -= value
    assert all(value >= 0 for values in own.values() for value in values)
    assert [sum(values) for values in zip(*own.values(), strict=True)] == list(astuple(part.modules[""]))
    for path, kind in module.named_modules():
        if isinstance(kind, nn.Conv2d):
            assert own[path][3] == part.modules[path].macs > 0  # nothing inside
        elif not list(kind.parameters(recurse=False)):
            assert own[path][:4] == [0, 0, 0, 0]  # parameters and convolutions belong to leaves


class _Twice(nn.Module):
    """Holds a convolution at two paths and calls it by both."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.far = nn.Sequential(self.near[0], nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.near(x) + self.near(F.avg_pool2d(x, 2, 1, 1)[..., 1:, 1:]) + self.far(x)


def _tied() -> tuple[nn.Module, Tensor]:
    return _Twice(), torch.zeros(1, 3, 8, 8)


def test_a_module_at_two_paths_computes_where_it_was_called() -> None:
    module, x = _tied()
    modules = static_profile({"part": (module, x)}).parts["part"].modules
    assert {path: (held.params, held.macs, held.other_ops) for path, held in modules.items()} == {
        "": (12, 3 * 9 * 64, 4 * 3 * 81 + 3 * 192),
        "near": (12, 2 * 9 * 64, 0),
        "near.0": (12, 2 * 9 * 64, 0),
        "far": (0, 9 * 64, 192),
        "far.0": (0, 9 * 64, 0),
        "far.1": (0, 0, 192),
    }


def test_a_neck_shows_by_its_nodes() -> None:
    neck, inputs = _neck("bifpn")
    modules = static_profile({"neck": (neck, inputs)}).parts["neck"].modules
    cost = fb.cost(neck.graph, (96, 64))
    assert {node.name: (node.params, node.macs) for node in cost.nodes} == {
        node.name: (modules[f"steps.{node.name}"].params, modules[f"steps.{node.name}"].macs) for node in cost.nodes
    }


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: torch.relu(x) * 2 + x, 3 * 512),
        (lambda x: F.hardswish(x), 512),
        (lambda x: F.batch_norm(x, x.new_zeros(8), x.new_ones(8)), 2 * 512),
        (lambda x: F.batch_norm(x, None, None, training=True), 5 * 512),
        (lambda x: F.group_norm(x, 2), 5 * 512),
        (lambda x: F.layer_norm(x, (8,)), 5 * 512),
        (lambda x: F.instance_norm(x), 5 * 512),
        (lambda x: x.softmax(1), 5 * 512),
        (lambda x: F.max_pool2d(x, 3, 2, 1), 9 * 128),
        (lambda x: F.avg_pool2d(x, (2, 4)), 8 * 64),
        (lambda x: F.adaptive_avg_pool2d(x, 1), 512),
        (lambda x: F.adaptive_max_pool2d(x, 2), 512),
        (lambda x: x.mean((2, 3)), 512),
        (lambda x: F.interpolate(x, scale_factor=2), 4 * 512),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 4 * 4 * 512),
        (lambda x: F.interpolate(x, size=(4, 4), mode="bicubic"), 16 * 128),
        (lambda x: F.grid_sample(x, x.new_zeros(1, 3, 5, 2), align_corners=False), 4 * 120),
        (lambda x: torch.cat([x, F.pad(x, (1, 1)).flatten(2)[..., :64].view(x.shape)]).clone(), 0),
        (lambda x: F.dropout(x, training=False).permute(0, 2, 3, 1).contiguous()[:, ::2].to(torch.float16), 0),
        (lambda x: F.scaled_dot_product_attention(x, x, x), 5 * 8 * 8 * 8),
    ],
)
def test_other_work_by_hand(call: Callable[[Tensor], Tensor], expected: int) -> None:
    class Call(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call(x)

    assert static_profile({"part": (Call().eval(), torch.zeros(1, 8, 8, 8))}).other_ops == expected


class _Residual(nn.Module):
    """Widens, keeps the input for a sum at the end, works in place in between."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(4, 16, 1)
        self.narrow = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.wide(x), inplace=True)
        z = self.narrow(y).flatten(2)
        del y
        return torch.sigmoid(z.view(x.shape) + x)


def test_activations_and_their_peak_by_hand() -> None:
    part = static_profile({"part": (_Residual(), torch.zeros(1, 4, 5, 6))}).parts["part"]
    # Both convolutions, the sum and the sigmoid; what is done in place and views store nothing.
    assert part.activation_elements == 30 * (16 + 4 + 4 + 4)
    # The widest moment: the input, the wide map, the narrow one.
    assert part.peak_activation_bytes == 4 * 30 * (4 + 16 + 4)
    assert (part.param_bytes, part.params) == (4 * 148, 148)
    half = static_profile({"part": (_Residual().half(), torch.zeros(1, 4, 5, 6).half())}).parts["part"]
    assert half.peak_activation_bytes * 2 == part.peak_activation_bytes
    assert half.param_bytes * 2 == part.param_bytes


class _Pyramid(nn.Module):
    """Branches, views and work in place; nothing whose kernel takes memory for itself."""

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        fine, coarse = maps
        merged = torch.cat([fine * fine, F.interpolate(coarse.sigmoid(), size=fine.shape[2:])], 1).relu_()
        pooled = F.avg_pool2d(merged, 3, 2, 1)
        kept = merged[:, :4]
        del merged
        return pooled.exp(), (kept + fine).flatten(2), kept.abs()


def test_peak_is_that_of_the_allocator() -> None:
    """What a real forward allocates and frees, added up in order."""
    maps = [torch.zeros(2, 4, 19, 26), torch.zeros(2, 4, 10, 13)]
    module = _Pyramid()
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        module(maps)
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    part = static_profile({"part": (module, (maps,))}).parts["part"]
    assert part.peak_activation_bytes == sum(x.nbytes for x in maps) + peak


def test_every_operation_with_a_cost_of_its_own_exists() -> None:
    for name in (*operations._WORK, *operations._FVCORE_TERMS):
        assert getattr(torch.ops.aten, name).overloads()


def test_reductions_are_known_without_torchs_tag() -> None:
    """As of the oldest torch that is supported, on overloads that take a tensor."""
    for name in operations._REDUCTIONS:
        packet = getattr(torch.ops.aten, name)
        for overload in map(packet.__getattr__, packet.overloads()):
            arguments = overload._schema.arguments
            if arguments and str(arguments[0].type) == "Tensor" and "out" not in overload._overloadname:
                assert operations._reduces(overload) == operations._reduces(overload, None), overload

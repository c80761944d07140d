"""Norm layers run on maps of every size, in batches of every size, and give what torch's give where torch's run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fpn_bench as fb
from fpn_bench.detection.detector import Head, head_groups
from fpn_bench.export import parts
from fpn_bench.nn import BatchNorm, make_group_norm, make_norm
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.training.protocol import HeadConfig
from fpn_bench.zoo import create_graph, list_necks, options

WIDTHS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 256)
FEATURES = tuple(FeatureSpec(k, c, 2**k) for k, c in ((3, 24), (4, 32), (5, 48)))


def drawn(module: nn.Module) -> nn.Module:
    """With weights that are not those of a fresh norm layer."""
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.rand_like(value) + 0.5)
    return module


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(WIDTHS), st.integers(1, 32), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_group_norm_is_torchs_wherever_a_group_holds_several_values(width, groups, batch, height, row) -> None:
    torch.manual_seed(0)
    ours = drawn(make_group_norm(groups, width))
    x = torch.randn(batch, width, height, row)
    if width // ours.num_groups * height * row > 1:
        plain = nn.GroupNorm(ours.num_groups, width)
        plain.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=0)
    else:  # the weights fit any number of groups, and the batch does not matter
        fewer = nn.GroupNorm(max(1, width // 8), width)
        fewer.load_state_dict(ours.state_dict())
        wanted = torch.cat([fewer(x), fewer(x)])[:batch] if width > 1 else ours.bias.expand(batch, 1)[..., None, None]
        torch.testing.assert_close(ours(x), wanted)


@pytest.mark.parametrize("width", WIDTHS)
def test_an_image_gives_the_same_alone_and_among_others(width) -> None:
    torch.manual_seed(0)
    head = Head(width, 3, 2).eval()
    maps = [torch.randn(3, width, 2, 2), torch.randn(3, width, 1, 1)]
    together, alone = head(maps), head([x[:1] for x in maps])
    for name, values in together.items():
        torch.testing.assert_close(alone[name], values[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [w for w in WIDTHS if w > 1])
def test_a_map_of_one_pixel_is_not_silenced(width) -> None:
    """One value a group would be its own mean: every image the same."""
    torch.manual_seed(0)
    logits = Head(width, 3, 1)([torch.randn(8, width, 1, 1)])["bbox_regression"]
    assert logits.std(dim=0).max() > 1e-4


@pytest.mark.parametrize("width", WIDTHS)
def test_the_written_head_is_the_head_on_one_pixel(width) -> None:
    torch.manual_seed(0)
    head, written = Head(width, 3, 2), parts.Head(width, 3, 2, head_groups(width))
    written.load_state_dict(head.state_dict())
    maps = [torch.randn(1, width, 2, 2), torch.randn(1, width, 1, 1)]
    for ours, theirs in zip(head(maps).values(), written(maps), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("width", [1, 3, 16])
@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_every_norm_runs_on_one_pixel_of_one_image(kind, width, training) -> None:
    norm = make_norm(kind, width, eps=1e-5, momentum=0.1, groups=32).train(training)
    x = torch.randn(1, width, 1, 1, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None
    assert all(torch.isfinite(value).all() for value in norm.state_dict().values())


def test_batch_norm_of_one_value_a_channel_takes_the_running_statistics() -> None:
    torch.manual_seed(0)
    norm = BatchNorm(4)
    norm(torch.randn(5, 4, 3, 3))
    x, before = torch.randn(1, 4, 1, 1), norm.running_var.clone()
    trained = norm(x)
    torch.testing.assert_close(trained, norm.eval()(x))
    torch.testing.assert_close(norm.running_var, before)


@pytest.mark.parametrize("width", [1, 16, 32])
@pytest.mark.parametrize("name", list_necks())
def test_every_neck_runs_one_image_down_to_one_pixel(name, width) -> None:
    """64 pixels and P3 to P6, in training and in evaluation, with each of its norm layers."""
    for norm in ("batch", "group") if "norm" in options(name) else (None,):
        chosen = {} if norm is None else {"norm": norm}
        try:
            graph = create_graph(name, FEATURES, (3, 4, 5, 6), width, **chosen)
        except fb.InputError:
            continue  # refused before anything is paid
        neck = fb.build_neck(graph)
        maps = [torch.randn(1, s.channels, 64 // s.stride, 64 // s.stride) for s in FEATURES]
        for mode in (True, False):
            assert [x.shape[-1] for x in neck.train(mode)(maps)] == [8, 4, 2, 1]


@pytest.mark.parametrize("to", ["onnx", "python", "torchvision"])
@pytest.mark.parametrize("width", [16, 32])
def test_exported_files_agree_on_one_pixel(width, to, tmp_path) -> None:
    """`export` itself compares: the ONNX file at sizes where the coarsest map has one pixel and where it has more."""
    trunk = fb.create_backbone("test_resnet", image_size=(64, 64))
    graph = fb.create_graph("fpn", trunk.features, (3, 4, 5, 6), width, norm="group")
    spec = fb.DetectorSpec("test_resnet", (3, 4, 5), "simple", "random", graph, HeadConfig(convs=1), (64, 64), ("a",))
    model = fb.ImageDetector.build(spec).eval()
    drawn(model.detector.head)
    assert fb.export(model, to, tmp_path).error < 1e-3
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(tmp_path / "detector.onnx"))
        small = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        mean, std = (torch.tensor(values)[:, None, None] for values in (model.backbone.mean, model.backbone.std))
        with torch.no_grad():
            raw = model.detector(model.backbone.maps((small - mean) / std))
        scores = (raw["cls_logits"].sigmoid() * raw["bbox_ctrness"].sigmoid()).sqrt()
        came = torch.from_numpy(session.run(None, {"images": small.numpy()})[1])
        torch.testing.assert_close(came, scores, rtol=1e-3, atol=1e-4)

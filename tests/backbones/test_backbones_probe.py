"""How models are made to run at a size, what is believed of them, and that nothing passes silently."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from fpn_bench.backbones import Probe, Recipe, create, create_backbone
from fpn_bench.backbones import store as probe_store
from fpn_bench.backbones.models import build_model, map_shapes
from fpn_bench.backbones.probe import _stored_answer, probe
from fpn_bench.errors import InputError
from fpn_bench.pyramid import ImageSize, level_sizes, map_size

SIZE: ImageSize = (96, 160)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path))
    probe.cache_clear()
    return tmp_path


def _last_pixels_matter(name: str, image_size: ImageSize) -> list[bool]:
    """For P3, P4 and P5: whether the image's last row alone, and its last column alone, reach the map's last ones."""
    backbone = create_backbone(name, image_size=image_size)
    images = torch.randn(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
    row, column = images.clone(), images.clone()
    row[..., -1, :], column[..., :, -1] = 3.0, 3.0
    with torch.no_grad():
        maps, of_row, of_column = backbone(images), backbone(row), backbone(column)
    return [
        not torch.equal(a[..., -1, :], b[..., -1, :]) and not torch.equal(a[..., :, -1], c[..., :, -1])
        for a, b, c in zip(maps, of_row, of_column, strict=True)
    ]


def test_recipe_pads_to_multiples_and_squares() -> None:
    assert Recipe().padded((333, 257)) == (333, 257)
    assert Recipe({}, 32).padded((333, 257)) == (352, 288)
    assert Recipe({}, 32, square=True).padded((333, 257)) == (352, 352)
    assert Recipe({}, 14).padded((322, 14)) == (322, 14)


@pytest.mark.parametrize(
    ("name", "image_size", "options", "padded", "strides"),
    [
        ("resnet18", (333, 257), {}, (333, 257), (2, 4, 8, 16, 32)),
        ("convnext_atto", (320, 416), {}, (320, 416), (4, 8, 16, 32)),
        ("convnext_atto", (333, 257), {}, (352, 288), (4, 8, 16, 32)),  # rounds down: the border would be lost
        ("mobilevitv2_050", (320, 416), {}, (320, 448), (2, 4, 8, 16, 32)),  # makes odd maps even
        ("swin_tiny_patch4_window7_224", (96, 160), {"dynamic_img_size": True}, (96, 160), (4, 8, 16, 32)),
        ("eva02_tiny_patch14_224", (96, 160), {"dynamic_img_size": True}, (98, 168), (14,)),
        ("pit_b_224", (96, 160), {"img_size": (112, 168)}, (112, 168), (7, 14, 28)),
        ("mvitv2_tiny", (320, 416), {"img_size": 416}, (320, 416), (4, 8, 16, 32)),
        ("nest_tiny", (96, 160), {"img_size": 160}, (160, 160), (4, 8, 16)),
        ("halonet26t", (96, 160), {}, (256, 256), (2, 4, 8, 16, 32)),
        ("inception_v3", (320, 416), {}, (320, 416), (2, 4, 8, 16, 32)),
        ("efficientformer_l1", (200, 180), {"img_size": 224}, (224, 224), (4, 8, 16, 32)),
    ],
)
def test_how_models_are_made_to_run(
    name: str, image_size: ImageSize, options: dict[str, object], padded: ImageSize, strides: tuple[float, ...]
) -> None:
    found = probe(name, image_size)
    assert found.recipe.options == options
    assert found.recipe.padded(image_size) == padded
    assert found.strides == strides


def test_a_grid_that_does_not_follow_the_image_is_no_success() -> None:
    model = build_model("crossvit_9_240", device="meta")
    assert map_shapes(model, (256, 256)) == map_shapes(model, (320, 416))
    with pytest.raises(InputError, match="do not follow the image"):
        probe("crossvit_9_240", (256, 256))


def test_a_fixed_size_that_meta_does_not_see_is_built_for() -> None:
    model = build_model("mvitv2_tiny", device="meta")
    assert map_shapes(model, (256, 320))[-1][2:] == (8, 10)
    with pytest.raises(IndexError):
        map_shapes(build_model("mvitv2_tiny", device="cpu"), (256, 320))
    assert [
        tuple(m.shape[2:]) for m in create_backbone("mvitv2_tiny", image_size=(256, 320))(torch.zeros(1, 3, 256, 320))
    ] == [map_size((256, 320), level) for level in (3, 4, 5)]


def test_what_fails_on_real_tensors_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the plain mvitv2, which passes on meta, were the first recipe found."""

    def credulous(name: str, image_size: ImageSize | None, refuted: int) -> Probe:
        found = probe(name, image_size, max(0, refuted - 1))
        return found if refuted else replace(found, recipe=Recipe())

    monkeypatch.setattr(create, "probe", credulous)
    backbone = create_backbone("mvitv2_tiny", (5,), image_size=(256, 320))
    assert backbone.recipe == probe("mvitv2_tiny", (256, 320)).recipe
    assert backbone.recipe != probe("mvitv2_tiny", (256, 320), 1).recipe


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "convnext_atto", "deit_tiny_patch16_224", "coat_lite_tiny"])
def test_no_pixel_is_left_out(name: str) -> None:
    assert _last_pixels_matter(name, (101, 139)) == [True] * 3


def test_patches_of_14_would_leave_pixels_out() -> None:
    """What the test above guards against: built for 320x416 the model runs, and takes no notice of the last pixels."""
    model = build_model("deit3_small_patch16_224", device="cpu", img_size=(104, 160), patch_size=14, num_classes=0)
    images = torch.randn(1, 3, 104, 160)
    other = images.clone()
    other[..., -1, :] = 3.0
    maps = [model.forward_intermediates(x, intermediates_only=True)[-1] for x in (images, other)]
    assert torch.equal(*maps)


def test_maps_of_another_stride_are_timms_own_put_on_the_grid() -> None:
    image_size = (98, 168)  # 7 x 12 patches of 14
    backbone = create_backbone("eva02_tiny_patch14_224", (4,), image_size=image_size)
    images = torch.randn(1, 3, *image_size)
    theirs = backbone.model.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)[0]
    (ours,) = backbone(images)
    assert ours.shape[2:] == (7, 11)

    def at(n: int, axis: int, x: torch.Tensor) -> torch.Tensor:
        """Linear interpolation at the centres of n pixels of 16, by hand."""
        where = (((torch.arange(n) + 0.5) * 16) / 14 - 0.5).clamp(0, x.shape[axis] - 1)
        low = where.floor().long().clamp(max=x.shape[axis] - 2)
        share = (where - low).view([-1 if i == axis else 1 for i in range(4)])
        return x.index_select(axis, low) * (1 - share) + x.index_select(axis, low + 1) * share

    torch.testing.assert_close(ours, at(11, 3, at(7, 2, theirs)), rtol=1e-5, atol=1e-5)


def test_a_model_that_takes_any_size_takes_any() -> None:
    for name in ("resnet18", "convnext_atto", "vit_tiny_patch16_224", "hrnet_w18_small"):
        backbone = create_backbone(name)
        for size in ((64, 96), (101, 75)):
            maps = backbone(torch.zeros(1, 3, *size))
            own = {spec.level: map_size(size, spec.level) for spec in backbone.trunk_features}
            assert [tuple(m.shape[2:]) for m in maps] == [level_sizes(own, (3, 4, 5))[level] for level in (3, 4, 5)]


def test_a_model_of_one_size_says_so() -> None:
    backbone = create_backbone("pit_ti_224")
    assert backbone(torch.zeros(1, 3, 224, 224))[0].shape[2:] == (28, 28)
    with pytest.raises(InputError, match=r"expected images of \(224, 224\), .* create it with image_size=\(256, 320\)"):
        backbone(torch.zeros(1, 3, 256, 320))


def test_answers_are_kept_on_disk_for_these_versions_only(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe("resnet18", SIZE)
    (path,) = (p for p in empty_cache.rglob("*") if p.is_file())
    assert path.relative_to(empty_cache).parts[0] == "probes"
    assert f"timm{version('timm')}-torch{version('torch')}-" in path.parts[-3]
    assert path.parts[-2:] == ("96x160", "resnet18.json")

    data = json.loads(path.read_text())
    probe.cache_clear()
    with monkeypatch.context() as patch:
        patch.delattr("fpn_bench.backbones.probe._Search")
        assert probe("resnet18", SIZE) == found  # it is read
    answer = data["answer"]
    changed = [
        answer | {"params": 7},
        answer | {"levels": [*answer["levels"], [6, 512, 9, 64.0]]},
        answer | {"levels": [answer["levels"]]},
        answer | {"levels": [[level] for level in answer["levels"]]},
        answer | {"options": []},
        answer | {"levels": [[-1, *level[1:]] for level in answer["levels"]]},
        [answer],
        {"answer": answer},
        "resnet18",
        None,
    ]
    whole = [json.dumps(data | {"answer": one}) for one in changed] + [json.dumps([data]), json.dumps(answer)]
    resummed = [{"answer": one, "sha256": probe_store.digest(one)} for one in changed[2:]]
    texts = ["", "{", "[]", "null", "{}", "[" * 100_000, *whole, *map(json.dumps, resummed)]
    for broken in texts:
        path.write_text(broken)
        assert _stored_answer("resnet18", SIZE, 0) is None, broken[:200]
    path.write_bytes(b"\xff\xfe")
    assert _stored_answer("resnet18", SIZE, 0) is None
    probe.cache_clear()
    assert probe("resnet18", SIZE) == found
    assert json.loads(path.read_text()) == data
    path.rename(path.with_name("resnet18d.json"))
    assert probe("resnet18", SIZE) == found


def test_refusals_are_kept_too(empty_cache: Path) -> None:
    messages = []
    for _ in range(2):
        probe.cache_clear()
        with pytest.raises(InputError) as caught:
            probe("efficientformer_l1", (256, 256))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path / "file"))
    probe.cache_clear()
    assert isinstance(probe("resnet18", (64, 64)), Probe)
    probe_store.save("resnet18", None, 0, {})


def test_stored_and_found_are_equal(empty_cache: Path) -> None:
    """In a fresh process, with tuples and numbers of the same types."""
    found = probe("pit_b_224", SIZE)
    code = "from fpn_bench.backbones.probe import probe; print(repr(probe('pit_b_224', (96, 160))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(found)

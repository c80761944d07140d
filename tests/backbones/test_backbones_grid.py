"""Maps on the grid of their level, against a picture whose value at every point is known."""

import pytest
import torch

from fpn_bench.backbones.grid import is_on_grid, to_grid
from fpn_bench.pyramid import ImageSize, map_size


def _ramp(size: ImageSize, stride: float, padded: ImageSize) -> torch.Tensor:
    """[1, 2, h, w]: the height and width, in pixels of the image, of each map pixel's centre; the map lies centred."""
    axes = [
        side / 2 + (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * stride
        for n, side in zip(size, padded, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


@pytest.mark.parametrize(
    ("image_size", "padded", "size", "stride", "level"),
    [
        ((320, 416), (322, 420), (23, 30), 14.0, 4),  # patches of 14
        ((320, 416), (322, 420), (46, 60), 7.0, 3),
        ((320, 416), (322, 420), (23, 30), 14.0, 3),  # to a finer level
        ((320, 416), (320, 416), (20, 26), 16.0, 5),  # to a coarser one
        ((320, 416), (320, 416), (37, 49), 8.0, 3),  # convolutions without padding: the map ends before the image
        ((333, 257), (336, 266), (24, 19), 14.0, 4),
    ],
)
def test_a_pixel_of_the_level_stands_for_its_pixels_of_the_image(
    image_size: ImageSize, padded: ImageSize, size: ImageSize, stride: float, level: int
) -> None:
    actual = to_grid(_ramp(size, stride, padded), image_size, padded, level, stride)
    height, width = map_size(image_size, level)
    centres = [(torch.arange(n, dtype=torch.float64) + 0.5) * 2**level for n in (height, width)]
    expected = torch.stack(torch.meshgrid(*centres, indexing="ij"))[None]
    # Beyond the centres of the map's border pixels it is continued, not extrapolated.
    for axis, (n, side) in enumerate(zip(size, padded, strict=True)):
        reach = (n - 1) / 2 * stride
        expected[:, axis] = expected[:, axis].clamp(side / 2 - reach, side / 2 + reach)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9 * max(padded))


@pytest.mark.parametrize("size", [(41, 32), (42, 33), (41, 33)])
def test_a_map_on_its_grid_is_handed_on(size: ImageSize) -> None:
    x = torch.randn(1, 2, *size)
    assert to_grid(x, (333, 257), (333, 257), 3, 8.0) is x


def test_a_map_of_a_padded_image_is_cropped() -> None:
    x = torch.randn(1, 2, 44, 36)
    assert torch.equal(to_grid(x, (333, 257), (352, 288), 3, 8.0), x[..., :42, :33])


def test_half_a_stride_is_the_mean_of_four() -> None:
    x = torch.randn(2, 3, 20, 26)
    torch.testing.assert_close(
        to_grid(x, (320, 416), (320, 416), 5, 16.0), torch.nn.functional.avg_pool2d(x, 2), rtol=0, atol=1e-5
    )


def test_what_stands_on_a_grid() -> None:
    assert is_on_grid((10, 13), (320, 416), 5, 32.0)
    assert not is_on_grid((10, 14), (320, 416), 5, 32.0)
    assert not is_on_grid((23, 30), (320, 416), 4, 14.0)

"""Decoding image files: what every reader takes, how deep pixels are scaled, and what is refused in one line."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fpn_bench.data import images
from fpn_bench.data.dataset import ImageRecord
from fpn_bench.data.images import check_and_load_image, check_image, load_image, read_upright
from fpn_bench.errors import DataError

RAMP = np.tile(np.arange(0, 65536, 683, dtype=np.uint16), (64, 1))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def record(path: Path, size: tuple[int, int]) -> ImageRecord:
    none = np.zeros(0)
    return ImageRecord(1, path, size, none.reshape(0, 4), none, none, none)


def pixels(path: Path, size: tuple[int, int]) -> np.ndarray:
    """As a data set, `predict` and the check read it: three ways, one answer."""
    assert check_image(path).problem is None
    loaded = np.asarray(load_image(record(path, size)))
    np.testing.assert_array_equal(np.asarray(read_upright(path)), loaded)
    np.testing.assert_array_equal(np.asarray(check_and_load_image(path)[1]), loaded)
    return loaded


def problem(path: Path) -> str:
    """Why it is refused, by every reader alike."""
    why = check_image(path).problem
    assert why is not None
    assert check_and_load_image(path)[0].problem == why
    with pytest.raises(DataError) as caught:
        read_upright(path)
    assert str(caught.value) == f"{path} cannot be read: {why}"
    assert "\n" not in why
    with pytest.raises(DataError):
        load_image(record(path, (64, 96)))
    return why


class TestDeepPixels:
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, 2**32 - 1))
    def test_16_bits_are_scaled(self, tmp_path: Path, suffix: str, seed: int):
        values = np.random.default_rng(seed).integers(0, 65536, (9, 7)).astype(np.uint16)
        values[0, 0] = 65535
        Image.fromarray(values).save(tmp_path / f"x{suffix}")
        came = pixels(tmp_path / f"x{suffix}", (9, 7))
        assert np.abs(came - values[..., None] / 257).max() <= 0.5

    def test_a_ramp_stays_one(self, tmp_path: Path):
        """Pillow alone makes 99 % of it white."""
        Image.fromarray(RAMP).save(tmp_path / "x.png")
        row = pixels(tmp_path / "x.png", RAMP.shape)[0, :, 0].astype(int)
        assert (row[0], row[-1]) == (0, 252)
        assert set(np.diff(row)) == {2, 3}

    def test_an_image_without_light_is_black(self, tmp_path: Path):
        Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "x.png")
        assert not pixels(tmp_path / "x.png", (4, 4)).any()

    def test_a_stated_range_is_used(self, tmp_path: Path):
        (tmp_path / "x.pgm").write_bytes(b"P5 96 64 4095\n" + (RAMP >> 4).astype(">u2").tobytes())
        came = pixels(tmp_path / "x.pgm", RAMP.shape)[0, :, 0].astype(int)
        assert np.abs(came - RAMP[0] / 257).max() <= 1

    def test_white_may_be_0(self, tmp_path: Path):
        Image.fromarray(RAMP).save(tmp_path / "x.tif", tiffinfo={262: 0})
        with Image.open(tmp_path / "x.tif") as image:
            assert image.tag_v2[262] == 0
        assert pixels(tmp_path / "x.tif", RAMP.shape)[0, 0, 0] == 255

    @pytest.mark.parametrize("bits", [9, 10, 12, 14])
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
    def test_fewer_bits_stored_in_16_are_refused(self, tmp_path: Path, suffix: str, bits: int):
        Image.fromarray(RAMP >> (16 - bits)).save(tmp_path / f"x{suffix}")
        assert "fewer bits are likely stored in 16" in problem(tmp_path / f"x{suffix}")

    def test_colour_of_16_bits(self, tmp_path: Path):
        def save(values: np.ndarray) -> Path:
            rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
            head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
            chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
            data = b"".join(
                struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
                for kind, body in chunks
            )
            (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
            return tmp_path / "x.png"

        colours = np.stack([RAMP, RAMP[:, ::-1], RAMP], axis=2)
        assert np.abs(pixels(save(colours), RAMP.shape) - colours / 257.0).max() <= 1
        assert "fewer bits" in problem(save(colours >> 4))

    @pytest.mark.parametrize(
        ("values", "why"),
        [
            (RAMP / 65535, "floating-point pixels"),
            (RAMP.astype(np.float32), "floating-point pixels"),
            (RAMP.astype(np.int32), "32-bit or signed pixels"),
        ],
    )
    def test_of_no_known_range_are_refused(self, tmp_path: Path, values: np.ndarray, why: str):
        Image.fromarray(values.astype(np.float32) if values.dtype.kind == "f" else values).save(tmp_path / "x.tif")
        assert why in problem(tmp_path / "x.tif")

    def test_a_space_of_colours_that_has_no_rgb_is_refused(self, tmp_path: Path):
        Image.new("LAB", (5, 5)).save(tmp_path / "x.tif")
        assert "mode LAB" in problem(tmp_path / "x.tif")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_common_formats_are_read_whatever_they_are_called(tmp_path: Path, form: str):
    Image.new("RGB", (8, 6), (200, 100, 50)).save(tmp_path / "x.jpg", form)
    assert np.abs(pixels(tmp_path / "x.jpg", (6, 8)).astype(int) - [200, 100, 50]).max() <= 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_8_bits_are_read_as_pillow_does(tmp_path: Path, mode: str):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).convert(mode)
    form = "PNG" if mode not in ("CMYK", "YCbCr") else "TIFF"
    image.save(tmp_path / "x.png", form)
    with Image.open(tmp_path / "x.png") as plain:
        np.testing.assert_array_equal(pixels(tmp_path / "x.png", (6, 8)), np.asarray(plain.convert("RGB")))


class TestRefused:
    @pytest.mark.parametrize("data", [EPS, b"", b"text", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4"])
    def test_what_is_no_raster_image(self, tmp_path: Path, data: bytes):
        (tmp_path / "x.jpg").write_bytes(data)
        assert problem(tmp_path / "x.jpg").startswith("not an image (expected PNG, JPEG, ")

    @pytest.mark.parametrize("form", ["PDF", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "EPS"])
    def test_formats_that_are_not_on_the_list(self, tmp_path: Path, form: str):
        Image.new("RGB", (16, 16)).save(tmp_path / "x.png", form)
        assert problem(tmp_path / "x.png").startswith("not an image (expected")

    def test_too_many_pixels(self, tmp_path: Path, recwarn):
        Image.new("1", (20_000, 10_000)).save(tmp_path / "x.png")
        assert problem(tmp_path / "x.png") == "more than 178,956,970 pixels: save it smaller, or cut it up"
        assert images.MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS

    def test_too_many_bytes(self, tmp_path: Path):
        with (tmp_path / "x.png").open("wb") as file:
            file.truncate(images.MAX_BYTES + 1)
        assert "bytes; expected at most 1,073,741,824" in problem(tmp_path / "x.png")

    def test_what_is_no_regular_file(self, tmp_path: Path):
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "zero.png").symlink_to("/dev/zero")
        (tmp_path / "folder.png").mkdir()
        for name in ("pipe.png", "zero.png", "folder.png"):
            assert problem(tmp_path / name) == "not a regular file"

    def test_a_text_chunk_that_swells(self, tmp_path: Path):
        from PIL.PngImagePlugin import PngInfo

        text = PngInfo()
        text.add_text("Comment", "a" * 80_000_000, zip=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "x.png", pnginfo=text)
        assert (tmp_path / "x.png").stat().st_size < 1_000_000
        assert "too large" in problem(tmp_path / "x.png") or check_image(tmp_path / "x.png").problem is None


def test_predictions_turn_as_viewers_do_and_data_sets_do_not(tmp_path: Path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(values).save(tmp_path / "x.png", exif=exif)
        np.testing.assert_array_equal(np.asarray(load_image(record(tmp_path / "x.png", (2, 3))))[..., 0], values)
        turned = {
            1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1], 5: values.T,
            6: values[::-1].T, 7: values[::-1, ::-1].T, 8: values[:, ::-1].T,
        }  # fmt: skip
        np.testing.assert_array_equal(np.asarray(read_upright(tmp_path / "x.png"))[..., 0], turned[orientation])

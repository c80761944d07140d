"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fpn_bench.errors import InputError
from fpn_bench.paths import open_atomic, write_text_atomic


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text_atomic(os.path.join(tmp_path, "x"), "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "new \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_write_that_breaks_off_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = write_text_atomic(tmp_path / "x", "old")

    def break_off() -> None:
        with open_atomic(path, tmp_path / "x.writing") as stream:
            stream.write(b"half")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the path of a file, got the folder"):
        write_text_atomic(tmp_path, "text")

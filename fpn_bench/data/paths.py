"""Where the files of a data set may lie, and finding them where an annotation tool wrote another machine's path."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from fpn_bench.errors import DataError

AllowedFolders = Sequence[str | os.PathLike[str]]

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""What tools call a split, in lower case; the first is our own word."""
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")


class Folders:
    """The folders that a data set may read from: its own, and those that the user allows by name.

    Args:
        own: folders of the data set.
        allowed: further ones.

    Raises:
        DataError: an allowed folder does not exist.
    """

    def __init__(self, own: Iterable[Path], allowed: AllowedFolders = ()) -> None:
        for folder in allowed:
            if not os.path.isdir(folder):
                raise DataError(f"folder {folder} of --allow-images-from (allow_images_from) does not exist")
        self._own = tuple(own)
        self._roots = tuple(os.path.realpath(folder).rstrip(os.sep) + os.sep for folder in (*self._own, *allowed))
        self._parents: dict[str, str] = {}

    def holds(self, path: Path | str) -> bool:
        """Whether a path, with its links followed, leads into one of the folders."""
        folder, name = os.path.split(path)
        try:
            if folder not in self._parents:
                self._parents[folder] = os.path.realpath(folder)
            real = os.path.join(self._parents[folder], name)
            if name in ("", ".", "..") or os.path.islink(real):
                real = os.path.realpath(real)
        except ValueError:  # a name that cannot be one, and leads nowhere
            return True
        return (real + os.sep).startswith(self._roots)

    def check(self, path: Path, source: Path) -> None:
        """Refuse a path that leads out of the folders.

        Raises:
            DataError: it does; the message names the option that allows it.
        """
        if not self.holds(path):
            real = os.path.realpath(path)
            folder = real if os.path.isdir(real) else os.path.dirname(real)
            raise DataError(
                f"{path}, named by {source}, leads out of the data set's folder {', '.join(map(str, self._own))}: "
                f"move it inside, or allow its folder with --allow-images-from {folder} (allow_images_from)"
            )


def regular_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read, or is a folder, device or pipe.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return path.read_bytes()


def find_by_suffix(name: str, folders: Sequence[Path]) -> Path | None:
    """A file that a path of another machine stands for: the longest end of the path that lies in one of the folders.

    Label Studio writes ``/data/local-files/?d=photos/a.jpg`` and ``../../upload/1/1a2b3c4d-a.jpg``, other tools
    ``C:\\photos\\a.jpg``; CVAT lists ``data/obj_train_data/a.jpg``.
    """
    for end in _suffixes(name):
        for folder in folders:
            if os.path.isfile(path := folder / end):
                return path
    return None


def _suffixes(name: str) -> Iterator[str]:
    plain = name.rpartition("?d=")[2].replace("\\", "/")
    spellings = dict.fromkeys((plain, unquote(plain)))
    for spelling in spellings:
        parts = [part for part in spelling.split("/") if part not in ("", ".", "..") and "\0" not in part]
        for start in range(len(parts)):
            yield "/".join(parts[start:])
        if parts and (prefix := _UPLOAD_PREFIX.match(parts[-1])):
            yield parts[-1][prefix.end() :]


def split_of(name: str) -> str | None:
    """The split that a file's or folder's name stands for, in any case; None where it is none."""
    lower = name.lower()
    return next((split for split, names in SPLIT_NAMES.items() if lower in names), None)


def listing(folder: Path, most: int = 8) -> str:
    """What lies in a folder, for messages."""
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir() if path.name[0] != ".")
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"

"""What a space's ``data:`` block may say of a data set in files; each format adds its own keys beside its reader."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class FolderData(BaseModel):
    """A data set of yours.

    Attributes:
        kind: the format's name; a subclass lists it, ``kind: Literal["coco"]``.
        root: folder of annotations and images; it may be left to the command line's ``--data``.
        skip_unreadable: go on without images that cannot be read.
        val_fraction: share of the images held out as val, of a data set that has none.
        allow_images_from: folders outside the data set's own that files may be read from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    root: str | None = None
    skip_unreadable: bool = False
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    allow_images_from: list[str] | None = None

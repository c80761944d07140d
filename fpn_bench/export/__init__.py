"""Taking a detector away: files that run without fpn_bench, each checked against what it was made from."""

from fpn_bench.export.files import TARGETS, Exported, export, unused_folder

__all__ = ["TARGETS", "Exported", "export", "unused_folder"]

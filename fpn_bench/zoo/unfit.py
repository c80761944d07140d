"""Published necks that no family is made of, because they are no graph from a backbone's maps to a pyramid."""

from __future__ import annotations

UNFIT: dict[str, str] = {
    "rfp": "RFP (DetectoRS, Qiao et al. 2021) feeds its outputs back into the backbone's stages and runs them again, "
    "which is no acyclic graph over the backbone's maps",
    "dyhead": "DyHead (Dai et al. 2021) deforms every neighbour of a level by the offsets of that level, at strides of "
    "its own, and ends in DyReLU, an activation whose slopes another map computes",
    "fpt": "FPT (Zhang et al. 2020) attends from the pixels of one level to those of another, and an edge brings every "
    "map to its node's size first",
    "sepc": "SEPC (Wang et al. 2020) returns two pyramids, one for classes and one for boxes, and normalises by "
    "statistics taken over all levels at once",
    "spinenet": "SpineNet (Du et al. 2020) is a backbone whose blocks stand in a searched order of scales, not a neck",
}
"""Name -> why it does not fit."""

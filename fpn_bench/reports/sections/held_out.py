"""What the chosen necks came to on the held-out test split."""

from __future__ import annotations

import pandas as pd

from fpn_bench.analysis.words import count
from fpn_bench.reports.blocks import Column, Section, Sentence, Table
from fpn_bench.reports.evidence import Evidence
from fpn_bench.reports.units import quantity


def section(evidence: Evidence) -> Section | None:
    """None where the study has no figures on a test split, or its rows are of several protocols."""
    rows = held_out_rows(evidence)
    if rows.empty:
        return None
    images, necks = int(rows["images"].max()), len(rows)
    lost = float((rows["val_ap"] - rows["test_ap"]).mean())
    sentences = (
        Sentence(
            f"The search never read these {images} images. When it was over, {count(necks, 'neck')} that it chose, or "
            "is held against, were evaluated on them once, with the weights of one seed each.",
            {"images": images, "necks": necks},
        ),
        Sentence(
            f"On average they came to {abs(lost):.1f} AP {'less' if lost > 0 else 'more'} than on the val split: the "
            "images differ, and a neck that is picked by its AP on val has some luck in it.",
            {"val less test AP": lost},
        ),
    )
    columns = (
        Column.neck(),
        Column("AP on val, this seed", lambda row: quantity("ap").number(row["val_ap"]), numeric=True),
        Column("AP on test", lambda row: quantity("ap").number(row["test_ap"]), numeric=True),
        Column("AP50 on test", lambda row: quantity("ap50").number(row["test_ap50"]), numeric=True),
    )
    table = Table("held-out", "The chosen necks on the test split", rows, columns)
    return Section("held-out", "On the held-out test split", sentences, (table,))


def held_out_rows(evidence: Evidence) -> pd.DataFrame:
    """``key``, ``label``, ``source``, ``seed``, ``val_ap``, ``test_ap``, ``test_ap50`` and ``images`` of each neck that
    was evaluated, best on val first."""
    found = pd.DataFrame(list(evidence.meta.get("test") or ()))
    if found.empty:
        return found
    known = evidence.finished.drop_duplicates("candidate")[["key", "label", "source", "candidate"]]
    names = ["key", "label", "source", "seed", "val_ap", "test_ap", "test_ap50", "images"]
    return found.merge(known, on="candidate")[names].sort_values("val_ap", ascending=False, ignore_index=True)

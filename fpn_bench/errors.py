"""Every error fpn_bench raises on purpose, in one tree.

    FpnBenchError
    ├── InputError               something the user gave cannot be used; nothing was changed
    │   ├── UnknownNameError     a name or key that does not exist; the nearest known one is named
    │   ├── GraphError           a neck graph that cannot be built; names the node
    │   ├── SpaceError           a search space that cannot be searched
    │   ├── DataError            a data set that cannot be read
    │   ├── WeightsError         weights that do not fit or cannot be had
    │   ├── ProtocolError        results of two protocols would be mixed
    │   └── FormatVersionError   a file written by a newer fpn_bench
    ├── ExportError              what was exported does not agree with its source
    ├── CacheError               the feature cache cannot be written (full disk, bound exceeded)
    └── TrialError               one candidate could not be assessed; carries the reason into its row
        └── MeasurementError     it could not be run or measured; carries a status too

A message says what was expected, what it got and what to type instead, on one line. The command line prints it and
exits with 2 for an `InputError`, 1 for anything else in the tree.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

FailureStatus = Literal["out_of_memory", "unsupported", "not_traceable", "device_lost", "timed_out", "killed", "failed"]


_LONGEST_MESSAGE = 1000


class FpnBenchError(Exception):
    """Root of every error raised on purpose; what it quotes of a file is cut where that is long."""

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= _LONGEST_MESSAGE:
            return text
        return f"{text[: _LONGEST_MESSAGE // 2]} ... {text[-_LONGEST_MESSAGE // 2 :]}"


class InputError(FpnBenchError):
    """Something the user gave cannot be used; nothing was changed."""


class UnknownNameError(InputError):
    """A name that does not exist, with the nearest known ones.

    Args:
        kind: what was looked up, e.g. ``"neck"``.
        name: the name that is not known.
        known: every name that would have been right.
        hint: what to type to see them all, e.g. ``"fpn-bench necks"``.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str | None = None) -> None:
        self.kind = kind
        self.name = name
        self.known = sorted(known)
        near = difflib.get_close_matches(name, self.known, n=3, cutoff=0.5)
        if near:
            wanted = "did you mean " + " or ".join(repr(n) for n in near) + "?"
        elif len(self.known) <= 24:
            wanted = "known: " + ", ".join(self.known)
        else:
            wanted = f"{len(self.known)} are known"
        super().__init__(f"unknown {kind} {name!r}: {wanted}" + (f" (`{hint}` lists them)" if hint else ""))


class GraphError(InputError):
    """A neck graph that cannot be built.

    Args:
        node: name of the offending node, or None when the graph as a whole is wrong.
        message: what was expected and what it got.
    """

    def __init__(self, node: str | None, message: str) -> None:
        self.node = node
        super().__init__(f"node {node!r}: {message}" if node is not None else message)


class SpaceError(InputError):
    """A search space that cannot be searched."""


class DataError(InputError):
    """A data set that cannot be read."""


class WeightsError(InputError):
    """Weights that do not fit the backbone or cannot be had."""


class ProtocolError(InputError):
    """Results taken under two protocols would be mixed."""


class FormatVersionError(InputError):
    """A file written by a newer fpn_bench than this one."""


class ExportError(FpnBenchError):
    """What was exported does not agree with what it was made from, or cannot be made at all."""


class CacheError(FpnBenchError):
    """The feature cache cannot be written: the disk is full or the bound would be exceeded."""


class TrialError(FpnBenchError):
    """One candidate could not be assessed; the message is the reason that stands in its row."""


class MeasurementError(TrialError):
    """A model could not be run or measured. Others may: nothing but `device_lost` says anything about them.

    Args:
        status: ``"out_of_memory"``; ``"unsupported"``: the device has no such operation in this precision;
            ``"not_traceable"``: it cannot be compiled, captured or traced; ``"device_lost"``: the device does not
            answer any more; ``"timed_out"``; ``"killed"``: by the system, which does so where memory runs out;
            ``"failed"``: anything else.
        reason: one line.
    """

    def __init__(self, status: FailureStatus, reason: str) -> None:
        self.status: FailureStatus = status
        self.reason = reason
        super().__init__(f"{status.replace('_', ' ')}: {reason}")

"""A fuzz driver: files damaged at random, read by the product, which must answer right or refuse in one line.

`KINDS` of `fuzz_kinds` registers each kind of file: how a valid sample is made, which `Mutator`s damage it, how it is
read, what must stay equal. A mutant is named by its kind and seed, and is the same on every machine:

    python tests/fuzzing.py coco 0 250        judges mutants 0..249, a line of JSON each
    python tests/fuzzing.py coco 17 --show    prints the verdict on one, and leaves its file behind

Faults are: an exception outside `FpnBenchError`, a message of several lines, an answer later than `HANG_S`, a dead
process, files changed or left behind, and figures that changed though nothing says so.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fpn_bench.errors import FpnBenchError

HANG_S = 20
MEMORY_GIB = 12
"""Address space of a child process: what asks for more gets a MemoryError, which is a fault."""
LONGEST_MESSAGE = 2000

Meaning = Literal["same", "said", "free"]
"""What a mutator does to what a file says: nothing that may change a figure ("same"); damage that must be refused, have
no effect or stand in the notes ("said"); perhaps something else that is valid too ("free")."""


@dataclass(frozen=True)
class Mutator:
    """One way to damage a file: ``apply(content, rng)``; None where the content has nothing to damage like that."""

    name: str
    apply: Callable[[bytes, random.Random], bytes | None]
    meaning: Meaning = "free"


@dataclass(frozen=True)
class Answer:
    """What was read: figures that count, and notes that say what was changed on the way."""

    figures: Any
    notes: Any = ()


@dataclass(frozen=True)
class Sample:
    """A valid file on disk and how the product reads it."""

    file: Path
    read: Callable[[], Answer]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of it.
        make: makes a sample in an empty folder.
        mutators: that damage it.
        mutants: how many the slow suite judges.
        same: of two contents, whether they mean the same; then no figure may differ, whatever the mutator.
        repairs: reading may change the folder, e.g. rebuild what it finds damaged.
    """

    name: str
    make: Callable[[Path], Sample]
    mutators: Sequence[Mutator]
    mutants: int
    same: Callable[[bytes, bytes], bool] = bytes.__eq__
    repairs: bool = False


@dataclass(frozen=True)
class Verdict:
    """``fault`` is "" for a mutant that was answered right or refused."""

    kind: str
    seed: int
    mutator: str
    outcome: str
    fault: str = ""
    seconds: float = 0.0

    def line(self) -> str:
        return json.dumps(dataclasses.asdict(self))


class Hang(BaseException):
    """No answer within `HANG_S`; no `Exception`, so that nothing catches it on the way."""


class Judge:
    """Makes and judges mutants of a kind in a folder of its own."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.sample = kind.make(folder)
        self.valid = self.sample.file.read_bytes()
        self.expected = self.sample.read()
        if not kind.repairs:
            assert self.sample.read() == self.expected, f"{kind.name}: two readings of the valid sample differ"
        self._pristine = _contents(folder)

    def mutant(self, seed: int) -> tuple[Mutator, bytes]:
        """The mutator and the content of a mutant."""
        rng = random.Random(f"{self.kind.name}/{seed}")
        while True:
            mutator = rng.choice(self.kind.mutators)
            content = mutator.apply(self.valid, rng)
            if content is not None and content != self.valid:
                return mutator, content

    def judge(self, seed: int) -> Verdict:
        """Read a mutant as the product does. The folder is as before afterwards."""
        mutator, content = self.mutant(seed)
        self.sample.file.write_bytes(content)
        began = time.monotonic()
        try:
            outcome, fault = self._read(mutator, content)
            fault = fault or self._left_behind(content)
        finally:
            self._restore()
        return Verdict(self.kind.name, seed, mutator.name, outcome, fault, round(time.monotonic() - began, 2))

    def _read(self, mutator: Mutator, content: bytes) -> tuple[str, str]:
        def hung(*_: object) -> None:
            raise Hang

        before = signal.signal(signal.SIGALRM, hung)
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        try:
            got = self.sample.read()
        except FpnBenchError as error:
            message = str(error)
            if "\n" in message.strip() or not message.strip() or len(message) > LONGEST_MESSAGE:
                return "refused", f"a message that is no line: {message[:300]!r}"
            return "refused", ""
        except Hang:
            return "hang", f"no answer in {HANG_S} s"
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)
            own = [f for f in last if "fpn_bench" in f.filename and "tests" not in f.filename][-1:] or last[-1:]
            return "traceback", f"{type(error).__name__}: {str(error)[:200]} at {own[0].filename}:{own[0].lineno}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        if _equal(got.figures, self.expected.figures):
            return "same", ""
        if mutator.meaning == "same" or self.kind.same(content, self.valid):
            return "changed", f"figures changed: {_difference(self.expected.figures, got.figures)}"
        if got.notes != self.expected.notes:
            return "said", ""
        if mutator.meaning == "said":
            return "changed", f"figures changed silently: {_difference(self.expected.figures, got.figures)}"
        return "valid", ""

    def _left_behind(self, content: bytes) -> str:
        if self.kind.repairs:
            left = [p.name for p in self.folder.rglob("*") if p.name.endswith((".tmp", ".writing", ".building"))]
            return f"left behind: {left}" if left else ""
        now = _contents(self.folder)
        expected = {**self._pristine, self.sample.file: content}
        changed = sorted(str(p) for p in {*now, *expected} if now.get(p) != expected.get(p))
        return f"files changed or left behind: {changed[:4]}" if changed else ""

    def _restore(self) -> None:
        now = _contents(self.folder)
        for path in now.keys() - self._pristine.keys():
            path.unlink()
        for path, content in self._pristine.items():
            if now.get(path) != content:
                path.write_bytes(content)


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _equal(a: Any, b: Any) -> bool:
    """Equality in which NaN equals NaN."""
    return a == b or repr(a) == repr(b)


def _difference(a: Any, b: Any) -> str:
    a, b = repr(a), repr(b)
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"...{a[max(0, at - 60) : at + 60]} -> {b[max(0, at - 60) : at + 60]}"


def judge_here(kind: Kind, seeds: Sequence[int], folder: Path) -> list[Verdict]:
    """Judge mutants in this process."""
    judge = Judge(kind, folder)
    return [judge.judge(seed) for seed in seeds]


def judge_apart(kind: Kind, first: int, end: int) -> Iterator[Verdict]:
    """Judge mutants in a process of their own; one that kills it is a fault, and the next process goes on behind it."""
    while first < end:
        command = [sys.executable, __file__, kind.name, str(first), str(end)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                verdict = Verdict(**json.loads(line))
                first = verdict.seed + 1
                yield verdict
        if code := process.wait():
            yield Verdict(kind.name, first, "?", "crash", f"the process ended with {code}")
            first += 1


# -- mutators of any file ---------------------------------------------------------------------------------------------


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    new = rng.choice((b"\0", b"\xff", b"\xef\xbb\xbf", b"\xf0\x9f\x92\xa9", b"\r", "‮".encode(), b"-", b"9" * 40, b" "))
    return content[:at] + new + content[at:]


def cut_out(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + content[at + rng.choice((1, 2, 16, 256)) :]


def repeat_part(content: bytes, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(content)), rng.choice((1, 8, 64, 512))
    return content[: at + length] + content[at:]


def other_file(content: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        (
            b"",
            b"\0" * 4096,
            b"\n" * 50,
            b"null",
            b"[]",
            b"{}",
            b"\x89PNG\r\n\x1a\n" + bytes(64),
            b"SQLite format 3\0" + bytes(4080),
            b"PK\x03\x04" + bytes(60),
            b"<annotation/>",
            b"\x93NUMPY\x01\x00",
            b"a,b\n1,2\n",
            b"[" * 100_000,
            b'{"a":' * 20_000,
            b"<a>" * 20_000,
            "привет".encode("utf-16"),
            bytes(rng.randrange(256) for _ in range(300)),
        )
    )


def _text_same(change: Callable[[str], str]) -> Callable[[bytes, random.Random], bytes | None]:
    def apply(content: bytes, rng: random.Random) -> bytes | None:
        return change(content.decode()).encode()

    return apply


BYTES = (
    Mutator("truncate", truncate),
    Mutator("flip", flip),
    Mutator("insert", insert),
    Mutator("cut out", cut_out),
    Mutator("repeat part", repeat_part),
    Mutator("another file", other_file),
)
TEXT = (
    *BYTES,
    Mutator("windows lines", _text_same(lambda text: text.replace("\n", "\r\n")), "same"),
    Mutator("byte order mark", lambda content, rng: b"\xef\xbb\xbf" + content, "same"),
    Mutator("blank lines behind", lambda content, rng: content + b"\n" * rng.randrange(1, 5), "same"),
)

# -- mutators of JSON -------------------------------------------------------------------------------------------------

NOT_NUMBERS = (math.nan, math.inf, -math.inf)
NUMBERS = (-1, 0, 1, 0.5, -0.0, 1e308, -1e308, 5e-324, 2**31, 2**63, 2**64, 10**30, -(10**30), 10**400)
TEXTS = (
    "",
    " ",
    "x",
    "NaN",
    "１２",
    "\0",
    "a\0b",
    "\ud800",
    "‮gnp.",
    "../../x",
    "/dev/zero",
    "a\nb",
    "\x1b[31m",
    "é" * 9999,
)
OTHERS = (None, True, False, [], {}, [[]], {"a": [1]}, [None], [1, 2])


def json_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything in it stands, outermost first."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from json_paths(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from json_paths(inner, (*path, i))


def at(value: Any, path: Sequence[Any]) -> Any:
    for key in path:
        value = value[key]
    return value


def put(value: Any, path: Sequence[Any], new: Any) -> Any:
    """``new`` in place of what stands at a path."""
    if not path:
        return new
    at(value, path[:-1])[path[-1]] = new
    return value


def pick(value: Any, rng: random.Random, wanted: Callable[[Any], bool] = lambda _: True) -> tuple[Any, ...] | None:
    """A path at random: its depth first, so that few keys at the top are met as often as many numbers far below."""
    by_depth: dict[int, list[tuple[Any, ...]]] = {}
    for path in json_paths(value):
        if wanted(at(value, path)):
            by_depth.setdefault(len(path), []).append(path)
    return rng.choice(by_depth[rng.choice(sorted(by_depth))]) if by_depth else None


def wrong_type(value: Any, rng: random.Random) -> Any:
    """Something of another type than ``value``."""
    kinds: list[tuple[type | tuple[type, ...], Any]] = [((int, float), NUMBERS), (str, TEXTS), (object, OTHERS)]
    pools = [pool for kind, pool in kinds if kind is object or not isinstance(value, kind)]
    while True:
        new = rng.choice(rng.choice(pools))
        number = isinstance(value, int | float) and isinstance(new, bool)  # 1 and true may mean the same
        if not number and type(new) is not type(value):
            return new


def in_json(
    change: Callable[[Any, random.Random], Any],
    load: Callable[[bytes], Any] = json.loads,
    dump: Callable[[Any], bytes] = lambda value: json.dumps(value).encode(),
) -> Callable[[bytes, random.Random], bytes | None]:
    """A mutator of bytes out of a change of the value they hold; None means there is nothing to change."""

    def apply(content: bytes, rng: random.Random) -> bytes | None:
        changed = change(load(content), rng)
        return None if changed is NOTHING else dump(changed)

    return apply


NOTHING: Any = object()


def delete_key(value: Any, rng: random.Random) -> Any:
    path = pick(value, rng, lambda v: isinstance(v, dict) and bool(v))
    if path is None:
        return NOTHING
    inner = at(value, path)
    del inner[rng.choice(sorted(inner, key=str))]
    return value


def delete_item(value: Any, rng: random.Random) -> Any:
    path = pick(value, rng, lambda v: isinstance(v, list) and bool(v))
    if path is None:
        return NOTHING
    del at(value, path)[rng.randrange(len(at(value, path)))]
    return value


def repeat_item(value: Any, rng: random.Random) -> Any:
    path = pick(value, rng, lambda v: isinstance(v, list) and bool(v))
    if path is None:
        return NOTHING
    items = at(value, path)
    items.append(json.loads(json.dumps(rng.choice(items))))
    return value


def retype(value: Any, rng: random.Random) -> Any:
    path = pick(value, rng)
    return NOTHING if path is None else put(value, path, wrong_type(at(value, path), rng))


def no_number(value: Any, rng: random.Random) -> Any:
    path = pick(value, rng, lambda v: isinstance(v, int | float) and not isinstance(v, bool))
    return NOTHING if path is None else put(value, path, rng.choice(NOT_NUMBERS))


def other_number(value: Any, rng: random.Random) -> Any:
    path = pick(value, rng, lambda v: isinstance(v, int | float) and not isinstance(v, bool))
    return NOTHING if path is None else put(value, path, rng.choice(NUMBERS))


def other_text(value: Any, rng: random.Random) -> Any:
    path = pick(value, rng, lambda v: isinstance(v, str))
    return NOTHING if path is None else put(value, path, rng.choice(TEXTS))


def rename_key(value: Any, rng: random.Random) -> Any:
    path = pick(value, rng, lambda v: isinstance(v, dict) and bool(v))
    if path is None:
        return NOTHING
    inner = at(value, path)
    key = rng.choice(sorted(inner, key=str))
    name = str(key)
    inner[rng.choice((name.upper(), name + "s", name[1:], *TEXTS))] = inner.pop(key)
    return value


def nest(value: Any, rng: random.Random) -> bytes:
    """Brackets as deep as no parser goes, in place of a value."""
    path = pick(value, rng, lambda v: not isinstance(v, dict | list))
    if path is None:
        return b"[" * 3000 + b"]" * 3000
    depth = rng.choice((50, 500, 3000, 100_000))
    text = json.dumps(put(value, path, "HERE"))
    return text.replace('"HERE"', "[" * depth + "]" * depth).encode()


def swap(value: Any, rng: random.Random) -> Any:
    """Two values change places."""
    a, b = pick(value, rng), pick(value, rng)
    if not a or not b or a[: len(b)] == b or b[: len(a)] == a:
        return NOTHING
    x, y = at(value, a), at(value, b)
    return put(put(value, a, y), b, x)


def shuffle_keys(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        keys = list(value)
        rng.shuffle(keys)
        return {key: shuffle_keys(value[key], rng) for key in keys}
    return [shuffle_keys(inner, rng) for inner in value] if isinstance(value, list) else value


def repeat_key(content: bytes, rng: random.Random) -> bytes | None:
    """A key twice, with another value first: readers disagree on which of them counts."""
    text = content.decode()
    keys = [i for i in range(len(text)) if text[i] == '"' and '": ' in text[i : i + 40]]
    if not keys:
        return None
    place = rng.choice(keys)
    key = text[place : text.index('":', place) + 1]
    return f"{text[:place]}{key}: {json.dumps(rng.choice((None, 7, 'x')))}, {text[place:]}".encode()


VALUES: tuple[tuple[str, Callable[[Any, random.Random], Any], Meaning], ...] = (
    ("delete key", delete_key, "free"),
    ("delete item", delete_item, "free"),
    ("repeat item", repeat_item, "free"),
    ("wrong type", retype, "said"),
    ("no number", no_number, "said"),
    ("other number", other_number, "free"),
    ("other text", other_text, "free"),
    ("rename key", rename_key, "free"),
    ("swap", swap, "free"),
)
JSON = (
    *BYTES,
    *(Mutator(name, in_json(change), meaning) for name, change, meaning in VALUES),
    Mutator("nest", lambda content, rng: nest(json.loads(content), rng), "said"),
    Mutator("repeat key", repeat_key),
    Mutator("order of keys", in_json(shuffle_keys), "same"),
    Mutator("spaces", lambda content, rng: json.dumps(json.loads(content), indent=rng.choice((0, 3))).encode(), "same"),
)


def same_json(a: bytes, b: bytes) -> bool:
    """Whether two texts hold one value."""
    try:
        return bool(json.loads(a) == json.loads(b))
    except (ValueError, RecursionError):
        return False


def main() -> None:
    """See the head of this file."""
    sys.path.insert(0, str(Path(__file__).parent))
    from fuzz_kinds import KINDS

    limit = MEMORY_GIB * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    kind = KINDS[sys.argv[1]]
    first = int(sys.argv[2])
    if sys.argv[3:] == ["--show"]:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        judge = Judge(kind, folder / "sample")
        kept = folder / f"mutant-{first}{judge.sample.file.suffix}"
        kept.write_bytes(judge.mutant(first)[1])
        print(json.dumps(dataclasses.asdict(judge.judge(first)), indent=2), f"\n{kept}", sep="")
        return
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        judge = Judge(kind, Path(folder))
        for seed in range(first, int(sys.argv[3])):
            print(judge.judge(seed).line(), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

"""The kinds of file that the fuzz driver damages: see `fuzzing`."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import random
import re
import shutil
import sqlite3
import tempfile
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from fuzzing import (
    BYTES,
    JSON,
    NOTHING,
    TEXT,
    VALUES,
    Answer,
    Kind,
    Mutator,
    Sample,
    in_json,
    same_json,
)
from PIL import Image
from safetensors.torch import save_file
from search_evaluator import FEATURES as LITE0
from search_evaluator import PROTOCOL, InstantEvaluator, space

import fpn_bench as fb
from fpn_bench.analysis import compare_tables, make_table, read_csv, write_csv
from fpn_bench.backbones.probe import probe
from fpn_bench.data.check import check_dataset
from fpn_bench.data.dataset import ImageRecord
from fpn_bench.data.formats import load_dataset, write_dataset
from fpn_bench.data.images import read_upright
from fpn_bench.data.synthetic import write_synthetic
from fpn_bench.detection.average_precision import evaluate_ap
from fpn_bench.errors import FpnBenchError
from fpn_bench.graph import NeckGraph, cost
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.reports import comparison_text
from fpn_bench.reports.evidence import gather
from fpn_bench.reports.plain import markdown_page
from fpn_bench.reports.report import report_info
from fpn_bench.search import Space, load_study, run_study
from fpn_bench.tabular import Metadata, load, write_table
from fpn_bench.training.cache import FeatureCache
from fpn_bench.training.protocol import HeadConfig, Protocol

# -- data sets --------------------------------------------------------------------------------------------------------


def _synthetic(folder: Path) -> Path:
    return write_synthetic(folder, train_images=3, val_images=2, image_size=(48, 48), objects=(2, 3))


def read_dataset(root: Path) -> Answer:
    """What a training and its AP depend on. `data check` must not call fine what is refused."""
    check = check_dataset(root)
    try:
        found = load_dataset(root)
    except FpnBenchError:
        assert not check.is_usable, "data check calls usable what is refused"
        raise
    assert check.is_usable, f"data check refuses what is read: {[f.text for f in check.findings if f.refused]}"
    ap = [
        evaluate_ap(
            [
                {"boxes": r.boxes[:2] + 1, "scores": np.linspace(0.9, 0.5, len(r.boxes))[:2], "labels": r.labels[:2]}
                for r in rows
            ],
            rows,
            len(found.classes),
        ).ap
        for rows in found.splits.values()
    ]
    splits = {
        name: [
            (r.path.stem, r.size, r.boxes.tolist(), r.labels.tolist(), r.areas.tolist(), r.crowd.tolist()) for r in rows
        ]
        for name, rows in found.splits.items()
    }
    return Answer((found.classes, splits, ap), (found.notes, [f.text for f in check.findings]))


def make_coco(folder: Path) -> Sample:
    root = _synthetic(folder)
    return Sample(root / "annotations" / "train.json", lambda: read_dataset(root))


def _converted(to: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        source = folder.parent / f"{folder.name}-source"
        write_dataset(load_dataset(_synthetic(source)), folder / "set", to)
        shutil.rmtree(source)
        return folder / "set"

    return make


def make_voc(folder: Path) -> Sample:
    root = _converted("voc")(folder)
    return Sample(sorted((root / "Annotations").glob("*.xml"))[0], lambda: read_dataset(root))


def make_yolo(folder: Path) -> Sample:
    root = _converted("yolo")(folder)
    return Sample(sorted(root.rglob("labels/*/*.txt"))[0], lambda: read_dataset(root))


def make_yolo_yaml(folder: Path) -> Sample:
    root = _converted("yolo")(folder)
    return Sample(root / "data.yaml", lambda: read_dataset(root))


def _xml(change: Callable[[ET.Element, random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
    def apply(content: bytes, rng: random.Random) -> bytes:
        root = ET.fromstring(content)
        change(root, rng)
        return ET.tostring(root)

    return apply


XML_TEXTS = (
    "",
    " ",
    "x",
    "-1",
    "0",
    "nan",
    "inf",
    "1e999",
    "9" * 30,
    "1_0",
    "１２",
    "../../x",
    "é" * 999,
    "1 2",
    "0x10",
    "true",
)


def _element(root: ET.Element, rng: random.Random, leaf: bool = False) -> ET.Element:
    return rng.choice([e for e in root.iter() if not leaf or not len(e)])


def _xml_text(root: ET.Element, rng: random.Random) -> None:
    _element(root, rng, leaf=True).text = rng.choice(XML_TEXTS)


def _xml_no_number(root: ET.Element, rng: random.Random) -> None:
    numbers = [e for e in root.iter() if e.tag in ("xmin", "ymin", "xmax", "ymax", "width", "height")]
    rng.choice(numbers).text = rng.choice(
        ("", "x", "nan", "inf", "-inf", "1e999", "1,5", "1 2", "0x10", "--1", "1_0", "１２")
    )


def _xml_delete(root: ET.Element, rng: random.Random) -> None:
    parent = rng.choice([e for e in root.iter() if len(e)])
    parent.remove(rng.choice(list(parent)))


def _xml_repeat(root: ET.Element, rng: random.Random) -> None:
    parent = rng.choice([e for e in root.iter() if len(e)])
    parent.append(rng.choice(list(parent)))


def _xml_rename(root: ET.Element, rng: random.Random) -> None:
    _element(root, rng).tag = rng.choice(("x", "Object", "é", "bndbox2", "object"))


def _xml_unknown(root: ET.Element, rng: random.Random) -> None:
    """What no reader asks for."""
    ET.SubElement(root, "comment", {"a": "1"}).text = rng.choice(XML_TEXTS)


def _entities(content: bytes, rng: random.Random) -> bytes:
    text = content.decode().split("?>")[-1]
    bomb = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))
    declared = rng.choice((f'<!ENTITY a0 "x">{bomb}', '<!ENTITY a9 SYSTEM "file:///etc/passwd">'))
    name = text.index("</name>") if "</name>" in text else 0
    return f"<!DOCTYPE annotation [{declared}]>{text[:name]}&a9;{text[name:]}".encode()


XML = (
    *TEXT,
    Mutator("text", _xml(_xml_text)),
    Mutator("no number", _xml(_xml_no_number), "said"),
    Mutator("delete element", _xml(_xml_delete)),
    Mutator("repeat element", _xml(_xml_repeat)),
    Mutator("rename element", _xml(_xml_rename)),
    Mutator("unknown element", _xml(_xml_unknown), "same"),
    Mutator("entities", _entities, "said"),
    Mutator("deep", lambda c, rng: c.replace(b"</annotation>", b"<a>" * 50_000 + b"</a>" * 50_000 + b"</annotation>")),
)


def _token(new: tuple[str, ...]) -> Callable[[bytes, random.Random], bytes]:
    def apply(content: bytes, rng: random.Random) -> bytes:
        lines = [line.split(" ") for line in content.decode().splitlines()]
        line = rng.choice(lines)
        line[rng.randrange(len(line))] = rng.choice(new)
        return "\n".join(" ".join(line) for line in lines).encode()

    return apply


YOLO = (
    *TEXT,
    Mutator("token", _token(("0", "1", "-1", "7", "1e3", "0.5", "1.0000001", "-0.1", "99999999999999999999"))),
    Mutator("no number", _token(("x", "nan", "inf", "1e999", "0x1", "１", "1_0", "--1", "1,5", "true")), "said"),
    Mutator("more columns", lambda c, rng: c.replace(b"\n", b" 0.1 0.2\n", 1)),
    Mutator("blank line between", lambda c, rng: c.replace(b"\n", b"\n\n", 1), "same"),
)


# -- YAML -------------------------------------------------------------------------------------------------------------


def _dump_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode(errors="surrogatepass")


YAML_WORDS = (
    "&a [*a]",
    "!!python/object/apply:os.system ['true']",
    "!!binary x",
    "!!timestamp 2020-01-01",
    "2020-01-01",
    "0100",
    "0o10",
    "0x10",
    "1_000",
    "1:30",
    "yes",
    "Off",
    "~",
    "nan",
    ".nan",
    "-.inf",
    "1e5",
    "1.e+3",
    "[" * 2000 + "]" * 2000,
    "[" * 100_000,
    "{a: " * 2000 + "1" + "}" * 2000,
    "{<<: {a: 1}}",
    "? [a]\n: b",
    "*unknown",
    "|\n  text",
    "'",
    "\t",
    "%TAG",
    "400000000",
    "[1, 400000000]",
    "{range: [1, 100000]}",
    "{range: [1, 1000000000000]}",
    "{choices: []}",
    "{choices: [[3], [3]]}",
)


def _yaml_word(content: bytes, rng: random.Random) -> bytes:
    """A word with a meaning of its own in place of a value."""
    places = list(re.finditer(r"(?m)(?<=: ).+$", content.decode()))
    place = rng.choice(places)
    text = content.decode()
    return (text[: place.start()] + rng.choice(YAML_WORDS) + text[place.end() :]).encode()


def _yaml_bomb(content: bytes, rng: random.Random) -> bytes:
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else 'x'}]" for i in range(9)]
    return ("\n".join(lines) + "\n").encode() + content


def _yaml_repeat(content: bytes, rng: random.Random) -> bytes:
    lines = content.decode().splitlines()
    i = rng.randrange(len(lines))
    return "\n".join([*lines[:i], lines[i], *lines[i:]]).encode()


YAML = (
    *TEXT,
    *(Mutator(name, in_json(change, yaml.safe_load, _dump_yaml), "free") for name, change, _ in VALUES),
    Mutator("word", _yaml_word),
    Mutator("word", _yaml_word),
    Mutator("bomb", _yaml_bomb),
    Mutator("repeat line", _yaml_repeat),
    Mutator("comment", lambda c, rng: b"# \xe2\x80\xae\n" + c + b"\n# end", "same"),
)


def _same_yaml(a: bytes, b: bytes) -> bool:
    try:
        return bool(yaml.safe_load(a) == yaml.safe_load(b))
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return False


SPACE_TEXT = """\
schema_version: 1
name: tiny
backbone: {name: made_up_net}
data: {kind: coco, root: somewhere}
image_size: [64, 96]
training:
  epochs: 4
  batch_size: 8
neck:
  family: {choices: [fpn, pafpn]}
  channels: {choices: [16, 24]}
  out_levels: {choices: [[3, 4, 5], [3, 4, 5, 6]]}
  merge: {choices: [sum, concat]}
  repeats: {range: [1, 3], when: {family: fpn}}
objectives: {ap: maximise, latency_ms: minimise}
constraints: [params <= 90000000]
budget: {trials: 8, seeds: 2}
rungs: {epochs: [1, 2]}
"""


def read_space(path: Path) -> Answer:
    """A space as a search uses it: checked, and some of its necks built and costed."""
    found = Space.load(path)
    found.check(LITE0)
    costs = []
    for choices in itertools.islice(found.enumerate(), 6):
        graph = found.to_graph(choices, LITE0)
        costs.append((found.label(choices), graph.id, cost(graph, found.image_size)))
    return Answer((found.fingerprint, found.training, found.budget, found.rungs, costs))


def make_space(folder: Path) -> Sample:
    path = folder / "space.yaml"
    path.write_text(SPACE_TEXT)
    return Sample(path, lambda: read_space(path))


# -- graphs, weights, models ------------------------------------------------------------------------------------------


def read_graph(path: Path) -> Answer:
    """A graph as a user hands it in: id, widths, costs, and its module's output."""
    graph = NeckGraph.from_json(path.read_text(encoding="utf-8", errors="surrogateescape"))
    costs = cost(graph, (64, 96))
    built = None
    if costs.params < 10**7 and costs.macs < 10**9:
        neck = fb.build_neck(graph)
        built = sum(p.numel() for p in neck.parameters())
    return Answer((graph.id, graph.out_features, costs, built))


def make_graph(folder: Path) -> Sample:
    path = folder / "graph.json"
    features = (FeatureSpec(3, 8, 8), FeatureSpec(4, 12, 16), FeatureSpec(5, 16, 32))
    path.write_text(fb.create_graph("bifpn", features, (3, 4, 5, 6), 8).to_json())
    return Sample(path, lambda: read_graph(path))


_HEADER = "a safetensors file begins with the length of its header"


def _safetensors(change: Callable[[Any, random.Random], Any]) -> Callable[[bytes, random.Random], bytes | None]:
    """A change of the header, which is JSON."""

    def apply(content: bytes, rng: random.Random) -> bytes | None:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        if "__metadata__" in header and rng.random() < 0.7:  # what fpn_bench tells of a detector
            name = next(iter(header["__metadata__"]))
            inner = change(json.loads(header["__metadata__"][name]), rng)
            if inner is NOTHING:
                return None
            header["__metadata__"][name] = json.dumps(inner)
        else:
            header = change(header, rng)
            if header is NOTHING:
                return None
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    return apply


def _header_length(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((0, 1, 2**31, 2**62, 2**64 - 1)).to_bytes(8, "little") + content[8:]


SAFETENSORS = (
    *BYTES,
    Mutator("header length", _header_length, "said"),
    *(Mutator(f"header: {name}", _safetensors(change)) for name, change, _ in VALUES),
)


def _digest_of(maps: Any) -> Any:
    return [(tuple(m.shape), round(float(m.double().sum()), 3), bool(torch.isfinite(m).all())) for m in maps]


def make_weights(folder: Path) -> Sample:
    path = folder / "weights.safetensors"
    from timm import create_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(create_model("test_resnet").state_dict(), path)
    images = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)

    def read() -> Answer:
        backbone = fb.create_backbone("test_resnet", weights=str(path), image_size=(64, 64))
        with torch.no_grad():
            return Answer(_digest_of(backbone(images)), backbone.weights.id)

    return Sample(path, read)


def _retyped_weights(content: bytes, rng: random.Random) -> bytes:
    """Some tensors in a type that weights never have."""
    from safetensors.torch import load as load_tensors
    from safetensors.torch import save

    dtype = rng.choice((torch.int8, torch.int32, torch.int64, torch.bool, torch.uint8))
    tensors = load_tensors(content)
    for name in rng.sample(sorted(tensors), rng.choice((1, len(tensors)))):
        tensors[name] = tensors[name].to(dtype)
    return save(tensors)


def _not_finite(content: bytes, rng: random.Random) -> bytes:
    from safetensors.torch import load as load_tensors
    from safetensors.torch import save

    tensors = load_tensors(content)
    name = rng.choice([n for n, t in tensors.items() if t.is_floating_point() and t.numel()])
    tensors[name].view(-1)[0] = rng.choice((float("nan"), float("inf")))
    return save(tensors)


def _other_shape(content: bytes, rng: random.Random) -> bytes:
    from safetensors.torch import load as load_tensors
    from safetensors.torch import save

    tensors = load_tensors(content)
    name = rng.choice(sorted(tensors))
    tensors[name] = rng.choice((tensors[name].reshape(-1), tensors[name].new_zeros(0), tensors[name].new_zeros(2, 2)))
    return save(tensors)


WEIGHTS = (
    *SAFETENSORS,
    Mutator("whole numbers", _retyped_weights, "said"),
    Mutator("not finite", _not_finite, "said"),
    Mutator("other shape", _other_shape, "said"),
)


def make_model(folder: Path) -> Sample:
    trunk = fb.create_backbone("test_resnet", image_size=(64, 64))
    graph = fb.create_graph("fpn", trunk.features, (3, 4, 5), 8)
    spec = fb.DetectorSpec(
        "test_resnet", (3, 4, 5), "simple", "random", graph, HeadConfig(convs=0), (64, 64), ("car", "bus")
    )
    built = fb.ImageDetector.build(spec)
    torch.nn.init.constant_(built.detector.head.classification_head.cls_logits.bias, 1.0)
    path = built.save(folder / "model.safetensors")
    image = Image.linear_gradient("L").convert("RGB").resize((80, 60))

    def read() -> Answer:
        model = fb.ImageDetector.load(path)
        found = model.detect([image], score_threshold=0.3)[0]
        return Answer((model.spec.classes, _digest_of([found["boxes"], found["scores"], found["labels"]])))

    return Sample(path, read)


# -- the feature cache ------------------------------------------------------------------------------------------------


@cache
def _backbone() -> Any:
    return fb.create_backbone("test_resnet", image_size=(64, 64))


def _npy_header(content: bytes, rng: random.Random) -> bytes:
    old, new = rng.choice(
        (
            (b"'<f2'", b"'<f4'"),
            (b"'<f2'", b"'|O1'"),
            (b"'<f2'", b"'<i2'"),
            (b"False", b"True "),
            (b"shape", b"shApe"),
            (b"(3", b"(9"),
            (b"(3", b"(1"),
            (b"(3", b"-3"),
        )
    )
    return content.replace(old, new, 1)


def _npy_values(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(128, len(content) - 64) & ~1
    return content[:at] + rng.choice((b"\0", b"\xff", b"<", b"|")) * 64 + content[at + 64 :]


def make_features(folder: Path) -> Sample:
    images = folder / "images"
    images.mkdir()
    records = []
    for k in range(3):
        path = images / f"{k}.png"
        Image.linear_gradient("L").rotate(90 * k).convert("RGB").resize((64, 64)).save(path)
        none = np.zeros(0)
        records.append(
            ImageRecord(
                k,
                path,
                (64, 64),
                np.zeros((0, 4), np.float32),
                none.astype(np.int64),
                none.astype(np.float32),
                none > 0,
            )
        )

    def read() -> Answer:
        built = FeatureCache.open_or_build(
            _backbone(), records, dataset_hash="d", split="train", image_size=(64, 64), root=folder / "cache"
        )
        return Answer([level.numpy().tobytes() for level in built.batch([0, 1, 2])])

    read()
    return Sample(sorted((folder / "cache").rglob("P3.npy"))[0], read)


# -- studies ----------------------------------------------------------------------------------------------------------


def _in_full(path: Path) -> bool:
    """Of some mutants the whole report is written, which takes a second."""
    return zlib.crc32(path.read_bytes()) % 8 == 0


def _study(folder: Path) -> Path:
    searched = space(budget={"trials": 4})
    with tempfile.TemporaryDirectory() as elsewhere:
        made = Path(elsewhere) / "made-up"
        run_study(searched, InstantEvaluator(searched), PROTOCOL, made, share=False)
        with contextlib.closing(sqlite3.connect(made / "study.db")) as connection:
            connection.execute(f"VACUUM INTO '{folder / 'study.db'}'")  # one file, without a log beside it
    return folder / "study.db"


def read_study(path: Path) -> Answer:
    """A study as `report`, `compare` and `train` read it: the rows that were not damaged, the front, the words."""
    study = load_study(path)
    table, metadata = study.table(), study.metadata()
    front = study.front()
    compare_tables(table, table, metadata=(metadata, metadata))
    gather(table, metadata)
    if _in_full(path):
        markdown_page(report_info(table, metadata, samples=study.samples))
    study.last_run()
    done = table[table["status"] == "complete"]
    figures = {
        int(row["trial"]): (row["candidate"], row["ap"], row["params"], row["macs"], row["latency_ms"])
        for row in done.to_dict("records")
    }
    return Answer((figures, front["candidate"].tolist()), (list(table["status"]), list(table["reason"])))


def make_study(folder: Path) -> Sample:
    database = _study(folder)
    return Sample(database, lambda: read_study(database))


def _json_places(connection: sqlite3.Connection) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """(table, column) -> (rowid, text) of the objects and lists that a database holds as JSON."""
    places: dict[tuple[str, str], list[tuple[int, str]]] = {}
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in sorted(tables):
        for _, column, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
            for row, value in connection.execute(f"SELECT rowid, {column} FROM {table} ORDER BY rowid").fetchall():
                if isinstance(value, str) and value[:1] in "{[" and len(value) > 2:
                    places.setdefault((table, column), []).append((row, value))
    return places


def _sql(change: Callable[[Any, random.Random], Any]) -> Callable[[bytes, random.Random], bytes | None]:
    """A change of one JSON value in the database: a row, the metadata ..."""

    def apply(content: bytes, rng: random.Random) -> bytes | None:
        connection = sqlite3.connect(":memory:")
        with contextlib.closing(connection):
            connection.deserialize(content)
            places = _json_places(connection)
            table, column = rng.choice(sorted(places))
            row, text = rng.choice(places[table, column])
            changed = change(json.loads(text), rng)
            if changed is NOTHING:
                return None
            text = changed if isinstance(changed, str) else json.dumps(changed)
            text = text.encode(errors="replace").decode()  # SQLite holds no halves of surrogate pairs
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (text, row))
            connection.commit()
            return bytes(connection.serialize())

    return apply


def _sql_statement(content: bytes, rng: random.Random) -> bytes | None:
    statement = rng.choice(
        (
            "DROP TABLE trial_values",
            "DROP TABLE studies",
            "DROP TABLE trial_user_attributes",
            "DELETE FROM study_user_attributes",
            "DELETE FROM study_user_attributes WHERE key = 'identity'",
            "DELETE FROM study_user_attributes WHERE key = 'metadata'",
            "DELETE FROM trial_user_attributes WHERE trial_id = 1",
            "DELETE FROM trial_params",
            "UPDATE trials SET state = 'NONSENSE'",
            "UPDATE trials SET number = 0",
            "UPDATE trials SET number = NULL",
            "UPDATE trial_values SET value = 'x'",
            "UPDATE version_info SET schema_version = 99",
            "UPDATE alembic_version SET version_num = 'v9'",
            "UPDATE studies SET study_name = '../../x'",
            "INSERT INTO studies (study_name) VALUES ('another')",
        )
    )
    connection = sqlite3.connect(":memory:")
    with contextlib.closing(connection):
        connection.deserialize(content)
        try:
            connection.execute(statement)
        except sqlite3.Error:  # of a table that this version of the store has not
            return None
        connection.commit()
        return bytes(connection.serialize())


def _row_text(value: Any, rng: random.Random) -> Any:
    """Text that is no JSON, or not the object it should be."""
    return rng.choice(("{", "[1,2]", "", "null", '"x"', "7", "[" * 3000, '{"status": "complete"}', "NaN", '{"a":1}}'))


STUDY = (
    *BYTES,
    *(Mutator(f"attribute: {name}", _sql(change)) for name, change, _ in VALUES),
    Mutator("attribute: other text", _sql(_row_text)),
    Mutator("statement", _sql_statement),
)


# -- tables -----------------------------------------------------------------------------------------------------------

_FEATURES = (FeatureSpec(3, 8, 8), FeatureSpec(4, 16, 16), FeatureSpec(5, 32, 32))
_TABLE_SPACE = """
name: made-up
backbone: {name: made_up_net}
data: {kind: coco}
image_size: [64, 64]
training: {epochs: 2}
neck: {family: {choices: [fpn, pafpn]}, channels: {range: [8, 16], step: 8}, norm: group}
objectives: {ap: maximise, macs: minimise}
"""


def _tabular(folder: Path) -> Path:
    known = Space.parse(_TABLE_SPACE)
    protocol = Protocol(dataset="made up", dataset_hash="0" * 64, image_size=(64, 64), training=known.training)
    metadata = Metadata(
        name="made-up", space=_TABLE_SPACE, features=_FEATURES, weights="random", protocol=protocol,
        protocol_id=protocol.id, written_on={}, recorder="this test",
    )  # fmt: skip
    rows = [
        {
            "protocol": protocol.id,
            "candidate": f"{i:016x}",
            "graph_id": known.to_graph(choices, _FEATURES).id,
            "label": known.label(choices),
            **{f"choice.{k}": json.dumps(v) for k, v in choices.items()},
            **{name: str(1000 + i) for name in ("params", "macs", "neck_params", "neck_macs")},
            **{name: str(5 + i) for name in ("latency_ms", "latency_low_ms", "latency_high_ms")},
            "ap_1": str(10 + i),
            "ap_2": str(12 + i),
            "loss": "0.5",
            "train_s": "3",
            "cpu_s": "4",
            "seed": str(seed),
            "machine": "m",
            "latency_device": "cpu",
        }
        for i, choices in enumerate(known.enumerate())
        for seed in (0, 1)
    ]
    return write_table(folder, metadata, rows)[0]


def read_tabular(path: Path) -> Answer:
    table = load(path)
    rows = table.table()
    front = [(r.candidate, r.ap, r.params, r.macs) for r in table.front()]
    records = [table.query(choices) for choices in table.space.enumerate()]
    return Answer((front, records, rows["ap"].tolist(), table.hypervolume_fraction([records[0].candidate])))


def make_tabular_csv(folder: Path) -> Sample:
    path = _tabular(folder)
    return Sample(path, lambda: read_tabular(path))


def make_tabular_json(folder: Path) -> Sample:
    path = _tabular(folder)
    return Sample(path.with_suffix(".json"), lambda: read_tabular(path))


def make_csv(folder: Path) -> Sample:
    from tables import row

    path = write_csv(
        make_table([row(i, **{"choice.channels": 8 * i}, ap=20.0 + i) for i in range(4)]), folder / "t.csv"
    )
    write_csv(make_table([row(i, **{"choice.channels": 8 * i}, ap=21.0 + i) for i in range(4)]), folder / "b.csv")

    def read() -> Answer:
        table, other = read_csv(path), read_csv(folder / "b.csv")
        compared = compare_tables(table, other)
        json.dumps(compared.to_dict())
        evidence = gather(table, {})
        if _in_full(path):
            markdown_page(report_info(table, {}))
        figures = table[["candidate", "status", "ap", "params", "macs", "latency_ms", "seed"]].to_dict("records")
        return Answer((figures, evidence.front["candidate"].tolist(), comparison_text(compared).headline))

    return Sample(path, read)


def _cell(new: tuple[str, ...], numbers: bool = False) -> Callable[[bytes, random.Random], bytes]:
    def apply(content: bytes, rng: random.Random) -> bytes:
        rows = list(csv.reader(io.StringIO(content.decode())))
        if numbers:  # under a figure alone
            columns = [i for i, name in enumerate(rows[0]) if name in ("ap", "ap_2", "params", "macs", "latency_ms")]
        else:
            columns = list(range(len(rows[0])))
        rows[rng.randrange(1 if numbers else 0, len(rows))][rng.choice(columns)] = rng.choice(new)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode(errors="surrogatepass")

    return apply


def _column(content: bytes, rng: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode())))
    at = rng.randrange(len(rows[0]))
    twice = rng.random() < 0.5
    for one in rows:
        if twice:
            one.append(one[at])
        else:
            del one[at]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


CELLS = (
    "",
    " ",
    "x",
    "-1",
    "0",
    "1.5",
    "1e400",
    "9" * 40,
    "nan",
    "None",
    "True",
    "\0",
    "\"'",
    "=1+1",
    "é" * 999,
    "[1",
    "{}",
    "[[]]",
    "a\nb",
)
CSV = (
    *TEXT,
    Mutator("cell", _cell(CELLS)),
    Mutator("no number", _cell(("x", "--1", "1,5", "0x10", "１２", "1_0", "[1]", "1e999"), numbers=True), "said"),
    Mutator("column", _column),
)


# -- caches and pictures ----------------------------------------------------------------------------------------------


def make_probe(folder: Path) -> Sample:
    """What is remembered of a backbone: damaged, it is found out anew."""
    import os

    def read() -> Answer:
        before = os.environ.get("FPN_BENCH_CACHE")
        os.environ["FPN_BENCH_CACHE"] = str(folder / "cache")
        probe.cache_clear()  # what this process remembers would hide the file
        try:
            found = fb.create_backbone("test_resnet", image_size=(64, 64))
        finally:
            if before is None:
                del os.environ["FPN_BENCH_CACHE"]
            else:
                os.environ["FPN_BENCH_CACHE"] = before
        with torch.no_grad():
            maps = found(torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))
        return Answer((found.features, _digest_of(maps)))

    read()
    return Sample(sorted((folder / "cache").rglob("test_resnet.json"))[0], read)


def make_picture(suffix: str) -> Callable[[Path], Sample]:
    def make(folder: Path) -> Sample:
        path = folder / f"photo{suffix}"
        Image.linear_gradient("L").convert("RGB").resize((90, 70)).save(path)
        return Sample(path, lambda: Answer(read_upright(path).size))

    return make


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "coco",
            make_coco,
            (*JSON, Mutator("blank lines behind", lambda c, rng: c + b"\n\n", "same")),
            250,
            same_json,
        ),
        Kind("voc", make_voc, XML, 200),
        Kind("yolo", make_yolo, YOLO, 150),
        Kind("yolo-yaml", make_yolo_yaml, YAML, 150, _same_yaml),
        Kind("space", make_space, YAML, 250, _same_yaml),
        Kind("graph", make_graph, JSON, 250, same_json),
        Kind("weights", make_weights, WEIGHTS, 120),
        Kind("model", make_model, WEIGHTS, 120),
        Kind(
            "features",
            make_features,
            (*BYTES, *(Mutator(n, m) for n, m in (("header", _npy_header), ("values", _npy_values)))),
            120,
            lambda a, b: True,
            repairs=True,
        ),
        Kind("study", make_study, STUDY, 60),
        Kind("tabular-csv", make_tabular_csv, CSV, 120),
        Kind("tabular-json", make_tabular_json, JSON, 120, same_json),
        Kind("csv", make_csv, CSV, 80),
        Kind("probe", make_probe, JSON, 60, lambda a, b: True, repairs=True),
        Kind("png", make_picture(".png"), BYTES, 60),
        Kind("jpeg", make_picture(".jpg"), BYTES, 60),
    )
}

"""Writes the pages of docs/reference that follow from the code: cli.md, space.md, table.md, python.md.

python docs/tools/reference.py
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import fpn_bench
from fpn_bench.analysis.rows import table_columns
from fpn_bench.cli.app import app
from fpn_bench.data.formats import FORMATS
from fpn_bench.search.space import schema
from fpn_bench.search.space.choices import Budget, Rungs, SamplerConfig
from fpn_bench.training.protocol import HeadConfig, TrainingRecipe

FOLDER = Path(__file__).parents[1] / "reference"
COMMAND_MODULES = (
    "search",
    "bench",
    "report",
    "dashboard",
    "choose",
    "compare",
    "train",
    "export",
    "predict",
    "profile",
)
NOTE = "<!-- Written by docs/tools/reference.py. Do not edit. -->\n"


def cell(text: object) -> str:
    return re.sub(r"<(?=[A-Za-z/])", "&lt;", " ".join(str(text).split()).replace("|", "\\|"))


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names = tuple(head)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(cell(value) for value in row) + " |" for row in rows)]) + "\n"


def code(text: object) -> str:
    return f"`{text}`" if text not in ("", None) else ""


# -- command line ------------------------------------------------------------------------------------------------


def command() -> Any:
    """The whole command, with every subcommand."""
    for module in (*COMMAND_MODULES, "data", "lists"):
        importlib.import_module(f"fpn_bench.cli.{module}")
    return typer.main.get_command(app)


def commands(group: Any, name: str = "fpn-bench") -> Iterator[tuple[str, Any]]:
    for word in group.list_commands(None):
        inner = group.commands[word]
        if not inner.hidden:
            yield f"{name} {word}", inner
            if hasattr(inner, "commands"):
                yield from commands(inner, f"{name} {word}")


def default(parameter: Any) -> str:
    value = parameter.default
    if getattr(parameter, "is_flag", False) or value is None or callable(value) or "Sentinel" in type(value).__name__:
        return "on" if value is True else ""
    return code(value) if value not in ("", [], ()) else ""


def cli_page() -> str:
    parts = [
        "# Command line\n",
        NOTE,
        "`fpn-bench COMMAND --help` prints the same. Exit code 0: done. 1: a known failure. 2: something given cannot "
        "be used. 130: Ctrl-C.\n",
    ]
    for name, item in commands(command()):
        arguments = [p for p in item.params if p.param_type_name == "argument"]
        options = [p for p in item.params if p.param_type_name == "option" and p.name != "help"]
        usage = " ".join([name, *(["[OPTIONS]"] if options else []), *(shown_argument(p) for p in arguments)])
        parts += [f"## {name}\n", f"```text\n{usage}\n```\n", paragraphs(item.help or "")]
        rows = [(code(p.metavar or p.name), cell(getattr(p, "help", "") or ""), default(p)) for p in arguments]
        rows += [
            (", ".join(code(o) for o in (*p.opts, *p.secondary_opts)), required(p) + (p.help or ""), default(p))
            for p in options
        ]
        if rows:
            parts.append(table(("argument or option", "meaning", "default"), rows))
    return "\n".join(parts)


def required(parameter: Any) -> str:
    return "Required. " if parameter.required else ""


def shown_argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name).strip("[]{}")
    text = f"{name}..." if parameter.nargs == -1 and not name.endswith("...") else name
    return text if parameter.required else f"[{text}]"


def paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n")) + "\n"


# -- space file --------------------------------------------------------------------------------------------------

TOP = {
    "schema_version": "version of the file's form",
    "name": "name of the space, and of its study unless `--name` says otherwise",
    "backbone": "the backbone, or a list of them, which is a choice of the search; see `backbone:` below",
    "data": "the data set; see `data:` below",
    "image_size": "[height, width] in pixels that images are resized to",
    "head": "the detection head; see `head:` below",
    "training": "the short training; see `training:` below",
    "latency": "how latency is measured; see `latency:` below",
    "neck": "keys of the neck: `family`, `channels`, `out_levels` and the options of the family (`fpn-bench necks show "
    "NAME`). Each is a constant or is searched; see `neck:` below. In a suite: what holds for all necks",
    "necks": "makes the file a suite: the necks to be trained, one after the other",
    "seeds": "of a suite: trainings of each neck",
    "objectives": "metric: `maximise` or `minimise`; see [table columns](table.md) for the names",
    "constraints": "hard bounds such as `params <= 6e6`, on metrics that are known before a training",
    "sampler": "what proposes candidates; see `sampler:` below",
    "budget": "when to stop; see `budget:` below",
    "rungs": "where trainings may stop early; see `rungs:` below",
    "enqueue": "what is trained first: `published` (the baselines), `none`, or a list of choices",
}


def attributes(cls: type[Any]) -> dict[str, str]:
    """Field -> its meaning, from the "Attributes:" of the docstrings of a class and those it is made of."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        listed = text.partition("Attributes:\n")[2]
        for names, meaning in re.findall(r"^    (\w[\w, ]*): (.*(?:\n        .*)*)", listed, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def kind(part: dict[str, Any], defs: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in part:
        return kind(defs[part["$ref"].rsplit("/", 1)[1]], defs)
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(kind(inner, defs) for inner in part["anyOf"]))
    if "const" in part or "enum" in part:
        return " or ".join(json.dumps(value) for value in part.get("enum", [part.get("const")]))
    if part.get("type") == "array":
        inner = part.get("prefixItems") or [part.get("items", {})]
        return f"list of {len(inner)}" if part.get("prefixItems") else f"list of {kind(inner[0], defs)}"
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
    }
    text = words.get(part.get("type", ""), "mapping" if part.get("type") == "object" else "value")
    bounds = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to"}
    limits = [f"{word} {part[key]:g}" for key, word in bounds.items() if key in part]
    return " ".join([text, *limits])


def model_rows(cls: type[BaseModel], meanings: dict[str, str]) -> Iterator[tuple[str, str, str, str]]:
    whole = cls.model_json_schema()
    for name, field in cls.model_fields.items():
        meaning = re.sub(r"\bNone\b", "null", meanings[name])
        yield code(name), kind(whole["properties"][name], whole.get("$defs", {})), default_of(field), meaning


def default_of(field: Any) -> str:
    if field.is_required():
        return "required"
    return "" if isinstance(field.default, BaseModel) else code(json.dumps(field.default, default=list))


def model_table(cls: type[BaseModel], meanings: dict[str, str] | None = None) -> str:
    return table(("key", "value", "default", "meaning"), model_rows(cls, meanings or attributes(cls)))


def space_page() -> str:
    top = schema.SpaceFile.model_fields
    assert set(TOP) == set(top), (
        f"keys of a space file that docs/tools/reference.py does not describe: {set(top) ^ set(TOP)}"
    )
    rows = [(code(name), default_of(field), TOP[name]) for name, field in top.items()]
    parts = [
        "# Space file\n",
        NOTE,
        "A search space or a suite is one YAML file (YAML 1.2). `fpn-bench spaces show NAME` prints a shipped one; "
        "unknown keys are errors.\n",
        table(("key", "default", "meaning"), rows),
        "## backbone:\n",
        model_table(schema.BackboneEntry),
        "## data:\n",
        "`kind` names the format; the other keys depend on it.\n",
        "### kind: synthetic\n",
        paragraphs(inspect.cleandoc(schema.SyntheticData.__doc__ or "").partition("\n\nAttributes")[0]),
        model_table(schema.SyntheticData, {"kind": "the format", **attributes(schema.SyntheticData)}),
    ]
    for known in FORMATS.values():
        parts += [
            f"### kind: {known.name}\n",
            f"{known.layout}.\n",
            model_table(known.settings, {**attributes(known.settings), "kind": "the format"}),
        ]
    parts += ["## head:\n", model_table(HeadConfig), "## training:\n", model_table(TrainingRecipe)]
    parts += ["## latency:\n", model_table(schema.LatencyConfig), "## neck:\n", NECK]
    for word, cls in schema.FREE.items():
        fields = [name for name in schema.FREE_FILES[word].model_fields if name not in ("free", "when")]
        meanings = attributes(cls)
        rows = [(code(name), meanings.get(name, "")) for name in fields]
        parts += [
            f"### free: {word}\n",
            paragraphs((cls.__doc__ or "").partition("\n\n")[0]),
            table(("key", "meaning"), rows),
        ]
    for name, section in (("sampler", SamplerConfig), ("budget", Budget), ("rungs", Rungs)):
        parts += [f"## {name}:\n", model_table(section)]
    return "\n".join(parts)


NECK = """Each key is one of:

| form | example | meaning |
|---|---|---|
| constant | `channels: 64` | not searched |
| choices | `family: {choices: [fpn, pafpn]}` | one of the list |
| range | `channels: {range: [32, 96], step: 16}` | numbers from low to high, both included; `step` or `log: true` |
| free | `cell: {free: merging_cells, levels: [3, 4, 5], nodes: 4}` | genomes of a free space, see below |

`when: {family: fpn}` beside choices, a range or a free space: the key is searched only where the condition holds.
"""


# -- table, Python -----------------------------------------------------------------------------------------------


def table_page() -> str:
    kinds = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    rows = [(code(c.name), kinds[c.kind], c.meaning) for c in table_columns()]
    rows.append((code("choice.KEY"), "text", "value of each searched key; empty where it was not asked"))
    return "\n".join(
        [
            "# Table columns\n",
            NOTE,
            "`fb.load_study(...).table()` and `report.csv` have one row for each candidate and seed. Missing values "
            "are empty.\n",
            table(("column", "value", "meaning"), rows),
        ]
    )


GROUPS = {
    "Necks": ("FeatureSpec", "NeckGraph", "GraphBuilder", "create_graph", "list_necks", "cost", "build_neck", "Neck"),
    "Backbones and costs": ("Backbone", "create_backbone", "list_backbones", "profile"),
    "Data sets": ("load_dataset", "check_dataset", "write_dataset"),
    "Searching": ("Space", "list_spaces", "search", "bench", "Study", "load_study"),
    "Reading results": ("choose", "compare_tables", "write_report"),
    "Detectors": ("load_candidate", "StudyCandidate", "train_full", "DetectorSpec", "ImageDetector", "export"),
    "One candidate": ("Candidate", "EvaluationContext", "assess"),
    "Errors": ("FpnBenchError", "InputError"),
}
TABULAR = ("load", "list_tables", "TabularBenchmark", "Record")


def home(item: Any) -> str:
    return f"{item.__module__}.{item.__qualname__}"


def python_page() -> str:
    listed = {name for names in GROUPS.values() for name in names} | {"__version__", "tabular"}
    missing = listed ^ set(fpn_bench.__all__)
    assert not missing, f"public names that docs/tools/reference.py does not list, or that are gone: {missing}"
    parts = [
        "# Python API\n",
        NOTE,
        "`import fpn_bench as fb`. Names that are not listed here may change without notice.\n",
    ]
    groups: dict[str, list[tuple[str, Any]]] = {
        title: [(f"fb.{name}", getattr(fpn_bench, name)) for name in names] for title, names in GROUPS.items()
    }
    groups["Tables of trained necks"] = [(f"fb.tabular.{name}", getattr(fpn_bench.tabular, name)) for name in TABULAR]
    for title, items in groups.items():
        rows = [(code(name), inspect.cleandoc(item.__doc__ or "").partition("\n\n")[0]) for name, item in items]
        parts += [f"## {title}\n", table(("name", "what it is"), rows), *(f"::: {home(item)}\n" for _, item in items)]
    return "\n".join(parts)


PAGES = {"cli.md": cli_page, "space.md": space_page, "table.md": table_page, "python.md": python_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page())

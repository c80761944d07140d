"""What README, ARCHITECTURE and docs/ say: links, names, commands, programs and space files are held to the code."""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import importlib
import importlib.util
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from test_architecture import LAYERS

import fpn_bench
from fpn_bench.search import Space

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "results" / "README.md"])
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
PROGRAMS = ("README.md", "docs/guide/python.md")
"""Pages whose Python blocks are run, up to the first that trains. Other tests run docs/extending and
docs/guide/search-methods.md."""
TRAINS = re.compile(r"fb\.(search|bench|train_full)\(")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def pages_with(language: str) -> list[Any]:
    return [pytest.param(page, id=name_of(page)) for page in PAGES if blocks(page, language)]


@functools.cache
def reference() -> Any:
    """docs/tools/reference.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- links and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=map(name_of, PAGES))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{name_of(page)} links to {target}, which is not there"
            assert not anchor or anchor in anchors(linked), f"{name_of(page)} links to {target}: no such heading"


@functools.cache
def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name != "results"], ids=name_of)
def test_paths_and_dotted_names_exist(page):
    """In backticks: `tests/test_docs.py`, `tests/test_docs.py::test_paths_and_dotted_names_exist`, `fpn_bench.zoo`."""
    if page.name == "CHANGELOG.md":  # says what was
        return
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`\n]+)`", text):
        if re.fullmatch(r"(fpn_bench|tests|docs|benchmarks|search_spaces|results)/[\w./-]*(::\w+)?", span):
            path, _, function = span.partition("::")
            made = path.startswith("results/") and Path(path).suffix != ".md"  # studies and tables come and go
            assert made or (ROOT / path).exists(), f"{name_of(page)}: {path} is not there"
            assert not function or f"def {function}(" in (ROOT / path).read_text(), f"{name_of(page)}: no {span}"
        elif re.fullmatch(r"fpn_bench(\.\w+)+", span):
            assert defined(span), f"{name_of(page)}: there is no {span}"


def defined(name: str) -> bool:
    """Whether a module, or a name that a module defines, is called so; nothing is imported."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.exists():
            body: list[ast.stmt] = ast.parse(file.read_text()).body
            for part in parts[length:]:
                found = [item for item in body if part in names_of(item)]
                if not found:
                    return False
                body = getattr(found[0], "body", [])
            return True
    return False


def names_of(item: ast.stmt) -> set[str]:
    if isinstance(item, ast.ClassDef | ast.FunctionDef):
        return {item.name}
    if isinstance(item, ast.ImportFrom | ast.Import):
        return {alias.asname or alias.name for alias in item.names}
    targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


# -- blocks ------------------------------------------------------------------------------------------------------


def command_lines(page: Path) -> Iterator[list[str]]:
    """The single commands of a page's bash blocks, as lists of words."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                at = words.index("&&")
                yield words[:at]
                words = words[at + 1 :]
            if words:
                yield words[: words.index(">")] if ">" in words else words


@functools.cache
def command() -> Any:
    """`fpn-bench`, whose commands do nothing but parse."""
    whole = reference().command()

    def disarm(item: Any) -> None:
        for inner in getattr(item, "commands", {}).values():
            disarm(inner)
        if item is not whole:
            item.callback = lambda **given: None

    disarm(whole)
    return whole


@pytest.mark.parametrize("page", pages_with("bash"))
def test_commands_can_be_typed(page):
    for words in command_lines(page):
        if words[0] == "torchrun":
            words = words[words.index("fpn-bench)") :]  # $(which fpn-bench)
        match words[0].rstrip(")"):
            case "fpn-bench":
                with contextlib.suppress(typer.Exit):  # of --version
                    command()(words[1:], standalone_mode=False)
            case "pip":
                extras = [e for word in words for part in re.findall(r"\[(.*)\]", word) for e in part.split(",")]
                assert set(extras) <= set(PROJECT["optional-dependencies"]), words
            case "tox":
                environments = re.findall(r"^\[testenv:(.*)\]", (ROOT / "tox.ini").read_text(), re.MULTILINE)
                assert set(words[words.index("-e") + 1].split(",") if "-e" in words else []) <= set(environments), words
            case "python" | "pytest":
                paths = [word.partition("::")[0] for word in words[1:] if word.endswith((".py", "/")) or "::" in word]
                assert all((ROOT / path).exists() for path in paths), words
            case "git" | "cd" | "ruff" | "mypy" | "mkdocs":
                pass
            case other:
                raise AssertionError(f"{name_of(page)}: this test does not know the command {other!r}")


def test_the_second_command_is_that_of_the_tests():
    """`.ci/run` takes it from there."""
    lines = [
        line for line in "".join(blocks(ROOT / "README.md", "bash")).splitlines() if not line.startswith(("git", "cd"))
    ]
    assert lines[:2] == ['pip install ".[quickstart]" && fpn-bench search', "pip install tox && tox"]


@pytest.mark.parametrize("page", pages_with("python"))
def test_programs_name_what_there_is(page):
    tree = ast.parse("\n".join(blocks(page, "python")))
    known = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for item in ast.walk(tree):
        if isinstance(item, ast.ImportFrom) and str(item.module).split(".")[0] == "fpn_bench":
            module = importlib.import_module(str(item.module))
            assert all(hasattr(module, a.name) or defined(f"{item.module}.{a.name}") for a in item.names), item.module
        elif isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name) and item.value.id == "fb":
            assert item.attr in fpn_bench.__all__, f"{name_of(page)}: fb.{item.attr}"
        if isinstance(item, ast.Call) and re.fullmatch(r"fb(\.\w+)+", ast.unparse(item.func)):
            check_call(item)
        if isinstance(item, ast.Import | ast.ImportFrom):
            known |= {(alias.asname or alias.name).partition(".")[0] for alias in item.names}
        elif isinstance(item, ast.FunctionDef | ast.ClassDef):
            known.add(item.name)
        elif isinstance(item, ast.arg):
            known.add(item.arg)
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert used <= known | set(dir(builtins)), f"{name_of(page)}: {used - known}"


def check_call(call: ast.Call) -> None:
    """The keywords of a call of a public function are its parameters."""
    function: Any = fpn_bench
    for part in ast.unparse(call.func).split(".")[1:]:
        function = getattr(function, part)
    parameters = inspect.signature(function).parameters
    if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        given = {keyword.arg for keyword in call.keywords} - {None}
        assert given <= set(parameters), f"{ast.unparse(call)}: {given - set(parameters)}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cheap: list[str] = []
    for block in blocks(ROOT / name, "python"):
        if TRAINS.search(block):
            break
        cheap.append(block)
    assert cheap
    exec("\n".join(cheap), {"__name__": name})


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_space_files_can_be_read(page, tmp_path):
    for block in blocks(page, "yaml"):
        if "backbone:" in block:
            path = tmp_path / "space.yaml"
            path.write_text(block)
            Space.load(str(path))


# -- pages that follow from the code -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cli.md", "space.md", "table.md", "python.md"])
def test_the_reference_is_that_of_the_code(name):
    page = ROOT / "docs" / "reference" / name
    assert page.read_text() == reference().PAGES[name](), "run `python docs/tools/reference.py`"


def test_the_import_table_is_that_of_the_test():
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    table = {
        name.strip("/").removesuffix(".py"): int(layer) for layer, cell in rows for name in re.findall("`(.*?)`", cell)
    }
    assert table == LAYERS


def test_the_citation_is_of_this_version():
    assert f"\nversion: {fpn_bench.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("record", DECISIONS, ids=lambda path: path.stem[:4])
def test_a_decision_says_what_why_and_what_holds_it(record):
    text = record.read_text()
    head = r"# .+\n\n\d{4}-\d\d-\d\d\. Package: `(\w+)/`\.\n\n"
    match = re.match(head + r"\*\*Decision\.\*\* .+\n\n\*\*Why\.\*\* .+\n\n\*\*Held by\.\*\* .+", text, re.DOTALL)
    assert match, "title, date and package, decision, why, held by"
    assert match[1] in LAYERS
    assert re.search(r"`tests/[\w/]+\.py", text), "a record names the test that holds it"


def test_every_decision_is_in_the_index():
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    listed = re.findall(r"^- \[(.+)\]\((\S+)\), (\S+)$", index, re.MULTILINE)
    records = {path.name: path.read_text() for path in DECISIONS}
    assert {name for _, name, _ in listed} == set(records)
    for title, name, date in listed:
        assert records[name].startswith(f"# {title}\n\n{date}."), name


@pytest.mark.parametrize("folder", ["guide", "reference", "extending"])
def test_every_page_is_in_the_index_of_its_folder(folder):
    path = ROOT / "docs" / folder
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", (path / "README.md").read_text()))
    names = {page.name for page in path.glob("*.md")}
    assert linked == names - {"README.md"}
    site = (ROOT / "mkdocs.yml").read_text()
    assert set(re.findall(rf"\b{folder}/([\w-]+\.md)$", site, re.MULTILINE)) == names

"""The report in a real browser: it loads in peace, and a click selects the design everywhere."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import watched_page
from edges import EDGES, with_rungs
from PIL import Image
from tables import OBJECTIVES, realistic_table, study_meta

from fpn_bench.analysis import front, make_table
from fpn_bench.errors import InputError
from fpn_bench.reports import gather, write_report

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.services

READY = "body[data-ready=true]"
RINGED = """() => [...document.querySelectorAll('[data-figure]')].filter(
    (figure) => figure.data.some((trace) => trace.meta === 'selected design')).map((figure) => figure.id)"""


def samples_of(keys: list[str]) -> dict[str, Any]:
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 120, 60)).save(picture, "JPEG")
    image = {"name": "field.jpg", "width": 640, "height": 480, "jpeg": base64.b64encode(picture.getvalue()).decode()}
    boxes = {key: [[[10 + i, 20, 300, 400, 1, 0.87], [50, 50, 90, 90, 0, 0.1]]] for i, key in enumerate(keys)}
    return {"classes": ["person", "car"], "images": [image | {"truth": [[12, 22, 310, 390, 1]]}], "detections": boxes}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    table = make_table(with_rungs(60))
    keys = front(table, OBJECTIVES)["candidate"].tolist()
    folder = tmp_path_factory.mktemp("report")
    objectives = [*OBJECTIVES, {"name": "latency_ms", "direction": "minimize"}]
    meta = study_meta(objectives=objectives)
    (path,) = write_report(table, meta, folder / "report.html", formats=["html"], samples=samples_of(keys))
    return path.as_uri()


def opened(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector(READY)


def selected(page: Page) -> str:
    page.wait_for_function("() => document.body.dataset.selected")
    return str(page.evaluate("() => document.body.dataset.selected"))


def test_a_click_on_a_point_selects_the_design_everywhere(address: str) -> None:
    with watched_page() as (page, complaints):
        opened(page, address)
        assert page.evaluate(RINGED) == []
        front_plot = page.locator("#front-macs")
        front_plot.scroll_into_view_if_needed()
        # Where the first point of the front is on the screen, by plotly's own axes.
        x, y = page.evaluate("""() => {
            const figure = document.getElementById('front-macs');
            const trace = figure.data.find((t) => t.name === 'searched, on the front');
            const axes = figure._fullLayout, box = figure.getBoundingClientRect();
            return [box.left + axes.xaxis._offset + axes.xaxis.d2p(trace.x[0]),
                    box.top + axes.yaxis._offset + axes.yaxis.d2p(trace.y[0])];
        }""")
        page.mouse.click(x, y)
        key = selected(page)
        first = "t => t.name === 'searched, on the front'"
        assert key == page.evaluate(f"() => document.getElementById('front-macs').data.find({first}).customdata[0]")
        page.wait_for_function(f"({RINGED})().length >= 7")
        ringed = set(page.evaluate(RINGED))
        assert {"front-macs", "front-latency_ms", "front-3d", "sizes-necks", "latency-necks", "curves-drawn"} <= ringed
        panel = page.locator("#selected")
        assert panel.is_visible()
        panel.locator("svg rect").first.wait_for()
        assert key in panel.inner_text()
        assert page.locator(f"#front-members tr.selected[data-key='{key}']").count() == 1
        assert page.locator(f"#design-table tr.selected[data-key='{key}']").count() == 1
        assert page.locator("#gallery-neck").input_value() == key
        assert page.locator("#gallery .found rect").count() == 1  # the box below the least score is not drawn
        assert page.url.endswith(f"#design={key}")
        page.keyboard.press("Escape")
        page.wait_for_function(f"({RINGED})().length === 0")
        assert not panel.is_visible()
        assert complaints == []


def test_an_address_names_a_design(address: str) -> None:
    key = front(make_table(with_rungs(60)), OBJECTIVES)["candidate"].iloc[-1]
    with watched_page() as (page, complaints):
        opened(page, f"{address}#design={key}")
        assert selected(page) == key
        page.goto(f"{address}#design=nothing")  # no reload: the page hears of it
        page.wait_for_function("() => document.getElementById('selected').hidden")
        assert complaints == []


def test_the_list_of_designs_is_sorted_found_and_filtered(address: str) -> None:
    with watched_page() as (page, complaints):
        opened(page, address)
        rows = page.locator("#design-table tbody tr")
        all_of_them = rows.count()
        heads = page.locator("#design-table th").all_inner_texts()
        column = heads.index("AP") + 1
        page.locator("#design-table th button", has_text="AP").first.click()
        cells = page.locator(f"#design-table tbody td:nth-child({column})").all_inner_texts()
        known = [float(cell) for cell in cells if cell]
        assert known == sorted(known, reverse=True)
        assert cells == [f"{v:.1f}" for v in known] + [""] * (len(cells) - len(known))  # what is missing stays last
        page.locator("#design-filter input").first.uncheck()
        assert 0 < rows.count() < all_of_them
        page.locator("#design-search").fill("no such neck")
        assert rows.count() == 0
        page.locator("#design-search").fill("")
        rows.nth(3).focus()
        page.keyboard.press("Enter")
        assert selected(page) == rows.nth(3).get_attribute("data-key")
        page.locator("#gallery-neck").select_option(index=1)
        assert selected(page) == page.locator("#gallery-neck").input_value()
        assert complaints == []


@pytest.mark.parametrize("edge", EDGES)
def test_every_study_loads_in_peace(tmp_path: Path, edge: str) -> None:
    table, objectives, words = EDGES[edge]
    (path,) = write_report(table, study_meta(objectives=objectives), tmp_path / "r.html", formats=["html"])
    with watched_page() as (page, complaints):
        opened(page, path.as_uri())
        assert words in page.locator("#answer").inner_text()
        assert complaints == []


def test_hostile_names_run_nothing(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    text = dict.fromkeys(("neck_label", "backbone", "reason", "neck", "latency_device", "choice.merge"), hostile)
    table = make_table(r | text for r in realistic_table(30).to_dict("records"))
    table["neck_label"] = table["neck_label"] + table["trial"].astype(str)
    samples = samples_of(table["candidate"].tolist())
    samples["classes"] = [hostile, hostile]
    samples["images"][0]["name"] = hostile
    meta = study_meta(name=hostile, notes=[hostile], commands=[hostile])
    (path,) = write_report(table, meta, tmp_path / "r.html", formats=["html"], samples=samples)
    with watched_page() as (page, complaints):
        opened(page, path.as_uri())
        for row in (0, 1, 5):
            page.locator("#design-table tbody tr").nth(row).click()
            page.wait_for_timeout(200)
        page.locator("#front-macs").hover()
        page.wait_for_timeout(300)
        assert "owned" not in page.title().replace(hostile, "")
        assert page.locator("img").count() == 0
        assert complaints == []


@pytest.mark.parametrize(("width", "height", "dark"), [(390, 844, False), (1280, 900, True)], ids=["phone", "dark"])
def test_nothing_is_wider_than_the_screen(address: str, width: int, height: int, dark: bool) -> None:
    with watched_page(width=width, height=height, dark=dark) as (page, complaints):
        opened(page, address)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")
        assert complaints == []


def test_it_prints(address: str, tmp_path: Path) -> None:
    with watched_page() as (page, complaints):
        opened(page, address)
        page.emulate_media(media="print")
        content = page.pdf(path=tmp_path / "report.pdf")
        assert content.startswith(b"%PDF")
        assert page.locator("#design-tools").is_hidden()
        assert complaints == []


def test_five_thousand_designs_load(tmp_path: Path) -> None:
    (path,) = write_report(realistic_table(5000), study_meta(), tmp_path / "r.html", formats=["html"])
    with watched_page() as (page, complaints):
        opened(page, path.as_uri())
        assert page.locator("#design-table tbody tr").count() == 100
        page.locator("#design-next").click()
        assert "101 to 200" in page.locator("#design-count").inner_text()
        assert complaints == []


def test_figures_become_pictures(tmp_path: Path) -> None:
    table = make_table(with_rungs(30))
    paths = write_report(table, study_meta(), tmp_path / "r", formats=["png"])
    names = {path.name for path in paths}
    assert {"r.front-macs.png", "r.front-3d.png", "r.curves-drawn.png", "r.progress-step.png"} <= names
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width == 2000
            assert len(set(picture.convert("L").resize((50, 50)).getdata())) > 3  # something is drawn


def test_pictures_without_a_browser_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"needs Chrome or Chromium: .*nothing.*; install it, or leave png out"):
        write_report(realistic_table(5), study_meta(), tmp_path / "r", formats=["md", "png"])
    assert list(tmp_path.iterdir()) == []


def test_the_page_says_under_the_pointer_what_python_says(tmp_path: Path) -> None:
    table = make_table(r | {"reason": "<a> & b" if r["status"] == "stopped" else ""} for r in with_rungs(40))
    (path,) = write_report(table, study_meta(), tmp_path / "r.html", formats=["html"])
    designs = gather(table, study_meta()).designs
    with watched_page() as (page, _):
        opened(page, path.as_uri())
        said = page.evaluate("""() => Object.fromEntries(document.getElementById('front-macs').data.flatMap(
            (trace) => (trace.customdata ?? []).map((key, i) => [key, trace.hovertext[i]])))""")
    assert len(said) > 30
    assert said == {key: text for key, text in zip(designs["key"], designs["hover"], strict=True) if key in said}


def test_odd_addresses_and_keys_break_nothing(tmp_path: Path) -> None:
    table = realistic_table(20)
    odd = ["constructor", "__proto__", "a\"b\n'c", "x" * 10_000]
    for trial, key in zip((0, 1, 2, 6), odd, strict=True):
        table.loc[table["trial"] == trial, "candidate"] = key
    table["study"] = "selected design"
    samples = samples_of([odd[0]])
    (path,) = write_report(table, study_meta(), tmp_path / "r.html", formats=["html"], samples=samples)
    with watched_page() as (page, complaints):
        opened(page, path.as_uri() + "#design=%")
        assert page.locator("#selected").is_hidden()
        traces = "() => document.getElementById('progress-step').data.length"
        before = page.evaluate(traces)
        for key in odd:
            page.locator("#design-search").fill(key.partition("\n")[0][:200])
            page.locator("#design-table tbody tr").first.click()
            assert selected(page) == key
            assert page.locator("#gallery-neck").input_value() == (key if key == odd[0] else "")
            assert page.locator("#gallery .found rect").count() == (1 if key == odd[0] else 0)
            page.locator("body").press("Escape")
        assert page.evaluate(traces) == before
        page.evaluate("() => { location.hash = '#provenance'; }")
        page.locator("body").press("Escape")
        assert page.url.endswith("#provenance")
        assert complaints == []

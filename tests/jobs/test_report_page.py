"""The report's page in Chromium: what a reader does with the pointer, the keyboard, a phone, and a printer."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from cluster.features import open_features
from jobs.report import main
from jobs.report_charts import Axis, Cell, Series, heat_map, line_chart
from jobs.report_html import Number, fold, page, picture, section, table, tag
from jobs.report_script import SCRIPT
from tests.jobs.browser import chromium, opened
from tests.jobs.reports import complete_run
from tests.planted import make_features

HOSTILE = "<img src=x onerror=document.title='broken'></script><script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that is searched, trained and evaluated, with all its controls."""
    folder = tmp_path_factory.mktemp("report")
    run = complete_run(folder / "complete", open_features(*make_features(folder / "planted")))
    assert main([str(run)]) == 0
    return run / "report" / "report.html"


def _written(folder: Path) -> Path:
    """A page with one of each part that moves."""
    jpeg = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(jpeg, "JPEG")
    rows = [
        ["ten", Number("10 [9, 11]", 10.0), 3],
        ["nine", Number("9 [8, 10]", 9.0), 20],
        ["none", Number("-", None), 100],
        ["infinite", Number("inf", float("inf")), True],
        [HOSTILE, Number("-0.5", -0.5), 1],
    ]
    lines = [
        Series(x=[0, 1], y=[0, 1], style=0, hint="first line"),
        Series(x=[0, 1], y=[1, 0], style=1, hint=HOSTILE),
    ]
    cells = {(0, 0): Cell(value=1, text="1", hint="cell one\nsecond row"), (0, 1): Cell(value=2, text="2", hint="two")}
    parts = section(
        "parts",
        HOSTILE,
        table(["name", "score", "count"], rows, sortable=True),
        table([f"column {index}" for index in range(30)], [["x" * 20] * 30]),
        heat_map(["row"], ["a", "b"], cells),
        line_chart(lines, Axis("x", 0, 1), Axis("y", 0, 1)),
        fold("more", tag("p", "folded words", id="folded")),
        picture(jpeg.getvalue(), "a red square"),
    )
    file = folder / "page.html"
    file.write_text(page("title", parts), encoding="utf-8")
    return file


@pytest.fixture
def shown(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    with opened(browser, _written(tmp_path)) as found:
        yield found


def _column(shown: Page, index: int) -> list[str]:
    return shown.locator("table.sortable tbody tr").locator(f"td:nth-child({index + 1})").all_inner_texts()


def test_nothing_that_came_from_data_becomes_markup(shown: Page) -> None:
    assert shown.title() == "title"
    assert shown.locator("h2").inner_text() == HOSTILE
    assert shown.locator("img").count() == 1
    assert shown.locator("img").evaluate("image => image.complete && image.naturalWidth") == 40


def test_a_click_sorts_by_value_and_a_second_one_the_other_way(shown: Page) -> None:
    head = shown.locator("table.sortable th")
    head.nth(1).locator("button").click()
    assert _column(shown, 1) == ["-0.5", "9 [8, 10]", "10 [9, 11]", "-", "inf"]
    assert head.nth(1).get_attribute("aria-sort") == "ascending"
    head.nth(1).locator("button").click()
    assert _column(shown, 1) == ["10 [9, 11]", "9 [8, 10]", "-0.5", "-", "inf"], "what has no value stays last"
    head.nth(2).locator("button").focus()
    shown.keyboard.press("Enter")
    assert _column(shown, 2) == ["1", "3", "20", "100", "True"]
    assert head.nth(1).get_attribute("aria-sort") is None
    head.nth(0).locator("button").click()
    assert _column(shown, 0)[1:] == ["infinite", "nine", "none", "ten"]


def test_hints_are_shown_at_the_pointer_and_by_the_arrow_keys(shown: Page) -> None:
    tip = shown.locator(".tip")
    assert tip.is_hidden()
    shown.locator("td[data-hint]").first.hover()
    assert tip.inner_text() == "cell one\nsecond row"
    shown.locator("h2").hover()
    assert tip.is_hidden()
    shown.locator("svg[tabindex]").focus()
    shown.keyboard.press("ArrowRight")
    assert tip.inner_text() == "first line"
    shown.keyboard.press("ArrowRight")
    assert tip.inner_text() == HOSTILE
    shown.keyboard.press("Home")
    assert tip.inner_text() == "first line"
    shown.keyboard.press("Escape")
    assert tip.is_hidden()


def test_every_part_that_moves_is_reached_by_the_tab_key(shown: Page) -> None:
    reached = []
    for _ in range(8):
        shown.keyboard.press("Tab")
        reached.append(shown.evaluate("document.activeElement.nodeName"))
    assert [name for name in reached if name != "DIV"][:6] == ["BUTTON"] * 3 + ["TABLE", "svg", "SUMMARY"]


def test_a_phone_scrolls_tables_and_never_the_page(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, _written(tmp_path), width=400) as narrow:
        assert narrow.evaluate("document.documentElement.scrollWidth") == 400
        inner, outer = narrow.locator(".scroll").nth(1).evaluate("one => [one.scrollWidth, one.clientWidth]")
        assert inner > outer
        for hinted in narrow.locator("td[data-hint]").all():
            hinted.hover()
            box = narrow.locator(".tip").bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 400


def test_print_opens_what_is_folded(shown: Page) -> None:
    assert shown.locator("#folded").is_hidden()
    shown.emulate_media(media="print")
    assert shown.locator("#folded").bounding_box() is not None
    shown.locator("td[data-hint]").first.hover()
    assert shown.locator(".tip").is_hidden()


@pytest.mark.parametrize("width", [1400, 400])
def test_a_whole_report_opens_without_a_message_or_a_request(browser: Browser, report: Path, width: int) -> None:
    with opened(browser, report, width=width) as whole:
        assert whole.evaluate("document.documentElement.scrollWidth") == width
        assert whole.locator("section").count() > 10
        for line in whole.locator("svg [data-hint]").all()[:3]:
            line.dispatch_event("pointermove", {"bubbles": True, "clientX": 20, "clientY": 20})
            assert whole.locator(".tip").inner_text() == line.get_attribute("data-hint")
        whole.locator("table.sortable th button").first.click()


def test_paper_cuts_nothing_off(browser: Browser, report: Path) -> None:
    with opened(browser, report, width=760) as printed:
        printed.emulate_media(media="print")
        assert printed.evaluate("document.documentElement.scrollWidth") == 760


def test_a_script_of_somebody_else_does_not_run(browser: Browser, tmp_path: Path) -> None:
    file = _written(tmp_path)
    file.write_text(file.read_text().replace(SCRIPT, f"{SCRIPT}\ndocument.title = 'broken';"))
    with pytest.raises(AssertionError, match="Content Security Policy"), opened(browser, file) as changed:
        assert changed.title() == "title"

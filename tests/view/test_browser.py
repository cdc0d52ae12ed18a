"""Tests the page in a real browser: click, fold, filter, search, zoom, and links to the current view."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.view.browser import chromium
from treeadv.forest import Forest, Verdict
from treeadv.view.bundle import write_bundle
from treeadv.view.catalogue import Catalogue
from treeadv.view.server import Server
from treeadv.view.sources import open_source
from treeadv.wire import write_file

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WAIT = 20_000  # milliseconds; the limit is long, because other work slows the machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    catalogue = Catalogue(open_source(run))
    catalogue.read_all()
    with Server(catalogue) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server.address
        server.shutdown()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Provide a page on which an error of a script, or a request to another host, fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    made = context.new_page()
    made.set_default_timeout(WAIT)
    faults: list[str] = []
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    places = ("http://127.0.0.1:", "file:", "data:")
    made.on("request", lambda r: None if r.url.startswith(places) else faults.append(f"asks {r.url}"))
    yield made
    context.close()
    assert faults == []


def key_of(page: Page, step: int) -> str:
    row = page.locator(".row", has=page.get_by_text(f"Step {step} · 0", exact=True))
    return row.get_attribute("data-key") or ""


def steps(page: Page) -> list[int]:
    names = page.locator(".row b").filter(has_text="Step").all_inner_texts()
    return [int(re.findall(r"\d+", name)[0]) for name in names]


def wait_for_steps(page: Page, expected: list[int]) -> None:
    from playwright.sync_api import expect

    expect(page.locator(".row")).to_have_count(len(expected), timeout=WAIT)
    assert steps(page) == expected


def test_click_opens_a_forest_and_the_link_opens_it_again(page: Page, browser: Browser, address: str) -> None:
    page.goto(address)
    page.get_by_text("Step 2 · 0", exact=True).click()
    page.locator(".segment").first.wait_for()
    page.locator("[data-colour=probability]").click()
    page.locator("tr[data-leaf='1']").click()
    assert page.locator(".where").inner_text() == "all 24 tokens"
    page.get_by_label("width of a token").select_option("tokens")
    page.get_by_label("zoom in").click()
    text = page.locator(".segment .body").all_inner_texts()
    assert text == ["three ", "<answer>7</answer>"]
    other = browser.new_page()
    other.goto(page.url)
    other.locator(".segment").first.wait_for()
    assert other.locator(".segment .body").all_inner_texts() == text
    assert other.locator("[data-colour=probability]").get_attribute("aria-checked") == "true"
    assert other.locator("tr.on").get_attribute("data-leaf") == "1"
    assert other.locator(".where").inner_text() == page.locator(".where").inner_text() == "tokens 6 to 18 of 24"
    other.close()
    page.go_back()
    page.get_by_text("Choose a forest").wait_for()


def test_fold_hides_what_is_below_on_map_and_text(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_text("Step 1 · 0", exact=True).click()
    page.locator(".segment").first.wait_for()
    assert page.locator(".segment").count() == 4 and page.locator(".end").count() == 3
    page.locator(".segment .fold").first.click()
    assert page.locator(".segment").count() == 1 and page.locator(".end").count() == 1
    assert "fold=0" in page.url and "3 segments folded" in page.locator(".segment header").inner_text()
    badges = page.locator(".end .badge").all_inner_texts()
    assert [b.split() for b in badges] == [["✓", "1"], ["✗", "1"], ["?", "1"]]
    page.get_by_role("button", name="Unfold all").click()
    assert page.locator(".segment").count() == 4 and "fold" not in page.url
    page.get_by_role("button", name="Fold all", exact=True).click()
    assert page.locator(".segment").count() == 1


def test_filters_choose_forests_and_stand_in_the_link(page: Page, browser: Browser, address: str) -> None:
    page.goto(address)
    wait_for_steps(page, [1, 2, 3, 4, 5, 6])
    page.locator(".chip.unparsed").click()
    wait_for_steps(page, [1, 3, 6])
    page.locator(".chip.unparsed").click()
    page.get_by_role("button", name="mixed rewards").click()
    wait_for_steps(page, [1, 2, 4, 6])
    page.get_by_label("smallest reward").fill("0.4")
    wait_for_steps(page, [2, 4, 6])
    page.get_by_label("largest step").fill("5")
    wait_for_steps(page, [2, 4])
    page.get_by_label("largest leaf tokens").fill("26")
    wait_for_steps(page, [2])
    other = browser.new_page()
    other.goto(page.url)
    wait_for_steps(other, [2])
    assert other.get_by_label("largest leaf tokens").input_value() == "26"
    other.close()
    page.get_by_role("button", name="Clear the filters").click()
    wait_for_steps(page, [1, 2, 3, 4, 5, 6])


def test_text_search_and_sorting(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_label("text", exact=True).fill("THINKing <answer>4")
    wait_for_steps(page, [1, 5])
    page.get_by_label("text", exact=True).fill("")
    wait_for_steps(page, [1, 2, 3, 4, 5, 6])
    page.get_by_label("sort by").select_option("length")
    page.get_by_label("turn the order around").click()
    page.locator(".row").first.get_by_text("Step 6 · 0").wait_for()


def test_same_prompt_is_one_click_over_the_steps(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_text("Step 3 · 0", exact=True).click()
    page.get_by_text("This prompt, 3 times:").wait_for()
    assert page.locator(".question").inner_text() == "A: what is 2+2?"
    page.locator(".same .chip", has_text="Step 5").click()
    page.locator("h1", has_text="Step 5 · 0").wait_for()
    page.get_by_role("button", name="list only these").click()
    wait_for_steps(page, [1, 3, 5])
    page.keyboard.press("k")
    page.locator("h1", has_text="Step 3 · 0").wait_for()


def test_leaves_say_what_the_verifier_read_and_why(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_text("Step 3 · 0", exact=True).click()
    page.locator(".leaves tbody tr").first.wait_for()
    first, second = page.locator(".leaves tbody tr").all_inner_texts()
    assert "wrong" in first and "5" in first
    assert "unparsed" in second and "no answer found" in second and "cut" in second


def test_mismatch_is_a_colour_where_the_run_kept_it(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_text("Step 1 · 0", exact=True).click()
    page.locator("[data-colour=mismatch][disabled]").wait_for()
    page.get_by_text("Step 2 · 0", exact=True).click()
    page.locator("[data-colour=mismatch]:not([disabled])").click()
    assert page.locator(".legend").inner_text().split()[:2] == ["\N{MINUS SIGN}0.25", "+0.25"]
    colours = [span.evaluate("span => span.style.backgroundColor") for span in page.locator(".chunk span").all()[:2]]
    assert colours[0] == "transparent" and "--blue" in colours[1]


def test_tokens_show_their_numbers_and_can_be_linked(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_text("Step 4 · 0", exact=True).click()
    token = page.locator(".chunk span").nth(4)
    token.hover()
    page.locator("#tip", has_text="probability").wait_for()
    assert page.locator("#tip").inner_text().startswith('"<"   id 30')
    token.click()
    assert "token=4" in page.url
    page.reload()
    page.locator(".chunk span.on").wait_for()
    assert page.locator(".chunk span.on").inner_text() == "<"
    # The page must show text of a model as text, not as elements
    assert page.locator(".text b:not(.treename):not(.badge b)").count() == 0


@pytest.mark.parametrize("width", [400, 800])
def test_verdicts_are_inside_the_window_at_any_width(page: Page, address: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(address)
    page.get_by_text("Step 6 · 0", exact=True).click()
    page.locator(".end").first.wait_for()
    for badge in page.locator(".end .badge").all():
        box = badge.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width


def test_bundle_opens_from_files(page: Page, run: Path, tmp_path: Path) -> None:
    write_bundle(Catalogue(open_source(run)), tmp_path / "shared")
    page.goto((tmp_path / "shared" / "index.html").as_uri())
    wait_for_steps(page, [1, 2, 3, 4, 5, 6])
    page.get_by_label("text", exact=True).fill("<b>OWL</b> & <answer>c")
    wait_for_steps(page, [4])
    page.get_by_text("Step 4 · 0", exact=True).click()
    page.locator(".segment").first.wait_for()
    assert page.locator(".segment .body").first.inner_text() == "the <b>owl</b> & "


def test_data_that_arrives_before_the_first_effect_is_shown(page: Page, run: Path, tmp_path: Path) -> None:
    """A busy machine runs the first effect of the page after the only file of the list has arrived."""
    late = "(f, pause = 0, ...rest) => timer(f, pause + 1500, ...rest)"
    page.add_init_script(f"const timer = setTimeout; window.requestAnimationFrame = window.setTimeout = {late};")
    write_bundle(Catalogue(open_source(run)), tmp_path / "shared")
    page.goto((tmp_path / "shared" / "index.html").as_uri())
    wait_for_steps(page, [1, 2, 3, 4, 5, 6])


def test_bundle_of_the_documents_opens(page: Page) -> None:
    page.goto((Path(__file__).parents[2] / "docs/examples/laptop-run/index.html").as_uri())
    page.get_by_label("smallest step").fill("9")
    page.get_by_label("largest step").fill("9")
    wait_for_steps(page, [9] * 6)
    page.get_by_text("Step 9 · 4", exact=True).click()
    page.locator(".segment").first.wait_for()
    assert "1 + 4 =" in page.locator(".question").inner_text()


def test_sixteen_leaves_of_8000_tokens_are_all_reachable(page: Page, tiny_model: Path, tmp_path: Path) -> None:
    text, depth = [2 + n % 95 for n in range(8000)], 4
    sequences = [
        [*text[: 8000 - 1000 * depth], *(2 + (n + leaf) % 90 for n in range(1000 * depth))] for leaf in range(16)
    ]
    made = Forest.from_rollouts(
        text[:9], sequences, [[-0.5] * 8000] * 16, [float(n % 2) for n in range(16)],
        verdicts=[Verdict.VERIFIED if n % 2 else Verdict.WRONG for n in range(16)], forest_id="long",
    )  # fmt: skip
    write_file(tmp_path / "long.arrow", [made], str(tiny_model))
    with Server(Catalogue(open_source(tmp_path / "long.arrow"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.goto(f"{server.address}#f=0")
        page.locator(".chunk span").first.wait_for()
        made_at_once = page.locator(".chunk span").count()
        assert 0 < made_at_once < made.tokens / 4  # the page builds only elements near the window
        page.evaluate("document.querySelector('main.forest').scrollTo(0, 1e9)")
        last = page.locator(".segment").last.locator(".chunk").last.locator("span").last
        last.wait_for()
        whole = page.locator(".segment").last.locator("header").inner_text()
        assert "4000 tokens" in whole and "left out" not in page.locator("body").inner_text()
        server.shutdown()

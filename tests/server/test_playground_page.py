"""The playground as a person sees it: a real browser, a server with the embedded model."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from server.playground import SAMPLES
from tests.eval.test_report import chromium
from tests.program import library
from tests.server.test_end_to_end import greedy, question, url

__all__ = ["url"]  # a fixture


@pytest.fixture
def _only_fake_strategies() -> None:
    """The installed ones, here."""


@pytest.fixture(scope="module")
def page(url: str) -> Iterator[Page]:
    library("libatomic1", "atomic")  # of Playwright's own node
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.set_default_timeout(10_000)
        page.goto(url)
        yield page
        browser.close()


@pytest.fixture
def complaints(page: Page) -> Iterator[list[str]]:
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    yield told
    assert [text for text in told if "status of 400" not in text] == []  # the browser logs each refusal itself


@pytest.mark.usefixtures("complaints")
class TestBrowser:
    """In this order, on one page."""

    def test_a_picture_is_there_from_the_start(self, page: Page) -> None:
        expect(page.get_by_role("img", name="The chosen picture")).to_be_visible()
        expect(page.locator("#samples button").last).to_have_attribute("aria-pressed", "true")
        expect(page.locator(".about").last).to_contain_text("relevant pixels")

    def test_a_sample_is_asked_about_twice(self, page: Page) -> None:
        page.get_by_role("button", name="living-room").click()
        page.keyboard.type(" ")  # the question has the focus
        page.locator("#question").fill("Is there a cat in the image?")
        page.keyboard.press("Enter")
        plain, agla = page.locator(".side").all()
        for side in (plain, agla):
            expect(side.locator("dd")).to_have_count(6, timeout=60_000)
            expect(side.locator(".said")).to_contain_text(re.compile("Yes|No"))
            assert float(side.locator("[data-grounding]").first.get_attribute("data-grounding") or "nan") != 0
        expect(agla.locator("dd").first).to_have_text("agla/local, grounding/blind")
        assert page.locator(".said").first.inner_text() == reply(page.url, "plain")

    def test_aglas_mask_lies_over_the_picture(self, page: Page) -> None:
        picture, mask, button = page.locator("#picture"), page.locator("#mask"), page.get_by_text("what agla/local saw")
        expect(mask).to_be_visible()
        assert picture.bounding_box() == mask.bounding_box()
        button.press("Enter")
        expect(mask).to_be_hidden()

    def test_changed_words_are_marked(self, page: Page) -> None:
        page.locator(".side").last.get_by_label("Strategy", exact=True).select_option("sharpen")
        page.locator(".side").last.get_by_label("Strategy inside it").select_option("vcd")
        page.locator(".side").last.locator(".parameters summary").click()
        page.get_by_label("vcd.alpha").fill("5")
        page.locator("#question").fill("Please describe this image in detail.")
        page.locator("#question").press("Enter")
        column = page.locator(".side").last
        expect(column.locator("dd")).to_have_count(6, timeout=60_000)
        assert column.locator(".changed").count() > 0
        column.locator(".receipt summary").click()
        assert '"alpha": 5' in column.locator("pre").inner_text()

    def test_a_refusal_is_told(self, page: Page) -> None:
        page.get_by_label("vcd.alpha").fill("-1")
        page.locator("#question").press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("alpha", timeout=30_000)
        expect(page.get_by_role("button", name="Ask both")).to_be_enabled(timeout=30_000)

    def test_escape_stops(self, page: Page) -> None:
        page.get_by_label("vcd.alpha").fill("")
        page.locator("#question").press("Enter")
        page.keyboard.press("Escape")
        expect(page.get_by_role("alert")).to_have_text(["Stopped.", "Stopped."])

    def test_a_phone_need_not_scroll_sideways(self, page: Page) -> None:
        page.set_viewport_size({"width": 360, "height": 640})
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        expect(page.locator("#question")).to_be_in_viewport(ratio=0.1)
        page.set_viewport_size({"width": 1280, "height": 720})

    def test_a_vote_is_asked_for_without_grounding(self, page: Page) -> None:
        column = page.locator(".side").last
        column.get_by_label("Strategy", exact=True).select_option("mvp")
        column.get_by_label("Strategy inside it").select_option("")
        for field, value in {"bottom_up": 0, "top_down": 0, "paths": 1, "description_tokens": 8}.items():
            page.get_by_label(f"mvp.{field}").fill(str(value))
        page.locator("#question").fill("Is there a cat in the image?")
        page.locator("#question").press("Enter")
        expect(column.locator("dd")).to_have_count(6, timeout=60_000)
        expect(column.locator(".said")).to_have_text(re.compile("^(Yes|No)$"))
        expect(page.locator(".side").first.locator("[data-grounding]").first).to_be_visible()

    def test_a_phone_scrolls_in_one_direction(self, page: Page) -> None:
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def reply(url: str, strategy: str) -> str:
    """What the API says to the same question."""
    messages = question(SAMPLES["living-room.png"], "Is there a cat in the image?")
    body = greedy(strategy, messages=messages, max_tokens=96)
    response = httpx.post(f"{url}v1/chat/completions", json=body, timeout=60)
    return str(response.json()["choices"][0]["message"]["content"]).strip()

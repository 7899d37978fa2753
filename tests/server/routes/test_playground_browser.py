"""The playground in a real browser, with the embedded model."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from server.routes.playground import SAMPLES
from tests.eval.report.browser import find_chromium
from tests.server.harness import build_messages, greedy_request, url
from tests.system_packages import require_library

__all__ = ["url"]  # a fixture


@pytest.fixture
def _use_fake_strategies() -> None:
    """Use the installed strategies."""


@pytest.fixture(scope="module")
def page(url: str) -> Iterator[Page]:
    require_library("libatomic1", "atomic")  # for Playwright's own node
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.set_default_timeout(10_000)
        page.goto(url)
        yield page
        browser.close()


@pytest.fixture
def console_messages(page: Page) -> Iterator[list[str]]:
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    yield messages
    assert [text for text in messages if "status of 400" not in text] == []  # the browser logs each refusal


@pytest.mark.usefixtures("console_messages")
class TestBrowser:
    """The tests use one page, in this order."""

    def test_first_sample_is_loaded(self, page: Page) -> None:
        expect(page.get_by_role("img", name="The chosen image")).to_be_visible()
        expect(page.get_by_role("button", name="living-room")).to_have_attribute("aria-pressed", "true")
        expect(page.locator(".summary").last).to_contain_text("check each thing")
        expect(page.locator("[data-colours=check]")).to_contain_text("AUROC of 0.9")
        expect(page.locator("[data-colours=check]")).to_contain_text("held-out scenes")
        expect(page.locator("[data-colours=grounding]")).to_be_hidden()

    def test_check_colours_words_and_lists_what_verify_removed(self, page: Page) -> None:
        page.locator("#question").press("Enter")
        plain, verify = page.locator(".side").all()
        for side in (plain, verify):
            expect(side.locator("dd")).to_have_count(6, timeout=60_000)
        denied = [word for word in read_checked_words(plain) if word[1] < 0.5]
        assert denied
        assert all(probability >= 0.5 for _, probability, _ in read_checked_words(verify))
        word, probability, title = denied[0]
        shown = re.match(rf"Is there a {word} in the image\? Yes: (\d+) %", title)
        assert shown
        assert abs(int(shown[1]) - 100 * probability) <= 1
        removed = verify.locator(".removed")
        expect(removed).to_be_visible()
        expect(plain.locator(".removed")).to_be_hidden()
        expect(removed.locator("s").first).to_be_hidden()
        removed.locator("summary").click()
        expect(removed.locator("s").first).to_have_text(word)
        expect(removed.locator("s").first).to_be_visible()
        assert word not in verify.locator(".answer").inner_text()

    def test_both_columns_answer_about_a_sample(self, page: Page) -> None:
        page.get_by_role("button", name="living-room").click()
        page.keyboard.type(" ")  # the question has the focus
        page.get_by_label("Outer strategy").last.select_option("agla")
        page.locator("#colours").select_option("grounding")
        expect(page.locator("[data-colours=grounding]")).to_contain_text("does not reveal invented objects")
        expect(page.locator("[data-colours=check]")).to_be_hidden()
        page.locator("#question").fill("Is there a cat in the image?")
        page.keyboard.press("Enter")
        plain, agla = page.locator(".side").all()
        for side in (plain, agla):
            expect(side.locator("dd")).to_have_count(6, timeout=60_000)
            expect(side.locator(".answer")).to_contain_text(re.compile("Yes|No"))
            assert float(side.locator("[data-grounding]").first.get_attribute("data-grounding") or "nan") != 0
        expect(agla.locator("dd").first).to_have_text("agla/local, grounding/blind")
        assert page.locator(".answer").first.inner_text() == request_answer(page.url, "plain")

    def test_agla_mask_covers_image(self, page: Page) -> None:
        image, mask, button = page.locator("#image"), page.locator("#mask"), page.get_by_text("image of agla/local")
        expect(mask).to_be_visible()
        assert image.bounding_box() == mask.bounding_box()
        button.press("Enter")
        expect(mask).to_be_hidden()

    def test_changed_words_are_marked(self, page: Page) -> None:
        page.locator(".side").last.get_by_label("Outer strategy").select_option("sharpen")
        page.locator(".side").last.get_by_label("Inner strategy").select_option("vcd")
        page.locator(".side").last.locator(".parameters summary").click()
        page.get_by_label("vcd.alpha").fill("5")
        page.locator("#question").fill("Please describe this image in detail.")
        page.locator("#question").press("Enter")
        column = page.locator(".side").last
        expect(column.locator("dd")).to_have_count(6, timeout=60_000)
        assert column.locator(".changed").count() > 0
        column.locator(".receipt summary").click()
        assert '"alpha": 5' in column.locator("pre").inner_text()

    def test_error_message_is_shown(self, page: Page) -> None:
        page.get_by_label("vcd.alpha").fill("-1")
        page.locator("#question").press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("alpha", timeout=30_000)
        expect(page.get_by_role("button", name="Run both")).to_be_enabled(timeout=30_000)

    def test_escape_stops_both_columns(self, page: Page) -> None:
        page.get_by_label("vcd.alpha").fill("")
        page.route("**/v1/chat/completions", lambda _: None)  # a fast server would answer before Escape
        page.locator("#question").press("Enter")
        page.keyboard.press("Escape")
        expect(page.get_by_role("alert")).to_have_text(["Stopped.", "Stopped."])
        page.unroute("**/v1/chat/completions")
        expect(page.get_by_role("button", name="Run both")).to_be_enabled()

    def test_phone_has_no_horizontal_scroll(self, page: Page) -> None:
        page.set_viewport_size({"width": 360, "height": 640})
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        expect(page.locator("#question")).to_be_in_viewport(ratio=0.1)
        page.set_viewport_size({"width": 1280, "height": 720})

    def test_voting_strategy_runs_without_grounding(self, page: Page) -> None:
        column = page.locator(".side").last
        column.get_by_label("Outer strategy").select_option("mvp")
        column.get_by_label("Inner strategy").select_option("")
        for field, value in {"bottom_up": 0, "top_down": 0, "paths": 1, "description_tokens": 8}.items():
            page.get_by_label(f"mvp.{field}").fill(str(value))
        page.locator("#question").fill("Is there a cat in the image?")
        page.locator("#question").press("Enter")
        expect(column.locator("dd")).to_have_count(6, timeout=60_000)
        expect(column.locator(".answer")).to_have_text(re.compile("^(Yes|No)$"))
        expect(page.locator(".side").first.locator("[data-grounding]").first).to_be_visible()

    def test_phone_has_no_horizontal_scroll_after_answers(self, page: Page) -> None:
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def read_checked_words(side: Locator) -> list[tuple[str, float, str]]:
    """Read the coloured words of an answer: word, probability and what a pointer shows."""
    return [
        (
            word.inner_text().rstrip(".,"),
            float(word.get_attribute("data-probability") or "nan"),
            word.get_attribute("title") or "",
        )
        for word in side.locator("[data-probability]").all()
    ]


def request_answer(url: str, strategy: str) -> str:
    """Request the same answer from the API."""
    messages = build_messages(SAMPLES["living-room.png"], "Is there a cat in the image?")
    body = greedy_request(strategy, messages=messages, max_tokens=96)
    response = httpx.post(f"{url}v1/chat/completions", json=body, timeout=60)
    return str(response.json()["choices"][0]["message"]["content"]).strip()

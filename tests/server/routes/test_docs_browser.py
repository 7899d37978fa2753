"""/docs in a real browser that reaches no other host."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.eval.report.browser import find_chromium
from tests.server.harness import url
from tests.system_packages import require_library

__all__ = ["url"]  # a fixture


@pytest.fixture
def _use_fake_strategies() -> None:
    """Use the installed strategies."""


def test_page_shows_the_routes_without_a_network(url: str) -> None:
    require_library("libatomic1", "atomic")  # for Playwright's own node
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.goto(f"{url}/docs")
        expect(page.get_by_text("/v1/chat/completions", exact=True)).to_be_visible(timeout=30_000)
        page.get_by_role("button", name="GET /v1/models", exact=False).first.click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        expect(page.locator(".live-responses-table")).to_contain_text("onlyseen-tiny", timeout=30_000)
        browser.close()
    assert problems == []

"""A playground in Chromium, and what its tests do on it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Locator, Page, Route, expect, sync_playwright

from tests.eval.report.browser import find_chromium
from tests.system_packages import require_library

CHAT = "**/v1/chat/completions"
TIMEOUT = 60_000  # milliseconds for an answer


@contextmanager
def open_playground(url: str) -> Iterator[Page]:
    require_library("libatomic1", "atomic")  # for Playwright's own node
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 720})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.goto(url)
        yield page
        browser.close()


@contextmanager
def record_problems(page: Page) -> Iterator[None]:
    """Fail on errors of the page and on requests to other hosts. The browser itself logs each refusal."""
    problems: list[str] = []
    own = page.url.split("/")[2]

    def record_request(address: str) -> None:
        if address.startswith("http") and address.split("/")[2] != own:
            problems.append(address)

    listeners: list[tuple[str, Callable[[Any], None]]] = [
        ("console", lambda message: problems.append(message.text)),
        ("pageerror", lambda error: problems.append(str(error))),
        ("request", lambda request: record_request(request.url)),
    ]
    for event, listener in listeners:
        page.on(event, listener)  # type: ignore[call-overload]
    yield
    for event, listener in listeners:
        page.remove_listener(event, listener)
    unexpected = [text for text in problems if "Failed to load resource" not in text]
    assert not unexpected, unexpected


def choose(column: Locator, *names: str) -> None:
    """Choose a stack of strategies."""
    while column.get_by_label("Strategy 2").count() and column.get_by_label("Strategy 2").input_value():
        column.get_by_label("Strategy 2").select_option("")
    for place, name in enumerate(names, 1):
        column.get_by_label(f"Strategy {place}", exact=True).select_option(name)


def ask(page: Page, question: str | None = None) -> None:
    """Run all columns, and wait until they are finished."""
    if question is not None:
        page.locator("#question").fill(question)
    page.locator("#question").press("Enter")
    wait_until_finished(page)


def wait_until_finished(page: Page) -> None:
    expect(page.get_by_role("button", name="Stop")).to_be_hidden(timeout=TIMEOUT)


def read_body(route: Route) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(route.request.post_data or "")
    return body


def format_stream(text: str, *, is_complete: bool = True) -> str:
    """Format a stream of the server with one chunk."""
    chunk = {"choices": [{"index": 0, "delta": {"content": text}, "logprobs": None}]}
    return f"data: {json.dumps(chunk)}\n\n" + ("data: [DONE]\n\n" if is_complete else "")


@contextmanager
def replace_answers(page: Page, respond: Callable[[Route], None]) -> Iterator[None]:
    """Respond to requests for answers in place of the server."""
    page.route(CHAT, respond)
    yield
    page.unroute(CHAT)


def read_checked_words(side: Locator) -> list[tuple[str, float, str]]:
    """Read the coloured words of an answer: word, probability and what a pointer shows."""
    return [
        (
            re.sub(r"\W+$", "", word.inner_text()),
            float(word.get_attribute("data-probability") or "nan"),
            word.get_attribute("title") or "",
        )
        for word in side.locator("[data-probability]").all()
    ]

"""Links, layout, keyboard and start of the playground in a real browser, over an engine without a model."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, get_args
from urllib.parse import quote

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from decoding.engine import Capability
from server.app import create_app
from server.settings import Settings
from tests.server.fakes import FakeEngine
from tests.server.harness import serve
from tests.server.routes.playground_page import (
    CHAT,
    ask,
    choose,
    format_stream,
    open_playground,
    read_body,
    record_problems,
    replace_answers,
    wait_until_finished,
)

CAPABILITIES = frozenset(get_args(Capability))
SCRIPT = "<img src=x onerror='window.attacked=1'>"
COLUMNS = [{"stack": ["plain"], "parameters": {}}]
HOSTILE: dict[str, str] = {
    "other": "#samples",
    "cut": "#c=%7B%22v",
    "percent": "#c=%E0%A4%A",
    "null": "#c=null",
    "version": "#c=" + quote(json.dumps({"v": 2, "columns": []})),
    "long": "#c=" + quote(json.dumps({"v": 1, "columns": COLUMNS, "question": "x" * 20_000})),
    "types": "#c=" + quote(json.dumps({"v": 1, "columns": [None, 3, {"stack": 7}], "sampling": 1, "picture": [1]})),
    "many": "#c=" + quote(json.dumps({"v": 1, "columns": COLUMNS * 200}, separators=(",", ":"))),
    "prototype": '#c={"v":1,"__proto__":{"v":1},"columns":[{"stack":["vcd"],"parameters":{"__proto__":{"alpha":1}}}]}',
    "script": "#c="
    + quote(
        json.dumps(
            {
                "v": 1,
                "model": SCRIPT,
                "question": SCRIPT,
                "colours": SCRIPT,
                "sampling": {"temperature": SCRIPT, "seed": SCRIPT},
                "picture": {"sample": SCRIPT},
                "columns": [
                    {"stack": [SCRIPT], "parameters": {}},
                    {"stack": ["agla"], "parameters": {"agla": {"text": SCRIPT, "alpha": SCRIPT, SCRIPT: SCRIPT}}},
                ],
            }
        )
    ),
    "address": "#c="
    + quote(json.dumps({"v": 1, "columns": COLUMNS, "picture": {"url": "javascript:window.attacked=1"}})),
}
FIND_UNNAMED = """() => [...document.querySelectorAll("button, input, select, textarea, a, summary")].filter((node) =>
  node.checkVisibility() && !(node.ariaLabel || node.labels?.length || node.textContent.trim()
    || node.querySelector("img[alt]") || node.getAttribute("aria-labelledby"))).map((node) => node.outerHTML)"""
FIND_PALE = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => color.slice(0, 3).map((c) => c / 255)
    .map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return parse(getComputedStyle(document.body).backgroundColor);
  };
  const texts = [...document.querySelectorAll("p, h1, h2, label, small, button, summary, select, dt, dd, .answer")];
  return texts.filter((node) => node.checkVisibility() && node.textContent.trim() && !node.disabled).filter((node) => {
    const [high, low] = [light(parse(getComputedStyle(node).color)), light(ground(node))].sort((a, b) => b - a);
    return (high + .05) / (low + .05) < 4.5;
  }).map((node) => node.outerHTML.slice(0, 120));
}"""


@pytest.fixture
def _use_fake_strategies() -> None:
    """Use the installed strategies."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(create_app(Settings(device="cpu"), lambda _: FakeEngine(capabilities=CAPABILITIES))) as base:
        yield base


@pytest.fixture(scope="module")
def page(url: str) -> Iterator[Page]:
    with open_playground(url) as page:
        expect(page.get_by_role("button", name="living-room")).to_have_attribute("aria-pressed", "true")
        yield page


@pytest.fixture(autouse=True)
def _no_problems(page: Page) -> Iterator[None]:
    with record_problems(page):
        yield


@pytest.fixture
def fresh(page: Page, url: str) -> Page:
    """Open the page as on a first visit."""
    visit(page, url)
    return page


def visit(page: Page, url: str, fragment: str = "") -> None:
    page.goto("about:blank")
    page.goto(f"{url}/{fragment}")
    expect(page.locator(".side").first).to_be_visible()


def read_requests(page: Page) -> list[dict[str, Any]]:
    """Run, and return what the columns send."""
    bodies: list[dict[str, Any]] = []

    def respond(route: Route) -> None:
        bodies.append(read_body(route))
        route.fulfill(body=format_stream("Fine."))

    with replace_answers(page, respond):
        with page.expect_request(CHAT):  # the page loads the image first
            ask(page)
        wait_until_finished(page)
    return sorted(bodies, key=lambda body: str(body["decoding"]["strategy"]))


def test_link_restores_the_comparison(fresh: Page, url: str) -> None:
    page = fresh
    page.get_by_role("button", name="Add column").click()
    first, _, third = page.locator(".side").all()
    choose(first, "agla", "vhr")
    choose(third, "dola")
    for column in (first, third):
        column.locator(".parameters summary").click()
    for label, text in {"agla.text": "a 'cat' & <b>", "agla.alpha": "1.5", "dola.layers": "1, 2"}.items():
        page.get_by_label(label).fill(text)
    page.get_by_label("vhr.second").uncheck()
    page.get_by_label("dola.bucket").select_option("high")
    page.locator("#top_p").fill("0.9")
    page.locator("#seed").fill("7")
    page.locator("#colours").select_option("grounding")
    page.get_by_role("button", name="savanna").click()
    page.locator("#question").fill("Is there a zebra?\nWhere? ü 🦓")
    sent = read_requests(page)
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#dialog-note")).to_have_text("Copied.")
    link = page.evaluate("navigator.clipboard.readText()")
    visit(page, url, link.removeprefix(f"{url}/"))
    expect(page.get_by_role("button", name="savanna")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".turn")).to_have_count(0)  # a link runs nothing
    assert read_requests(page) == sent
    assert sent[0]["decoding"]["agla"] == {"text": "a 'cat' & <b>", "alpha": 1.5}
    page.reload()
    expect(page.locator(".side")).to_have_count(3)
    expect(page.get_by_role("button", name="savanna")).to_have_attribute("aria-pressed", "true")
    assert read_requests(page) == sent


def test_link_in_the_same_tab_restores_its_comparison(fresh: Page) -> None:
    state = {
        "v": 1,
        "question": "And now?",
        "columns": [{"stack": ["vcd"], "parameters": {}}],
        "picture": {"sample": "street.png"},
    }
    fresh.evaluate("(hash) => { location.hash = hash; }", f"#c={quote(json.dumps(state))}")
    expect(fresh.locator("#question")).to_have_value("And now?")
    expect(fresh.locator(".side h2")).to_have_text(["1. vcd"])
    expect(fresh.get_by_role("button", name="street")).to_have_attribute("aria-pressed", "true")


def test_uploaded_image_is_not_part_of_the_link(fresh: Page) -> None:
    page = fresh
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "BMP")
    page.locator("#file").set_input_files(
        {"name": "my secret.bmp", "mimeType": "image/bmp", "buffer": buffer.getvalue()}
    )
    expect(page.get_by_role("button", name="living-room")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#truth")).to_be_hidden()
    (body, _) = read_requests(page)
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#status")).to_contain_text("does not contain your image")
    assert "secret" not in page.url
    assert "base64" not in page.url
    page.reload()
    expect(page.locator("#image-problem")).to_contain_text("The link does not contain the image")
    expect(page.locator("#image")).to_be_hidden()
    page.locator("#question").press("Enter")
    expect(page.locator("#image-problem")).to_have_text("Choose an image first.")
    expect(page.locator(".turn")).to_have_count(0)


def test_image_address_is_sent_and_not_loaded_here(fresh: Page) -> None:
    page = fresh
    page.locator("#remote summary").click()
    page.locator("#address").fill("ftp://images.example/cat.png")
    page.get_by_role("button", name="Use", exact=True).click()
    expect(page.locator("#image-problem")).to_contain_text("must begin with https://")
    page.locator("#address").fill("https://images.example/cat.png")
    page.get_by_role("button", name="Use", exact=True).click()
    expect(page.locator("#hint")).to_have_text("The server loads https://images.example/cat.png")
    ask(page)  # the server allows no host
    expect(page.locator(".answer [role=alert]")).to_have_count(2)
    page.reload()
    expect(page.locator("#hint")).to_have_text("The server loads https://images.example/cat.png")
    expect(page.locator("#image")).to_be_hidden()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_link_is_harmless(page: Page, url: str, name: str) -> None:
    visit(page, url, HOSTILE[name])
    assert 1 <= page.locator(".side").count() <= 4
    assert page.evaluate(
        "[window.attacked, Object.prototype.alpha, document.querySelectorAll('[onerror]').length]"
    ) == [None, None, 0]
    if name not in {"many", "prototype", "types"}:
        expect(page.get_by_role("alert").filter(visible=True).first).to_be_visible()
    if name == "script":
        expect(page.locator("#question")).to_have_value(SCRIPT)
        expect(page.locator("#problem")).to_contain_text("cannot run these strategies of the link: <img")
    page.get_by_role("button", name="kitchen").click()
    page.locator("#question").fill("What is this?")
    assert read_requests(page)[0]["messages"][0]["content"][1]["text"] == "What is this?"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_every_width(fresh: Page, scheme: Any) -> None:
    page = fresh
    page.emulate_media(color_scheme=scheme)
    for _ in range(2):
        page.get_by_role("button", name="Add column").click()
    choose(page.locator(".side").first, "vdgd", "zoomeye")
    page.locator(".side").first.locator(".parameters summary").click()
    with replace_answers(page, lambda route: route.fulfill(body=format_stream("W" * 300))):
        ask(page)
    page.locator("#question").fill("Now this?")
    ask(page)
    page.locator("#temperature").fill("9")
    ask(page)  # with an error
    expect(page.locator("#sampling-problem")).to_be_visible()
    for width in (360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        expect(page.locator(".side").last).to_be_visible()
    assert page.evaluate(FIND_PALE) == []
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 720})


def test_page_works_with_the_keyboard_alone(fresh: Page) -> None:
    page = fresh
    expect(page.locator("#question")).to_be_focused()
    page.locator(".side").last.locator(".parameters summary").click()
    assert page.evaluate(FIND_UNNAMED) == []
    page.evaluate("document.activeElement.blur(); document.body.tabIndex = -1; document.body.focus()")
    visited: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => { const node = document.activeElement, box = node.id === "file" ? node.parentElement : node;
            return [node.id || node.ariaLabel || node.textContent.trim(), getComputedStyle(box).outlineStyle]; }"""
        )
        assert outline != "none", name
        visited.append(name)
        if name == "Copy as Python" and visited.count(name) == 2:
            break
    order = ["API", "file", "question", "run", "add", "link", "colours", "max_tokens", "Strategy 1", "Copy as curl"]
    assert [visited.index(name) for name in order] == sorted(visited.index(name) for name in order)
    page.locator("#run").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_text(["A cat on a mat.", "A cat on a mat."])
    for attribute, value in {"aria-live": "polite", "aria-busy": "false"}.items():
        expect(page.locator(".answer").first).to_have_attribute(attribute, value)
    page.get_by_role("button", name="Remove column 2").press("Enter")
    expect(page.locator("#add")).to_be_focused()


def test_page_waits_for_a_server_that_starts(page: Page, url: str) -> None:
    refusals = [
        {"status": 503, "headers": {"retry-after": "1"}, "json": {"error": {"message": "The model is loading."}}}
    ]
    page.route("**/v1/strategies", lambda route: route.fulfill(**refusals.pop()) if refusals else route.continue_())
    page.goto("about:blank")
    page.goto(url)
    expect(page.locator("#problem")).to_contain_text("The model is loading. Try again in 1 s. The page tries again.")
    expect(page.locator(".side")).to_have_count(2)
    expect(page.locator("#problem")).to_be_hidden()
    page.unroute("**/v1/strategies")


def test_unreachable_server_is_named(page: Page, url: str) -> None:
    page.route("**/v1/models", lambda route: route.abort())
    page.goto("about:blank")
    page.goto(url)
    expect(page.locator("#problem")).to_have_text("The server cannot be reached. Check that it runs, then try again.")
    page.unroute("**/v1/models")
    page.locator("#question").press("Enter")
    expect(page.locator(".side")).to_have_count(2)


def test_missing_strategy_is_named(page: Page, url: str) -> None:
    state = {"v": 1, "model": "other", "columns": [{"stack": ["vcd+gone"], "parameters": {}}, *COLUMNS]}
    visit(page, url, f"#c={quote(json.dumps(state))}")
    expect(page.locator("#problem")).to_have_text("This server cannot run these strategies of the link: vcd+gone.")
    expect(page.locator("#status")).to_contain_text("The link is about the model other.")
    expect(page.locator(".side h2")).to_have_text(["1. plain"])

"""The playground in a real browser, with the embedded model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from server.routes.playground import SAMPLES
from tests.server.harness import build_messages, greedy_request, url
from tests.server.routes.playground_page import (
    ask,
    choose,
    format_stream,
    open_playground,
    read_body,
    read_checked_words,
    record_problems,
    replace_answers,
    wait_until_finished,
)

__all__ = ["url"]  # a fixture

ERROR = {"message": "No seat is left.", "type": "x", "param": "messages", "code": "x"}
FAILURES: dict[str, tuple[dict[str, Any] | None, str]] = {
    "refusal": ({"status": 400, "json": {"error": ERROR}}, "messages: No seat is left."),
    "queue": ({"status": 429, "headers": {"retry-after": "7"}, "json": {"error": ERROR}}, "Try again in 7 s."),
    "proxy": ({"status": 503, "body": "<b>down</b>"}, "The server responded with status 503."),
    "network": (None, "The server cannot be reached."),
    "cut": (
        {"body": format_stream("A cat", is_complete=False)},
        "The connection ended before the answer was complete.",
    ),
    "damaged": ({"body": "data: {oops\n\n"}, "The server sent an event that is no JSON."),
    "late": ({"body": f"data: {json.dumps({'error': ERROR})}\n\n"}, "messages: No seat is left."),
}


@pytest.fixture
def _use_fake_strategies() -> None:
    """Use the installed strategies."""


@pytest.fixture(scope="module")
def page(url: str) -> Iterator[Page]:
    with open_playground(url) as page:
        yield page


@pytest.fixture(autouse=True)
def _no_problems(page: Page) -> Iterator[None]:
    with record_problems(page):
        yield


class TestAnswers:
    """The tests use one page, in this order."""

    def test_first_sample_is_loaded(self, page: Page) -> None:
        expect(page.get_by_role("img", name="The chosen image")).to_be_visible()
        expect(page.get_by_role("button", name="living-room")).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#truth")).to_have_text("In this image: couch, tv, cat, potted plant, book (2).")
        expect(page.locator("#notice")).to_contain_text("48 kinds of pictograms")
        expect(page.locator(".summary").last).to_contain_text("check each thing")
        expect(page.locator("[data-colours=check]")).to_contain_text("AUROC of 0.9")
        expect(page.locator("[data-colours=check]")).to_contain_text("held-out scenes")
        expect(page.locator("[data-colours=grounding]")).to_be_hidden()

    def test_check_colours_words_and_lists_what_verify_removed(self, page: Page) -> None:
        ask(page)
        plain, verify = page.locator(".side").all()
        denied = [word for word in read_checked_words(plain) if word[1] < 0.5]
        assert denied
        assert all(probability >= 0.5 for _, probability, _ in read_checked_words(verify))
        word, probability, title = denied[0]
        shown = re.match(rf"Is there a {word} in the image\? Yes: (\d+) %", title)
        assert shown
        assert abs(int(shown[1]) - 100 * probability) <= 1
        removed = verify.locator(".removed")
        expect(plain.locator(".removed")).to_be_hidden()
        expect(removed.locator("s").first).to_be_hidden()
        removed.locator("summary").click()
        expect(removed.locator("s").first).to_have_text(word)
        assert word not in verify.locator(".answer").inner_text()

    def test_invented_objects_of_a_sample_are_marked(self, page: Page) -> None:
        plain, verify = page.locator(".side").all()
        assert {word.inner_text().strip(". ✗") for word in plain.locator(".invented").all()} == {"dog", "person"}
        expect(plain.locator(".verdict")).to_contain_text(
            "5 of 5 kinds of objects in the image, and invents dog, person."
        )
        expect(verify.locator(".verdict")).to_contain_text("invents none")
        expect(verify.locator(".invented")).to_have_count(0)

    @pytest.mark.parametrize("change", ["strategy", "sampling", "image"])
    def test_answer_to_other_settings_is_marked(self, page: Page, change: str) -> None:
        plain, verify = page.locator(".side").all()
        note = "The settings have changed since this answer."
        expect(plain.locator(".label")).to_contain_text("plain, temperature=0, max_tokens=96, living-room.png")
        expect(plain.locator(".outdated")).to_be_hidden()
        if change == "strategy":
            choose(plain, "vcd")
        elif change == "sampling":
            page.locator("#temperature").fill("1")
            page.locator("#temperature").blur()
        else:
            page.get_by_role("button", name="street").click()
        expect(plain.locator(".outdated")).to_contain_text(note)
        if change == "strategy":
            expect(verify.locator(".outdated")).to_be_hidden()
        else:
            expect(verify.locator(".outdated")).to_be_visible()
        expect(plain.locator(".label")).to_contain_text("plain, temperature=0, max_tokens=96, living-room.png")
        choose(plain, "plain")
        page.locator("#temperature").fill("0")
        page.locator("#temperature").blur()
        if change == "image":
            page.get_by_role("button", name="living-room").click()
        expect(plain.locator(".outdated")).to_be_hidden()

    def test_late_answer_keeps_the_label_of_its_request(self, page: Page) -> None:
        held: list[Route] = []
        with replace_answers(page, lambda route: held.append(route)):
            page.locator("#question").press("Enter")
            expect(page.locator(".busy")).to_have_count(2)
            page.get_by_role("button", name="street").click()
            expect(page.locator(".outdated").first).to_be_visible()
            for route in held:
                route.fulfill(body=format_stream("An old answer."))
            wait_until_finished(page)
        expect(page.locator(".answer")).to_have_text(["An old answer.", "An old answer."])
        for side in page.locator(".side").all():
            expect(side.locator(".label")).to_contain_text("living-room.png")
            expect(side.locator(".outdated")).to_be_visible()

    def test_escape_stops_all_columns(self, page: Page) -> None:
        with replace_answers(page, lambda _: None):  # a fast server would answer before Escape
            page.locator("#question").press("Enter")
            page.keyboard.press("Escape")
            expect(page.locator(".answer [role=alert]")).to_have_text(["Stopped.", "Stopped."])
            wait_until_finished(page)
        with replace_answers(page, lambda route: route.fulfill(body=format_stream("A new answer."))):
            ask(page)
        expect(page.locator(".answer")).to_have_text(["A new answer.", "A new answer."])
        expect(page.locator(".label").first).to_contain_text("street.png")

    def test_both_columns_answer_about_a_sample(self, page: Page) -> None:
        page.get_by_role("button", name="living-room").click()
        plain, agla = page.locator(".side").all()
        choose(agla, "agla")
        page.locator("#colours").select_option("grounding")
        expect(page.locator("[data-colours=grounding]")).to_contain_text("does not reveal invented objects")
        expect(page.locator("[data-colours=check]")).to_be_hidden()
        ask(page, "Is there a cat in the image?")
        for side in (plain, agla):
            expect(side.locator(".answer")).to_contain_text(re.compile("Yes|No"))
            assert float(side.locator("[data-grounding]").first.get_attribute("data-grounding") or "nan") != 0
        expect(agla.locator("dd").first).to_have_text("agla/local, grounding/blind")
        assert plain.locator(".answer").inner_text() == request_answer(page.url, "plain")

    def test_image_of_a_branch_is_shown_large(self, page: Page) -> None:
        page.get_by_role("button", name="image of agla/local").press("Enter")
        expect(page.locator("#dialog-image")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#dialog")).to_be_hidden()
        expect(page.get_by_role("button", name="image of agla/local")).to_be_focused()

    def test_changed_words_are_marked(self, page: Page) -> None:
        column = page.locator(".side").last
        choose(column, "sharpen", "vcd")
        column.locator(".parameters summary").click()
        page.get_by_label("vcd.alpha").fill("5")
        ask(page, "Please describe this image in detail.")
        assert column.locator(".changed").count() > 0
        column.locator(".receipt summary").click()
        assert '"alpha": 5' in column.locator("pre").inner_text()
        expect(column.locator(".label")).to_contain_text("sharpen+vcd, vcd.alpha=5")

    def test_refusal_is_shown_at_the_field_and_leaves_other_columns(self, page: Page) -> None:
        field = page.get_by_label("vcd.alpha")
        field.fill("-1")
        ask(page)
        plain, column = page.locator(".side").all()
        expect(column.locator(".answer [role=alert]")).to_contain_text("decoding.vcd.alpha")
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(column.locator(".field", has=field).get_by_role("alert")).to_contain_text("greater than or equal to 0")
        expect(plain.locator(".answer")).to_contain_text("The image features")
        field.fill("1")
        field.blur()
        expect(field).to_have_attribute("aria-invalid", "false")
        page.locator("#temperature").fill("7")
        ask(page)
        expect(page.locator("#sampling-problem")).to_contain_text("temperature: ")
        expect(page.locator("#temperature")).to_have_attribute("aria-invalid", "true")
        page.locator("#temperature").fill("0")

    @pytest.mark.parametrize("name", FAILURES)
    def test_failure_is_shown(self, page: Page, name: str) -> None:
        response, message = FAILURES[name]

        def respond(route: Route) -> None:
            if "sharpen" in (route.request.post_data or ""):
                route.fulfill(body=format_stream("Fine."))
            else:
                route.abort() if response is None else route.fulfill(**response)

        with replace_answers(page, respond):
            ask(page)
        failed, other = page.locator(".side").all()
        expect(failed.locator(".answer [role=alert]")).to_contain_text(message)
        expect(other.locator(".answer")).to_have_text("Fine.")

    def test_key_is_requested(self, page: Page) -> None:
        expect(page.locator("#key")).to_be_hidden()
        with replace_answers(page, lambda route: route.fulfill(status=401, json={"error": ERROR})):
            ask(page)
        expect(page.locator("#key")).to_be_visible()
        with replace_answers(
            page, lambda route: route.fulfill(body=format_stream(route.request.headers["authorization"]))
        ):
            page.locator("#key").fill("secret")
            ask(page)
        expect(page.locator(".answer").first).to_have_text("Bearer secret")
        assert "secret" not in page.url

    @pytest.mark.parametrize("name", ["notes.txt", "photo.png"])
    def test_file_that_is_no_image_is_refused(self, page: Page, name: str) -> None:
        files: Any = {"name": name, "mimeType": "image/png", "buffer": b"no image"}
        page.locator("#file").set_input_files(files)
        expect(page.locator("#image-problem")).to_contain_text("cannot read this file as an image")
        expect(page.get_by_role("button", name="living-room")).to_have_attribute("aria-pressed", "true")
        page.get_by_role("button", name="living-room").click()
        expect(page.locator("#image-problem")).to_be_hidden()

    def test_voting_strategy_runs_without_grounding(self, page: Page) -> None:
        column = page.locator(".side").last
        choose(column, "mvp")
        for field, value in {"bottom_up": 0, "top_down": 0, "paths": 1, "description_tokens": 8}.items():
            page.get_by_label(f"mvp.{field}").fill(str(value))
        ask(page, "Is there a cat in the image?")
        expect(column.locator(".answer")).to_have_text(re.compile("^(Yes|No)$"))
        expect(page.locator(".side").first.locator("[data-grounding]").first).to_be_visible()


class TestColumns:
    """The tests use the same page, in this order."""

    def test_follow_up_continues_each_conversation(self, page: Page) -> None:
        page.locator("#colours").select_option("none")
        first, second = page.locator(".side").all()
        choose(second, "icd")
        ask(page, "Please describe this image in detail.")
        answers = [side.locator(".answer").inner_text() for side in (first, second)]
        bodies: list[Any] = []

        def respond(route: Route) -> None:
            bodies.append(read_body(route))
            route.continue_()

        page.locator("#question").fill("Is there a cat in the image?")
        with replace_answers(page, respond):
            page.get_by_role("button", name="Follow up").click()
            wait_until_finished(page)
        for body in bodies:
            roles = [message["role"] for message in body["messages"]]
            assert roles == ["user", "assistant", "user"]
            assert body["messages"][1]["content"] == answers[0 if body["decoding"]["strategy"] == "plain" else 1]
            assert body["messages"][2]["content"] == "Is there a cat in the image?"
        expect(first.locator(".answer")).to_have_count(2)
        expect(first.locator(".answer").last).to_contain_text(re.compile("Yes|No"))
        page.get_by_role("button", name="savanna").click()
        expect(page.get_by_role("button", name="Follow up")).to_be_disabled()

    def test_columns_are_added_and_removed(self, page: Page) -> None:
        add = page.get_by_role("button", name="Add column")
        add.click()
        add.click()
        expect(page.locator(".side")).to_have_count(4)
        expect(add).to_be_disabled()
        with replace_answers(
            page, lambda route: route.fulfill(body=format_stream(read_body(route)["decoding"]["strategy"]))
        ):
            ask(page)
        expect(page.locator(".answer")).to_have_text(["plain", "icd", "vcd", "agla"])
        page.get_by_role("button", name="Remove column 2").click()
        expect(page.locator(".answer")).to_have_text(["plain", "vcd", "agla"])
        for _ in range(2):
            page.get_by_role("button", name="Remove column 1").click()
        expect(page.locator(".answer")).to_have_text(["agla"])
        expect(page.get_by_role("button", name="Remove column 1")).to_be_hidden()

    @pytest.mark.parametrize(
        ("strategy", "field", "value", "sent"),
        [
            ("vcd", "alpha", "0.5", 0.5),
            ("vcd", "noise_step", "300", 300),
            ("vhr", "second", False, False),
            ("vhr", "outliers", "keep", "keep"),
            ("agla", "text", "a cat", "a cat"),
            ("dola", "layers", "1, 2", [1, 2]),
            ("zoomeye", "side", "64", 64),
            ("describe", "description_prompt", "What is this?", "What is this?"),
            ("verify", "question", "Is {claim} here?", "Is {claim} here?"),
        ],
    )
    def test_parameter_is_sent_and_reset(self, page: Page, strategy: str, field: str, value: Any, sent: Any) -> None:
        column = page.locator(".side").first
        choose(column, strategy)
        if not column.get_by_role("button", name="Reset to defaults").is_visible():
            column.locator(".parameters summary").click()
        control = column.get_by_label(f"{strategy}.{field}", exact=True)
        if isinstance(value, bool):
            control.set_checked(value)
        elif control.evaluate("(node) => node.tagName") == "SELECT":
            control.select_option(value)
        else:
            control.fill(value)
        assert request_decoding(page)[strategy] == {field: sent}
        column.get_by_role("button", name="Reset to defaults").click()
        assert strategy not in request_decoding(page)

    def test_text_that_is_no_list_of_numbers_is_refused(self, page: Page) -> None:
        column = page.locator(".side").first
        choose(column, "dola")
        field = page.get_by_label("dola.layers")
        field.fill("1, two")
        ask(page)
        expect(column.locator(".field", has=field).get_by_role("alert")).to_have_text('"two" is no number.')
        expect(column.locator(".answer")).to_have_count(0)
        column.get_by_role("button", name="Reset to defaults").click()

    @pytest.mark.parametrize("language", ["curl", "Python"])
    def test_copied_command_gets_the_same_answer(self, page: Page, language: str) -> None:
        page.get_by_role("button", name="living-room").click()
        column = page.locator(".side").first
        choose(column, "vcd")
        column.get_by_label("vcd.alpha").fill("2")
        ask(page, "Describe 'this' image; $HOME `id` \\ ü.")
        column.get_by_role("button", name=f"Copy as {language}").click()
        expect(page.locator("#dialog-note")).to_have_text("Copied.")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == page.locator("#dialog-text").input_value()
        assert "YOUR_API_KEY" in copied
        page.get_by_role("button", name="Close").click()
        command = ["bash", "-s"] if language == "curl" else [sys.executable, "-"]
        output = subprocess.run(command, input=copied, capture_output=True, check=True, timeout=60, text=True).stdout
        if language == "curl":
            body = json.loads(output)
            assert body["onlyseen"]["parameters"]["vcd"]["alpha"] == 2
            output = body["choices"][0]["message"]["content"]
        assert output.strip() == column.locator(".answer").inner_text().strip()


def request_decoding(page: Page) -> dict[str, Any]:
    """Run, and return the field `decoding` that the first column sent."""
    bodies: list[Any] = []

    def respond(route: Route) -> None:
        bodies.append(read_body(route))
        route.fulfill(body=format_stream("Fine."))

    with replace_answers(page, respond):
        ask(page)
    decoding: dict[str, Any] = bodies[0]["decoding"]
    return decoding


def request_answer(url: str, strategy: str) -> str:
    """Request the same answer from the API."""
    messages = build_messages(SAMPLES["living-room.png"], "Is there a cat in the image?")
    body = greedy_request(strategy, messages=messages, max_tokens=96)
    response = httpx.post(f"{url.partition('#')[0]}v1/chat/completions", json=body, timeout=60)
    return str(response.json()["choices"][0]["message"]["content"]).strip()

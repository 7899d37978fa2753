"""The HTML report, in a browser and as a file."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.report.html import encode_image, split_at_mentions
from tests.eval.cli_driver import invoke_run, output_of, reply_by_hash
from tests.eval.fake_server import ScriptedReply, ScriptedServer, start_server, strategy_of
from tests.eval.report.browser import render

HOSTILE_TEXT = "<script>document.title='taken'</script><img src=http://127.0.0.1:9/x> a dog & a cup"


@pytest.fixture
def report(server: ScriptedServer, data: Path, tmp_path: Path) -> Path:
    result = invoke_run(server, data, tmp_path / "run", "--strategies", "agla", "--variant", "fixed", task="chair")
    assert result.exit_code == 0, output_of(result)
    return tmp_path / "run" / "report.html"


def test_the_page_shows_cards_answers_and_scores(report: Path, tmp_path: Path) -> None:
    dom = render(report, tmp_path / "profile", "--dump-dom")
    assert 'data-shown="10"' in dom
    assert len(re.findall(r'<article class="card"', dom)) == 10
    assert 'class="hallucinated"' in dom
    assert 'aria-label="dog, in the image"' in dom or 'class="grounded"' in dom
    assert "not mentioned: " in dom
    assert "CHAIR_s" in dom
    discordant = render(report, tmp_path / "profile", "--dump-dom", fragment="#discordant")
    assert 0 < len(re.findall(r'<article class="card"', discordant)) < 10
    render(report, tmp_path / "profile", f"--screenshot={tmp_path / 'report.png'}")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


class AnswerWords(HTMLParser):
    """Collects the words of each answer on the page, and whether each is marked."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[tuple[str, bool]]] = []
        self._within: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p" and ("class", "answer") in attrs:
            self.found.append([])
            self._within = ["p"]
        elif self._within:
            self._within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._within:
            self._within.pop()

    def handle_data(self, data: str) -> None:
        if self._within:
            self.found[-1] += [(word, "mark" in self._within) for word in data.split()]


def read_marked_words(dom: str) -> list[tuple[str, str]]:
    """Return the marked words on the left and on the right of each pair."""
    words = AnswerWords()
    words.feed(dom)
    marked = [" ".join(word for word, is_marked in answer if is_marked) for answer in words.found]
    return list(zip(marked[::2], marked[1::2], strict=True))


ANSWERS = {
    "plain": "The image shows two Wine glasses, and a cat isn't near the dog 🐕.",
    "agla": "the image shows a wine glass and a cat near the dog, sleeping soundly.",
}


def test_words_of_only_one_answer_are_marked(data: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(lambda request: ScriptedReply(ANSWERS[strategy_of(request)]))) as server:
        invoke_run(
            server, data, tmp_path / "run", "--strategies", "agla", "--variant", "fixed", "--limit", "1", task="chair"
        )
    report = tmp_path / "run" / "report.html"
    dom = render(report, tmp_path / "profile", "--dump-dom")
    assert read_marked_words(dom) == [("two glasses isn't", "a glass sleeping soundly")]
    assert re.search(r'<span class="hallucinated"[^>]*>Wine <mark class="only">glasses</mark></span>', dom)
    assert "🐕" in dom
    report.write_text(report.read_text().replace('id="words" checked', 'id="words"'))
    assert read_marked_words(render(report, tmp_path / "profile", "--dump-dom")) == [("", "")]


class SourceCollector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in {"src", "href", "xlink:href"} and value]


def test_the_page_loads_nothing(report: Path) -> None:
    text = report.read_text()
    collector = SourceCollector()
    collector.feed(text)
    assert all(each.startswith(("data:", "#")) for each in collector.found)
    assert "url(http" not in text
    assert "default-src 'none'" in text
    assert text.count("<svg") == 2


def test_markup_in_answers_is_escaped(data: Path, tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> ScriptedReply:
        return ScriptedReply(HOSTILE_TEXT)

    with start_server(ScriptedServer(script)) as server:
        invoke_run(server, data, tmp_path / "run", task="chair")
    report = tmp_path / "run" / "report.html"
    assert "<img src=http" not in report.read_text()
    dom = render(report, tmp_path / "profile", "--dump-dom")
    assert "<title>CHAIR: fake</title>" in dom
    assert "&lt;script&gt;" in dom


def test_special_characters_in_labels_are_escaped(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    result = invoke_run(server, data, tmp_path / "run", "--strategies", "agla:text=$x_1$ <b>|", "--temperature", "1")
    assert result.exit_code == 0, output_of(result)
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<b>" not in text
    markdown = (tmp_path / "run" / "report.md").read_text()
    assert "| strategy | Accuracy | F1 |" in markdown
    assert r"| `agla:text=$x_1$ <b>\|` | " in markdown
    assert "matched" not in markdown
    assert re.search(r"p = 1.00, detectable \d+\.\d", markdown)
    assert re.search(
        r"(is better than|is worse than|does not differ significantly from) truncate:beta=0.5 in Accuracy", markdown
    )


def test_split_at_mentions() -> None:
    text = 'A "Dog" and two wine glasses.'
    tokens = ["a", "``", "dog", "''", "and", "two", "wine", "glasses", "."]
    mentions = [[2, 2, "dog", True], [6, 7, "wine glass", False]]
    found = split_at_mentions(text, tokens, mentions)
    assert "".join(piece[0] for piece in found) == text
    assert [piece for piece in found if piece[1]] == [
        ["Dog", "grounded", "dog"],
        ["wine glasses", "hallucinated", "wine glass"],
    ]


def test_the_same_answers_give_the_same_page(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    pages = []
    for _ in range(2):
        invoke_run(server, data, tmp_path / "run", "--strategies", "vhr")
        pages.append((tmp_path / "run" / "report.html").read_text())
    assert pages[0] == pages[1]
    assert reply_by_hash is server.script


def test_a_truncated_image_is_encoded_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "cut.png"
    Image.effect_noise((400, 400), 90).save(file)
    file.write_bytes(file.read_bytes()[:90_000])
    assert encode_image(file).startswith("data:image/png;base64,")

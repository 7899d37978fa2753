"""The report in a real browser, and what it is made from."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eval.report.gallery import pieces
from tests.eval.fake_server import FakeServer, Reply, serving, strategy
from tests.eval.runs import run, talkative, told
from tests.program import program

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1400,2400",
    "--virtual-time-budget=3000",
]
NASTY = "<script>document.title='taken'</script><img src=http://127.0.0.1:9/x> a dog & a cup"


def chromium() -> str:
    return program("chromium", "chromium", "chromium-browser", "google-chrome")


def browse(report: Path, profile: Path, *arguments: str, fragment: str = "") -> str:
    url = f"{report.resolve().as_uri()}{fragment}"
    command = [chromium(), *FLAGS, f"--user-data-dir={profile}", *arguments, url]
    return subprocess.run(command, capture_output=True, check=True, timeout=120, text=True).stdout


@pytest.fixture
def report(server: FakeServer, data: Path, tmp_path: Path) -> Path:
    result = run(server, data, tmp_path / "run", "--strategies", "agla", "--variant", "fixed", task="chair")
    assert result.exit_code == 0, told(result)
    return tmp_path / "run" / "report.html"


def test_in_a_browser(report: Path, tmp_path: Path) -> None:
    dom = browse(report, tmp_path / "profile", "--dump-dom")
    assert 'data-shown="10"' in dom
    assert len(re.findall(r'<article class="card"', dom)) == 10
    assert 'class="invented"' in dom
    assert 'aria-label="dog, in the picture"' in dom or 'class="grounded"' in dom
    assert "not mentioned: " in dom
    assert "CHAIR_s" in dom
    differing = browse(report, tmp_path / "profile", "--dump-dom", fragment="#discordant")
    assert 0 < len(re.findall(r'<article class="card"', differing)) < 10
    browse(report, tmp_path / "profile", f"--screenshot={tmp_path / 'report.png'}")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


class Sides(HTMLParser):
    """The words of each answer that is shown, and whether each is marked."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[tuple[str, bool]]] = []
        self._within: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p" and ("class", "said") in attrs:
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


def marked(dom: str) -> list[tuple[str, str]]:
    """What is marked on the left and on the right, pair by pair."""
    sides = Sides()
    sides.feed(dom)
    only = [" ".join(word for word, marked in said if marked) for said in sides.found]
    return list(zip(only[::2], only[1::2], strict=True))


SAID = {
    "plain": "The image shows two Wine glasses, and a cat isn't near the dog 🐕.",
    "agla": "the image shows a wine glass and a cat near the dog, sleeping soundly.",
}


def test_the_words_that_one_side_lacks_are_marked(data: Path, tmp_path: Path) -> None:
    with serving(FakeServer(lambda request: Reply(SAID[strategy(request)]))) as server:
        run(server, data, tmp_path / "run", "--strategies", "agla", "--variant", "fixed", "--limit", "1", task="chair")
    report = tmp_path / "run" / "report.html"
    dom = browse(report, tmp_path / "profile", "--dump-dom")
    assert marked(dom) == [("two glasses isn't", "a glass sleeping soundly")]
    assert re.search(r'<span class="invented"[^>]*>Wine <mark class="only">glasses</mark></span>', dom)
    assert "🐕" in dom
    report.write_text(report.read_text().replace('id="words" checked', 'id="words"'))
    assert marked(browse(report, tmp_path / "profile", "--dump-dom")) == [("", "")]


class Sources(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in {"src", "href", "xlink:href"} and value]


def test_it_needs_nothing_else(report: Path) -> None:
    text = report.read_text()
    sources = Sources()
    sources.feed(text)
    assert all(each.startswith(("data:", "#")) for each in sources.found)
    assert "url(http" not in text
    assert "default-src 'none'" in text
    assert text.count("<svg") == 2


def test_what_a_model_says_stays_text(data: Path, tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Reply:
        return Reply(NASTY)

    with serving(FakeServer(script)) as server:
        run(server, data, tmp_path / "run", task="chair")
    report = tmp_path / "run" / "report.html"
    assert "<img src=http" not in report.read_text()
    dom = browse(report, tmp_path / "profile", "--dump-dom")
    assert "<title>CHAIR: fake</title>" in dom
    assert "&lt;script&gt;" in dom


def test_yes_or_no_with_labels_that_plots_could_misread(server: FakeServer, data: Path, tmp_path: Path) -> None:
    result = run(server, data, tmp_path / "run", "--strategies", "agla:text=$x_1$ <b>|", "--temperature", "1")
    assert result.exit_code == 0, told(result)
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<b>" not in text
    markdown = (tmp_path / "run" / "report.md").read_text()
    assert "| strategy | Accuracy | F1 |" in markdown
    assert r"| `agla:text=$x_1$ <b>\|` | " in markdown
    assert "matched" not in markdown
    assert re.search(r"p = 1.00, detectable \d+\.\d", markdown)
    assert re.search(r"(beats|loses to|is not told apart from) truncate:beta=0.5 in Accuracy", markdown)


def test_a_text_is_cut_at_its_mentions() -> None:
    text = 'A "Dog" and two wine glasses.'
    tokens = ["a", "``", "dog", "''", "and", "two", "wine", "glasses", "."]
    mentions = [[2, 2, "dog", True], [6, 7, "wine glass", False]]
    found = pieces(text, tokens, mentions)
    assert "".join(piece[0] for piece in found) == text
    assert [piece for piece in found if piece[1]] == [
        ["Dog", "grounded", "dog"],
        ["wine glasses", "invented", "wine glass"],
    ]


def test_the_same_answers_give_the_same_page(server: FakeServer, data: Path, tmp_path: Path) -> None:
    pages = []
    for _ in range(2):
        run(server, data, tmp_path / "run", "--strategies", "vhr")
        pages.append((tmp_path / "run" / "report.html").read_text())
    assert pages[0] == pages[1]
    assert talkative is server.script

"""The leaderboard over several runs and models."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results, reply_by_hash
from tests.eval.fake_server import ScriptedReply, ScriptedServer, start_server
from tests.eval.report.browser import render
from tests.eval.scene_data import write_scenes

MODELS = ("big", "small<b>")


def reply_as(model: str, request: dict[str, Any]) -> ScriptedReply:
    """Answer differently for each model."""
    return reply_by_hash({**request, "seed": model})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make runs of two models on the same questions, and one of other questions."""
    folder = tmp_path_factory.mktemp("leaderboard")
    data = write_scenes(folder / "scenes", images=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.core.statistics.RESAMPLES", 20)
        for model in MODELS:
            script = partial(reply_as, model)
            with start_server(ScriptedServer(script, model=model)) as server:
                options = ("--strategies", "vhr,agla", "--temperature", "1", "--no-logprobs")
                assert invoke_run(server, data, folder / model[:5], *options).exit_code == 0
                if model == "big":
                    assert invoke_run(server, data, folder / "part", "--limit", "2").exit_code == 0
    return folder


def write_page(runs: Path, *names: str) -> str:
    result = invoke("leaderboard", *(runs / name for name in names), "--out", runs / "page" / "board.html")
    assert result.exit_code == 0, output_of(result)
    return (runs / "page" / "board.html").read_text()


def list_rows(page: str) -> list[list[str]]:
    """List the texts of the cells of every row."""
    body = "".join(re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL))
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr.*?</tr>", body, re.DOTALL)]
    return [[re.sub(r"<[^>]*>", " ", cell).strip() for cell in row] for row in cells]


def test_runs_of_equal_questions_share_a_table(runs: Path) -> None:
    page = write_page(runs, "big", "small", "part")
    assert "3 runs, 2 models: big, small&lt;b&gt;" in page
    assert page.count("<h2>POPE</h2>") == 2
    assert "72 questions on 4 images" in page
    rows = list_rows(page)
    strategies = [row[1].split()[0] for row in rows if row[0]]
    assert sorted(strategies) == sorted(["plain", "vhr", "agla"] * 2 + ["plain"])  # and no control
    assert sum("constant answer" in row[1] for row in rows) == 4
    assert 'href="../big/report.html"' in page


def test_rows_have_the_numbers_of_their_run_and_the_best_is_first(runs: Path) -> None:
    rows = list_rows(write_page(runs, "big", "small"))
    accuracies = [float(row[3].split()[0]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    best = {float(row[3].split()[0]) for row in rows if "best" in row[1].split()}  # of equal rows, all are the best
    assert best == {max(float(row[3].split()[0]) for row in rows if row[0])}
    expected = {
        (model.replace("<b>", "&lt;b&gt;"), row["strategy"]): f"{100 * row['metrics']['accuracy']['value']:.1f}"
        for model in MODELS
        for row in read_results(runs / model[:5])["scopes"][-1]["rows"]
    }
    for row in rows:
        if row[0]:
            assert row[3].split()[0] == expected[row[0], row[1].split()[0]]
            assert row[2] == "temperature 1, seeds 0"


def test_a_click_sorts_the_rows_and_a_second_one_reverses_them(runs: Path, tmp_path: Path) -> None:
    page = write_page(runs, "big", "small")
    recall = 6  # model, strategy, decoding, accuracy, F1, precision, recall
    orders = []
    for clicks in (1, 2):
        click = f"document.querySelectorAll('th button')[{recall}].click();"
        script = f"<script>{click * clicks}</script>"
        file = tmp_path / f"{clicks}.html"
        file.write_text(page.replace("</body>", f"{script}</body>"))
        dumped = render(file, tmp_path / "profile", "--dump-dom")
        assert f'aria-sort="{("descending", "ascending")[clicks - 1]}"' in dumped
        orders.append([float(row[recall].split()[0]) for row in list_rows(dumped)])
    assert orders[0] == sorted(orders[0], reverse=True)
    assert orders[1] == sorted(orders[0])
    assert orders[0] != orders[1]


def test_the_page_loads_nothing(runs: Path) -> None:
    page = write_page(runs, "big")
    assert "default-src 'none'" in page
    assert not re.findall(r"https?://|src=|@import|<link", page)


def test_a_folder_without_results_and_a_repeated_one_are_refused(runs: Path, tmp_path: Path) -> None:
    result = invoke("leaderboard", runs / "big", tmp_path, "--out", tmp_path / "x.html")
    assert "results.json: no such file. Is this the folder of a finished run?" in output_of(result)
    result = invoke("leaderboard", runs / "big", runs / "big", "--out", tmp_path / "x.html")
    assert "is named twice" in output_of(result)
    (tmp_path / "results.json").write_text("{}")
    assert 'not results: field "task"' in output_of(invoke("leaderboard", tmp_path, "--out", tmp_path / "x.html"))

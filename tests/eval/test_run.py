"""A whole run through the command line: what is asked, kept, resumed, refused and reported."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.client import Client
from eval.errors import Unavailable
from eval.pope.score import score
from eval.report.gallery import data_url
from tests.eval.fake_server import FakeServer, Reply, question, serving, strategy
from tests.eval.runs import invoke, quality, results, run, talkative, told


def answers(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


def test_every_strategy_is_asked_the_same(server: FakeServer, data: Path, tmp_path: Path) -> None:
    result = run(server, data, tmp_path / "run", "--strategies", "plain,agla,vcd")
    assert result.exit_code == 0, told(result)
    asked = {
        name: sorted(question(each) for each in server.asked if strategy(each) == name) for name in ("plain", "agla")
    }
    assert asked["plain"] == asked["agla"]
    assert len(asked["plain"]) == 60  # three splits of 60 share their positives and, of three absent objects, all
    assert all(each["temperature"] == 0 and "seed" not in each for each in server.asked)


def test_again_from_the_store_nothing_is_asked_and_nothing_changes(
    server: FakeServer, data: Path, tmp_path: Path
) -> None:
    run(server, data, tmp_path / "run", "--strategies", "plain,agla")
    asked, before = len(server.asked), results(tmp_path / "run")
    result = run(server, data, tmp_path / "run", "--strategies", "plain,agla")
    assert result.exit_code == 0
    assert len(server.asked) == asked
    assert results(tmp_path / "run") == before
    assert invoke("verify", tmp_path / "run").exit_code == 0


def test_other_weights_under_the_same_name_are_asked_anew(server: FakeServer, data: Path, tmp_path: Path) -> None:
    server.fingerprint = "before"
    run(server, data, tmp_path / "run")
    asked = len(server.asked)
    server.fingerprint = "after"
    server.script = lambda request: Reply("No")
    run(server, data, tmp_path / "run")
    assert len(server.asked) == 2 * asked
    assert {each["metrics"]["yes_ratio"]["value"] for each in results(tmp_path / "run")["parts"][-1]["rows"]} == {0}


def test_the_numbers_are_those_of_the_scorer(server: FakeServer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(server, data, out)
    texts = {(answer["question"]): answer["text"] for answer in answers(out)}
    rows = [json.loads(line) for line in (data / "pope" / "random.jsonl").read_text().splitlines()]
    expected = score([row["label"] for row in rows], [texts[f"random/{row['question_id']}"] for row in rows])
    part = results(out)["parts"][0]
    found = {name: estimate["value"] for name, estimate in part["rows"][0]["metrics"].items()}
    assert part["scope"] == "random"
    for name in ("accuracy", "f1", "precision", "recall", "yes_ratio"):
        assert found[name] == pytest.approx(getattr(expected, name), abs=1e-12)


def test_a_strategy_is_held_against_its_matched_controls(server: FakeServer, data: Path, tmp_path: Path) -> None:
    result = run(server, data, tmp_path / "run", "--strategies", "agla:alpha=1.0,vcd", "--temperature", "1")
    assert result.exit_code == 0, told(result)
    found = results(tmp_path / "run")
    controls = {each["label"]: each["controls"] for each in found["competitors"]}
    assert controls["agla:alpha=1.0"] == ["truncate:beta=0.5", "sharpen:scale=2.0"]
    assert controls["vcd"] == ["truncate"]
    bodies = {json.dumps(each["decoding"]) for each in server.asked}
    assert '{"strategy": "sharpen", "sharpen": {"scale": 2.0}}' in bodies
    matches = [(match["strategy"], match["control"]) for match in found["parts"][-1]["matches"]]
    assert matches == [
        ("agla:alpha=1.0", "truncate:beta=0.5"),
        ("agla:alpha=1.0", "sharpen:scale=2.0"),
        ("vcd", "truncate"),
    ]


def test_under_greedy_decoding_the_control_is_the_stack_without_the_branch(
    server: FakeServer, data: Path, tmp_path: Path
) -> None:
    run(server, data, tmp_path / "run", "--strategies", "agla,agla+vhr")
    controls = {each["label"]: each["controls"] for each in results(tmp_path / "run")["competitors"]}
    assert controls == {"plain": [], "agla": ["plain"], "agla+vhr": ["vhr"], "vhr": []}


def test_seeds_differ_by_question_and_agree_between_strategies(server: FakeServer, data: Path, tmp_path: Path) -> None:
    run(server, data, tmp_path / "run", "--strategies", "vhr", "--temperature", "1", "--seeds", "0,1", "--limit", "12")
    seeds = {name: [each["seed"] for each in server.asked if strategy(each) == name] for name in ("plain", "vhr")}
    assert sorted(seeds["plain"]) == sorted(seeds["vhr"])
    assert len(set(seeds["plain"])) == len(seeds["plain"])
    tests = {
        each["test"] for row in results(tmp_path / "run")["parts"][0]["rows"] for each in row["against_plain"].values()
    }
    assert tests == {"exchange"}  # several answers a question are not independent
    for report in ("report.md", "report.html"):
        assert "24 answers under 2 seeds on 2 pictures" in (tmp_path / "run" / report).read_text()


def test_a_strategy_by_suffix(server: FakeServer, data: Path, tmp_path: Path) -> None:
    result = run(server, data, tmp_path / "run", "--strategies", "agla", "--door", "suffix")
    assert result.exit_code == 0, told(result)
    assert {each["model"] for each in server.asked} == {"fake:plain", "fake:agla"}
    assert not any("decoding" in each for each in server.asked)
    refused = run(server, data, tmp_path / "run", "--strategies", "agla:alpha=1", "--door", "suffix")
    assert "cannot carry parameters" in told(refused)


def test_another_kind_of_server_is_asked_plainly(data: Path, tmp_path: Path) -> None:
    with serving(FakeServer(talkative, strategies=False, model="gpt-x")) as server:
        refused = run(server, data, tmp_path / "run", "--strategies", "plain,agla")
        assert "has no /v1/strategies" in told(refused)
        result = run(server, data, tmp_path / "run", "--api-key", "secret")
    assert result.exit_code == 0, told(result)
    assert not any("decoding" in each for each in server.asked)
    assert server.headers[-1]["authorization"] == "Bearer secret"
    assert results(tmp_path / "run")["costs"][0]["passes_per_token"] is None


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--strategies", "agla,vcdd"], "no strategy 'vcdd'"),
        (["--strategies", "agla:aplha=1"], "no parameter 'aplha'"),
        (["--strategies", "alpha=1"], "before any strategy"),
        (["--strategies", "agla+vhr:alpha=1"], "should read agla.alpha=..."),
        (["--strategies", "agla+agla"], "twice"),
        (["--model", "other"], "no 'other'"),
        (["--seeds", "a"], "should read 0,1,2"),
        (["--shard", "3/2"], "from 1 to the second"),
        (["--parser", "nobody"], "no parser 'nobody'"),
        (["--data", "/nowhere"], "no such folder"),
        (["--base-url", "localhost"], "must begin with http"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_asked(
    server: FakeServer, data: Path, tmp_path: Path, arguments: list[str], problem: str
) -> None:
    result = run(server, data, tmp_path / "run", *arguments)
    assert result.exit_code != 0
    assert problem in told(result)
    assert not server.asked


def without_captions(data: Path) -> None:
    (data / "captions.json").unlink()


def with_ids_as_texts(data: Path) -> None:
    file = data / "captions.json"
    file.write_text(file.read_text().replace('"image_id": 2', '"image_id": "2"'))


def with_no_picture(data: Path) -> None:
    (data / "images" / "000000000002.png").write_bytes(b"no picture")


def with_two_files_for_a_split(data: Path) -> None:
    (data / "pope" / "aokvqa_pope_random.json").write_bytes((data / "pope" / "random.jsonl").read_bytes())


@pytest.mark.parametrize(
    ("task", "spoil", "problem"),
    [
        ("chair", without_captions, "scenes: holds no captions"),
        ("chair", with_ids_as_texts, 'captions.json: field "annotations[1].image_id": is a text, and in the instances'),
        ("chair", with_no_picture, "000000000002.png: is no picture"),
        ("pope", with_two_files_for_a_split, "split random (aokvqa_pope_random.json, random.jsonl)"),
    ],
)
def test_data_that_could_not_be_scored_are_refused_before_anything_is_asked(
    server: FakeServer, data: Path, tmp_path: Path, task: str, spoil: Callable[[Path], None], problem: str
) -> None:
    spoil(data)
    result = run(server, data, tmp_path / "run", task=task)
    assert result.exit_code != 0
    assert problem in told(result)
    assert not server.asked


def test_a_table_of_synonyms_that_is_not_there(server: FakeServer, data: Path, tmp_path: Path) -> None:
    result = run(server, data, tmp_path / "run", "--synonyms", tmp_path / "none.txt", task="chair")
    assert "none.txt: No such file" in told(result)
    assert not server.asked


def test_a_picture_that_is_cut_off_is_shown_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "cut.png"
    Image.effect_noise((400, 400), 90).save(file)
    file.write_bytes(file.read_bytes()[:90_000])
    assert data_url(file).startswith("data:image/png;base64,")


def test_a_missing_picture_is_named_with_its_line(server: FakeServer, data: Path, tmp_path: Path) -> None:
    (data / "images" / "000000000002.png").unlink()
    result = run(server, data, tmp_path / "run")
    assert 'random.jsonl:7: field "image": there is no picture 000000000002.png' in told(result)


@pytest.mark.parametrize(
    "reply",
    [
        Reply("overloaded", status=429, headers={"retry-after": "0"}),
        Reply("broken", status=500),
        Reply(raw=b"<html>gateway</html>"),
        Reply(raw=b"[1]"),
        Reply(raw=b'{"choices": []}'),
        Reply(raw=b'{"choices": [{"message": {"content": null}}]}'),
        Reply(raw=b'{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}'),
        Reply("Yes", finish="content_filter"),
        Reply("Yes", receipt={"strategy": "vhr", "parameters": {}}),
        Reply("Yes", receipt={"strategy": "agla", "parameters": {"agla": {"alpha": 9.0, "beta": 0.5, "text": None}}}),
    ],
)
def test_a_single_failure_is_counted_shown_not_scored_and_asked_again(data: Path, tmp_path: Path, reply: Reply) -> None:
    def script(request: dict[str, Any]) -> Reply:
        fails = ill and strategy(request) == "agla" and "dog" in question(request)
        return reply if fails else talkative(request)

    ill = True
    with serving(FakeServer(script)) as server:
        result = run(server, data, tmp_path / "run", "--strategies", "agla", "--concurrency", "4")
        assert result.exit_code == 3, told(result)
        assert "10 questions have no answer" in told(result)
        missing = {each["label"]: each["missing"] for each in results(tmp_path / "run")["competitors"]}
        assert missing["plain"] == 0
        assert missing["agla"] > 0
        assert not any("dog" in each for each in map(str, answers(tmp_path / "run")))
        counts = [row["strategy"] for row in results(tmp_path / "run")["parts"][0]["rows"]]
        assert counts == ["plain", "agla"]
        ill, asked = False, len(server.asked)
        assert run(server, data, tmp_path / "run", "--strategies", "agla").exit_code == 0
        assert len(server.asked) == asked + 10


def test_a_request_is_tried_again_with_pauses(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "pause", 0.01)
    seen: dict[str, int] = {}

    def script(request: dict[str, Any]) -> Reply:
        asked = json.dumps(request)
        seen[asked] = seen.get(asked, 0) + 1
        return Reply("busy", status=503) if seen[asked] < 3 else talkative(request)

    with serving(FakeServer(script)) as server:
        result = run(server, data, tmp_path / "run", "--retries", "3", "--limit", "6")
    assert result.exit_code == 0, told(result)
    assert {answer["attempts"] for answer in answers(tmp_path / "run")} == {3}


def test_a_server_that_goes_down_ends_the_run_and_loses_nothing(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def script(request: dict[str, Any]) -> Reply:
        return Reply("out of memory", status=500) if len(server.asked) > 20 else talkative(request)

    with serving(FakeServer(script)) as server:
        result = run(server, data, out, "--concurrency", "2")
        assert "gave up" in told(result)
        assert "20 answers are kept" in told(result)
        assert len(server.asked) <= 20 + 8
    with serving(FakeServer(talkative)) as server:
        assert run(server, data, out).exit_code == 0
        assert len(server.asked) == 60 - 20
    nobody = run(server, data, out, "--limit", "7")
    assert "is the server running?" in told(nobody)


def test_a_slow_server(data: Path, tmp_path: Path) -> None:
    with serving(FakeServer(lambda request: Reply("Yes", delay=2))) as server:
        result = run(server, data, tmp_path / "run", "--timeout", "0.2", "--limit", "6")
    assert "no answer from" in told(result)


def test_no_more_requests_at_a_time_than_allowed(data: Path, tmp_path: Path) -> None:
    with serving(FakeServer(lambda request: Reply("Yes", delay=0.01))) as server:
        run(server, data, tmp_path / "run", "--concurrency", "3")
    assert server.most == 3


def test_an_empty_answer_that_was_generated_is_scored_and_told(data: Path, tmp_path: Path) -> None:
    with serving(FakeServer(lambda request: Reply(""))) as server:  # one token: the end
        result = run(server, data, tmp_path / "run")
    assert "180 answers are empty" in told(result)


def test_captions(server: FakeServer, data: Path, tmp_path: Path) -> None:
    result = run(server, data, tmp_path / "run", "--strategies", "vhr", "--variant", "fixed", task="chair")
    assert result.exit_code == 0, told(result)
    assert {question(each) for each in server.asked} == {"Please describe this image in detail."}
    row = results(tmp_path / "run")["parts"][0]["rows"][1]
    assert set(row["metrics"]) == {"chair_s", "chair_i", "recall", "len"}
    assert row["against_plain"]["chair_s"]["test"] == "mcnemar"
    assert row["against_plain"]["chair_i"]["test"] == "exchange"
    captions, scored = tmp_path / "captions.jsonl", tmp_path / "scored"
    plain = [answer for answer in answers(tmp_path / "run") if answer["strategy"] == "plain"]
    captions.write_text(
        "".join(json.dumps({"image_id": int(each["question"]), "caption": each["text"]}) + "\n" for each in plain)
    )
    alone = invoke("score", "chair", "--captions", captions, "--annotations", data, "--variant", "fixed", "--json")
    expected = json.loads(alone.output)
    found = results(tmp_path / "run")["parts"][0]["rows"][0]["metrics"]
    assert {name: found[name]["value"] for name in found} == pytest.approx({name: expected[name] for name in found})
    assert not scored.exists()


def test_captions_are_broken_down_with_fixed_beside(server: FakeServer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(server, data, out, "--strategies", "vhr", task="chair").exit_code == 0
    fixed, parts, objects = results(out)["tables"]
    assert fixed["heads"] == ["CHAIR_s", "CHAIR_i", "Recall"]
    assert [row["strategy"] for row in parts["rows"]] == ["plain", "vhr"]
    # The scripted captions name their first object in the second fifth and the other in the fourth.
    assert [value is None for value in parts["rows"][0]["values"]] == [True, False, True, False, True]
    assert sum(objects["rows"][0]["values"]) > 0
    run(server, data, tmp_path / "other", "--strategies", "vhr", "--variant", "fixed", task="chair")
    rows = results(tmp_path / "other")["parts"][0]["rows"]
    values = [[row["metrics"][name]["value"] for name in ("chair_s", "chair_i", "recall")] for row in rows]
    assert [row["values"] for row in fixed["rows"]] == [pytest.approx(each) for each in values]
    for file in ("report.html", "report.md"):
        assert "Objects invented most often" in (out / file).read_text()


def test_the_server_of_make_serve_needs_no_url(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def nobody(client: Client) -> dict[str, str | None]:
        asked.append(client.base_url)
        raise Unavailable("nobody there")

    monkeypatch.setattr(Client, "models", nobody)
    assert "nobody there" in told(invoke("run", "pope", "--data", data, "--out", tmp_path / "run"))
    assert asked == ["http://127.0.0.1:8000"]


def test_shorter_captions_that_name_less_of_everything_are_warned_of(data: Path, tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Reply:
        if strategy(request) == "vhr":
            return Reply("Nothing.")
        return Reply("There is a dog, a chair, a cup, a boat, a kite and a car here.")

    with serving(FakeServer(script)) as server:
        assert run(server, data, tmp_path / "run", "--strategies", "vhr", task="chair").exit_code == 0
    said = results(tmp_path / "run")["warnings"]
    assert "vhr, captions: CHAIR_s falls together with recall: it names fewer objects of either kind." in said
    assert any(re.fullmatch(r"vhr, captions: Length moves by -90%\.", each) for each in said)
    assert "CHAIR_s falls together" in (tmp_path / "run" / "report.html").read_text()


def test_shards_merge_to_what_one_machine_makes(server: FakeServer, data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", [tmp_path / f"{number}" for number in (1, 2, 3)]
    run(server, data, whole, "--strategies", "agla")
    for number, part in enumerate(parts, 1):
        run(server, data, part, "--strategies", "agla", "--shard", f"{number}/3")
    assert invoke("merge", *parts, "--out", tmp_path / "merged").exit_code == 0
    assert quality(tmp_path / "merged") == quality(whole)
    assert invoke("verify", tmp_path / "merged").exit_code == 0
    assert "is one of the shards" in told(invoke("merge", *parts, "--out", parts[0]))
    assert "run of 3 shards" in told(invoke("merge", *parts[:2], "--out", tmp_path / "other"))


def test_verify_tells_what_changed(server: FakeServer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(server, data, out)
    kept = (out / "answers.jsonl").read_text()
    (out / "answers.jsonl").write_text(kept.replace('"text":"Yes"', '"text":"No"', 1))
    result = invoke("verify", out)
    assert result.exit_code == 1
    assert "the answers changed" in told(result)
    (out / "answers.jsonl").write_text(kept)
    assert invoke("verify", out).exit_code == 0
    (data / "pope" / "random.jsonl").write_text((data / "pope" / "random.jsonl").read_text() + "\n")
    assert invoke("verify", out).exit_code == 1

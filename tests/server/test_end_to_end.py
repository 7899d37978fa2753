"""A real server on a port, with the transformers engine and the embedded model, asked by the openai client."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
import uvicorn
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types.chat import ChatCompletion
from PIL import Image
from pydantic import BaseModel, Field

from bench import fuzz
from decoding.hf_engine.model import Model
from server.app import create_app
from server.settings import EMBEDDED, Settings

NAME = "onlyseen-tiny"
SCENES = sorted((EMBEDDED / "scenes" / "images").glob("*.png"))[:8]
STRATEGIES = [
    "plain",
    "truncate",
    "sharpen",
    "vcd",
    "vhr",
    "vdgd",
    "vcd+vhr",
    "agla",
    "agla+vhr",
    "code",
    "zoomeye",
    "auto",
]


@pytest.fixture
def _only_fake_strategies() -> None:
    """The installed ones, here."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = create_app(Settings(device="cpu"))
    config = uvicorn.Config(app, port=0, http="h11", log_level="warning", access_log=False)
    server, socket = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    base = f"http://127.0.0.1:{socket.getsockname()[1]}"
    try:
        wait_until_ready(base)
        yield base
    finally:
        server.should_exit = True
        thread.join()
        socket.close()


def wait_until_ready(base: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if httpx.get(f"{base}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{base} is not ready")


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def question(scene: Path, text: str = "Please describe this image in detail.") -> list[Any]:
    picture = "data:image/png;base64," + base64.b64encode(scene.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def greedy(strategy: str, scene: Path = SCENES[0] if SCENES else Path(), **fields: Any) -> dict[str, Any]:
    fields = {"model": f"{NAME}:{strategy}", "temperature": 0, "max_tokens": 16, **fields}
    return {"messages": question(scene)} | fields


def receipt(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.model_extra["onlyseen"]
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_streamed_equals_whole(client: OpenAI, strategy: str) -> None:
    whole = client.chat.completions.create(**greedy(strategy))
    chunks = list(client.chat.completions.create(**greedy(strategy), stream=True))
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == (
        whole.choices[0].message.content
    )
    told = [
        {name: value for name, value in receipt(answer).items() if name != "timings"} for answer in (whole, chunks[-1])
    ]
    assert told[0] == told[1]


@pytest.mark.parametrize("strategy", ["vcd+vhr", "agla+vhr"])
def test_suffix_and_body_agree(client: OpenAI, strategy: str) -> None:
    suffix = client.chat.completions.create(**greedy(strategy))
    body = client.chat.completions.create(
        **greedy("plain") | {"model": NAME}, extra_body={"decoding": {"strategy": strategy}}
    )
    assert suffix.choices[0].message.content == body.choices[0].message.content
    assert receipt(suffix)["parameters"] == receipt(body)["parameters"]


@pytest.mark.parametrize(
    ("strategy", "rows", "more", "branches"),
    [
        ("plain", 1, 0, []),
        ("truncate", 1, 0, []),
        ("vcd", 2, 0, ["vcd/noisy"]),
        ("vhr", 1, 1, []),
        ("vcd+vhr", 2, 1, ["vcd/noisy"]),
        ("agla", 2, 0, ["agla/local"]),
        ("agla+vhr", 2, 1, ["agla/local"]),
    ],
)
def test_the_receipt_adds_up(client: OpenAI, strategy: str, rows: int, more: int, branches: list[str]) -> None:
    """VHR's probe runs two prompts, of which the answer goes on from the main one: one row more in all."""
    answer = client.chat.completions.create(**greedy(strategy, max_tokens=6), extra_body={"ignore_eos": True})
    told = receipt(answer)
    assert answer.usage is not None
    assert told["branches"] == branches
    assert told["steps"] == answer.usage.completion_tokens == 6
    assert told["forward_passes"] == rows * 6 + more
    assert (told["changed_steps"] is None) == ("vhr" in strategy)


TRACED = {"extra_body": {"decoding": {"trace": True}, "ignore_eos": True}}


@pytest.mark.parametrize("strategy", ["vcd", "vhr"])
def test_the_changed_tokens_are_those_that_were_counted(client: OpenAI, strategy: str) -> None:
    answer = client.chat.completions.create(**greedy(strategy, SCENES[6], max_tokens=24), **TRACED)
    assert answer.choices[0].logprobs is not None
    changed = [(entry.model_extra or {})["changed"] for entry in answer.choices[0].logprobs.content or []]
    if strategy == "vhr":  # acts inside the model
        assert (changed, receipt(answer)["pictures"]) == ([None] * 24, {})
    else:
        assert len(changed) > sum(changed) == receipt(answer)["changed_steps"] > 0


def test_aglas_branch_saw_the_picture_with_black_in_it(client: OpenAI) -> None:
    asked = question(SCENES[2], "Is there a cat in the image?")
    *_, last = client.chat.completions.create(**greedy("agla", max_tokens=2, messages=asked), **TRACED, stream=True)
    (view,) = receipt(last)["pictures"]["agla/local"]
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(view.partition(",")[2]))))
    black = (seen == 0).all(-1)
    assert 0 < black.mean() < 1
    np.testing.assert_array_equal(seen[~black], np.asarray(Image.open(SCENES[2]).convert("RGB"))[~black])


@pytest.fixture
def rows_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each pass of the model had, told by the model itself."""
    rows: list[int] = []
    decode, prefill, extend = Model.decode, Model._prefill, Model.extend

    def decoding(model: Model, tokens: Any, *rest: Any) -> Any:
        rows.append(len(tokens))
        return decode(model, tokens, *rest)

    def prefilling(model: Model, prompts: Any, *rest: Any) -> Any:
        rows.append(len(prompts))
        return prefill(model, prompts, *rest)

    def extending(model: Model, caches: Any, *rest: Any) -> Any:
        rows.append(len(caches))
        return extend(model, caches, *rest)

    monkeypatch.setattr(Model, "extend", extending)
    monkeypatch.setattr(Model, "decode", decoding)
    monkeypatch.setattr(Model, "_prefill", prefilling)
    return rows


@pytest.mark.parametrize("strategy", ["mvp+agla+vhr", "zoomeye+mvp+icd", "code+agla+vhr", "auto+vcd+code"])
def test_three_at_once_cost_what_was_run(client: OpenAI, strategy: str, rows_run: list[int]) -> None:
    """One path of one view, since equal prompts that come together are run once and counted for each."""
    decoding = {
        "mvp": {"bottom_up": 0, "top_down": 0, "paths": 1, "description_tokens": 8},
        "zoomeye": {"side": 56},
        "code": {"description_tokens": 8},
        "auto": {"torn": 0.1},
    }
    chosen = {name: parameters for name, parameters in decoding.items() if name in strategy}
    fields = greedy(strategy, messages=question(SCENES[0], "Is there a dog in the image?"), logprobs=True)
    whole = client.chat.completions.create(**fields, extra_body={"decoding": chosen})
    told = receipt(whole)
    assert told["strategy"] == strategy
    assert told["forward_passes"] == sum(rows_run)
    rows_run.clear()
    chunks = list(client.chat.completions.create(**fields, extra_body={"decoding": chosen}, stream=True))
    assert receipt(chunks[-1])["forward_passes"] == sum(rows_run) == told["forward_passes"]
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert "".join(pieces) == whole.choices[0].message.content
    if "mvp" in strategy:
        assert pieces in (["Yes"], ["No"])  # a vote is one piece
        assert whole.usage is not None
        assert whole.usage.completion_tokens == told["steps"] == 1
        assert whole.choices[0].logprobs is not None
        assert [entry.token for entry in whole.choices[0].logprobs.content or []] == pieces


def test_a_strategy_that_would_not_act_is_refused(client: OpenAI) -> None:
    wanted: Any = {"decoding": {"strategy": "agla+mvp"}}
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(**greedy("plain") | {"model": NAME}, extra_body=wanted)
    with pytest.raises(NotFoundError) as unknown:
        client.chat.completions.create(**greedy("agla+mvp"))
    assert (refused.value.param, unknown.value.param) == ("decoding.strategy", "model")
    assert all("'agla' cannot stand outside 'mvp'" in each.value.message for each in (refused, unknown))


def test_a_token_that_is_ruled_out_has_a_finite_logprob(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        **greedy("truncate", max_tokens=2), logprobs=True, top_logprobs=3,
        extra_body={"decoding": {"truncate": {"beta": 1}}},
    )  # fmt: skip
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    first = answer.choices[0].logprobs.content[0]
    assert first.logprob == 0
    assert [top.logprob for top in first.top_logprobs] == [0, -9999, -9999]


def test_the_readme_example_runs(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[2]
    (example,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(root)
    exec(example.replace("http://127.0.0.1:8000", url), {})
    assert "Yes" in (said := capsys.readouterr().out) or "No" in said
    assert "'branches': ['agla/local']" in said


def test_grounding_is_measured_in_the_same_steps(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        **greedy("vcd", max_tokens=4), extra_body={"decoding": {"grounding": True}, "ignore_eos": True}
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    scores = [(entry.model_extra or {})["grounding"] for entry in logprobs.content or []]
    assert len(scores) == 4
    assert any(score != 0 for score in scores)
    assert receipt(answer)["forward_passes"] == 3 * 4


async def test_mixed_requests_side_by_side_say_what_they_say_alone(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def said(place: int) -> str | None:
            fields = greedy(STRATEGIES[place % len(STRATEGIES)], SCENES[place])
            answer: ChatCompletion = await client.chat.completions.create(**fields)
            return answer.choices[0].message.content

        alone = [await said(place) for place in range(8)]
        assert await asyncio.gather(*map(said, range(8))) == alone


async def test_health_answers_while_the_engine_works(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        fields = greedy("vcd", n=4, max_tokens=100, ignore_eos=True)
        work = [asyncio.create_task(client.post("/v1/chat/completions", json=fields)) for _ in range(2)]
        waits = []
        while not all(task.done() for task in work):
            began = time.perf_counter()
            assert (await client.get("/health")).status_code == 200
            waits.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)
        assert [task.result().status_code for task in work] == [200, 200]
        assert sorted(waits)[len(waits) // 2] < 0.5


async def test_a_stream_that_is_closed_ends_in_the_engine(url: str) -> None:
    """Previously generation could go on for a client that had gone: a tail of 8 long answers would take far longer."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for _ in range(8):
            fields = greedy("vcd", max_tokens=400)
            stream = await client.chat.completions.create(**fields, stream=True, extra_body={"ignore_eos": True})
            await anext(aiter(stream))
            await stream.close()
        answer = await client.chat.completions.create(**greedy("plain", max_tokens=2))
        assert receipt(answer)["timings"]["queue"] < 5


def test_choices_can_be_had_again(client: OpenAI) -> None:
    fields = greedy("plain", temperature=1, n=3, seed=11, max_tokens=8)
    first, again = (client.chat.completions.create(**fields) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    second = client.chat.completions.create(**fields | {"n": 1, "seed": 12})
    assert second.choices[0].message.content == texts[1]


def test_stop_strings_end_an_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(**greedy("plain")).choices[0].message.content
    assert whole
    word = whole.split()[1]
    cut = client.chat.completions.create(**greedy("plain", stop=word)).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(word)], "stop")


@pytest.mark.parametrize(
    "text", ["<image>", "<image><image>", "<|image_pad|>", "</s><s>USER: hi", "a\0b", "🙂" * 50, " "]
)
def test_special_text_harms_nothing(url: str, client: OpenAI, text: str) -> None:
    fields = greedy("vcd", max_tokens=4, messages=question(SCENES[0], text))
    assert httpx.post(f"{url}/v1/chat/completions", json=fields, timeout=60).status_code in (200, 400)
    assert client.chat.completions.create(**greedy("plain", max_tokens=2)).choices


def test_a_prompt_that_is_too_long(url: str) -> None:
    for strategy in ("plain", "vdgd"):
        fields = greedy(strategy, messages=question(SCENES[0], "word " * 50_000))
        error = httpx.post(f"{url}/v1/chat/completions", json=fields, timeout=60).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_a_prompt_that_a_strategy_makes_too_long(url: str) -> None:
    fields = greedy("plain") | {
        "model": NAME,
        "decoding": {"strategy": "vdgd", "vdgd": {"description_prompt": "q7 " * 1300}},
    }
    error = httpx.post(f"{url}/v1/chat/completions", json=fields, timeout=60).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "decoding.strategy")


def test_every_listed_model_answers(client: OpenAI) -> None:
    for model in client.models.list():
        answer = client.chat.completions.create(**greedy("plain", max_tokens=2) | {"model": model.id})
        assert answer.model == model.id


@pytest.mark.parametrize("strategy", ["plain", "agla"])
def test_an_answer_can_be_held_to_a_schema(client: OpenAI, strategy: str) -> None:
    class Seen(BaseModel):
        object: Literal["cat", "dog", "person"]
        count: int = Field(ge=0, le=9)

    answer = client.chat.completions.parse(**greedy(strategy, max_tokens=64), response_format=Seen)
    assert isinstance(answer.choices[0].message.parsed, Seen)
    assert answer.choices[0].finish_reason == "stop"


def test_texts_go_on(client: OpenAI) -> None:
    whole = client.completions.create(model=NAME, prompt="There is a", temperature=0, max_tokens=6)
    chunks = client.completions.create(model=NAME, prompt="There is a", temperature=0, max_tokens=6, stream=True)
    assert whole.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_the_tokens_of_an_answer_make_it(client: OpenAI) -> None:
    """What goes on from a text begins with the space between; an answer of its own begins with its first word."""
    goes_on = client.completions.create(model=NAME, prompt="A", temperature=0, max_tokens=3, logprobs=0).choices[0]
    assert goes_on.logprobs is not None
    assert "".join(goes_on.logprobs.tokens or []) == goes_on.text
    assert goes_on.text.startswith(" ")
    answer = client.chat.completions.create(**greedy("plain", logprobs=True)).choices[0]
    assert answer.logprobs is not None
    spelled = [bytes(entry.bytes or []) for entry in answer.logprobs.content or []]
    assert b"".join(spelled).decode() == answer.message.content


def test_a_prompt_has_as_many_tokens_as_it_costs(url: str, client: OpenAI) -> None:
    messages = question(SCENES[0])
    told = httpx.post(f"{url}/tokenize", json={"model": NAME, "messages": messages}).json()
    usage = client.chat.completions.create(**greedy("plain", max_tokens=2)).usage
    assert usage is not None
    assert told["count"] == len(told["tokens"]) == usage.prompt_tokens


def test_pope_as_one_file(client: OpenAI) -> None:
    rows = [json.loads(row) for row in (EMBEDDED / "scenes" / "pope" / "random.jsonl").read_text().splitlines()[:12]]
    lines = [
        {
            "custom_id": str(row["question_id"]),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": greedy("agla", messages=question(EMBEDDED / "scenes" / "images" / row["image"], row["text"])),
        }
        for row in rows
    ]
    file = client.files.create(file=("pope.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    end = time.monotonic() + 120
    while batch.status != "completed" and time.monotonic() < end:
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id or "").text.splitlines()]
    said = {each["custom_id"]: each["response"]["body"]["choices"][0]["message"]["content"] for each in answers}
    assert set(said) == {str(row["question_id"]) for row in rows}
    assert all(text.startswith(("Yes", "No")) for text in said.values())


def test_whatever_the_document_allows_is_answered_as_it_says(url: str) -> None:
    statuses = fuzz.run(url, examples=120)
    assert statuses[200] > 10
    assert statuses[400] > 10

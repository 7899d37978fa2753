"""A real server on a port, with the transformers engine and the embedded model, and the openai client."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types.chat import ChatCompletion
from PIL import Image
from pydantic import BaseModel, Field

from bench.robustness import fuzz
from decoding.hf_engine.model.model import Model
from server.settings import EMBEDDED_DIR
from tests.server.harness import NAME, SCENES, build_messages, greedy_request, url

__all__ = ["url"]  # a fixture

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
]


@pytest.fixture
def _use_fake_strategies() -> None:
    """Use the installed strategies."""


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def get_receipt(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.model_extra["onlyseen"]
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_streamed_text_equals_full_text(client: OpenAI, strategy: str) -> None:
    full = client.chat.completions.create(**greedy_request(strategy))
    chunks = list(client.chat.completions.create(**greedy_request(strategy), stream=True))
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == (
        full.choices[0].message.content
    )
    receipts = [
        {name: value for name, value in get_receipt(answer).items() if name != "timings"}
        for answer in (full, chunks[-1])
    ]
    assert receipts[0] == receipts[1]


@pytest.mark.parametrize("strategy", ["vcd+vhr", "agla+vhr"])
def test_suffix_and_body_give_the_same_answer(client: OpenAI, strategy: str) -> None:
    suffix = client.chat.completions.create(**greedy_request(strategy))
    body = client.chat.completions.create(
        **greedy_request("plain") | {"model": NAME}, extra_body={"decoding": {"strategy": strategy}}
    )
    assert suffix.choices[0].message.content == body.choices[0].message.content
    assert get_receipt(suffix)["parameters"] == get_receipt(body)["parameters"]


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
def test_receipt_counts_add_up(client: OpenAI, strategy: str, rows: int, more: int, branches: list[str]) -> None:
    """VHR's probe runs two prompts. The answer reuses the main one, so the probe adds one row."""
    answer = client.chat.completions.create(**greedy_request(strategy, max_tokens=6), extra_body={"ignore_eos": True})
    counts = get_receipt(answer)
    assert answer.usage is not None
    assert counts["branches"] == branches
    assert counts["steps"] == answer.usage.completion_tokens == 6
    assert counts["forward_passes"] == rows * 6 + more
    assert (counts["changed_steps"] is None) == ("vhr" in strategy)


TRACED = {"extra_body": {"decoding": {"trace": True}, "ignore_eos": True}}


@pytest.mark.parametrize("strategy", ["vcd", "vhr"])
def test_trace_marks_the_counted_changed_steps(client: OpenAI, strategy: str) -> None:
    answer = client.chat.completions.create(**greedy_request(strategy, SCENES[6], max_tokens=24), **TRACED)
    assert answer.choices[0].logprobs is not None
    changed = [(entry.model_extra or {})["changed"] for entry in answer.choices[0].logprobs.content or []]
    if strategy == "vhr":  # VHR acts inside the model
        assert (changed, get_receipt(answer)["pictures"]) == ([None] * 24, {})
    else:
        assert len(changed) > sum(changed) == get_receipt(answer)["changed_steps"] > 0


def test_agla_branch_image_is_masked_with_black(client: OpenAI) -> None:
    messages = build_messages(SCENES[2], "Is there a cat in the image?")
    *_, last = client.chat.completions.create(
        **greedy_request("agla", max_tokens=2, messages=messages), **TRACED, stream=True
    )
    assert list(get_receipt(last)["pictures"]) == ["agla/local", "agla/relevance map"]
    (url,) = get_receipt(last)["pictures"]["agla/local"]
    branch_image = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    black = (branch_image == 0).all(-1)
    assert 0 < black.mean() < 1
    np.testing.assert_array_equal(branch_image[~black], np.asarray(Image.open(SCENES[2]).convert("RGB"))[~black])


@pytest.fixture
def rows_per_pass(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of rows of each forward pass."""
    rows: list[int] = []
    decode, prefill, extend = Model.decode, Model._prefill, Model.extend

    def decoding(model: Model, tokens: Any, *rest: Any) -> Any:
        rows.append(len(tokens))
        return decode(model, tokens, *rest)

    def record_prefill(model: Model, prompts: Any, *rest: Any) -> Any:
        rows.append(len(prompts))
        return prefill(model, prompts, *rest)

    def record_extend(model: Model, states: Any, continuations: Any) -> Any:
        rows.append(sum(map(len, continuations)))
        return extend(model, states, continuations)

    monkeypatch.setattr(Model, "extend", record_extend)
    monkeypatch.setattr(Model, "decode", decoding)
    monkeypatch.setattr(Model, "_prefill", record_prefill)
    return rows


@pytest.mark.parametrize("strategy", ["mvp+agla+vhr", "zoomeye+mvp+icd", "code+agla+vhr", "vcd+agla+code"])
def test_receipt_of_three_strategies_counts_the_rows_run(
    client: OpenAI, strategy: str, rows_per_pass: list[int]
) -> None:
    """MVP runs one path of one view: equal prompts run once but count for each."""
    decoding = {
        "mvp": {"bottom_up": 0, "top_down": 0, "paths": 1, "description_tokens": 8},
        "zoomeye": {"side": 56},
        "code": {"description_tokens": 8},
        "vcd": {"lazy": True},
        "agla": {"lazy": True},
    }
    chosen = {name: parameters for name, parameters in decoding.items() if name in strategy}
    fields = greedy_request(strategy, messages=build_messages(SCENES[0], "Is there a dog in the image?"), logprobs=True)
    full = client.chat.completions.create(**fields, extra_body={"decoding": chosen})
    counts = get_receipt(full)
    assert counts["strategy"] == strategy
    assert counts["forward_passes"] == sum(rows_per_pass)
    rows_per_pass.clear()
    chunks = list(client.chat.completions.create(**fields, extra_body={"decoding": chosen}, stream=True))
    assert get_receipt(chunks[-1])["forward_passes"] == sum(rows_per_pass) == counts["forward_passes"]
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert "".join(pieces) == full.choices[0].message.content
    if "mvp" in strategy:
        assert pieces in (["Yes"], ["No"])  # a vote is one chunk
        assert full.usage is not None
        assert full.usage.completion_tokens == counts["steps"] == 1
        assert full.choices[0].logprobs is not None
        assert [entry.token for entry in full.choices[0].logprobs.content or []] == pieces


def test_incompatible_stack_is_refused(client: OpenAI) -> None:
    fields: Any = {"decoding": {"strategy": "agla+mvp"}}
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(**greedy_request("plain") | {"model": NAME}, extra_body=fields)
    with pytest.raises(NotFoundError) as unknown:
        client.chat.completions.create(**greedy_request("agla+mvp"))
    assert (refused.value.param, unknown.value.param) == ("decoding.strategy", "model")
    assert all("'agla' cannot stand outside 'mvp'" in each.value.message for each in (refused, unknown))


def test_masked_token_has_finite_logprob(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        **greedy_request("truncate", max_tokens=2), logprobs=True, top_logprobs=3,
        extra_body={"decoding": {"truncate": {"beta": 1}}},
    )  # fmt: skip
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    first = answer.choices[0].logprobs.content[0]
    assert first.logprob == 0
    assert [top.logprob for top in first.top_logprobs] == [0, -9999, -9999]


def test_readme_example_runs(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[2]
    (example,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(root)
    exec(example.replace("http://127.0.0.1:8000", url), {})
    assert "Yes" in (output := capsys.readouterr().out) or "No" in output
    assert "'branches': ['agla/local']" in output


def test_grounding_costs_one_row_per_step(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        **greedy_request("vcd", max_tokens=4), extra_body={"decoding": {"grounding": True}, "ignore_eos": True}
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    scores = [(entry.model_extra or {})["grounding"] for entry in logprobs.content or []]
    assert len(scores) == 4
    assert any(score != 0 for score in scores)
    assert get_receipt(answer)["forward_passes"] == 3 * 4


async def test_concurrent_requests_equal_single_requests(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def answer(place: int) -> str | None:
            fields = greedy_request(STRATEGIES[place % len(STRATEGIES)], SCENES[place])
            completion: ChatCompletion = await client.chat.completions.create(**fields)
            return completion.choices[0].message.content

        alone = [await answer(place) for place in range(8)]
        assert await asyncio.gather(*map(answer, range(8))) == alone


@pytest.mark.flaky(reruns=2)  # a busy machine may delay it
async def test_health_responds_while_engine_works(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        fields = greedy_request("vcd", n=4, max_tokens=100, ignore_eos=True)
        work = [asyncio.create_task(client.post("/v1/chat/completions", json=fields)) for _ in range(2)]
        waits = []
        while not all(task.done() for task in work):
            began = time.perf_counter()
            assert (await client.get("/health")).status_code == 200
            waits.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)
        assert [task.result().status_code for task in work] == [200, 200]
        assert sorted(waits)[len(waits) // 2] < 0.5


async def test_closed_stream_is_aborted_in_engine(url: str) -> None:
    """The queue would be long if the engine finished the 8 long answers of the closed streams."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        fields = greedy_request("vcd", max_tokens=400, ignore_eos=True, stream=True)
        for _ in range(8):
            async with (
                client.stream("POST", "/v1/chat/completions", json=fields) as response,
                aclosing(response.aiter_bytes()) as chunks,
            ):
                assert b"data: " in await anext(chunks)
        answer = await client.post("/v1/chat/completions", json=greedy_request("plain", max_tokens=2))
        assert answer.json()["onlyseen"]["timings"]["queue"] < 5


def test_seeded_choices_are_reproducible(client: OpenAI) -> None:
    fields = greedy_request("plain", temperature=1, n=3, seed=11, max_tokens=8)
    first, repeated = (client.chat.completions.create(**fields) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in repeated.choices]
    second = client.chat.completions.create(**fields | {"n": 1, "seed": 12})
    assert second.choices[0].message.content == texts[1]


def test_stop_string_ends_answer(client: OpenAI) -> None:
    full = client.chat.completions.create(**greedy_request("plain")).choices[0].message.content
    assert full
    word = full.split()[1]
    cut = client.chat.completions.create(**greedy_request("plain", stop=word)).choices[0]
    assert (cut.message.content, cut.finish_reason) == (full[: full.index(word)], "stop")


@pytest.mark.parametrize(
    "text", ["<image>", "<image><image>", "<|image_pad|>", "</s><s>USER: hi", "a\0b", "🙂" * 50, " "]
)
def test_special_text_does_not_break_server(url: str, client: OpenAI, text: str) -> None:
    fields = greedy_request("vcd", max_tokens=4, messages=build_messages(SCENES[0], text))
    assert httpx.post(f"{url}/v1/chat/completions", json=fields, timeout=60).status_code in (200, 400)
    assert client.chat.completions.create(**greedy_request("plain", max_tokens=2)).choices


def test_prompt_that_is_too_long_is_refused(url: str) -> None:
    for strategy in ("plain", "vdgd"):
        fields = greedy_request(strategy, messages=build_messages(SCENES[0], "word " * 50_000))
        error = httpx.post(f"{url}/v1/chat/completions", json=fields, timeout=60).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_prompt_lengthened_by_strategy_names_strategy(url: str) -> None:
    fields = greedy_request("plain") | {
        "model": NAME,
        "decoding": {"strategy": "vdgd", "vdgd": {"description_prompt": "q7 " * 1300}},
    }
    error = httpx.post(f"{url}/v1/chat/completions", json=fields, timeout=60).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "decoding.strategy")


def test_every_listed_model_answers(client: OpenAI) -> None:
    for model in client.models.list():
        answer = client.chat.completions.create(**greedy_request("plain", max_tokens=2) | {"model": model.id})
        assert answer.model == model.id


@pytest.mark.parametrize("strategy", ["plain", "agla"])
def test_schema_is_enforced(client: OpenAI, strategy: str) -> None:
    class Seen(BaseModel):
        object: Literal["cat", "dog", "person"]
        count: int = Field(ge=0, le=9)

    answer = client.chat.completions.parse(**greedy_request(strategy, max_tokens=64), response_format=Seen)
    assert isinstance(answer.choices[0].message.parsed, Seen)
    assert answer.choices[0].finish_reason == "stop"


def test_completion_streamed_equals_full(client: OpenAI) -> None:
    full = client.completions.create(model=NAME, prompt="There is a", temperature=0, max_tokens=6)
    chunks = client.completions.create(model=NAME, prompt="There is a", temperature=0, max_tokens=6, stream=True)
    assert full.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in chunks) == full.choices[0].text


def test_logprob_tokens_join_to_the_text(client: OpenAI) -> None:
    """A continuation begins with a space; a chat answer begins with its first word."""
    continued = client.completions.create(model=NAME, prompt="A", temperature=0, max_tokens=3, logprobs=0).choices[0]
    assert continued.logprobs is not None
    assert "".join(continued.logprobs.tokens or []) == continued.text
    assert continued.text.startswith(" ")
    answer = client.chat.completions.create(**greedy_request("plain", logprobs=True)).choices[0]
    assert answer.logprobs is not None
    token_bytes = [bytes(entry.bytes or []) for entry in answer.logprobs.content or []]
    assert b"".join(token_bytes).decode() == answer.message.content


def test_tokenize_count_equals_prompt_tokens(url: str, client: OpenAI) -> None:
    messages = build_messages(SCENES[0])
    body = httpx.post(f"{url}/tokenize", json={"model": NAME, "messages": messages}).json()
    usage = client.chat.completions.create(**greedy_request("plain", max_tokens=2)).usage
    assert usage is not None
    assert body["count"] == len(body["tokens"]) == usage.prompt_tokens


def test_one_batch_answers_pope_questions(client: OpenAI) -> None:
    rows = [
        json.loads(row) for row in (EMBEDDED_DIR / "scenes" / "pope" / "random.jsonl").read_text().splitlines()[:12]
    ]
    lines = [
        {
            "custom_id": str(row["question_id"]),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": greedy_request(
                "agla", messages=build_messages(EMBEDDED_DIR / "scenes" / "images" / row["image"], row["text"])
            ),
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
    texts = {each["custom_id"]: each["response"]["body"]["choices"][0]["message"]["content"] for each in answers}
    assert set(texts) == {str(row["question_id"]) for row in rows}
    assert all(text.startswith(("Yes", "No")) for text in texts.values())


def test_fuzzed_requests_conform_to_openapi(url: str) -> None:
    statuses = fuzz.fuzz_server(url, examples=120)
    assert statuses[200] > 10
    assert statuses[400] > 10


COUNT_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "count",
        "parameters": {
            "type": "object",
            "properties": {
                "thing": {"enum": ["cat", "dog"]},
                "number": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["thing", "number"],
        },
    },
}
STOP_TOOL: Any = {"type": "function", "function": {"name": "stop"}}


@pytest.mark.parametrize("strategy", ["plain", "vcd"])
def test_forced_call_matches_its_schema_streamed_and_in_full(client: OpenAI, strategy: str) -> None:
    fields: Any = {
        **greedy_request(strategy, max_tokens=60),
        "tools": [COUNT_TOOL, STOP_TOOL],
        "tool_choice": "required",
    }
    choice = client.chat.completions.create(**fields).choices[0]
    (call,) = choice.message.tool_calls or ()
    assert (choice.finish_reason, call.type) == ("tool_calls", "function")
    arguments = json.loads(call.function.arguments)
    assert arguments == {} if call.function.name == "stop" else sorted(arguments) == ["number", "thing"]
    with client.chat.completions.stream(**fields) as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)


def test_structured_outputs_and_bias_act_on_the_answer(client: OpenAI) -> None:
    extras: list[dict[str, Any]] = [
        {"structured_outputs": {"choice": ["a cat", "a dog"]}},
        {"structured_outputs": {"regex": "a (cat|dog)"}},
        {"structured_outputs": {"grammar": 'start: "a " THING\nTHING: "cat" | "dog"'}},
    ]
    for extra in extras:
        answer = client.chat.completions.create(**greedy_request("plain", max_tokens=20), extra_body=extra)
        assert answer.choices[0].message.content in ("a cat", "a dog")
        assert answer.choices[0].finish_reason == "stop"
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(**greedy_request("plain"), logit_bias={"999999999": 1})
    assert refused.value.param == "logit_bias"

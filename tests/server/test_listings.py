"""/v1/models, /v1/strategies and /openapi.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params
from pydantic import BaseModel

from server.chat_request import ChatRequest
from server.responses_request import ResponsesRequest
from server.text_request import TextRequest
from server.unsupported import CHAT, HARMLESS, RESPONSES, TEXT
from tests.server.conftest import Serve, Served
from tests.server.fakes import ALL, FakeEngine, Plain


async def test_models_are_listed_with_their_suffixes(served: Served) -> None:
    models = [model.id async for model in served.openai.models.list()]
    assert models == ["tiny", "tiny:blind", "tiny:focus", "tiny:plain", "tiny:vote"]
    assert (await served.openai.models.retrieve("tiny:blind")).owned_by == "onlyseen"


async def test_strategies_that_cannot_run_are_not_among_the_models(serve: Serve) -> None:
    served = await serve(FakeEngine(capabilities=ALL - {"branches"}))
    assert "tiny:blind" not in [model.id async for model in served.openai.models.list()]
    strategies = (await served.http.get("/v1/strategies")).json()["data"]
    runs = {entry["name"]: entry["engines"][0] for entry in strategies}
    assert runs["plain"] == {"engine": "hf", "runs": True, "reason": None}
    assert runs["blind"] == {"engine": "hf", "runs": False, "reason": "it lacks branches"}


async def test_one_model(served: Served) -> None:
    assert (await served.http.get("/v1/models/tiny:blind+focus")).json()["id"] == "tiny:blind+focus"
    for path in ("tiny:nonsense", "other", "a/b:c", "tiny:blind+blind"):
        response = await served.http.get(f"/v1/models/{path}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_the_fingerprint_follows_the_weights(serve: Serve, tmp_path: Path) -> None:
    """Of the model and of the matcher, at every name of the model; none for weights that lie nowhere here."""

    async def told(**folders: str) -> str:
        models = (await (await serve(**folders)).http.get("/v1/models")).json()["data"]
        (found,) = {model["fingerprint"] for model in models}
        return str(found)

    model, matcher, copy = (tmp_path / name for name in ("model", "matcher", "copy"))
    for folder in (model, matcher, copy):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
    first = await told(model=str(model), matcher=str(matcher))
    assert first == await told(model=str(copy), matcher=str(matcher))
    (matcher / "model.safetensors").write_bytes(b"others")
    second = await told(model=str(model), matcher=str(matcher))
    (model / "model.safetensors").write_bytes(b"others")
    third = await told(model=str(model), matcher=str(matcher))
    assert len({first, second, third}) == 3
    assert await told(model="nobody/nothing") == "None"


async def test_hub_ids_are_names(serve: Serve) -> None:
    served = await serve(served_name="llava-hf/llava-1.5-7b-hf")
    response = await served.http.get("/v1/models/llava-hf/llava-1.5-7b-hf:blind")
    assert response.json()["id"] == "llava-hf/llava-1.5-7b-hf:blind"


async def test_strategies(served: Served) -> None:
    entries = {entry["name"]: entry for entry in (await served.http.get("/v1/strategies")).json()["data"]}
    blind = entries["blind"]
    assert (blind["summary"], blind["needs"]) == ("Contrast with a prompt without pictures.", ["branches"])
    assert blind["cost"] == {"branches": 1, "questions": {}}
    assert blind["parameters"]["properties"]["alpha"]["default"] == 1.0
    assert entries["focus"]["cost"] == {"branches": 0, "questions": {"probed prompts": 2}}


async def test_a_broken_strategy_takes_no_other_off_the_list(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Plain, ask: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Plain, "prepare", broken)
    from server import catalogue

    catalogue.rehearsed.cache_clear()
    entries = {entry["name"]: entry for entry in (await served.http.get("/v1/strategies")).json()["data"]}
    catalogue.rehearsed.cache_clear()
    assert entries["plain"]["engines"][0]["reason"] == "the strategy fails in rehearsal"
    assert entries["blind"]["engines"][0]["runs"]


async def test_openapi_names_every_parameter_of_every_strategy(served: Served) -> None:
    document = (await served.http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    decoding = schemas["Decoding"]
    assert decoding["additionalProperties"] is False
    assert set(decoding["properties"]) == {"strategy", "grounding", "trace", "blind", "focus", "plain", "vote"}
    pattern = decoding["properties"]["strategy"]["anyOf"][0]["pattern"]
    assert re.match(pattern, "blind+focus")
    assert not re.match(pattern, "blind+nonsense")
    blind = decoding["properties"]["blind"]
    assert "alpha" in (schemas[blind["$ref"].rsplit("/")[-1]] if "$ref" in blind else blind)["properties"]
    for reference in re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(document)):
        assert reference in schemas
    assert {"grounding", "changed"} <= set(schemas["TokenLogprob"]["properties"])
    assert "forward_passes" in schemas["Receipt"]["properties"]


@pytest.mark.parametrize(
    ("theirs", "ours", "refused"),
    [
        (completion_create_params.CompletionCreateParamsStreaming, TextRequest, TEXT),
        (response_create_params.ResponseCreateParamsStreaming, ResponsesRequest, RESPONSES),
        (chat_params.CompletionCreateParamsStreaming, ChatRequest, CHAT),
    ],
)
def test_every_field_of_openais_requests_is_supported_or_refused_with_a_reason(
    theirs: Any, ours: type[BaseModel], refused: Mapping[str, str]
) -> None:
    fields = {name for base in theirs.__mro__ for name in getattr(base, "__annotations__", {})}
    assert fields
    assert fields - set(ours.model_fields) - set(refused) == set()
    assert not set(ours.model_fields) & set(refused)


def test_harmless_values_are_of_fields_that_would_be_refused() -> None:
    assert set(HARMLESS) <= {*CHAT, *TEXT, *RESPONSES}

"""/openapi.json."""

from __future__ import annotations

import asyncio
import json
import re
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any

import pytest
from fastapi.openapi import utils
from starlette.responses import JSONResponse

from tests.server.conftest import FakeServer


async def test_openapi_has_every_strategy_parameter(server: FakeServer) -> None:
    document = (await server.http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    decoding = schemas["Decoding"]
    assert decoding["additionalProperties"] is False
    assert set(decoding["properties"]) == {
        *("strategy", "grounding", "trace", "check"),
        *("blind", "focus", "plain", "vote"),
    }
    pattern = decoding["properties"]["strategy"]["anyOf"][0]["pattern"]
    assert re.match(pattern, "blind+focus")
    assert not re.match(pattern, "blind+nonsense")
    blind = decoding["properties"]["blind"]
    assert "alpha" in (schemas[blind["$ref"].rsplit("/")[-1]] if "$ref" in blind else blind)["properties"]
    for reference in re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(document)):
        assert reference in schemas
    assert {"grounding", "changed"} <= set(schemas["LogprobEntry"]["properties"])
    assert {"forward_passes", "claims"} <= set(schemas["Receipt"]["properties"])
    check = decoding["properties"]["check"]["anyOf"][1]
    assert set((schemas[check["$ref"].rsplit("/")[-1]] if "$ref" in check else check)["properties"]) == {
        "debias",
        "views",
        "question",
        "language",
    }


async def test_document_is_built_and_serialized_once(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    build, render = utils.get_openapi, JSONResponse.render

    def record_build(**options: Any) -> dict[str, Any]:
        calls.append("build")
        return build(**options)

    def record_render(response: JSONResponse, content: Any) -> bytes:
        calls.append("serialize")
        return render(response, content)

    monkeypatch.setattr(utils, "get_openapi", record_build)
    monkeypatch.setattr(JSONResponse, "render", record_render)
    responses = await asyncio.gather(*(server.http.get("/openapi.json") for _ in range(40)))
    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses}) == 1
    assert calls == ["build", "serialize"]


def test_dependencies_run_on_the_event_loop(server: FakeServer) -> None:
    """FastAPI runs each synchronous dependency of each request in a thread."""
    calls, pending = (
        set[Any](),
        [
            route.dependant
            for router in server.app.routes
            for route in router.original_router.routes  # type: ignore[attr-defined]
        ],
    )
    while pending:
        dependant = pending.pop()
        pending += dependant.dependencies
        calls |= {each.call for each in dependant.dependencies}
    assert len(calls) >= 5
    assert not [call for call in calls if not (iscoroutinefunction(call) or isasyncgenfunction(call))]

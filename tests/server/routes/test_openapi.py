"""/openapi.json."""

from __future__ import annotations

import json
import re
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any

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
        "question",
        "language",
    }


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

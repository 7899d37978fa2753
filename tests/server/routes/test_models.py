"""/v1/models, /v1/strategies and /openapi.json."""

from __future__ import annotations

from pathlib import Path

from tests.server.conftest import FakeServer, StartServer
from tests.server.fakes import ALL_CAPABILITIES, FakeEngine


async def test_models_are_listed_with_strategy_suffixes(server: FakeServer) -> None:
    models = [model.id async for model in server.openai.models.list()]
    assert models == ["tiny", "tiny:blind", "tiny:focus", "tiny:plain", "tiny:vote"]
    assert (await server.openai.models.retrieve("tiny:blind")).owned_by == "onlyseen"


async def test_models_omit_strategies_that_engine_cannot_run(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(capabilities=ALL_CAPABILITIES - {"branches"}))
    assert "tiny:blind" not in [model.id async for model in server.openai.models.list()]
    strategies = (await server.http.get("/v1/strategies")).json()["data"]
    runs = {entry["name"]: entry["engines"][0] for entry in strategies}
    assert runs["plain"] == {"engine": "hf", "runs": True, "reason": None}
    assert runs["blind"] == {"engine": "hf", "runs": False, "reason": "it lacks branches"}


async def test_retrieve_model_accepts_suffixes_of_strategies(server: FakeServer) -> None:
    assert (await server.http.get("/v1/models/tiny:blind+focus")).json()["id"] == "tiny:blind+focus"
    assert (await server.http.get("/v1/models/tiny:blind:alpha=2")).json()["id"] == "tiny:blind:alpha=2"
    for path in ("tiny:blind:alpha=x", "tiny:nonsense", "other", "a/b:c", "tiny:blind+blind"):
        response = await server.http.get(f"/v1/models/{path}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_fingerprint_depends_on_weights_only(start_server: StartServer, tmp_path: Path) -> None:
    """It covers model and matcher, is the same for every suffix, and is null for weights that are not local."""

    async def get_fingerprint(**folders: str) -> str:
        models = (await (await start_server(**folders)).http.get("/v1/models")).json()["data"]
        (found,) = {model["fingerprint"] for model in models}
        return str(found)

    model, matcher, copy = (tmp_path / name for name in ("model", "matcher", "copy"))
    for folder in (model, matcher, copy):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
    first = await get_fingerprint(model=str(model), matcher=str(matcher))
    assert first == await get_fingerprint(model=str(copy), matcher=str(matcher))
    (matcher / "model.safetensors").write_bytes(b"others")
    second = await get_fingerprint(model=str(model), matcher=str(matcher))
    (model / "model.safetensors").write_bytes(b"others")
    third = await get_fingerprint(model=str(model), matcher=str(matcher))
    assert len({first, second, third}) == 3
    assert await get_fingerprint(model="nobody/nothing") == "None"


async def test_hub_id_is_a_valid_model_name(start_server: StartServer) -> None:
    server = await start_server(served_name="llava-hf/llava-1.5-7b-hf")
    response = await server.http.get("/v1/models/llava-hf/llava-1.5-7b-hf:blind")
    assert response.json()["id"] == "llava-hf/llava-1.5-7b-hf:blind"

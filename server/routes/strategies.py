"""GET /v1/strategies: every registered strategy with its parameters, its cost and whether the engine can run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync
from fastapi import APIRouter
from pydantic import BaseModel, Field, JsonValue
from starlette.responses import Response

from decoding.pipeline.capabilities import describe_missing
from server.service import Service, ServiceDep
from server.serving.row_estimator import try_dry_run

if TYPE_CHECKING:
    from decoding.strategy import Strategy


class DefaultCost(BaseModel):
    """The cost with default parameters."""

    branches: int = Field(description="Batch rows per step, beside the main one.")
    questions: dict[str, int] = Field(description="Extra requests, by kind.")


class EngineCompatibility(BaseModel):
    """Whether an engine can run a strategy."""

    engine: str
    runs: bool
    reason: str | None = Field(description="Why the engine cannot run it.")


class StrategyInfo(BaseModel):
    """The description of a strategy."""

    name: str
    paper: str
    summary: str
    parameters: dict[str, JsonValue] = Field(description="JSON Schema of the field decoding.<name>.")
    needs: list[str] = Field(description="The engine capabilities that it needs.")
    cost: DefaultCost | None = Field(description="null if unknown before a request.")
    votes: bool = Field(description="It may build the answer itself, in one token without grounding.")
    engines: list[EngineCompatibility]


class StrategyList(BaseModel):
    """All registered strategies."""

    object: str = "list"
    data: list[StrategyInfo]


router = APIRouter()


@router.get("/v1/strategies", response_model=StrategyList)
async def list_strategies(service: ServiceDep) -> Response:
    """List the values of `decoding.strategy`. Names joined by '+' combine strategies, outermost first."""
    return Response((await describe_strategies(service)).body, media_type="application/json")


@dataclass(frozen=True, slots=True)
class StrategyListBody:
    """The strategies, and the body of the response that lists them."""

    strategies: tuple[StrategyInfo, ...]
    body: bytes


async def describe_strategies(service: Service) -> StrategyListBody:
    """Describe all strategies, sorted by name, in a thread: their dry runs edit an image. The result is kept."""
    from decoding import registry

    engine = service.ready_engine
    strategies = tuple(registry.list_strategies().values())
    return await run_sync(
        describe_all,
        strategies,
        service.settings.engine,
        frozenset[str](engine.capabilities),
        tuple(sorted(engine.missing_reasons.items())),
        limiter=service.strategies_limiter,
    )


@cache
def describe_all(
    strategies: tuple[type[Strategy], ...],
    engine: str,
    capabilities: frozenset[str],
    reasons: tuple[tuple[str, str], ...],
) -> StrategyListBody:
    data = [describe_strategy(strategy, engine, capabilities, dict(reasons)) for strategy in strategies]
    return StrategyListBody(tuple(data), StrategyList(data=data).model_dump_json().encode())


def describe_strategy(
    strategy: type[Strategy], engine: str, capabilities: frozenset[str], reasons: Mapping[str, str]
) -> StrategyInfo:
    from decoding import registry

    result = try_dry_run(strategy)
    needs = sorted(result.needs) if result else []
    missing = [need for need in needs if need not in capabilities]
    reason = describe_missing(missing, reasons) if missing else None if result else "the strategy fails in a dry run"
    return StrategyInfo(
        name=strategy.name,
        paper=strategy.paper,
        summary=registry.get_summary(strategy),
        parameters=strategy.model_json_schema(),
        needs=list(needs),
        cost=DefaultCost(branches=len(result.branches), questions=dict(result.extra_requests)) if result else None,
        votes=result is not None and result.votes,
        engines=[EngineCompatibility(engine=engine, runs=reason is None, reason=reason)],
    )

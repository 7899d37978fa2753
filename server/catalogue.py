"""What can be chosen: every registered strategy with its parameters, its cost and the engines that can run it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import structlog
from anyio.to_thread import run_sync
from pydantic import BaseModel, Field, JsonValue

from decoding.lacking import lacking
from server.service import Service

if TYPE_CHECKING:
    from decoding.rehearsal import Rehearsal
    from decoding.strategy import Strategy

log = structlog.get_logger("onlyseen.server")


class Cost(BaseModel):
    """With its default parameters."""

    branches: int = Field(description="Rows a generated token, beside the main one.")
    questions: dict[str, int] = Field(description="Asked before the first token, by kind.")


class Runs(BaseModel):
    engine: str
    runs: bool
    reason: str | None = Field(description="Why not.")


class Entry(BaseModel):
    name: str
    paper: str
    summary: str
    parameters: dict[str, JsonValue] = Field(description="JSON Schema of what goes under decoding.<name>.")
    needs: list[str] = Field(description="Of an engine.")
    cost: Cost | None = Field(description="null where it cannot be told beforehand.")
    votes: bool = Field(description="It may answer in words of its own, in one piece: they have no grounding.")
    engines: list[Runs]


async def catalogue(service: Service) -> list[Entry]:
    """Sorted by name. Off the event loop: strategies edit a picture while they rehearse."""
    engine = service.ready_engine
    return await run_sync(entries, service.settings.engine, frozenset[str](engine.capabilities))


def entries(engine: str, capabilities: frozenset[str]) -> list[Entry]:
    from decoding import registry

    return [entry(strategy, engine, capabilities) for strategy in registry.strategies().values()]


def entry(strategy: type[Strategy], engine: str, capabilities: frozenset[str]) -> Entry:
    from decoding import registry

    rehearsal = rehearsed(strategy)
    needs = sorted(rehearsal.needs) if rehearsal else []
    missing = [need for need in needs if need not in capabilities]
    reason = lacking(missing) if missing else None if rehearsal else "the strategy fails in rehearsal"
    return Entry(
        name=strategy.name,
        paper=strategy.paper,
        summary=registry.summary(strategy),
        parameters=schema(strategy),
        needs=list(needs),
        cost=Cost(branches=len(rehearsal.branches), questions=dict(rehearsal.questions)) if rehearsal else None,
        votes=rehearsal is not None and rehearsal.votes,
        engines=[Runs(engine=engine, runs=reason is None, reason=reason)],
    )


@cache
def rehearsed(strategy: type[Strategy]) -> Rehearsal | None:
    from decoding.rehearsal import rehearse

    try:
        return rehearse(strategy())
    except Exception as error:  # a stranger's code: it must not take the others off the list
        log.warning("a strategy fails in rehearsal", strategy=strategy.name, exc_info=error)
        return None


def schema(strategy: type[Strategy]) -> dict[str, Any]:
    return strategy.model_json_schema()

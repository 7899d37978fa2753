"""GET /v1/strategies."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from server.catalogue import Entry, catalogue
from server.service import TheService

router = APIRouter()


class StrategyList(BaseModel):
    object: str = "list"
    data: list[Entry]


@router.get("/v1/strategies")
async def list_strategies(service: TheService) -> StrategyList:
    """What `decoding.strategy` can be; with '+' they combine, the outermost first."""
    return StrategyList(data=await catalogue(service))

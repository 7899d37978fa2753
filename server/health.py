"""GET /health says whether the process should go on; GET /ready whether requests should be sent to it."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from server.errors import ErrorBody, Unavailable
from server.service import STOPPING, TheService

router = APIRouter(responses={503: {"model": ErrorBody}})


class Health(BaseModel):
    status: Literal["ok", "ready"]


@router.get("/health")
async def health(service: TheService) -> Health:
    """200 from the first moment, also while the model is being loaded; 503 when the engine is dead."""
    if not service.is_alive:
        raise Unavailable("The engine is dead.")
    return Health(status="ok")


@router.get("/ready")
async def ready(service: TheService) -> Health:
    """200 once the model is loaded and warm, until the server is told to stop."""
    _ = service.ready_engine
    if service.is_leaving:
        raise Unavailable(STOPPING)
    return Health(status="ready")

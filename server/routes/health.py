"""GET /health shows whether the process is alive; GET /ready shows whether it accepts requests."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from server.errors import ErrorBody, ServiceUnavailable
from server.service import DRAINING_MESSAGE, ServiceDep


class Health(BaseModel):
    """The state of the server."""

    status: Literal["ok", "ready"]


router = APIRouter(responses={503: {"model": ErrorBody}})


@router.get("/health")
async def get_health(service: ServiceDep) -> Health:
    """Return 200 while the process is alive, also during model loading, and 503 after the engine has died.

    \f

    Raises:
        ServiceUnavailable: The engine has died.
    """
    if not service.is_alive:
        raise ServiceUnavailable("The engine is dead.")
    return Health(status="ok")


@router.get("/ready")
async def get_readiness(service: ServiceDep) -> Health:
    """Return 200 from the end of the warm-up until the server begins to stop, and 503 otherwise.

    \f

    Raises:
        ServiceUnavailable: The model is not loaded yet, or the server is draining.
    """
    _ = service.ready_engine
    if service.is_draining:
        raise ServiceUnavailable(DRAINING_MESSAGE)
    return Health(status="ready")

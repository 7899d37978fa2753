"""GET /metrics and GET /version."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.responses import Response

from server.service import TheService

router = APIRouter()


class Version(BaseModel):
    version: str


@router.get("/version")
async def get_version() -> Version:
    """Of the server."""
    return Version(version=version("onlyseen"))


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: TheService) -> Response:
    """In Prometheus' text format."""
    if service.is_settled and service.is_alive:
        await service.metrics.engine.refresh(service.engine)
    return Response(generate_latest(service.metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

"""GET /metrics and GET /version."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import Response

from server.service import ServiceDep


class Version(BaseModel):
    """The version of this package."""

    version: str


router = APIRouter()


@router.get("/version")
async def get_version() -> Version:
    """Return the server's version."""
    return Version(version=version("onlyseen"))


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def get_metrics(service: ServiceDep) -> Response:
    """Return the metrics in Prometheus' text format."""
    is_running = service.is_startup_finished and service.is_alive
    page = await service.metrics.build_page(service.engine if is_running else None)
    return Response(page, headers={"content-type": CONTENT_TYPE_LATEST})

"""GET /v1/models: the model by its name, and once more for every strategy that can be chosen by suffix."""

from __future__ import annotations

from fastapi import APIRouter
from openai.types import Model
from pydantic import BaseModel

from server import doors
from server.catalogue import catalogue
from server.errors import ErrorBody
from server.service import Service, TheService

router = APIRouter()


class ServedModel(Model):
    fingerprint: str | None
    """Of the files of the model and its matcher: it changes with the weights, whatever their name."""


class ModelList(BaseModel):
    object: str = "list"
    data: list[ServedModel]


@router.get("/v1/models")
async def list_models(service: TheService) -> ModelList:
    """Strategies that this engine cannot run are left out; combinations such as `agla+vhr` are taken, not listed."""
    runnable = [entry.name for entry in await catalogue(service) if entry.engines[0].runs]
    return ModelList(data=[model(service, suffix) for suffix in (None, *runnable)])


@router.get("/v1/models/{model_id:path}", responses={404: {"model": ErrorBody}})
async def retrieve_model(model_id: str, service: TheService) -> ServedModel:
    """One model, with or without a strategy as its suffix."""
    _ = service.ready_engine
    return model(service, doors.suffix_of(model_id, service.settings.name))


def model(service: Service, suffix: str | None) -> ServedModel:
    name = service.settings.name
    identity = name if suffix is None else f"{name}:{suffix}"
    return ServedModel(
        id=identity,
        object="model",
        created=service.began,
        owned_by="onlyseen",
        fingerprint=service.fingerprint,
    )

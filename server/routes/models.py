"""GET /v1/models: the served model, and the model with each strategy as its suffix."""

from __future__ import annotations

from fastapi import APIRouter
from openai.types import Model
from pydantic import BaseModel, Field

from server.errors import ErrorBody
from server.routes.strategies import describe_strategies
from server.service import Service, ServiceDep
from server.serving.strategy_selection import parse_model_suffix


class ServedModel(Model):
    """A model of the list, with a fingerprint of its weights."""

    fingerprint: str | None = Field(
        description="A hash of the weights of model and matcher. null if they are not on this machine."
    )


class ModelList(BaseModel):
    """The names under which the server accepts requests."""

    object: str = "list"
    data: list[ServedModel]


router = APIRouter()


@router.get("/v1/models")
async def list_models(service: ServiceDep) -> ModelList:
    """List the model with each strategy that the engine can run. A combination such as `agla+vhr` works unlisted."""
    strategies = (await describe_strategies(service)).strategies
    runnable = [strategy.name for strategy in strategies if strategy.engines[0].runs]
    return ModelList(data=[build_model(service, suffix) for suffix in (None, *runnable)])


@router.get("/v1/models/{model_id:path}", responses={404: {"model": ErrorBody}})
async def retrieve_model(model_id: str, service: ServiceDep) -> ServedModel:
    """Retrieve the model, with or without a strategy as its suffix."""
    _ = service.ready_engine
    suffix = parse_model_suffix(model_id, service.model_name)
    return build_model(service, suffix.text if suffix else None)


def build_model(service: Service, suffix: str | None) -> ServedModel:
    name = service.model_name
    return ServedModel(
        id=name if suffix is None else f"{name}:{suffix}",
        object="model",
        created=service.created_at,
        owned_by="onlyseen",
        fingerprint=service.fingerprint,
    )

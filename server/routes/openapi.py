"""GET /openapi.json: FastAPI's document, with the request models that the routes validate themselves."""

from __future__ import annotations

import re
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi import utils
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from server.errors import ErrorBody
from server.routes.batches import BatchRequest
from server.routes.tokenize import TokenizeRequest
from server.schemas.chat_request import ChatCompletionRequest
from server.schemas.completion_request import CompletionRequest
from server.schemas.responses_request import ResponsesRequest
from server.service import Service, ServiceDep

COMPONENTS = "#/components/schemas/"
REQUEST_MODELS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/batches": BatchRequest,
    "/tokenize": TokenizeRequest,
}

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
async def get_openapi(request: Request, service: ServiceDep) -> Response:
    """Return the document. The first request builds it for the others in a thread, which takes seconds."""
    body = service.openapi_body or await run_sync(build_body, request.app, limiter=service.openapi_limiter)
    return Response(body, media_type="application/json")


def build_body(app: FastAPI) -> bytes:
    """Build the response once, as the strategies do not change while the server runs. For one thread at a time."""
    service: Service = app.state.service
    if service.openapi_body is None:
        service.openapi_body = bytes(JSONResponse(build_document(app)).body)
    return service.openapi_body


def build_document(app: FastAPI) -> dict[str, Any]:
    """Build the document."""
    document = utils.get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document["components"]["schemas"]
    models: list[type[BaseModel]] = [*REQUEST_MODELS.values(), ErrorBody]
    for model in models:
        schema = model.model_json_schema(ref_template=COMPONENTS + "{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
        if "model" in model.model_fields:
            schema["properties"]["model"]["pattern"] = build_model_pattern(app.state.service.settings.name)
    for path, model in REQUEST_MODELS.items():
        document["paths"][path]["post"]["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": COMPONENTS + model.__name__}}},
        }
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # the server refuses with 400
            operation["responses"]["default"] = describe_error_response()
    for fastapi_schema in ("HTTPValidationError", "ValidationError"):
        schemas.pop(fastapi_schema, None)
    return document


def build_model_pattern(name: str) -> str:
    """Build the regular expression of the served model's name, with or without strategies as its suffix."""
    from decoding import registry

    strategies = "|".join(registry.list_strategies())
    escaped = re.sub(r"([^\w/-])", r"\\\1", name)
    return rf"^{escaped}(:({strategies})(\+({strategies}))*)?$"


def describe_error_response() -> dict[str, Any]:
    return {
        "description": "Every refusal and failure.",
        "content": {"application/json": {"schema": {"$ref": COMPONENTS + ErrorBody.__name__}}},
    }

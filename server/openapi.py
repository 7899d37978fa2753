"""/openapi.json and /docs: FastAPI's document, with the request models that routes read by themselves."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.responses import HTMLResponse, JSONResponse

from server.batch.batches import BatchRequest
from server.chat_request import ChatRequest
from server.errors import ErrorBody
from server.responses_request import ResponsesRequest
from server.text_request import TextRequest
from server.tokenize import TokenizeRequest

COMPONENTS = "#/components/schemas/"
BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": TextRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/batches": BatchRequest,
    "/tokenize": TokenizeRequest,
}


router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
def openapi(request: Request) -> JSONResponse:
    """In a thread: the first time takes seconds."""
    return JSONResponse(document(request.app))


@router.get("/docs")
def docs() -> HTMLResponse:
    return get_swagger_ui_html(openapi_url="/openapi.json", title="OnlySeen")


def document(app: FastAPI) -> dict[str, Any]:
    """Made once: the strategies are those installed when the server started."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = made["components"]["schemas"]
        models: list[type[BaseModel]] = [*BODIES.values(), ErrorBody]
        for model in models:
            schema = model.model_json_schema(ref_template=COMPONENTS + "{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
            if "model" in model.model_fields:
                schema["properties"]["model"]["pattern"] = models_pattern(app.state.service.settings.name)
        for path, model in BODIES.items():
            made["paths"][path]["post"]["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": COMPONENTS + model.__name__}}},
            }
        for operations in made["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # refusals are 400
                operation["responses"]["default"] = refused()
        for fastapis_own in ("HTTPValidationError", "ValidationError"):
            schemas.pop(fastapis_own, None)
        app.openapi_schema = made
    return app.openapi_schema


def models_pattern(name: str) -> str:
    """The served model, with or without strategies behind its name."""
    from decoding import registry

    strategies = "|".join(registry.strategies())
    escaped = re.sub(r"([^\w/-])", r"\\\1", name)
    return rf"^{escaped}(:({strategies})(\+({strategies}))*)?$"


def refused() -> dict[str, Any]:
    return {
        "description": "Every refusal and failure.",
        "content": {"application/json": {"schema": {"$ref": COMPONENTS + ErrorBody.__name__}}},
    }

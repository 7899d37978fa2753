"""Every field of vLLM's requests is supported, ignored, or refused with a reason: another release may have new ones."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
from pydantic import BaseModel

from server.schemas import chat_request, completion_request, normalized_request, responses_request

# They would change what a format allows, and are refused as unknown fields.
REFUSED_OPTIONS = {"disable_additional_properties", "whitespace_pattern"}


def list_names(model: Any) -> set[str]:
    """Return the names of a model's fields as a request has them."""
    if dataclasses.is_dataclass(model):
        return {field.name for field in dataclasses.fields(model) if not field.name.startswith("_")}
    return {field.alias or name for name, field in model.model_fields.items()}


@pytest.mark.filterwarnings("default")  # vLLM's own
@pytest.mark.parametrize(
    ("module", "name", "ours", "refused"),
    [
        ("openai.chat_completion.protocol", "ChatCompletionRequest", chat_request.ChatCompletionRequest, chat_request),
        ("openai.completion.protocol", "CompletionRequest", completion_request.CompletionRequest, completion_request),
        ("openai.responses.protocol", "ResponsesRequest", responses_request.ResponsesRequest, responses_request),
        ("generate.base.protocol", "StreamOptions", normalized_request.StreamOptions, None),
        ("generate.base.protocol", "StructuredOutputsParams", normalized_request.StructuredOutputs, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_field_of_vllm_is_known(module: str, name: str, ours: type[BaseModel], refused: Any) -> None:
    fields = list_names(getattr(importlib.import_module(f"vllm.entrypoints.{module}"), name))
    assert len(fields) > 1
    known = set(refused.UNSUPPORTED) if refused else REFUSED_OPTIONS
    assert fields - list_names(ours) - known == set()

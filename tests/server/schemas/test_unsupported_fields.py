"""Every field of OpenAI's requests is supported, or refused with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params
from pydantic import BaseModel

from server.schemas import chat_request, completion_request, responses_request
from server.schemas.field_policy import NEUTRAL_VALUES


@pytest.mark.parametrize(
    ("theirs", "ours", "refused"),
    [
        (
            completion_create_params.CompletionCreateParamsStreaming,
            completion_request.CompletionRequest,
            completion_request.UNSUPPORTED,
        ),
        (
            response_create_params.ResponseCreateParamsStreaming,
            responses_request.ResponsesRequest,
            responses_request.UNSUPPORTED,
        ),
        (chat_params.CompletionCreateParamsStreaming, chat_request.ChatCompletionRequest, chat_request.UNSUPPORTED),
    ],
)
def test_every_openai_field_is_supported_or_has_a_reason(
    theirs: Any, ours: type[BaseModel], refused: Mapping[str, str]
) -> None:
    fields = {name for base in theirs.__mro__ for name in getattr(base, "__annotations__", {})}
    assert fields
    assert fields - set(ours.model_fields) - set(refused) == set()
    assert not set(ours.model_fields) & set(refused)


def test_neutral_values_belong_to_unsupported_fields() -> None:
    modules = (chat_request, completion_request, responses_request)
    assert set(NEUTRAL_VALUES) <= {name for module in modules for name in module.UNSUPPORTED}

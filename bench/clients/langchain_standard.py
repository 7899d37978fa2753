"""LangChain's standard tests of chat models: `pytest bench/clients/langchain_standard.py`, with langchain-tests."""

from __future__ import annotations

import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatOpenAI(ChatModelIntegrationTests):
    """The suite. The properties state which features the server has."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        base_url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
        return {
            "model": "onlyseen-tiny",
            "base_url": base_url,
            "api_key": "none",
            "temperature": 0,
            "stream_usage": True,
        }

    @property
    def has_tool_calling(self) -> bool:
        return False  # most of these tests let the model decide, or send results of tools

    @property
    def has_structured_output(self) -> bool:
        return False  # the embedded model does not end the strings of a joke; `frameworks.py` has another schema

    @property
    def supports_json_mode(self) -> bool:
        return False  # the embedded model adds members to any JSON object without end

    @property
    def supports_image_inputs(self) -> bool:
        return False  # these tests download an image from Wikimedia

    @property
    def supports_image_urls(self) -> bool:
        return False  # the server fetches images of allowed hosts only

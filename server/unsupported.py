"""OpenAI's request fields that this server does not have, by route, with the reason. Each is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decoding.errors import BadRequest

NO_TOOLS = "the served models call no tools"
NO_AUDIO = "answers are text"
NO_STORE = "nothing is stored"
NO_PLATFORM = "it belongs to OpenAI's platform"

CHAT: Mapping[str, str] = {
    "audio": NO_AUDIO,
    "function_call": NO_TOOLS,
    "functions": NO_TOOLS,
    "logit_bias": "token ids differ from model to model",
    "metadata": NO_STORE,
    "modalities": NO_AUDIO,
    "moderation": NO_PLATFORM,
    "parallel_tool_calls": NO_TOOLS,
    "prediction": NO_PLATFORM,
    "prompt_cache_key": NO_PLATFORM,
    "prompt_cache_options": NO_PLATFORM,
    "prompt_cache_retention": NO_PLATFORM,
    "reasoning_effort": "the served models do not reason before they answer",
    "safety_identifier": NO_PLATFORM,
    "service_tier": NO_PLATFORM,
    "store": NO_STORE,
    "tool_choice": NO_TOOLS,
    "tools": NO_TOOLS,
    "verbosity": "say in the prompt how long the answer should be",
    "web_search_options": NO_TOOLS,
}

TEXT: Mapping[str, str] = {
    "best_of": "ask for n and choose by logprobs",
    "echo": "the prompt is not said again",
    "logit_bias": CHAT["logit_bias"],
    "prompt_logprobs": "log-probabilities are told of what is generated",
    "suffix": "the served models write onwards only",
}

RESPONSES: Mapping[str, str] = {
    "access_programs": NO_PLATFORM,
    "background": NO_STORE,
    "background_options": NO_STORE,
    "context_management": "a conversation is taken whole",
    "conversation": NO_STORE,
    "image": "answers are text",
    "input_transformations": NO_PLATFORM,
    "max_tool_calls": NO_TOOLS,
    "moderation": NO_PLATFORM,
    "parallel_tool_calls": NO_TOOLS,
    "previous_response_id": f"{NO_STORE}: send the whole conversation",
    "prompt": NO_PLATFORM,
    "prompt_cache_key": NO_PLATFORM,
    "prompt_cache_options": NO_PLATFORM,
    "prompt_cache_retention": NO_PLATFORM,
    "reasoning": CHAT["reasoning_effort"],
    "safety_identifier": NO_PLATFORM,
    "service_tier": NO_PLATFORM,
    "store": NO_STORE,
    "stream_options": "events are not padded",
    "tool_choice": NO_TOOLS,
    "tools": NO_TOOLS,
    "truncation": "a prompt that is too long is refused",
}

# What some clients always send, and what asks for nothing that is not done anyway.
HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "background": (False,),
    "best_of": (1,),
    "echo": (False,),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "stream_options": ({}, {"include_obfuscation": False}),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncation": ("disabled",),
    "verbosity": ("medium",),
}


def supported(data: Mapping[str, Any], unsupported: Mapping[str, str]) -> dict[str, Any]:
    """The fields that are left for the request model.

    Raises:
        BadRequest: a field asks for what the server does not do.
    """
    for name, reason in unsupported.items():
        value = data.get(name)
        if value is not None and not any(same(harmless, value) for harmless in HARMLESS.get(name, ())):
            raise BadRequest(f"'{name}' is not supported: {reason}.", param=name, code="unsupported_parameter")
    return {name: value for name, value in data.items() if name not in unsupported}


def same(one: Any, other: Any) -> bool:
    """False is no 0 here, nor is 1 true."""
    return type(one) is type(other) and bool(one == other)

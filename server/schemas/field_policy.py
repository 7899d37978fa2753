"""The policy of fields that the server does not implement: ignored, accepted with a neutral value, or refused by name.

A field of OpenAI's or vLLM's requests that cannot change the answer is ignored, and the receipt lists it. The request
models declare such fields with a type and bounds, and mark them with `IGNORED`. A field that would change the answer is
refused with a reason, unless its value requests nothing. Any other field is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, Field

from decoding.errors import BadRequest
from server.schemas.base import Metadata, StrictModel

IGNORED = object()  # marks a field of a request model in its annotation

# Why a field is not supported.
NO_TOOLS = "the served models do not call tools"
NO_AUDIO = "answers are text"
NO_STORE = "the server stores no responses"
NO_PLATFORM = "the field belongs to OpenAI's platform"
NO_REASONING = "the served models do not reason before they answer"
NO_TEMPLATE = "the operator of the server chooses the chat template"
NO_CHAT = "a text to continue has no chat template"
NO_PROCESSOR = "the operator of the server chooses the image processor"
NO_TENSORS = "the server takes no tensors"
NO_TRANSFER = "the server does not transfer caches"
NO_TOKEN_IDS = "the response has no token ids"
ONLY_CHAT = "/v1/chat/completions has it"
ONLY_STRATEGIES = "the field decoding selects what changes the scores of tokens"

# Fields of vLLM's requests for chat completions and completions.
VLLM_UNSUPPORTED: Mapping[str, str] = {
    "add_special_tokens": "the tokenizer of the model decides about special tokens",
    "allowed_token_ids": ONLY_STRATEGIES,
    "bad_words": ONLY_STRATEGIES,
    "cache_salt": "the server separates the caches of API keys",
    "chat_template": NO_TEMPLATE,
    "chat_template_kwargs": NO_TEMPLATE,
    "documents": NO_TEMPLATE,
    "ec_transfer_params": NO_TRANSFER,
    **dict.fromkeys(
        ("guided_choice", "guided_grammar", "guided_json", "guided_regex"),
        "vLLM has replaced it by structured_outputs",
    ),
    "include_stop_str_in_output": "answers end before the stop string",
    "kv_transfer_params": NO_TRANSFER,
    "logprob_token_ids": "log-probabilities are those of the likeliest tokens",
    "media_io_kwargs": NO_PROCESSOR,
    "mm_processor_kwargs": NO_PROCESSOR,
    "prompt_embeds": NO_TENSORS,
    "repetition_detection": "answers end at the end token, a stop string or the limit",
    "return_prompt_text": "the response does not repeat the prompt",
    "return_token_ids": NO_TOKEN_IDS,
    "return_token_offsets": NO_TOKEN_IDS,
    "return_tokens_as_token_ids": NO_TOKEN_IDS,
    "skip_special_tokens": "the text of an answer has no special tokens",
    "thinking_token_budget": NO_REASONING,
    "truncate_prompt_tokens": "the server refuses a prompt that is too long",
    "use_beam_search": "answers are sampled token by token",
    "vllm_xargs": ONLY_STRATEGIES,
    "watermarking": ONLY_STRATEGIES,
}

# Some clients always send these fields. These values request nothing, so the server accepts them.
NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "background": (False,),
    "bad_words": ([],),
    "best_of": (1,),
    "add_generation_prompt": (True,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "enable_response_messages": (False,),
    "frequency_penalty": (0.0, 0),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "presence_penalty": (0.0, 0),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1.0, 1),
    "response_format": ({"type": "text"},),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_token_offsets": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "stop": ([],),
    "stop_token_ids": ([],),
    "truncation": ("disabled",),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
}
# Values of ignored fields that request nothing. The receipt does not list them, and a strict server accepts them.
NEUTRAL_IGNORED: Mapping[str, tuple[Any, ...]] = {
    "detail": ("auto",),
    "include_obfuscation": (False,),
    "include_reasoning": (True,),
    "length_penalty": (1.0,),
    "metadata": ({},),
    "mm_payload": ("tensors",),
    "priority": (0,),
    "routed_experts_prompt_start": (0,),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
}

ShortText = Annotated[str, Field(max_length=512)]
IgnoredObject = Annotated[
    dict[Annotated[str, Field(max_length=64)], ShortText | int | float | bool | None], Field(max_length=16)
]
Ignored = Field(default=None, description="Ignored.")


class PlatformFields(StrictModel):
    """The fields of OpenAI's platform that have no effect here."""

    prompt_cache_key: Annotated[ShortText | None, IGNORED] = Ignored
    prompt_cache_options: Annotated[IgnoredObject | None, IGNORED] = Ignored
    prompt_cache_retention: Annotated[ShortText | None, IGNORED] = Ignored
    safety_identifier: Annotated[ShortText | None, IGNORED] = Ignored
    service_tier: Annotated[ShortText | None, IGNORED] = Ignored
    store: Annotated[bool | None, IGNORED] = Ignored


class EngineFields(StrictModel):
    """The fields of vLLM's requests that have no effect here."""

    include_reasoning: Annotated[bool | None, IGNORED] = Ignored
    length_penalty: Annotated[float | None, IGNORED] = Ignored
    metadata: Annotated[Metadata | None, IGNORED] = Ignored
    mm_payload: Annotated[ShortText | None, IGNORED] = Ignored
    priority: Annotated[int | None, IGNORED] = Ignored
    request_id: Annotated[ShortText | None, IGNORED] = Ignored
    return_mm_kwargs: Annotated[bool | None, IGNORED] = Ignored
    routed_experts_prompt_start: Annotated[int | None, IGNORED] = Ignored
    session_id: Annotated[ShortText | None, IGNORED] = Ignored
    spaces_between_special_tokens: Annotated[bool | None, IGNORED] = Ignored
    stream_interval: Annotated[int | None, IGNORED] = Ignored
    truncation_side: Annotated[ShortText | None, IGNORED] = Ignored  # truncate_prompt_tokens is refused


def reject_unsupported(data: Mapping[str, Any], unsupported: Mapping[str, str]) -> dict[str, Any]:
    """Remove the fields that the server does not support, after a check that they request nothing.

    Args:
        data: The parsed body.
        unsupported: Each unsupported field of the route, with the reason.

    Returns:
        The fields for the request model.

    Raises:
        BadRequest: An unsupported field has a value that is not neutral.
    """
    for name, reason in unsupported.items():
        value = data.get(name)
        if value is not None and not is_neutral(name, value, NEUTRAL_VALUES):
            raise BadRequest(f"'{name}' is not supported: {reason}.", param=name, code="unsupported_parameter")
    return {name: value for name, value in data.items() if name not in unsupported}


def is_neutral(name: str, value: Any, neutral_values: Mapping[str, tuple[Any, ...]]) -> bool:
    """Return whether a value requests nothing. Python's equality of False and 0, and of True and 1, does not count."""
    return any(type(neutral) is type(value) and neutral == value for neutral in neutral_values.get(name, ()))


def list_ignored(request: BaseModel) -> dict[str, str]:
    """List the fields of a validated request that are set and have no effect.

    Returns:
        Name of a field, such as `messages[].name` -> path of its first occurrence, such as `messages[1].name`.
    """
    found: dict[str, str] = {}
    for name, path in iter_ignored(request):
        found.setdefault(name, path)
    return found


def iter_ignored(part: BaseModel, name: str = "", path: str = "") -> Iterator[tuple[str, str]]:
    """Walk the set fields of a part of a request.

    Yields:
        Name and path of each field that has no effect, as in `list_ignored`.
    """
    ignored = list_ignored_names(type(part))
    for field in type(part).model_fields:
        if field not in part.model_fields_set:
            continue
        value = getattr(part, field)
        if field in ignored:
            if value is not None and not is_neutral(field, value, NEUTRAL_IGNORED):
                yield f"{name}{field}", f"{path}{field}"
        elif isinstance(value, BaseModel):
            yield from iter_ignored(value, f"{name}{field}.", f"{path}{field}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from iter_ignored(item, f"{name}{field}[].", f"{path}{field}[{index}].")


@lru_cache(256)
def list_ignored_names(model: type[BaseModel]) -> frozenset[str]:
    """Return the names of a model's fields that are marked with `IGNORED`."""
    return frozenset(name for name, field in model.model_fields.items() if IGNORED in field.metadata)

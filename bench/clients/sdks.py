"""Cases of the packages that send requests themselves: openai, litellm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

IMAGE = Path(__file__).parents[2] / "embedded" / "samples" / "kitchen.png"
QUESTION = "Is there a cup in the image?"


class Presence(BaseModel):
    """Whether there is a cup."""

    model_config = ConfigDict(extra="forbid")

    cup: bool


TOOL: Any = {"type": "function", "function": {"name": "report", "parameters": Presence.model_json_schema()}}
OTHER: Any = {"type": "function", "function": {"name": "stop"}}


def get_data_url() -> str:
    import base64

    return "data:image/png;base64," + base64.b64encode(IMAGE.read_bytes()).decode()


def build_messages(**fields: Any) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": get_data_url()}}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": parts, **fields}]


def create_openai(base_url: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=base_url, api_key="none", max_retries=0)


def openai_chat(base_url: str, model: str) -> None:
    """Chat about an image, with fields of OpenAI's platform."""
    answer = create_openai(base_url).chat.completions.create(
        model=model,
        messages=build_messages(name="ann"),
        max_tokens=20,
        metadata={"run": "1"},
        store=True,
        prompt_cache_key="a",
        safety_identifier="b",
        service_tier="flex",
    )
    assert answer.choices[0].message.content
    ignored = answer.model_extra["onlyseen"]["ignored"]
    assert {"messages[].name", "metadata", "store", "prompt_cache_key"} <= set(ignored)


def openai_stream(base_url: str, model: str) -> None:
    """Stream with the usage in each chunk."""
    options: Any = {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": False}
    stream = create_openai(base_url).chat.completions.create(
        model=model, messages=build_messages(), max_tokens=10, stream=True, stream_options=options
    )
    counts = [chunk.usage.completion_tokens for chunk in stream]
    assert counts == sorted(counts)
    assert counts[-1] > 0


def openai_tools(base_url: str, model: str) -> None:
    """Call a forced tool: named, required and streamed."""
    client = create_openai(base_url)
    named: Any = {"type": "function", "function": {"name": "report"}}
    for tools, choice in (([TOOL, OTHER], named), ([TOOL, OTHER], "required"), ([TOOL], "required")):
        fields: Any = {"model": model, "messages": build_messages(), "tools": tools, "tool_choice": choice}
        (call,) = client.chat.completions.create(**fields, temperature=0).choices[0].message.tool_calls
        json.loads(call.function.arguments)
        with client.chat.completions.stream(**fields, temperature=0) as stream:
            (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
        assert streamed.function.arguments == call.function.arguments


def openai_parse(base_url: str, model: str) -> None:
    """Parse a structured answer with a pydantic model."""
    answer = create_openai(base_url).chat.completions.parse(
        model=model, messages=build_messages(), response_format=Presence
    )
    assert isinstance(answer.choices[0].message.parsed, Presence)


def openai_responses(base_url: str, model: str) -> None:
    """Responses, full and streamed."""
    client = create_openai(base_url)
    fields: Any = {"model": model, "input": QUESTION, "include": ["reasoning.encrypted_content"], "store": False}
    assert client.responses.create(**fields, max_output_tokens=10).output_text
    with client.responses.stream(**fields) as stream:  # the package raises for an answer that is cut off
        assert stream.get_final_response().output_text


def openai_completions(base_url: str, model: str) -> None:
    """Completions."""
    assert create_openai(base_url).completions.create(model=model, prompt="A cat", max_tokens=5).choices[0].text


def openai_extras(base_url: str, model: str) -> None:
    """structured_outputs of vLLM, and logit_bias."""
    client = create_openai(base_url)
    extra = {"structured_outputs": {"choice": ["yes", "no"]}}
    fields: Any = {"model": model, "messages": build_messages()}
    assert client.chat.completions.create(**fields, extra_body=extra).choices[0].message.content in ("yes", "no")
    assert client.chat.completions.create(**fields, logit_bias={"100": -100}, max_tokens=5).choices


def litellm_chat(base_url: str, model: str) -> None:
    """Chat, full and streamed."""
    import litellm

    fields: Any = {"model": f"openai/{model}", "api_base": base_url, "api_key": "none", "messages": build_messages()}
    assert litellm.completion(**fields, max_tokens=10, metadata={"a": "b"}).choices[0].message.content
    pieces = [chunk.choices[0].delta.content for chunk in litellm.completion(**fields, max_tokens=10, stream=True)]
    assert "".join(piece or "" for piece in pieces)


def litellm_tools(base_url: str, model: str) -> None:
    """Call a forced tool."""
    import litellm

    answer = litellm.completion(
        model=f"openai/{model}",
        api_base=base_url,
        api_key="none",
        messages=build_messages(),
        tools=[TOOL, OTHER],
        tool_choice="required",
    )
    assert answer.choices[0].message.tool_calls[0].function.name in ("report", "stop")


CLIENTS: dict[str, tuple[str, list[Any]]] = {
    "openai": (
        "openai",
        [
            openai_chat,
            openai_stream,
            openai_tools,
            openai_parse,
            openai_responses,
            openai_completions,
            openai_extras,
        ],
    ),
    "litellm": ("litellm", [litellm_chat, litellm_tools]),
}

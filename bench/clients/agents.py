"""Cases of Pydantic-AI, AutoGen, inspect_ai and guidellm."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sdks import IMAGE, QUESTION, Presence, get_data_url


def create_provider(base_url: str) -> Any:
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIProvider(base_url=base_url, api_key="none")


def pydantic_ai_tools(base_url: str, model: str) -> None:
    """Chat model with an output type, by a forced tool."""
    from pydantic_ai import Agent, BinaryContent
    from pydantic_ai.models.openai import OpenAIChatModel

    agent = Agent(OpenAIChatModel(model, provider=create_provider(base_url)), output_type=Presence)
    result = agent.run_sync([QUESTION, BinaryContent(IMAGE.read_bytes(), media_type="image/png")])
    assert isinstance(result.output, Presence)


def pydantic_ai_native(base_url: str, model: str) -> None:
    """Chat model with NativeOutput."""
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel

    agent = Agent(OpenAIChatModel(model, provider=create_provider(base_url)), output_type=NativeOutput(Presence))
    assert isinstance(agent.run_sync(QUESTION).output, Presence)


def pydantic_ai_responses(base_url: str, model: str) -> None:
    """Responses model with text."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIResponsesModel

    agent = Agent(OpenAIResponsesModel(model, provider=create_provider(base_url)), model_settings={"max_tokens": 60})
    assert agent.run_sync(QUESTION).output


def autogen_chat(base_url: str, model: str) -> None:
    """Chat with messages that name their source."""
    from autogen_core.models import ModelInfo, UserMessage
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    async def run() -> None:
        info = ModelInfo(
            vision=True, function_calling=False, json_output=True, family="unknown", structured_output=True
        )
        client = OpenAIChatCompletionClient(
            model=model, base_url=base_url, api_key="none", model_info=info, max_tokens=10
        )
        result = await client.create([UserMessage(content=QUESTION, source="ann")])
        assert result.content
        await client.close()

    asyncio.run(run())


def inspect_generate(base_url: str, model: str) -> None:
    """Generate an answer about an image."""
    from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig, get_model

    async def run() -> None:
        os.environ.update(OPENAI_BASE_URL=base_url, OPENAI_API_KEY="none")
        content: Any = [ContentImage(image=get_data_url()), ContentText(text=QUESTION)]
        config = GenerateConfig(max_tokens=10, seed=1)
        chat = get_model(f"openai/{model}", base_url=base_url, api_key="none", config=config, responses_api=False)
        assert (await chat.generate([ChatMessageUser(content=content)])).completion

    asyncio.run(run())


def guidellm_benchmark(base_url: str, model: str) -> None:
    """Benchmark with five requests."""
    with TemporaryDirectory() as folder:
        command = [
            str(Path(sys.executable).with_name("guidellm")), "run",
            "--backend", f"kind=openai_http,target={base_url.removesuffix('/v1')},model={model}",
            "--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=5",
            "--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=8",
            "--tokenizer", f"kind=huggingface_auto,model={IMAGE.parents[1] / 'model'}",
            "--output", f"kind=json,path={folder}/report.json", "--disable-console",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (done.stdout + done.stderr)[-300:]
        text = next(Path(folder).glob("*.json")).read_text()
        import json

        totals = json.loads(text)["benchmarks"][0]["metrics"]["request_totals"]
        assert totals["successful"] == 5, totals


CLIENTS: dict[str, tuple[str, list[Any]]] = {
    "pydantic-ai": ("pydantic-ai-slim", [pydantic_ai_tools, pydantic_ai_native, pydantic_ai_responses]),
    "autogen": ("autogen-ext", [autogen_chat]),
    "inspect_ai": ("inspect-ai", [inspect_generate]),
    "guidellm": ("guidellm", [guidellm_benchmark]),
}

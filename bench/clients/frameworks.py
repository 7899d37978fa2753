"""Cases of frameworks for structured answers and chains: Instructor, LangChain, LlamaIndex, DSPy."""

from __future__ import annotations

from typing import Any

from sdks import QUESTION, Presence, build_messages, create_openai, get_data_url


def instructor_tools(base_url: str, model: str) -> None:
    """Mode TOOLS."""
    import instructor

    client = instructor.from_openai(create_openai(base_url), mode=instructor.Mode.TOOLS)
    assert isinstance(client.create(model=model, messages=build_messages(), response_model=Presence), Presence)


def instructor_schema(base_url: str, model: str) -> None:
    """Mode JSON_SCHEMA."""
    import instructor

    client = instructor.from_openai(create_openai(base_url), mode=instructor.Mode.JSON_SCHEMA)
    assert isinstance(client.create(model=model, messages=build_messages(), response_model=Presence), Presence)


def create_langchain(base_url: str, model: str, **fields: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=base_url, api_key="none", model=model, temperature=0, max_retries=0, **fields)


def langchain_chat(base_url: str, model: str) -> None:
    """Chat with a named message, full and streamed."""
    from langchain_core.messages import HumanMessage

    chat = create_langchain(base_url, model, max_completion_tokens=10)
    messages = [HumanMessage(build_messages()[0]["content"], name="ann")]
    assert chat.invoke(messages).content
    assert "".join(chunk.content for chunk in chat.stream(messages))


def langchain_structured(base_url: str, model: str) -> None:
    """with_structured_output by function_calling and by json_schema."""
    from langchain_core.messages import HumanMessage

    chat = create_langchain(base_url, model)
    for method in ("function_calling", "json_schema"):
        structured = chat.with_structured_output(Presence, method=method)
        assert isinstance(structured.invoke([HumanMessage(build_messages()[0]["content"])]), Presence)


def langchain_tools(base_url: str, model: str) -> None:
    """bind_tools with tool_choice any; a chain without it is refused by name."""
    from openai import BadRequestError

    chat = create_langchain(base_url, model)
    (call,) = chat.bind_tools([Presence], tool_choice="any").invoke(QUESTION).tool_calls
    assert call["name"] == "Presence"
    refused = None
    try:
        chat.bind_tools([Presence]).invoke(QUESTION)
    except BadRequestError as error:
        refused = error.param
    assert refused == "tool_choice"


def create_llama_index(base_url: str, model: str) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(
        model=model,
        api_base=base_url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        max_tokens=60,
    )


def llama_index_chat(base_url: str, model: str) -> None:
    """Chat about an image, full and streamed."""
    from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock

    blocks = [ImageBlock(url=get_data_url()), TextBlock(text=QUESTION)]
    llm, message = create_llama_index(base_url, model), ChatMessage(role="user", blocks=blocks)
    assert llm.chat([message]).message.content
    assert "".join(part.delta or "" for part in llm.stream_chat([message]))


def llama_index_structured(base_url: str, model: str) -> None:
    """Structured answer by a forced tool."""
    from llama_index.core.prompts import PromptTemplate

    answer = create_llama_index(base_url, model).structured_predict(Presence, PromptTemplate(QUESTION))
    assert isinstance(answer, Presence)


def dspy_predict(base_url: str, model: str) -> None:
    """Call an LM."""
    import dspy

    lm = dspy.LM(f"openai/{model}", api_base=base_url, api_key="none", max_tokens=60, cache=False)
    assert lm(QUESTION)


CLIENTS: dict[str, tuple[str, list[Any]]] = {
    "instructor": ("instructor", [instructor_tools, instructor_schema]),
    "langchain": ("langchain-openai", [langchain_chat, langchain_structured, langchain_tools]),
    "llama-index": ("llama-index-llms-openai-like", [llama_index_chat, llama_index_structured]),
    "dspy": ("dspy", [dspy_predict]),
}

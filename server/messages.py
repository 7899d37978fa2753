"""The conversation of a chat request."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from server.question import ImageAt, Turn
from server.wire import STRING_OR_ARRAY, Wire


class TextPart(Wire):
    type: Literal["text"]
    text: str


class ImageUrl(Wire):
    url: str = Field(
        description="data:image/png;base64,... (or jpeg, webp, gif), or http(s) at an allowed host; up to 25 megapixels"
    )
    detail: Literal["auto", "low", "high"] | None = Field(
        default=None, description="A hint without effect: every image is seen at the resolution the model was made for."
    )


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl


TextParts = Annotated[list[TextPart], Field(min_length=1)]
AnyPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
AnyParts = Annotated[list[AnyPart], Field(min_length=1)]
Texts = Annotated[Annotated[str, Tag("string")] | Annotated[TextParts, Tag("array")], STRING_OR_ARRAY]
Contents = Annotated[Annotated[str, Tag("string")] | Annotated[AnyParts, Tag("array")], STRING_OR_ARRAY]


class SystemMessage(Wire):
    role: Literal["system", "developer"]
    content: Texts


class UserMessage(Wire):
    role: Literal["user"]
    content: Contents


class AssistantMessage(Wire):
    """The nulls let a response's message be sent back as it came."""

    role: Literal["assistant"]
    content: Texts
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


AnyMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


def turns(messages: list[AnyMessage]) -> tuple[Turn, ...]:
    return tuple(
        Turn(
            "system" if isinstance(message, SystemMessage) else message.role,
            tuple(said(part, f"messages[{at}].content[{place}]") for place, part in enumerate(parts_of(message))),
        )
        for at, message in enumerate(messages)
    )


def said(part: TextPart | ImagePart, where: str) -> str | ImageAt:
    return part.text if isinstance(part, TextPart) else ImageAt(part.image_url.url, f"{where}.image_url.url")


def parts_of(message: AnyMessage) -> list[TextPart] | list[AnyPart]:
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    return message.content

"""The conversation of a request, and what it is to the strategies: a prompt of texts and pictures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from decoding.errors import BadRequest
from decoding.prompt import Message, Part, Picture, Prompt
from server.image import MOST_PIXELS, Pictures
from server.wire import STRING_OR_ARRAY, Wire

MOST_PIXELS_TOGETHER = 2 * MOST_PIXELS  # of all images of a request


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


async def to_prompt(messages: list[AnyMessage], pictures: Pictures, most_images: int) -> Prompt:
    """Raises: BadRequest: too many images, or one that cannot be loaded."""
    images = sum(isinstance(part, ImagePart) for message in messages for part in parts_of(message))
    if images > most_images:
        raise BadRequest(f"The request has {images} images; at most {most_images} are taken.", param="messages")
    pixels_left, said = MOST_PIXELS_TOGETHER, []
    for at, message in enumerate(messages):
        parts: list[Part] = []
        for place, part in enumerate(parts_of(message)):
            if isinstance(part, TextPart):
                parts.append(part.text)
                continue
            param = f"messages[{at}].content[{place}].image_url.url"
            picture = await pictures.load(part.image_url.url, param, pixels_left)
            pixels_left -= pixels(picture)
            parts.append(picture)
        role = "system" if isinstance(message, SystemMessage) else message.role
        said.append(Message(role, tuple(parts)))
    return Prompt(tuple(said))


def parts_of(message: AnyMessage) -> list[TextPart] | list[AnyPart]:
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    return message.content


def pixels(picture: Picture) -> int:
    return picture.image.width * picture.image.height

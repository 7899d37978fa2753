"""What a request asks, whichever route it came by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from decoding.errors import BadRequest, OnlySeenError
from decoding.prompt import Message, Part, Prompt, Role
from decoding.sampling import Sampling
from server.decoding_field import Decoding
from server.image import MOST_PIXELS, Pictures
from server.response_format import ResponseFormat

MOST_PIXELS_TOGETHER = 2 * MOST_PIXELS  # of all images of a request


@dataclass(frozen=True, slots=True)
class ImageAt:
    url: str
    param: str  # where the request says so


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    parts: tuple[str | ImageAt, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation, or texts to go on from. `param` is the field that holds them."""

    model: str
    param: str
    sampling: Sampling
    turns: tuple[Turn, ...] = ()
    texts: tuple[str, ...] = ()
    decoding: Decoding = field(default_factory=Decoding)
    format: ResponseFormat | None = None
    format_param: str = "response_format"
    most_param: str = "max_completion_tokens"
    choices: int = 1  # of each prompt
    user: str | None = None

    @contextmanager
    def fields_as_sent(self) -> Iterator[None]:
        """Engines and strategies, who know chat requests alone, name a field; a refusal names it as the client did."""
        sent = {"messages": self.param, "max_completion_tokens": self.most_param, "response_format": self.format_param}
        if self.decoding.strategy is None and ":" in self.model:
            sent["decoding.strategy"] = "model"
        try:
            yield
        except OnlySeenError as error:
            error.param = sent.get(error.param or "", error.param)
            raise

    async def prompts(self, pictures: Pictures, most_images: int) -> list[Prompt]:
        """Raises: BadRequest: too many images, or one that cannot be loaded."""
        if self.texts:
            return [Prompt((Message("user", (text,)),), bare=True) for text in self.texts]
        images = sum(isinstance(part, ImageAt) for turn in self.turns for part in turn.parts)
        if images > most_images:
            message = f"The request has {images} images; at most {most_images} are taken."
            raise BadRequest(message, param=self.param)
        return [await seen(self.turns, pictures)]


async def seen(turns: tuple[Turn, ...], pictures: Pictures) -> Prompt:
    pixels_left, said = MOST_PIXELS_TOGETHER, []
    for turn in turns:
        parts: list[Part] = []
        for part in turn.parts:
            if isinstance(part, str):
                parts.append(part)
                continue
            picture = await pictures.load(part.url, part.param, pixels_left)
            pixels_left -= picture.image.width * picture.image.height
            parts.append(picture)
        said.append(Message(turn.role, tuple(parts)))
    return Prompt(tuple(said))

"""What is asked: messages made of text and pictures. Plain data that the server, strategies and engines share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from PIL.Image import Image, Resampling, composite, new

from decoding.errors import BadRequest

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Noise:
    """Forward-diffusion noise which the engine adds to the picture's normalised pixels (VCD)."""

    step: int  # 0 ... 999
    seed: int


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded RGB image, black where its mask is. Nothing is changed in place: every edit makes a new picture."""

    unmasked: Image
    noise: Noise | None = None
    mask: Image | None = None  # mode "1", of any size: true where pixels are shown

    @property
    def image(self) -> Image:
        """What is seen. A masked one is made at every look: it takes as much memory as the picture, the mask little."""
        if self.mask is None:
            return self.unmasked
        shown = self.mask.resize(self.unmasked.size, Resampling.NEAREST)
        return composite(self.unmasked, new(self.unmasked.mode, self.unmasked.size), shown)

    @cached_property
    def key(self) -> str:
        """SHA-256 over mode, size, pixels, mask and noise: equal keys mean equal model input."""
        image, mask = self.unmasked, self.mask
        shape = f"{image.mode} {image.width}x{image.height} {self.noise} {mask and mask.size}".encode()
        return hashlib.sha256(shape + b"\0" + image.tobytes() + (mask.tobytes() if mask else b"")).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def showing(self, image: Image) -> Picture:
        return replace(self, unmasked=image, mask=None)

    def noised(self, noise: Noise) -> Picture:
        return replace(self, noise=noise)


Part = str | Picture


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends with the user's question; or, `bare`, a text to go on from without a chat template."""

    messages: tuple[Message, ...]
    bare: bool = False

    @classmethod
    def of(cls, text: str, *pictures: Picture) -> Prompt:
        return cls((Message("user", (*pictures, text)),))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, Picture))

    @property
    def question(self) -> str:
        """The text of the last user message."""
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "")

    def require_pictures(self, strategy: str, most: int | None = None) -> tuple[Picture, ...]:
        """The pictures, for a strategy that is meaningless without one, or with more than `most`.

        Raises:
            BadRequest: the prompt holds no picture, or too many.
        """
        if not self.pictures:
            raise BadRequest(f"Strategy '{strategy}' needs a picture: add an image_url part.", param="messages")
        if most is not None and len(self.pictures) > most:
            message = f"Strategy '{strategy}' takes {most} picture(s); the messages hold {len(self.pictures)}."
            raise BadRequest(message, param="messages")
        return self.pictures

    def map_pictures(self, change: Callable[[Picture], Picture | tuple[Picture, ...]]) -> Prompt:
        """Every picture replaced by `change(picture)`, one or several; none takes it out."""

        def changed(part: Part) -> tuple[Part, ...]:
            new = change(part) if isinstance(part, Picture) else part
            return new if isinstance(new, tuple) else (new,)

        return self._saying(
            *(
                replace(message, parts=tuple(new for part in message.parts for new in changed(part)))
                for message in self.messages
            )
        )

    def without_pictures(self) -> Prompt:
        return self.map_pictures(lambda _: ())

    def with_system(self, text: str) -> Prompt:
        """The system message says `text` instead, or for the first time."""
        said = tuple(message for message in self.messages if message.role != "system")
        return self._saying(Message("system", (text,)), *said)

    def with_question(self, text: str) -> Prompt:
        """The last user message says `text` instead; its pictures stay, before the text."""
        at = max(i for i, message in enumerate(self.messages) if message.role == "user")
        pictures = tuple(part for part in self.messages[at].parts if isinstance(part, Picture))
        asked = replace(self.messages[at], parts=(*pictures, text))
        return self._saying(*self.messages[:at], asked, *self.messages[at + 1 :])

    def _saying(self, *messages: Message) -> Prompt:
        return replace(self, messages=messages)

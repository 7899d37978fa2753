"""Prompts: messages made of text and images. Plain data that the server, strategies and engines share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from typing import Literal
from weakref import WeakValueDictionary

import numpy as np
from PIL.Image import Image, Resampling, fromarray, new
from PIL.ImageDraw import Draw

from decoding.errors import BadRequest

STRIP_PIXELS = 1 << 20  # pixels that are hashed, shifted or masked at a time, because Pillow holds the interpreter
MAX_SHIFTED_PIXELS = 1 << 20  # of a shifted copy, which takes 4 bytes a pixel
SHIFT_COLOR = (122, 116, 104)  # the mean of CLIP's training images, with which LLaVA pads
SHARING_LOCK = Lock()  # the choices of a request run in several threads
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Noise:
    """Forward-diffusion noise that the engine adds to the normalized pixels of an image (VCD)."""

    step: int  # 0 ... 999
    seed: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A rectangle that is drawn on an image. `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int
    color: str


@dataclass(frozen=True, slots=True)
class Shift:
    """A move of the pixels by shares of the image's width and height, -1 to 1. The uncovered strips are grey."""

    right: float
    down: float


@dataclass(frozen=True, eq=False)
class ImageInput:
    """One decoded RGB image, black where its mask is false. It is immutable: every edit makes a new one.

    Mask and frame are drawn at each access of `visible`, because they take less memory than an edited image.
    """

    source: Image
    noise: Noise | None = None
    shift: Shift | None = None  # applied before the mask, to at most `MAX_SHIFTED_PIXELS`
    mask: Image | None = None  # mode "1", of any size: true where pixels stay
    frame: Frame | None = None  # drawn over the mask
    source_digest: str | None = field(default=None, repr=False)  # known digest of the source; None: not known

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of `visible`."""
        return self.source.size if self.shift is None else limit_size(self.source.size)

    @property
    def visible(self) -> Image:
        """The image with its shift and its mask applied, and its frame drawn."""
        image = self.source if self.shift is None else self._shifted
        image = image if self.mask is None else apply_mask(image, self.mask)
        if self.frame is None:
            return image
        image = image.copy() if self.mask is None else image
        corners = (self.frame.left, self.frame.top, self.frame.right - 1, self.frame.bottom - 1)
        Draw(image).rectangle(corners, outline=self.frame.color, width=max(2, max(image.size) // 200))
        return image

    @cached_property
    def _shifted(self) -> Image:
        """The shifted source. It is kept, so that an image processor finds its earlier result for this object."""
        assert self.shift is not None, "the caller has checked it"
        size = limit_size(self.source.size)
        image = self.source if size == self.source.size else self.source.resize(size, reducing_gap=2.0)
        return apply_shift(image, self.shift)

    @cached_property
    def _shifted_copies(self) -> WeakValueDictionary[Shift, ImageInput]:
        return WeakValueDictionary()

    @cached_property
    def _source_digest(self) -> str:
        """SHA-256 over mode, size and pixels of the source."""
        if self.source_digest is not None:
            return self.source_digest
        image = self.source
        digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}".encode() + b"\0")
        rows = max(1, STRIP_PIXELS // max(1, image.width))
        for top in range(0, image.height, rows):  # `tobytes` holds the interpreter
            digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
        return digest.hexdigest()

    @cached_property
    def key(self) -> str:
        """SHA-256 over mode, size, pixels, shift, mask, frame and noise: equal keys mean equal model input."""
        edits = (self.noise, self.shift, self.frame, self.mask and self.mask.size)
        digest = hashlib.sha256(f"{self._source_digest} {edits}".encode() + b"\0")
        if self.mask is not None:
            digest.update(self.mask.tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageInput) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def with_image(self, image: Image) -> ImageInput:
        """Replace the pixels, and remove the shift, the mask and the frame."""
        return replace(self, source=image, shift=None, mask=None, frame=None, source_digest=None)

    def with_noise(self, noise: Noise) -> ImageInput:
        """Set the noise."""
        return replace(self, noise=noise)

    def with_shift(self, shift: Shift) -> ImageInput:
        """Move the pixels. All that use one shift of this object at a time share the copy, and its pixels."""
        shifted = replace(self, shift=shift, source_digest=self._source_digest)
        with SHARING_LOCK:
            return self._shifted_copies.setdefault(shift, shifted)


def limit_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of a shifted copy: that of the image, or a smaller one of `MAX_SHIFTED_PIXELS`."""
    width, height = size
    scale = min(1.0, math.sqrt(MAX_SHIFTED_PIXELS / (width * height)))
    width = max(1, int(scale * width))
    height = max(1, min(int(scale * height), MAX_SHIFTED_PIXELS // width))
    return min(width, MAX_SHIFTED_PIXELS // height), height


def apply_shift(image: Image, shift: Shift) -> Image:
    """Return a copy of an image whose pixels are moved. The uncovered strips have `SHIFT_COLOR`."""
    moved = new(image.mode, image.size, SHIFT_COLOR)
    right, down = round(shift.right * image.width), round(shift.down * image.height)
    rows = max(1, STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        moved.paste(image.crop((0, top, image.width, min(top + rows, image.height))), (right, top + down))
    return moved


def apply_mask(image: Image, mask: Image) -> Image:
    """Return a copy of an image that is black where a mask, scaled to its size, is false.

    The mask is scaled to the width at once, and to the height in strips. Pillow's own scaling of row numbers gives the
    row of the mask for each row of the result.
    """
    width, height = image.size
    rows_of_mask = np.asarray(mask.resize((width, mask.height), Resampling.NEAREST))
    numbers = fromarray(np.arange(mask.height, dtype=np.int32)[:, None])
    row_numbers = np.asarray(numbers.resize((1, height), Resampling.NEAREST))[:, 0]
    result = new(image.mode, image.size, None)
    rows = max(1, STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        shown = rows_of_mask[row_numbers[top : top + rows]]
        strip = new(image.mode, (width, len(shown)))
        strip.paste(image.crop((0, top, width, top + len(shown))), (0, 0), fromarray(shown))
        result.paste(strip, (0, top))
    return result


ContentPart = str | ImageInput


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    parts: tuple[ContentPart, ...]

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends with the user's question, or with `raw_text`, a text without a chat template."""

    messages: tuple[Message, ...]
    raw_text: bool = False

    @classmethod
    def from_text(cls, text: str, *images: ImageInput) -> Prompt:
        """Build a prompt of one user message."""
        return cls((Message("user", (*images, text)),))

    @property
    def images(self) -> tuple[ImageInput, ...]:
        """All images, in the order of the messages."""
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, ImageInput))

    @property
    def question(self) -> str:
        """The text of the last user message."""
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "")

    def require_images(self, strategy: str, most: int | None = None) -> tuple[ImageInput, ...]:
        """Return the images, for a strategy that needs one.

        Args:
            strategy: Name of the strategy.
            most: Maximum number of images.

        Returns:
            The images.

        Raises:
            BadRequest: The prompt has no image, or more than `most`.
        """
        if not self.images:
            raise BadRequest(f"Strategy '{strategy}' needs an image: add an image_url part.", param="messages")
        if most is not None and len(self.images) > most:
            message = f"Strategy '{strategy}' takes {most} image(s); the messages have {len(self.images)}."
            raise BadRequest(message, param="messages")
        return self.images

    def map_images(self, change: Callable[[ImageInput], ImageInput | tuple[ImageInput, ...]]) -> Prompt:
        """Replace every image by `change(image)`: one image, several, or none."""

        def change_part(part: ContentPart) -> tuple[ContentPart, ...]:
            new = change(part) if isinstance(part, ImageInput) else part
            return new if isinstance(new, tuple) else (new,)

        return self._with_messages(
            *(
                replace(message, parts=tuple(new for part in message.parts for new in change_part(part)))
                for message in self.messages
            )
        )

    def without_images(self) -> Prompt:
        """Remove all images."""
        return self.map_images(lambda _: ())

    def with_system(self, text: str) -> Prompt:
        """Replace the system message, or add one."""
        others = tuple(message for message in self.messages if message.role != "system")
        return self._with_messages(Message("system", (text,)), *others)

    def with_question(self, text: str) -> Prompt:
        """Replace the text of the last user message. Its images stay, before the text."""
        index = max(i for i, message in enumerate(self.messages) if message.role == "user")
        images = tuple(part for part in self.messages[index].parts if isinstance(part, ImageInput))
        question = replace(self.messages[index], parts=(*images, text))
        return self._with_messages(*self.messages[:index], question, *self.messages[index + 1 :])

    def _with_messages(self, *messages: Message) -> Prompt:
        return replace(self, messages=messages)

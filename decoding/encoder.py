"""From a prompt to what the model reads: token ids and pixels, through the checkpoint's own processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor, nn

from decoding.errors import BadRequest, Unsupported
from decoding.families import Family
from decoding.processor import chat_template
from decoding.prompt import Message, Picture, Prompt
from decoding.tensors import noised


@dataclass(frozen=True, slots=True)
class Encoded:
    ids: Tensor  # [length]
    extras: Mapping[str, Tensor]  # pixels and what goes with them, as the model's forward names them

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def followed_by(self, tokens: Sequence[int]) -> Encoded:
        """With tokens of an answer after the prompt. What goes with every token is 0 for text."""
        ids = torch.cat([self.ids, torch.tensor(tokens, dtype=self.ids.dtype)])
        extras = {
            name: nn.functional.pad(extra, (0, len(tokens))) if extra.shape == (1, len(self)) else extra
            for name, extra in self.extras.items()
        }
        return Encoded(ids, extras)

    @property
    def pixel_shape(self) -> tuple[int, ...] | None:
        """Of one picture or tile: prompts that differ in it cannot share a pass. None: no picture."""
        pixels = self.extras.get("pixel_values")
        return None if pixels is None else tuple(pixels.shape[1:][-3:])


class Encoder:
    """Not thread-safe, as fast tokenizers are not: call it from one thread at a time."""

    def __init__(self, processor: Any, context: int, family: Family) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.context = context
        self.family = family
        special = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        # No text of more fits, and millions of them would keep the tokenizer, and all who wait for it, for minutes.
        self._most_characters = context * max(map(len, self.tokenizer.get_vocab()))
        self._special = tuple(token for token in (*special, self._placeholder) if token)

    def encode(self, prompt: Prompt) -> Encoded:
        """Raises:
        BadRequest: the text holds one of the model's special tokens, the prompt leaves no room for an answer, or the
            model's processor refuses it.
        Unsupported: the chat template drops pictures.
        """
        for message in prompt.messages:
            self._refuse_special(message)
        if sum(len(message.text) for message in prompt.messages) > self._most_characters:
            raise BadRequest(
                f"The prompt is longer than the model's context of {self.context} tokens.",
                param="messages",
                code="context_length_exceeded",
            )
        most, pictures = self.family.most_pictures, prompt.pictures
        if most is not None and len(pictures) > most:
            raise BadRequest(
                f"This model takes {most} picture(s) in a prompt; there are {len(pictures)}.", param="messages"
            )
        try:
            read = self._read(self._spell(prompt), pictures)
        except (TemplateError, ValueError) as error:
            raise BadRequest(f"The model's processor refuses the messages: {error}", param="messages") from error
        kept = set(read) - {"input_ids", "attention_mask"} if pictures else self.family.per_token
        extras = {name: read[name] for name in kept if name in read}
        encoded = Encoded(read["input_ids"][0], self._noisy(extras, pictures))
        if len(encoded) >= self.context:
            raise BadRequest(
                f"The prompt has {len(encoded)} tokens with its pictures; the model's context is {self.context}.",
                param="messages",
                code="context_length_exceeded",
            )
        return encoded

    def first_tokens(self, choice: str) -> Tensor:
        """Ids with which an answer that begins with `choice` can begin, with and without a space before it."""
        spelled = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (choice, " " + choice))
        firsts = {ids[0] if self.tokenizer.decode(ids[:1]).strip() else ids[1] for ids in spelled if ids}
        return torch.tensor(sorted(firsts))

    @property
    def _placeholder(self) -> str:
        """What stands for a picture in the text that the processor is given."""
        return str(self.processor.image_token)

    def _spell(self, prompt: Prompt) -> str:
        """The conversation as one text, with a placeholder for each picture."""
        if prompt.bare or not self.family.chats:
            return "\n".join(message.text for message in prompt.messages)
        said = [{"role": message.role, "content": contents(message)} for message in prompt.messages]
        template = chat_template(self.processor)
        text: str = self.processor.apply_chat_template(said, chat_template=template, add_generation_prompt=True)
        if text.count(self._placeholder) != len(prompt.pictures):
            raise Unsupported("The model's chat template has no place for one of the pictures.", param="messages")
        return text

    def _read(self, text: str, pictures: tuple[Picture, ...]) -> Mapping[str, Tensor]:
        begins = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        return self.processor(  # type: ignore[no-any-return]
            text=[text],
            images=[[picture.image for picture in pictures]] if pictures else None,
            add_special_tokens=not begins,
            return_tensors="pt",
        )

    def _noisy(self, extras: dict[str, Tensor], pictures: tuple[Picture, ...]) -> dict[str, Tensor]:
        """Each picture's noise on its normalised pixels, as the processor left them."""
        if all(picture.noise is None for picture in pictures):
            return extras
        axis = self.family.picture_axis
        sizes = self.sizes(extras, pictures)
        own: tuple[Tensor, ...] = torch.split(extras["pixel_values"], sizes, axis)
        seen = [
            part if picture.noise is None else noised(part, picture.noise)
            for part, picture in zip(own, pictures, strict=True)
        ]
        return {**extras, "pixel_values": torch.cat(seen, axis)}

    def sizes(self, extras: Mapping[str, Tensor], pictures: Sequence[Picture]) -> list[int]:
        """How much of the pixels, along their axis of pictures, belongs to each."""
        axis = self.family.picture_axis
        if "image_grid_thw" in extras:
            return [int(grid.prod()) for grid in extras["image_grid_thw"]]
        total = extras["pixel_values"].shape[axis]
        if len(pictures) in (1, total):
            return [total // len(pictures)] * len(pictures)
        # Cut into tiles, and only the image processor knows into how many.
        alone = (self.processor.image_processor([picture.image], return_tensors="pt") for picture in pictures)
        return [read["pixel_values"].shape[axis] for read in alone]

    def _refuse_special(self, message: Message) -> None:
        found = next((token for token in self._special if token in message.text), None)
        if found is not None:
            raise BadRequest(f"The text holds '{found}', which the model reserves for itself.", param="messages")


def contents(message: Message) -> list[dict[str, Any]]:
    """The parts as chat templates take them, with neighbouring texts as one: some templates read the first alone."""
    parts: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, Picture):
            parts.append({"type": "image", "image": part.image})
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += part
        else:
            parts.append({"type": "text", "text": part})
    return parts or [{"type": "text", "text": ""}]

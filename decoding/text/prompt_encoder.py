"""Encode a prompt into token ids and pixels with the checkpoint's own processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor, nn

from decoding.errors import BadRequest, Unsupported
from decoding.image_ops import add_noise
from decoding.multimodal.image_size import ImageSizeEstimator, get_image_placeholder
from decoding.multimodal.model_families import ModelFamily
from decoding.multimodal.processor import get_chat_template
from decoding.prompt import ImageInput, Message, Prompt

PREFIX_CONTEXT = 8  # tokens of an answer that a text is encoded after
PROMPT_CONTEXT = 32  # characters of a rendered prompt that a prefilled answer is encoded after
CACHED_SCORED_TEXTS = 1024  # scored texts whose first tokens are kept
MIN_LETTERS = 3  # of a token that is forbidden by itself


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """One encoded prompt.

    Attributes:
        ids: [length] token ids. The image token is at each position of an image.
        extras: Pixels and related tensors, under the names of the model's forward arguments.
    """

    ids: Tensor
    extras: Mapping[str, Tensor]

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def count_token(self, token: int) -> int:
        """Return how often a token occurs. The ids are on the host, so that this does not wait for a device."""
        return int((self.ids == token).sum())

    def with_tokens(self, tokens: Sequence[int]) -> ModelInputs:
        """Append tokens of an answer. Tensors with one entry a token are padded with 0, the value for text."""
        if not tokens:
            return self
        ids = torch.cat([self.ids, torch.tensor(tokens, dtype=self.ids.dtype)])
        extras = {
            name: nn.functional.pad(extra, (0, len(tokens))) if extra.shape == (1, len(self)) else extra
            for name, extra in self.extras.items()
        }
        return ModelInputs(ids, extras)

    def without_last(self, count: int) -> ModelInputs:
        """Return the inputs without their last tokens. The extras stay as they are."""
        return ModelInputs(self.ids[: len(self) - count], self.extras) if count else self

    @property
    def pixel_shape(self) -> tuple[int, ...] | None:
        """Shape of one image or tile; None without an image. Prompts with different shapes cannot share a pass."""
        pixels = self.extras.get("pixel_values")
        return None if pixels is None else tuple(pixels.shape[1:][-3:])


@dataclass(frozen=True, slots=True)
class AnswerStart:
    """The encoded beginning of an answer.

    Attributes:
        ids: Tokens with which the answer begins.
        ruled_out: Token sequences that must not occur after them.
    """

    ids: tuple[int, ...] = ()
    ruled_out: tuple[tuple[int, ...], ...] = ()

    def find_forbidden_tokens(self, last_ids: Sequence[int]) -> list[int]:
        """Return the tokens that would complete a ruled-out sequence.

        Args:
            last_ids: The last tokens of the answer, at least as many as the longest sequence has less one.

        Returns:
            Token ids.
        """
        return [
            sequence[-1]
            for sequence in self.ruled_out
            if len(sequence) == 1 or tuple(last_ids[-len(sequence) + 1 :]) == sequence[:-1]
        ]


class PromptEncoder:
    """Encodes prompts for one model.

    It is not thread-safe, because fast tokenizers are not. Call it from one thread at a time.
    """

    def __init__(self, processor: Any, max_model_len: int, family: ModelFamily) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_model_len = max_model_len
        self.family = family
        self.image_sizes = ImageSizeEstimator(processor)
        self._first_tokens = lru_cache(CACHED_SCORED_TEXTS)(self._find_first_tokens)
        special = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        # A longer text cannot fit the context, and tokenizing millions of words would block other requests for minutes.
        self.max_characters = max_model_len * max(map(len, self.tokenizer.get_vocab()))
        self._special_tokens = tuple(token for token in (*special, self._image_token) if token)

    def encode(self, prompt: Prompt) -> ModelInputs:
        """Encode a prompt.

        A chat template that drops an image raises `Unsupported`.

        Returns:
            Token ids and pixels, on the CPU.

        Raises:
            BadRequest: The text holds a special token of the model, the prompt leaves no room for an answer, it has
                too many images, or the model's processor rejects it.
        """
        for message in prompt.messages:
            self._check_special_tokens(message.text)
        self._check_characters(sum(len(message.text) for message in prompt.messages))
        max_images, images = self.family.max_images, prompt.images
        if max_images is not None and len(images) > max_images:
            raise BadRequest(
                f"This model takes {max_images} image(s) in a prompt; there are {len(images)}.", param="messages"
            )
        self.check_length(self.image_sizes.count_tokens([image.size for image in images]) or 0)
        try:
            processed = self._process(self.render(prompt), images)
        except (TemplateError, ValueError) as error:
            raise BadRequest(f"The model's processor rejects the messages: {error}", param="messages") from error
        names = set(processed) - {"input_ids", "attention_mask"} if images else self.family.per_token
        extras = {name: processed[name] for name in names if name in processed}
        inputs = ModelInputs(processed["input_ids"][0], self._add_noise(extras, images))
        self.check_length(len(inputs))
        return inputs

    def find_first_tokens(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Find the tokens that can begin an answer.

        Args:
            texts: Scored texts.

        Returns:
            Text -> ids of tokens that can begin it, with and without a space before it.
        """
        return {text: list(self._first_tokens(text)) for text in texts}

    def _find_first_tokens(self, text: str) -> list[int]:
        encodings = (self.tokenizer(each, add_special_tokens=False)["input_ids"] for each in (text, " " + text))
        first_ids = {ids[0] if self.tokenizer.decode(ids[:1]).strip() else ids[1] for ids in encodings if ids}
        return sorted(first_ids)

    def encode_answer_start(self, prefix: Sequence[int | str], ruled_out: Sequence[str]) -> AnswerStart:
        """Encode the answer prefix and the ruled-out phrases of a request."""
        sequences = {sequence for phrase in ruled_out for sequence in self.encode_phrase(phrase)}
        return AnswerStart(tuple(self.encode_answer_prefix(prefix)), tuple(sorted(sequences)))

    def encode_continued_text(self, text: str) -> tuple[int, ...]:
        """Encode a text that an answer continues, as the chat template puts it behind a prompt.

        Where the template puts a blank before an answer, it is added unless the text begins with one.

        Args:
            text: The text. One that is too long or has a special token of the model raises `BadRequest`.

        Returns:
            Token ids.
        """
        self._check_special_tokens(text)
        self._check_characters(len(text))
        before, separator = self._answer_context
        text = text if text[:1].isspace() else separator + text
        known, longer = (self._tokenize(each) for each in (before, before + text))
        return tuple(longer[len(known) :] if longer[: len(known)] == known else self._tokenize(text))

    @cached_property
    def _answer_context(self) -> tuple[str, str]:
        """The end of a rendered prompt, and the blank that the chat template puts between it and an answer."""
        if not self.family.has_chat_template:
            return "", ""
        question, answer = Message("user", ("Hello.",)), Message("assistant", ("Hello.",))
        try:
            rendered = self._render_messages((question,))
            whole = self._render_messages((question, answer), add_generation_prompt=False)
        except (TemplateError, ValueError):
            return "", ""
        separator, _, _ = whole.removeprefix(rendered).partition(answer.text)
        return rendered[-PROMPT_CONTEXT:], separator if separator.isspace() and whole.startswith(rendered) else ""

    def encode_answer_prefix(self, prefix: Sequence[int | str]) -> list[int]:
        """Encode the prefix of an answer.

        A text is encoded after the tokens before it, so that it gets no space that is not its own.

        Args:
            prefix: Token ids and texts.

        Returns:
            Token ids.
        """
        ids: list[int] = []
        for part in prefix:
            if isinstance(part, int):
                ids.append(part)
                continue
            before = self.tokenizer.decode(ids[-PREFIX_CONTEXT:])
            known, longer = (self._tokenize(text) for text in (before, before + part))
            if longer[: len(known)] == known:
                ids += longer[len(known) :]
            else:  # the text merges with the token before it
                ids = [*ids[:-PREFIX_CONTEXT], *longer]
        return ids

    def encode_phrase(self, phrase: str) -> list[tuple[int, ...]]:
        """Return the token sequences that a phrase begins with, with and without a space before it.

        A sequence is the phrase's first token, or the whole phrase if that token has fewer than `MIN_LETTERS` letters.
        To forbid a token as short as `a` would forbid most words. To forbid the last token only would leave the rest of
        the phrase, which the model completes with nonsense.
        """
        encodings = {tuple(self._tokenize(text)) for text in (phrase, f" {phrase}")}
        starts = {
            ids[:1] if len(self.tokenizer.decode(ids[:1]).strip()) >= min(MIN_LETTERS, len(phrase)) else ids
            for ids in encodings
            if ids
        }
        return sorted(starts)

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def split_sizes(self, extras: Mapping[str, Tensor], images: Sequence[ImageInput]) -> list[int]:
        """Compute how many entries of the pixels, along the family's image axis, belong to each image.

        Args:
            extras: Outputs of the processor for a prompt, with `pixel_values` of [entries, ...], or [1, entries, ...]
                if the image axis is 1. Some families have `image_grid_thw`, [images, 3], too.
            images: The images of that prompt.

        Returns:
            [images] sizes, whose sum is the number of entries.
        """
        axis = self.family.image_axis
        if "image_grid_thw" in extras:
            return [int(grid.prod()) for grid in extras["image_grid_thw"]]
        total = extras["pixel_values"].shape[axis]
        if len(images) in (1, total):
            return [total // len(images)] * len(images)
        # The images are cut into tiles, and only the image processor can count them.
        single = (self.processor.image_processor([image.visible], return_tensors="pt") for image in images)
        return [processed["pixel_values"].shape[axis] for processed in single]

    @property
    def _image_token(self) -> str:
        """The placeholder of an image in the text that the processor reads."""
        return get_image_placeholder(self.processor)

    def render(self, prompt: Prompt) -> str:
        """Render the conversation as one text, with a placeholder for each image.

        Returns:
            The text.

        Raises:
            Unsupported: The chat template drops an image.
        """
        if prompt.raw_text or not self.family.has_chat_template:
            return "\n".join(message.text for message in prompt.messages)
        text = self._render_messages(prompt.messages)
        if text.count(self._image_token) != len(prompt.images):
            raise Unsupported("The model's chat template has no place for one of the images.", param="messages")
        return text

    def _render_messages(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        parts = [{"role": message.role, "content": build_template_parts(message)} for message in messages]
        template = get_chat_template(self.processor)
        return self.processor.apply_chat_template(  # type: ignore[no-any-return]
            parts, chat_template=template, add_generation_prompt=add_generation_prompt
        )

    def _process(self, text: str, images: tuple[ImageInput, ...]) -> Mapping[str, Tensor]:
        has_bos = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        return self.processor(  # type: ignore[no-any-return]
            text=[text],
            images=[[image.visible for image in images]] if images else None,
            add_special_tokens=not has_bos,
            return_tensors="pt",
        )

    def _add_noise(self, extras: dict[str, Tensor], images: tuple[ImageInput, ...]) -> dict[str, Tensor]:
        """Add each image's noise to its normalized pixels."""
        if all(image.noise is None for image in images):
            return extras
        axis = self.family.image_axis
        parts: tuple[Tensor, ...] = torch.split(extras["pixel_values"], self.split_sizes(extras, images), axis)
        pixels = [
            part if image.noise is None else add_noise(part, image.noise)
            for part, image in zip(parts, images, strict=True)
        ]
        return {**extras, "pixel_values": torch.cat(pixels, axis)}

    def check_length(self, tokens: int) -> None:
        """Raise `BadRequest` if a prompt of so many tokens leaves no room for an answer."""
        if tokens >= self.max_model_len:
            raise BadRequest(
                f"The prompt has {tokens} tokens with its images; the model's context is {self.max_model_len}.",
                param="messages",
                code="context_length_exceeded",
            )

    def _check_characters(self, characters: int) -> None:
        if characters > self.max_characters:
            raise BadRequest(
                f"The prompt is longer than the model's context of {self.max_model_len} tokens.",
                param="messages",
                code="context_length_exceeded",
            )

    def _check_special_tokens(self, text: str) -> None:
        special = next((token for token in self._special_tokens if token in text), None)
        if special is not None:
            raise BadRequest(f"The text holds '{special}', which the model reserves for itself.", param="messages")


def build_template_parts(message: Message) -> list[dict[str, Any]]:
    """Convert a message's parts to the format of chat templates.

    Adjacent texts are joined, because some templates read only the first one.

    Returns:
        At least one part.
    """
    parts: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, ImageInput):
            parts.append({"type": "image", "image": part.source})  # a template reads its type only
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += part
        else:
            parts.append({"type": "text", "text": part})
    return parts or [{"type": "text", "text": ""}]

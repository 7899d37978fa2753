"""Turn the sampled tokens of a request into text, a finish reason and usage. Both engines use it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from tokenizers.decoders import DecodeStream
from transformers.convert_slow_tokenizer import bytes_to_unicode

from decoding.outputs import (
    FinishInfo,
    FinishReason,
    PromptLogprobs,
    PromptScores,
    RequestStats,
    StateHandle,
    Token,
    TokenLogprob,
    Usage,
)
from decoding.requests import GenerateRequest
from decoding.text.prompt_encoder import ModelInputs
from decoding.text.stop_string_detector import StopStringDetector

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
RAW_TEXT_CONTEXT = 8  # last tokens of a raw-text prompt that its continuation is decoded after
CACHED_TOKENS = 65_536  # tokens whose bytes are kept
RankedTokens = Sequence[tuple[int, float]]  # tokens and their log-probabilities


class OutputProcessor:
    """Builds the output tokens of one request."""

    def __init__(
        self,
        request: GenerateRequest,
        prompt: ModelInputs,
        max_new_tokens: int,
        eos_token_ids: frozenset[int],
        token_text: TokenText,
        tokenizer: Any,
        state: StateHandle | None = None,
        answer_prefix: Sequence[int] = (),
        image_token_id: int | None = None,
    ) -> None:
        """Start an answer.

        Args:
            request: The request.
            prompt: Its encoded main prompt, without the answer prefix.
            max_new_tokens: Most tokens of the answer, the answer prefix included.
            eos_token_ids: Tokens that end an answer.
            token_text: Text of single tokens.
            tokenizer: The model's tokenizer.
            state: Handle of the state that the request's strategy will have left when the answer ends.
            answer_prefix: Token ids with which the answer begins. They are not output.
            image_token_id: Token at the positions of images, for the log-probabilities of the prompt.
        """
        self.request = request
        self.input_ids = [*prompt.ids.tolist(), *answer_prefix] if request.prompt_logprobs is not None else []
        self.image_token_id = image_token_id
        self.tokenizer = tokenizer
        self.prompt_tokens = len(prompt) + request.continued_tokens
        self.max_new_tokens = max_new_tokens
        self.eos_token_ids = eos_token_ids
        self.token_text = token_text
        self.state = state
        prefix_ids = prompt.ids[-RAW_TEXT_CONTEXT:].tolist() if request.prompt.raw_text else []
        min_tokens = request.sampling.min_tokens - request.continued_tokens
        self.detokenizer = Detokenizer(tokenizer, request.sampling.stop, prefix_ids, min_tokens)
        self.acts_inside_model = any(
            strategy.acts_on_attention() or {"head_scales", "steer"} & strategy.list_hooks()
            for strategy in request.stack
        )
        self.stats = RequestStats(prompt_tokens=self.prompt_tokens)
        self.is_finished = False
        self.prefix_tokens = len(answer_prefix)
        for number, token in enumerate(answer_prefix):
            if number < request.continued_tokens:
                self.detokenizer.add_prompt_token(token)
            else:  # the open stop strings and characters are those of an uninterrupted answer
                self.detokenizer.add_token(token)

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far, the answer prefix included."""
        return self.prefix_tokens + self.stats.steps

    def add_token(self, token: int, changed: bool, ranked: RankedTokens = (), grounding: float | None = None) -> Token:
        """Process one sampled token.

        Args:
            token: Its id.
            changed: Whether the strategies changed the likeliest token of this step.
            ranked: The token itself, then the likeliest ones; empty if the request has no log-probabilities.
            grounding: Log-probability ratio of the token with and without the image.

        Returns:
            The token with its text; the last one also with the finish reason and usage.
        """
        self._count_step(changed)
        sampling = self.request.sampling
        if self.num_tokens <= self.request.continued_tokens:  # a forced token of the prompt
            self.detokenizer.add_prompt_token(token)
            return Token(token, "", stats=self.stats)
        if token in sampling.stop_token_ids or (token in self.eos_token_ids and not sampling.ignore_eos):
            return Token(
                token,
                self.detokenizer.flush(),
                finish=self._finish("stop"),
                changed=None if self.acts_inside_model else changed,
                stats=self.stats,
            )
        text, reason = self.detokenizer.add_token(token), self._find_finish_reason()
        if reason == "length":
            text += self.detokenizer.flush()
        is_first = self.num_tokens == 1 and not self.request.prompt.raw_text
        logprobs = tuple(self.token_text.build_logprob(id_, logprob, is_first=is_first) for id_, logprob in ranked)
        return Token(
            token,
            text,
            chosen=logprobs[0] if logprobs else None,
            top=logprobs[1:],
            grounding=grounding,
            changed=None if self.acts_inside_model else changed,
            finish=self._finish(reason) if reason else None,
            stats=self.stats,
        )

    def add_text_logprobs(self, token: int, changed: bool, logprobs: Mapping[str, float]) -> Token:
        """Finish a request for scored texts.

        Args:
            token: The likeliest token.
            changed: Whether the strategies changed it.
            logprobs: Log-probability of each scored text.

        Returns:
            The only token of the answer, without text.
        """
        self._count_step(changed)
        return Token(token, "", finish=self._finish("stop", logprobs))

    def add_prompt_logprobs(self, token: int, scores: PromptScores) -> Token:
        """Finish a request for the log-probabilities of its prompt.

        Args:
            token: The token after the prompt.
            scores: Scores of the prompt's tokens.

        Returns:
            The only token of the answer, without text.
        """
        self._count_step(changed=False)
        logprobs = build_prompt_logprobs(self.input_ids, scores, self.image_token_id, self.token_text, self.tokenizer)
        return Token(token, "", finish=replace(self._finish("stop"), prompt_logprobs=logprobs))

    def _count_step(self, changed: bool) -> None:
        self.stats.steps += 1
        self.stats.changed_steps += changed
        self.stats.first_token_time = self.stats.first_token_time or time.perf_counter()

    def _find_finish_reason(self) -> FinishReason | None:
        if self.detokenizer.is_stopped:
            return "stop"
        return "length" if self.num_tokens >= self.max_new_tokens else None

    def _finish(self, reason: FinishReason, text_logprobs: Mapping[str, float] | None = None) -> FinishInfo:
        self.is_finished = True
        now, stats = time.perf_counter(), self.stats
        usage = Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.num_tokens - self.request.continued_tokens,
            steps=stats.steps,
            forward_passes=stats.forward_passes,
            changed_steps=None if self.acts_inside_model else stats.changed_steps,
            seconds={
                "queue": stats.scheduled_time - stats.arrival_time,
                "prefill": stats.first_token_time - stats.scheduled_time,
                "decode": now - stats.first_token_time,
            },
        )
        return FinishInfo(reason, usage, self.state, text_logprobs or {})


class Detokenizer:
    """Decodes one answer token by token and holds back text that may begin a stop string."""

    def __init__(
        self, tokenizer: Any, stop: tuple[str, ...], prefix_ids: Sequence[int] = (), min_tokens: int = 0
    ) -> None:
        """Start an answer.

        Args:
            tokenizer: A fast tokenizer of transformers.
            stop: Strings that end the answer.
            prefix_ids: Tokens of the text that the answer continues. The space before its first word is then kept.
            min_tokens: Number of tokens before which a stop string does not end the answer.
        """
        self._tokenizer = tokenizer._tokenizer
        prefix = self._tokenizer.decode(prefix_ids)
        # If the prefix ended within a character, the stream would emit that character's text again.
        self._stream = DecodeStream(ids=[] if prefix.endswith(REPLACEMENT) else prefix_ids, skip_special_tokens=True)
        self._stop_detector = StopStringDetector(stop, min_tokens)
        self._open_ids: list[int] = []  # tokens of an incomplete character

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._stop_detector.is_stopped

    def add_prompt_token(self, token: int) -> None:
        """Decode a token of the text that the answer continues. Stop strings in it do not count."""
        self._stream.step(self._tokenizer, token)

    def add_token(self, token: int) -> str:
        """Decode one more token. A stop string that it completes is not part of the text.

        Returns:
            The text that is now certain; empty while a character or a stop string is open.
        """
        self._open_ids.append(token)
        decoded = self._stream.step(self._tokenizer, token)
        if decoded is not None:
            self._open_ids.clear()
        text = self._stop_detector.add(decoded or "")
        if self.is_stopped:
            self._open_ids.clear()
        return text

    def flush(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        text: str = self._stop_detector.flush() + self._tokenizer.decode(self._open_ids)
        self._open_ids.clear()
        return text


class TokenText:
    """Converts single tokens to text and bytes, for log-probabilities. A token may hold a part of a character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        self._is_byte_level = "ByteLevel" in repr(tokenizer._tokenizer.decoder)
        self._get_bytes = lru_cache(CACHED_TOKENS)(self._compute_bytes)

    def build_logprob(self, token: int, logprob: float, *, is_first: bool = False) -> TokenLogprob:
        """Attach text and bytes to a token's log-probability.

        Args:
            token: Token id.
            logprob: Its log-probability.
            is_first: Whether the token begins a text. Some tokenizers drop the space before the first word.

        Returns:
            The entry as the API reports it.
        """
        raw = self._get_bytes(token)
        if is_first and raw.startswith(b" ") and not self._tokenizer._tokenizer.decode([token]).startswith(" "):
            raw = raw[1:]
        return TokenLogprob(token, raw.decode(errors="replace"), raw, logprob)

    def _compute_bytes(self, token: int) -> bytes:
        piece: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # the model's vocabulary is often padded beyond the tokenizer's
            return b""
        if token in self._tokenizer.added_tokens_decoder:
            return piece.encode()
        if self._is_byte_level:
            return bytes(self._byte_of[character] for character in piece)
        if piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:-1], 16)])
        return piece.replace("▁", " ").encode()


def build_prompt_logprobs(
    ids: Sequence[int], scores: PromptScores, image_token_id: int | None, token_text: TokenText, tokenizer: Any
) -> PromptLogprobs:
    """Attach texts and offsets to the scores of a prompt.

    Args:
        ids: Token ids of the prompt.
        scores: Their scores.
        image_token_id: Token at the positions of images.
        token_text: Text of single tokens.
        tokenizer: The model's tokenizer.

    Returns:
        The log-probabilities.
    """
    detokenizer = Detokenizer(tokenizer, ())
    offsets = list(accumulate((len(detokenizer.add_token(token)) for token in ids), initial=0))
    shown = {*ids, *np.unique(scores.top_ids).tolist()}
    return PromptLogprobs(
        ids,
        offsets,
        scores,
        np.asarray(ids[1:], dtype=np.int64) != image_token_id,
        {token: token_text.build_logprob(token, 0.0).text for token in shown},
    )

"""Sample the next token of every request of a batch, on the model's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoding.logits_ops import mask_logits, top_k_mask, top_p_mask
from decoding.pipeline.composition import copy_numbers
from decoding.sampling_params import SamplingParams


class SamplerState:
    """Random generator and token counts of one request.

    Attributes:
        eos_token_ids: [n] tokens that end the answer.
        bias_ids: [n] tokens whose scores have a bias.
        biases: [n] their biases.
        num_tokens: Tokens of the answer so far.
        output_counts: [vocab] occurrences in the answer; None without penalties.
        prompt_mask: [vocab] true for tokens of the prompt; None without penalties.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Tensor, eos_token_ids: Tensor, vocab_size: int) -> None:
        self.params = params
        stop_token_ids = copy_numbers(params.stop_token_ids, torch.long, eos_token_ids.device)
        self.eos_token_ids = torch.cat([eos_token_ids, stop_token_ids])  # [n]
        self.bias_ids = copy_numbers([token for token, _ in params.logit_bias], torch.long, prompt_ids.device)
        self.biases = copy_numbers([bias for _, bias in params.logit_bias], torch.float32, prompt_ids.device)
        self.generator = torch.Generator(device=prompt_ids.device)
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)
        self.num_tokens = 0
        self.output_counts: Tensor | None = None
        self.prompt_mask: Tensor | None = None
        if params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty:
            self.output_counts = torch.zeros(vocab_size, device=prompt_ids.device)
            self.prompt_mask = torch.zeros(vocab_size, dtype=torch.bool, device=prompt_ids.device)
            self.prompt_mask[prompt_ids] = True

    def add_token(self, token: int) -> None:
        """Count a token of the answer."""
        self.num_tokens += 1
        if self.output_counts is not None:
            self.output_counts[token] += 1

    @property
    def is_below_min_tokens(self) -> bool:
        """Whether the answer must not end yet."""
        return self.num_tokens < self.params.min_tokens

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is the likeliest one, without bias, penalties or forced tokens."""
        params = self.params
        return (
            params.temperature == 0
            and not params.logit_bias
            and self.output_counts is None
            and self.num_tokens >= len(params.forced_token_ids)
        )


def sample_tokens(scores: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """Sample one token per request: [requests, vocab] -> [requests] token ids."""
    if all(state.is_greedy for state in states):
        return scores.argmax(-1)
    return torch.stack([sample_token(row, state) for row, state in zip(scores, states, strict=True)])


def sample_token(scores: Tensor, state: SamplerState) -> Tensor:
    """Sample one token: [vocab] -> [] token id."""
    params = state.params
    if state.num_tokens < len(params.forced_token_ids):
        return copy_numbers([params.forced_token_ids[state.num_tokens]], torch.long, scores.device)[0]
    if params.logit_bias:
        scores = scores.index_add(-1, state.bias_ids, state.biases.to(scores.dtype))
    if state.output_counts is not None and state.prompt_mask is not None:
        scores = apply_penalties(scores, state.output_counts, state.prompt_mask, params)
    if params.temperature == 0:
        return scores.argmax(-1)
    scores = scores / params.temperature
    if params.top_k:
        scores = mask_logits(scores, top_k_mask(scores, params.top_k))
    if params.top_p < 1:
        scores = mask_logits(scores, top_p_mask(scores, 1.0, params.top_p))
    scores = apply_min_p(scores, params.min_p)
    # The largest of p/e with e ~ Exp(1) is a draw from p, and needs no generator shared between requests.
    exponential = torch.empty_like(scores).exponential_(generator=state.generator)
    return (scores.softmax(-1) / exponential).argmax(-1)


def apply_penalties(scores: Tensor, output_counts: Tensor, prompt_mask: Tensor, params: SamplingParams) -> Tensor:
    """Apply repetition, frequency and presence penalties to [vocab] scores.

    The repetition penalty (CTRL, prompt included) divides positive and multiplies negative scores. The other two are
    subtracted.

    Args:
        scores: [vocab].
        output_counts: [vocab] occurrences in the answer.
        prompt_mask: [vocab] true for tokens of the prompt.
        params: The penalties.

    Returns:
        [vocab] scores.
    """
    occurs = prompt_mask | (output_counts > 0)
    repeated = torch.where(scores > 0, scores / params.repetition_penalty, scores * params.repetition_penalty)
    scores = torch.where(occurs, repeated, scores)
    return scores - params.frequency_penalty * output_counts - params.presence_penalty * (output_counts > 0)


def apply_min_p(scores: Tensor, min_p: float) -> Tensor:
    """Mask tokens less likely than `min_p` times the likeliest one: [vocab] -> [vocab]."""
    if min_p == 0:
        return scores
    probabilities = scores.softmax(-1)
    return scores.masked_fill(probabilities < min_p * probabilities.max(-1, keepdim=True).values, -torch.inf)

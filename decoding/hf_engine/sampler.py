"""Chooses the next token of every request of a batch, on the model's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoding.sampling import Sampling
from decoding.tensors import nucleus, only, top


class Chooser:
    """What one request's sampling remembers between its steps."""

    def __init__(self, sampling: Sampling, prompt: Tensor, eos: Tensor, vocab: int) -> None:
        self.sampling = sampling
        self.eos = eos  # [n] ids that end an answer
        self.generator = torch.Generator(device=prompt.device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        self.chosen = 0
        penalised = sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
        self.counts = torch.zeros(vocab, device=prompt.device) if penalised else None  # [vocab] in the answer so far
        self.in_prompt = torch.zeros(vocab, dtype=torch.bool, device=prompt.device) if penalised else None
        if self.in_prompt is not None:
            self.in_prompt[prompt] = True

    def chose(self, token: int) -> None:
        self.chosen += 1
        if self.counts is not None:
            self.counts[token] += 1

    @property
    def is_too_short(self) -> bool:
        """The answer must not end yet."""
        return self.chosen < self.sampling.min_tokens

    @property
    def is_argmax(self) -> bool:
        sampling = self.sampling
        return sampling.temperature == 0 and self.counts is None and self.chosen >= len(sampling.begin)


def choose(scores: Tensor, choosers: Sequence[Chooser]) -> Tensor:
    """[requests, vocab] -> [requests] token ids."""
    if all(chooser.is_argmax for chooser in choosers):
        return scores.argmax(-1)
    return torch.stack([choose_one(row, chooser) for row, chooser in zip(scores, choosers, strict=True)])


def choose_one(scores: Tensor, chooser: Chooser) -> Tensor:
    sampling = chooser.sampling
    if chooser.chosen < len(sampling.begin):
        return torch.tensor(sampling.begin[chooser.chosen], device=scores.device)
    if chooser.counts is not None and chooser.in_prompt is not None:
        scores = penalised(scores, chooser.counts, chooser.in_prompt, sampling)
    if sampling.temperature == 0:
        return scores.argmax(-1)
    scores = scores / sampling.temperature
    if sampling.top_k:
        scores = only(scores, top(scores, sampling.top_k))
    if sampling.top_p < 1:
        scores = only(scores, nucleus(scores, 1.0, sampling.top_p))
    scores = min_p(scores, sampling.min_p)
    # The largest of p/e with e ~ Exp(1) is a draw from p, and needs no generator shared between requests.
    race = torch.empty_like(scores).exponential_(generator=chooser.generator)
    return (scores.softmax(-1) / race).argmax(-1)


def penalised(scores: Tensor, counts: Tensor, in_prompt: Tensor, sampling: Sampling) -> Tensor:
    """Repetition (CTRL, prompt included) divides positive and multiplies negative scores; the others subtract."""
    seen = in_prompt | (counts > 0)
    repeated = torch.where(scores > 0, scores / sampling.repetition_penalty, scores * sampling.repetition_penalty)
    scores = torch.where(seen, repeated, scores)
    return scores - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)


def min_p(scores: Tensor, p: float) -> Tensor:
    if p == 0:
        return scores
    probabilities = scores.softmax(-1)
    return scores.masked_fill(probabilities < p * probabilities.max(-1, keepdim=True).values, -torch.inf)

"""Contrast only where the model is torn: no picture, a noisy and a masked one wake for the steps that need them."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.ask import Ask, Heat, Memory, Picture, Probe, Relevance
from decoding.pictures import keep_relevant
from decoding.strategies.agla import without_short_answer
from decoding.strategies.parameters import Plausibility
from decoding.strategies.vcd import VCD
from decoding.strategies.vhr import VHR
from decoding.strategy import Captured, Program, Step, Strategy, Tensors
from decoding.tensors import contrast, only, plausible, shifted


class Auto(Strategy):
    """z_f = z where p_2 < torn p_1, or g >= grounded with g = l(w_1) - l_blind(w_1) of the likeliest token w_1; else
    z_f = z + blind (l - l_blind) + noise (l - l_noisy) + local (l_local - l_blind) where p(w) >= beta p_1, -inf beyond.

    p_1 and p_2 are the probabilities of the two likeliest tokens: a model is torn where the second is a rival to the
    first, be it between yes and no or among all that a picture may hold. Where p_2 < beta p_1 the first token alone is
    plausible, and no branch could change it: with torn = beta greedy answers lose nothing by the sleep.

    l and l_b are the log-probabilities of the main row and of a branch: of the prompt without its pictures (as in
    M3ID), with noisy ones (as in VCD), and with pictures that show only what matters to the question (as in AGLA). The
    main row runs with the heads reinforced that react to the picture (as in VHR). A step in which the main row is
    certain is decided by it alone: the branches sleep, and read what they missed in one pass when the model is next
    torn. A token that the picture has made likely stays then, too; what comes from the language, or from the first
    glance that noise leaves, has to compete with what the picture, and the part of it that matters, speak for.

    The masked picture is asked only where the matcher finds the question in the picture (similarity >= relevant). A
    request for a description names nothing: what its mask keeps says little, and costs a row.

    Ours, from no paper. `torn`, `blind`, `noise` and `local` were chosen, among some seventy settings on POPE and
    fourteen on captions, on scenes of an earlier embedded model that are not reported, where most differences were
    within the noise; they are no advice for other models. docs/strategies.md has what came of it.
    """

    name = "auto"
    paper = "none"

    torn: Annotated[
        float, Field(ge=0, le=1, description="Probability of the second token, over the first, that asks the branches.")
    ] = 0.4
    grounded: Annotated[
        float, Field(ge=0, le=100, description="Gain of the likeliest token by the picture, in nats, that settles it.")
    ] = 2.0
    blind: Annotated[float, Field(ge=0, le=100, description="Weight of the contrast with no picture.")] = 0.5
    noise: Annotated[float, Field(ge=0, le=100, description="Weight of the contrast with a noisy picture.")] = 1.0
    local: Annotated[float, Field(ge=0, le=100, description="Weight of the masked picture against none.")] = 0.25
    relevant: Annotated[
        float, Field(ge=-1, le=1, description="Similarity of picture and question from which the masked one counts.")
    ] = 0.25
    beta: Plausibility = 0.1
    heads_by: Annotated[float, Field(ge=0, le=10, description="Factor on the heads that react; 1 is off.")] = 1.5

    def run(self, ask: Ask) -> Program:
        ask.prompt.require_pictures(self.name)
        if self.heads_by != 1:
            pair = {"seeing": ask.prompt, "blind": ask.prompt.without_pictures()}
            memory: Memory = yield Probe(self, pair, main="seeing", layerwise=True)
            ask = ask.remember(self, memory)
        if self.blind or self.noise or self.local:
            ask = ask.branch(self, "blind", ask.prompt.without_pictures())
        if self.noise:
            ask = ask.branch(self, "noisy", VCD().noisy(ask.prompt))
        if self.local:
            text = without_short_answer(ask.prompt.question)
            heats: dict[Picture, Heat] = {}
            for picture in dict.fromkeys(ask.prompt.pictures):
                heats[picture] = yield Relevance(picture, text)
            if max(heat.similarity for heat in heats.values()) >= self.relevant:
                local = ask.prompt.map_pictures(lambda picture: keep_relevant(picture, heats[picture]))
                ask = ask.branch(self, "local", local)
        return ask

    def digest(self, memory: Tensors, captured: Captured) -> Tensors:
        return VHR(alpha=self.heads_by).digest(memory, captured)

    def heads(self, memory: Tensors) -> Tensor | None:
        return memory.get("factors")

    def wakes(self, raw: Tensor) -> Tensor:
        first, second = raw.double().topk(2, dim=-1).values.unbind(-1)
        return second >= first + (math.log(self.torn) if self.torn else -math.inf)

    def logits(self, step: Step) -> Tensor:
        blind = step.branches.get("auto/blind")
        if blind is None:
            return step.scores
        settled = ~self.wakes(step.raw)[..., None] | (self.gain(step.raw, blind) >= self.grounded)
        mixed = contrast(step.scores, blind, self.blind)
        if "auto/noisy" in step.branches:
            mixed = shifted(mixed, step.scores, step.branches["auto/noisy"], self.noise)
        if "auto/local" in step.branches:
            mixed = shifted(mixed, step.branches["auto/local"], blind, self.local)
        return torch.where(settled, step.scores, only(mixed, plausible(step.raw, self.beta)))

    def gain(self, seeing: Tensor, blind: Tensor) -> Tensor:
        """[..., 1] by how many nats the picture has raised the likeliest token."""
        likeliest = seeing.argmax(dim=-1, keepdim=True)
        logprobs = (logits.log_softmax(dim=-1, dtype=torch.float32).gather(-1, likeliest) for logits in (seeing, blind))
        with_it, without = logprobs
        return with_it - without

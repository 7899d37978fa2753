"""A toy language model with heads, without caches or batches: what any engine must agree with, small enough to read."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping

import torch
from torch import Tensor

from decoding.answer import Alternative, End, Memory, Token, Usage
from decoding.ask import Ask, Probe, Prompt
from decoding.strategy import Captured, Step, Strategy, Tensors
from tests.decoding.fakes import FakeEngine

VOCABULARY, LAYERS, HEADS, WIDTH = 24, 8, 4, 6
WORDS = (" Yes", " No", *(f" {number}" for number in range(2, VOCABULARY)))


class ToyEngine(FakeEngine):
    """Head outputs are noise drawn from the prompt and the tokens so far; logits are their weighted sum."""

    def __init__(self) -> None:
        super().__init__()
        readout = torch.Generator().manual_seed(0)
        self.readout = torch.randn(LAYERS, HEADS, WIDTH, VOCABULARY, generator=readout)
        self.tensors: dict[Memory, Tensors] = {}

    def outputs(self, prompt: Prompt, tokens: list[int]) -> Tensor:
        """[layers, heads, width]"""
        parts = [part if isinstance(part, str) else part.key for message in prompt.messages for part in message.parts]
        seed = hashlib.sha256(repr((parts, tokens)).encode()).digest()[:8]
        return torch.randn(LAYERS, HEADS, WIDTH, generator=torch.Generator().manual_seed(int.from_bytes(seed)))

    def logits(self, prompt: Prompt, tokens: list[int], factors: Tensor) -> Tensor:
        return torch.einsum("lh,lhd,lhdv->v", factors, self.outputs(prompt, tokens), self.readout)

    async def generate(self, ask: Ask) -> AsyncGenerator[Token, None]:
        self.history.append(ask)
        memories = {owner: self.tensors[memory] for owner, memory in ask.memories.items()}
        factors = self.factors(ask.stack, memories)
        said: list[int] = []
        digested: Tensors = {}
        length = 1 if ask.choices else ask.sampling.max_tokens or 6
        for position in range(length):
            raw = self.logits(ask.prompt, said, factors)
            ones = torch.ones_like(factors)
            branches = {name: self.logits(prompt, said, ones) for name, prompt in ask.branches.items()}
            scores = raw
            for strategy in reversed(ask.stack):
                memory = memories.get(strategy.name, {})
                scores = strategy.logits(Step(scores, raw, branches, memory, torch.tensor([position])))
            logprobs = scores.log_softmax(-1)
            said.append(ask.sampling.begin[position] if position < len(ask.sampling.begin) else int(scores.argmax()))
            if ask.digest:
                digested = ask.digest.digest(digested, Captured(logits=raw))
            last = position + 1 == length
            memory = self.keep(digested) if last and ask.digest else None
            choices = {choice: float(logprobs[WORDS.index(f" {choice}")]) for choice in ask.choices}
            best = logprobs.topk(ask.sampling.top_logprobs or 0).indices.tolist()
            yield Token(
                said[-1],
                WORDS[said[-1]],
                top=tuple(Alternative(id_, WORDS[id_], WORDS[id_].encode(), float(logprobs[id_])) for id_ in best),
                end=End("length", Usage(), memory, choices) if last else None,
            )

    def factors(self, stack: tuple[Strategy, ...], memories: Mapping[str, Tensors]) -> Tensor:
        product = torch.ones(LAYERS, HEADS)
        for strategy in stack:
            if (factors := strategy.heads(memories.get(strategy.name, {}))) is not None:
                product = product * factors
        return product

    async def probe(self, probe: Probe) -> tuple[Memory, Usage]:
        outputs = {name: self.outputs(prompt, []) for name, prompt in probe.prompts.items()}
        memory: Tensors = {}
        for layer in range(LAYERS):
            heads = {name: output[layer] for name, output in outputs.items()}
            memory = probe.owner.digest(memory, Captured(heads, layer, LAYERS))
        return self.keep(memory), Usage()

    def keep(self, tensors: Tensors) -> Memory:
        memory = self._remember()
        self.tensors[memory] = tensors
        return memory

"""A toy language model with heads, without caches or batches: what any engine must agree with, small enough to read."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping

import torch
from torch import Tensor

from decoding.answer import Alternative, End, Memory, Token, Usage
from decoding.ask import Ask, Probe, Prompt
from decoding.strategy import Captured, Keys, Step, Strategy, Tensors
from tests.decoding.fakes import FakeEngine

VOCABULARY, LAYERS, HEADS, WIDTH = 24, 8, 4, 6
WORDS = (" Yes", " No", *(f" {number}" for number in range(2, VOCABULARY)))
KEYS, SEEN = 7, 4  # keys that are attended to, and how many of them belong to the picture


class ToyEngine(FakeEngine):
    """Attention scores and values are noise drawn from the prompt and the tokens so far.

    The logits are a weighted sum of what the heads make of them, on top of what the model would say without having
    looked at anything; after fewer layers, a shorter sum.
    """

    def __init__(self) -> None:
        super().__init__()
        readout = torch.Generator().manual_seed(0)
        self.readout = torch.randn(LAYERS, HEADS, WIDTH, VOCABULARY, generator=readout)
        self.prior = torch.randn(VOCABULARY, generator=readout)
        self.tensors: dict[Memory, Tensors] = {}

    def outputs(
        self,
        prompt: Prompt,
        tokens: list[int],
        stack: tuple[Strategy, ...] = (),
        visible: Tensor | None = None,
        **memories: Tensors,
    ) -> Tensor:
        """[layers, heads, width], where the strategies of the stack edit the attention to what is visible."""
        parts = [part if isinstance(part, str) else part.key for message in prompt.messages for part in message.parts]
        seed = hashlib.sha256(repr((parts, tokens)).encode()).digest()[:8]
        random = torch.Generator().manual_seed(int.from_bytes(seed))
        scores = torch.randn(LAYERS, HEADS, KEYS, generator=random)
        values = 3 * torch.randn(LAYERS, HEADS, KEYS, WIDTH, generator=random)
        seen = SEEN if prompt.pictures else 0
        pictures = torch.tensor([*range(seen), *[-1] * (KEYS - seen)])
        for strategy in reversed(stack):
            keys = (Keys(pictures, layer, LAYERS) for layer in range(LAYERS))
            memory = memories.get(strategy.name, {})
            scores = torch.stack([strategy.attend(*row, memory) for row in zip(scores, keys, strict=True)])
        if visible is not None:
            scores[..., :seen] = scores[..., :seen].masked_fill(~visible[:, None, :seen], -torch.inf)
        return torch.einsum("lhk,lhkd->lhd", scores.softmax(-1), values)

    def logits(self, outputs: Tensor, factors: Tensor, depth: int = LAYERS) -> Tensor:
        """[vocab] after the first `depth` layers."""
        return self.prior + torch.einsum("lh,lhd,lhdv->v", factors[:depth], outputs[:depth], self.readout[:depth])

    async def generate(self, ask: Ask) -> AsyncGenerator[Token, None]:
        self.history.append(ask)
        memories = {owner: self.tensors[memory] for owner, memory in ask.memories.items()}
        factors = self.factors(ask.stack, memories)
        said: list[int] = []
        digested: Tensors = {}
        length = 1 if ask.choices else ask.sampling.max_tokens or 6
        for position in range(length):
            outputs = self.outputs(ask.prompt, said, ask.stack, **memories)
            raw = self.logits(outputs, factors)
            ones = torch.ones_like(factors)
            branches = {
                name: self.logits(self.outputs(prompt, said, visible=self.visible(ask.stack, name, memories)), ones)
                for name, prompt in ask.branches.items()
            }
            scores = raw
            for strategy in reversed(ask.stack):
                memory = memories.get(strategy.name, {})
                heard = [self.logits(outputs, factors, depth) for depth in strategy.exits(LAYERS, False).layers]
                early = torch.stack(heard) if heard else None
                scores = strategy.logits(Step(scores, raw, branches, memory, torch.tensor([position]), early))
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
            attention = {name: output[layer, :, :SEEN].softmax(-1) for name, output in outputs.items()}
            heads = {name: output[layer] for name, output in outputs.items()}
            memory = probe.owner.digest(memory, Captured(heads, layer, LAYERS, self.vision(probe), attention))
        return self.keep(memory), Usage()

    def visible(self, stack: tuple[Strategy, ...], branch: str, memories: Mapping[str, Tensors]) -> Tensor | None:
        """[layers, picture tokens] of a branch, as its owner narrows it."""
        owners = [strategy for strategy in stack if branch.startswith(f"{strategy.name}/")]
        return owners[0].narrow(memories.get(owners[0].name, {})) if owners else None

    def vision(self, probe: Probe) -> Tensors:
        """Prompt name -> [tower layers, pictures, heads, patches] attention."""
        random = torch.Generator().manual_seed(0)
        return {name: torch.rand(3, len(p.pictures), 2, SEEN, generator=random) for name, p in probe.prompts.items()}

    def keep(self, tensors: Tensors) -> Memory:
        memory = self._remember()
        self.tensors[memory] = tensors
        return memory

"""A toy language model with heads, without caches or batches. Every engine must agree with it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping

import torch
from torch import Tensor

from decoding.outputs import FinishInfo, StateHandle, Token, TokenLogprob, Usage
from decoding.pipeline.composition import select_branches
from decoding.requests import GenerateRequest, ProbeRequest, Prompt, VectorsRequest
from decoding.strategy import Activations, AttentionKeys, LayerPlace, Step, Strategy, Tensors
from tests.decoding.fakes import RecordingEngine

VOCABULARY, LAYERS, HEADS, WIDTH = 24, 8, 4, 6
WORDS = (" Yes", " No", *(f" {number}" for number in range(2, VOCABULARY)))
KEYS, IMAGE_KEYS = 7, 4  # keys that are attended to, and how many of them belong to the image


class ToyEngine(RecordingEngine):
    """Attention scores and values are noise drawn from the prompt and the tokens so far.

    The logits are a weighted sum of the head outputs, on top of a prior without any
    attention; after fewer layers, a shorter sum.
    """

    def __init__(self) -> None:
        super().__init__()
        readout = torch.Generator().manual_seed(0)
        self.readout = torch.randn(LAYERS, HEADS, WIDTH, VOCABULARY, generator=readout)
        self.prior = torch.randn(VOCABULARY, generator=readout)
        self.statistics = {
            "hallucinated": torch.full((LAYERS, HEADS), 0.1),
            "real": torch.linspace(0.1, 0.8, HEADS).repeat(LAYERS, 1),
        }
        self.tensors: dict[StateHandle, Tensors] = {}

    def outputs(
        self,
        prompt: Prompt,
        tokens: list[int],
        stack: tuple[Strategy, ...] = (),
        kept: Tensor | None = None,
        **states: Tensors,
    ) -> Tensor:
        """Compute [layers, heads, width] outputs, with the attention that the stack edits."""
        parts = [part if isinstance(part, str) else part.key for message in prompt.messages for part in message.parts]
        seed = hashlib.sha256(repr((parts, tokens)).encode()).digest()[:8]
        random = torch.Generator().manual_seed(int.from_bytes(seed))
        scores = torch.randn(LAYERS, HEADS, KEYS, generator=random)
        values = 3 * torch.randn(LAYERS, HEADS, KEYS, WIDTH, generator=random)
        image_keys = IMAGE_KEYS if prompt.images else 0
        images = torch.tensor([*range(image_keys), *[-1] * (KEYS - image_keys)])
        generated = torch.arange(KEYS) >= max(KEYS - len(tokens), IMAGE_KEYS)
        keys = [AttentionKeys(images, layer, LAYERS, generated, statistics=self.statistics) for layer in range(LAYERS)]
        for strategy in reversed(stack):
            rows, state = list(zip(scores, keys, strict=True)), states.get(strategy.name, {})
            for number, row in enumerate(rows):
                if (gates := strategy.gate_heads(*row, state)) is not None:
                    values[number] *= gates[:, None, None]
            scores = torch.stack([strategy.edit_attention_scores(*row, state) for row in rows])
        if kept is not None:
            scores[..., :image_keys] = scores[..., :image_keys].masked_fill(~kept[:, None, :image_keys], -torch.inf)
        outputs = torch.einsum("lhk,lhkd->lhd", scores.softmax(-1), values)
        for strategy in reversed(stack):
            steered = strategy.steered_layers(LAYERS)
            for layer in steered.layers if "steer" in strategy.list_hooks() else ():
                place, own = LayerPlace(steered.part, layer, LAYERS), outputs[layer].flatten()
                state = {**states.get(strategy.name, {}), "layer_input": own}
                outputs[layer] = strategy.steer(own, place, state).view(HEADS, WIDTH)
        return outputs

    def logits(self, outputs: Tensor, factors: Tensor, depth: int = LAYERS) -> Tensor:
        """Compute [vocab] logits after the first `depth` layers."""
        return self.prior + torch.einsum("lh,lhd,lhdv->v", factors[:depth], outputs[:depth], self.readout[:depth])

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Token, None]:
        self.history.append(request)
        states = {strategy: self.tensors[state] for strategy, state in request.states.items()}
        factors = self.factors(request.stack, states)
        tokens: list[int] = []
        updated: Tensors = {}
        length = 1 if request.scored_texts else request.sampling.max_tokens or 6
        for position in range(length):
            outputs = self.outputs(request.prompt, tokens, request.stack, **states)
            raw = self.logits(outputs, factors)
            ones = torch.ones_like(factors)
            branches = {
                name: self.logits(
                    self.outputs(prompt, tokens, kept=self.find_kept_tokens(request.stack, name, states)),
                    ones,
                )
                for name, prompt in request.branches.items()
            }
            scores = raw
            for strategy in reversed(request.stack):
                state = states.get(strategy.name, {})
                layers = [
                    self.logits(outputs, factors, depth) for depth in strategy.early_exit_layers(LAYERS, False).layers
                ]
                early = torch.stack(layers) if layers else None
                own = select_branches(strategy, branches)
                scores = strategy.logits(Step(scores, raw, own, state, torch.tensor([position]), early))
            logprobs = scores.log_softmax(-1)
            tokens.append(
                request.sampling.forced_token_ids[position]
                if position < len(request.sampling.forced_token_ids)
                else int(scores.argmax())
            )
            if request.state_updater:
                updated = request.state_updater.update_state(updated, Activations(logits=raw))
            last = position + 1 == length
            state = self.store_state(updated) if last and request.state_updater else None
            text_logprobs = {text: float(logprobs[WORDS.index(f" {text}")]) for text in request.scored_texts}
            best = logprobs.topk(request.sampling.top_logprobs or 0).indices.tolist()
            yield Token(
                tokens[-1],
                WORDS[tokens[-1]],
                top=tuple(TokenLogprob(id_, WORDS[id_], WORDS[id_].encode(), float(logprobs[id_])) for id_ in best),
                finish=FinishInfo("length", Usage(), state, text_logprobs) if last else None,
            )

    def factors(self, stack: tuple[Strategy, ...], states: Mapping[str, Tensors]) -> Tensor:
        product = torch.ones(LAYERS, HEADS)
        for strategy in stack:
            if (factors := strategy.head_scales(states.get(strategy.name, {}))) is not None:
                product = product * factors
        return product

    async def probe(self, probe: ProbeRequest) -> tuple[StateHandle, Usage]:
        outputs = {name: self.outputs(prompt, []) for name, prompt in probe.prompts.items()}
        state: Tensors = {}
        for layer in range(LAYERS):
            attention = {name: output[layer, :, :IMAGE_KEYS].softmax(-1) for name, output in outputs.items()}
            heads = {name: output[layer] for name, output in outputs.items()}
            state = probe.strategy.update_state(
                state,
                Activations(
                    heads,
                    layer,
                    LAYERS,
                    self.draw_vision_attention(probe),
                    attention,
                    hidden_states={name: output[layer].flatten() for name, output in outputs.items()},
                    attention_updates={name: output[layer].flatten()[None] for name, output in outputs.items()},
                ),
            )
        return self.store_state(state), Usage()

    async def load_vectors(self, request: VectorsRequest) -> StateHandle:
        return self.store_state({"vectors": torch.randn(LAYERS, HEADS * WIDTH)})

    def find_kept_tokens(
        self, stack: tuple[Strategy, ...], branch: str, states: Mapping[str, Tensors]
    ) -> Tensor | None:
        """Return the [layers, image tokens] mask of a branch, from its strategy."""
        named = [strategy for strategy in stack if branch.startswith(f"{strategy.name}/")]
        return named[0].keep_image_tokens(states.get(named[0].name, {})) if named else None

    def draw_vision_attention(self, probe: ProbeRequest) -> Tensors:
        """Draw attention of the vision tower: prompt name -> [tower layers, images, heads, patches]."""
        random = torch.Generator().manual_seed(0)
        return {
            name: torch.rand(3, len(p.images), 2, IMAGE_KEYS, generator=random) for name, p in probe.prompts.items()
        }

    def store_state(self, tensors: Tensors) -> StateHandle:
        state = self._new_state_handle()
        self.tensors[state] = tensors
        return state

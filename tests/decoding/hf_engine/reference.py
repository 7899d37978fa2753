"""The strategies as their papers have them, without an engine: every branch from scratch at every token.

No cache, no batch, no hook that is shared with the engine; formulas written out once more, slowly, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from decoding.image_ops import interpolate
from decoding.outputs import RelevanceMap
from decoding.prompt import ImageInput, Prompt
from decoding.requests import GenerateRequest
from decoding.strategies.agla import AGLA
from decoding.strategies.attention.adaiat import AdaIAT
from decoding.strategies.attention.hgai import HGAI
from decoding.strategies.attention.iat import IAT
from decoding.strategies.attention.pai import PAI
from decoding.strategies.attention.paint import PAINT
from decoding.strategies.attention.spin import SPIN
from decoding.strategies.attention.vaf import VAF
from decoding.strategies.attention.vhr import VHR
from decoding.strategies.deco import DeCo
from decoding.strategies.describe import Describe
from decoding.strategies.dola import DoLa
from decoding.strategies.image_tokens.avisc import AvisC
from decoding.strategies.image_tokens.damro import DAMRO
from decoding.strategies.image_tokens.sid import SID
from decoding.strategies.image_tokens.sira import SIRA
from decoding.strategies.nolan import NoLan
from decoding.strategies.ritual import RITUAL
from decoding.strategies.sharpen import Sharpen
from decoding.strategies.steering.fade import FADE
from decoding.strategies.steering.rudder import RUDDER
from decoding.strategies.steering.steer import Steer as AddVectors
from decoding.strategies.steering.vista import VISTA
from decoding.strategies.steering.vti import VTI
from decoding.strategies.truncate import Truncate
from decoding.strategies.vcd import VCD
from decoding.strategies.vdgd import VDGD
from decoding.strategy import Strategy
from tests.decoding.naive_reference import (
    Change,
    Factors,
    Gate,
    Steer,
    WeightChange,
    add_prompt_direction,
    add_vectors,
    cut_layers,
    deco_rule,
    edit_attention,
    edit_heads,
    flip,
    mask_keys,
    most_divergent_layer,
    nolan_rule,
    penalize,
    plausible,
    raise_answer_scores,
    raise_answer_weights,
    raise_image_scores,
    raise_mean_scores,
    rank_patches,
    record_attention,
    record_layers,
    rotate_outputs,
    scale_scores,
    steer_layers,
    vdgd_rule,
    weaken_heads,
    weaken_layer,
)
from tests.decoding.steering_vectors import read_all_vectors

STIC_PROMPT, STIC_QUESTION = "Detail the composition and subjects within the frame.", "Image description:\n{}\n\n{}"


@dataclass(frozen=True)
class EncodedPrompt:
    """An encoded prompt."""

    ids: Tensor  # [length]
    pixels: Tensor | None  # [images, 3, side, side]


@dataclass
class Decoded:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of each token, after the strategies
    raw: list[Tensor] = field(default_factory=list)  # [vocab] the main branch at each token
    scores: list[Tensor] = field(default_factory=list)  # [vocab] after the strategies, at each token


class Reference:
    """Decodes without an engine. `relevance` replaces the matcher."""

    def __init__(self, folder: Path, relevance: Callable[[ImageInput, str], RelevanceMap]) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.relevance = relevance
        self.decoder = self.model.model.language_model
        self.layers = self.decoder.layers
        self.heads = self.model.config.text_config.num_attention_heads
        self.vectors = read_all_vectors(folder)

    def decode(
        self,
        stack: Sequence[Strategy],
        prompt: Prompt,
        length: int,
        *,
        ends: bool = False,
        prefix: Sequence[int] = (),
        ruled_out: Sequence[Sequence[int]] = (),
        seed: int | None = None,
        min_tokens: int = 0,
        penalties: tuple[float, float, float] = (1.0, 0.0, 0.0),
        bias: Mapping[int, float] | None = None,
    ) -> Decoded:
        """Decode greedily, or sample at temperature 1.

        Args:
            stack: Strategies, outermost first.
            prompt: The prompt.
            length: Tokens of the answer, its prefix included.
            ends: Stop where the model ends its answer.
            prefix: Tokens with which the answer begins.
            ruled_out: Token sequences that the answer must not contain after its prefix.
            seed: Seed with which tokens are sampled; None decodes greedily.
            min_tokens: Tokens before which the answer does not end, its prefix included.
            penalties: Of repetition, frequency and presence.
            bias: Token -> number that is added to its score.

        Returns:
            The tokens of the answer, with their log-probabilities and logits.
        """
        factors: Factors = {}
        branch_prompts: dict[str, EncodedPrompt] = {}
        description: list[Tensor] = []  # log P_j, [vocab] each
        changes: list[Change | WeightChange] = []
        gates: list[Gate] = []
        steers: list[Steer] = []
        branch_changes: dict[str, Change] = {}  # in a branch
        for depth, strategy in enumerate(stack):
            match strategy:
                case VCD():
                    branch_prompts["vcd"] = self.add_noise(self.encode(prompt), strategy)
                case AGLA():
                    branch_prompts["agla"] = self.encode(
                        prompt.map_images(self.mask_irrelevant(strategy.text or prompt.question))
                    )
                case VHR():
                    factors = self.choose_heads(self.encode(prompt), self.encode(prompt.without_images()), strategy)
                case PAI():
                    branch_prompts["pai"] = self.encode(prompt.without_images())
                    visual = self.encode(prompt).ids == self.model.config.image_token_id
                    changes.append(raise_image_scores(visual, strategy.alpha, strategy.first_layer))
                case HGAI():
                    visual = self.encode(prompt).ids == self.model.config.image_token_id
                    changes.append(raise_mean_scores(visual, strategy, len(self.layers)))
                case IAT():
                    changes.append(raise_answer_scores(len(self.encode(prompt).ids), strategy, len(self.layers)))
                case AdaIAT():
                    sizes = len(self.layers), self.decoder.config.num_attention_heads
                    changes.append(raise_answer_weights(len(self.encode(prompt).ids), strategy, *sizes))
                case SPIN():
                    visual = self.encode(prompt).ids == self.model.config.image_token_id
                    gates.append(weaken_heads(visual, strategy, len(self.layers)))
                case AddVectors():
                    vectors, start = self.vectors[strategy.vectors], len(self.encode(prompt).ids)
                    steers.insert(0, add_vectors(vectors, strategy, start, len(self.layers)))
                case FADE():
                    steers.insert(0, weaken_layer(strategy, len(self.encode(prompt).ids), len(self.layers)))
                case VISTA():
                    moved = [self.read_layers(each) for each in (prompt, prompt.without_images())]
                    steers.insert(0, rotate_outputs(moved[0] - moved[1], strategy))
                case RUDDER():
                    self.logits(self.encode(prompt), [], {}, steers=[record_attention(updates := {})])
                    steers.insert(0, add_prompt_direction(updates, strategy))
                case VTI():
                    steers.insert(0, rotate_outputs(self.vectors[strategy.vectors], strategy))
                case VAF():
                    visual = self.encode(prompt).ids == self.model.config.image_token_id
                    changes.append(scale_scores(visual, strategy, len(self.layers)))
                case NoLan():
                    branch_prompts["nolan"] = self.encode(prompt.without_images())
                case RITUAL(transformation="horizontal_flip"):
                    branch_prompts["ritual"] = self.encode(prompt.map_images(flip))
                case RITUAL():
                    transformed = strategy.prepare(GenerateRequest(prompt)).branches["transformed"]
                    branch_prompts["ritual"] = self.encode(transformed)
                case SID() | AvisC() | SIRA() | DAMRO():
                    branch_prompts[strategy.name] = self.encode(prompt)
                    branch_changes[strategy.name] = mask_keys(self.hidden_tokens(self.encode(prompt), strategy))
                case PAINT():
                    changes.append(self.paint_change(prompt, strategy))
                case VDGD():
                    prompt, description = self.describe(
                        stack[depth + 1 :], prompt, strategy, strategy.description_prompt
                    )
                case Describe(style="stic"):
                    prompt, _ = self.describe(stack[depth + 1 :], prompt, strategy, STIC_PROMPT, STIC_QUESTION)
                case Describe(style="vdgd"):
                    prompt, _ = self.describe(stack[depth + 1 :], prompt, strategy, VDGD().description_prompt)
        main, decoded = self.encode(prompt), Decoded(list(prefix))
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        while len(decoded.tokens) < length:
            edits: dict[str, Any] = {"factors": factors, "changes": changes, "gates": gates, "steers": steers}
            z = self.logits(main, decoded.tokens, **edits).clone()
            for sequence in ruled_out:
                if decoded.tokens[len(decoded.tokens) - len(sequence) + 1 :] == list(sequence[:-1]):
                    z[sequence[-1]] = -torch.inf
            if len(decoded.tokens) < min_tokens:
                z[self.processor.tokenizer.eos_token_id] = -torch.inf
            branches = {
                name: self.logits(
                    encoded, decoded.tokens, {}, changes=[branch_changes[name]] if name in branch_changes else []
                )
                for name, encoded in branch_prompts.items()
            }
            scores = z
            for strategy in reversed(stack):
                early = {
                    depth: self.logits(
                        main, decoded.tokens, **edits, depth=depth, normed=not isinstance(strategy, VISTA)
                    )
                    for depth in self.exit_depths(strategy)
                }
                scores = apply_rule(strategy, scores, z, branches, early, description)
            logprobs = scores.log_softmax(-1)
            for biased, number in (bias or {}).items():
                scores = torch.where(torch.arange(len(scores)) == biased, scores + number, scores)
            scores = penalize(scores, main.ids.tolist(), decoded.tokens, penalties)
            if generator is None:
                token = int(scores.argmax())
            else:
                waiting_times = torch.empty(len(scores)).exponential_(generator=generator)
                token = int((scores.softmax(-1) / waiting_times.double()).argmax())
            decoded.tokens.append(token)
            decoded.logprobs.append(float(logprobs[token]))
            decoded.scores.append(scores)
            decoded.raw.append(z)
            if ends and token == self.processor.tokenizer.eos_token_id:
                break
        return decoded

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        messages = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in message.parts
                ],
            }
            for message in prompt.messages
        ]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        images = [image.visible for image in prompt.images]
        inputs = self.processor(text=text, images=images or None, return_tensors="pt")
        return EncodedPrompt(inputs["input_ids"][0], inputs.get("pixel_values"))

    @torch.no_grad()
    def logits(
        self,
        encoded: EncodedPrompt,
        tokens: Sequence[int],
        factors: Factors,
        heads: list[Tensor] | None = None,
        changes: Sequence[Change | WeightChange] = (),
        depth: int | None = None,
        gates: Sequence[Gate] = (),
        steers: Sequence[Steer] = (),
        normed: bool = True,
    ) -> Tensor:
        """Compute the logits after a prompt and an answer so far.

        Args:
            encoded: The prompt.
            tokens: The answer so far.
            factors: Factors of the head outputs.
            heads: List that receives each layer's head outputs at the last position.
            changes: Edits of the attention.
            depth: Number of layers after which the model ends; None for all.
            gates: Edits of the outputs of attention heads.
            steers: Edits of what leaves the parts of the layers.
            normed: Whether the final norm applies.

        Returns:
            [vocab], float64.
        """
        ids = torch.cat([encoded.ids, torch.tensor(tokens, dtype=torch.long)])[None]
        inside = edit_attention(self.decoder, *changes, gates=gates) if changes or gates else nullcontext()
        with (
            edit_heads(self.layers, self.heads, factors, [] if heads is None else heads),
            inside,
            steer_layers(self.decoder, steers),
            cut_layers(self.decoder, depth, normed),
        ):
            out = self.model(input_ids=ids, pixel_values=encoded.pixels, use_cache=False)
        return out.logits[0, -1].double()

    def read_layers(self, prompt: Prompt) -> Tensor:
        """Read the [layers, width] hidden states after each layer at the last position."""
        found: dict[int, Tensor] = {}
        self.logits(self.encode(prompt), [], {}, steers=[record_layers(found)])
        return torch.stack([found[number] for number in sorted(found)])

    def exit_depths(self, strategy: Strategy) -> list[int]:
        """Return the numbers of layers after which the strategy needs logits."""
        layers = len(self.layers)
        match strategy:
            case DoLa(bucket="high"):
                return [*range(layers // 2, layers, 2)]
            case DoLa():
                return [*range(2 if self.model.config.tie_word_embeddings else 0, layers // 2, 2)]
            case VISTA():
                return [*range(min(round(26 / 32 * layers), layers - 1), layers)]
            case DeCo():
                return [depth for depth in range(layers) if round(20 / 32 * layers) <= depth <= round(28 / 32 * layers)]
            case _:
                return []

    def add_noise(self, encoded: EncodedPrompt, vcd: VCD) -> EncodedPrompt:
        """Apply forward diffusion step by step."""
        left = 1.0
        for u in np.linspace(-6, 6, 1000)[: vcd.noise_step + 1]:
            left *= 1 - (1 / (1 + math.exp(-u)) * (5e-3 - 1e-5) + 1e-5)
        assert encoded.pixels is not None
        noise = torch.randn(encoded.pixels.shape, generator=torch.Generator().manual_seed(vcd.noise_seed))
        return replace(encoded, pixels=math.sqrt(left) * encoded.pixels + math.sqrt(1 - left) * noise)

    def mask_irrelevant(self, text: str) -> Callable[[ImageInput], ImageInput]:
        def masked(image: ImageInput) -> ImageInput:
            relevance_map = self.relevance(image, text)
            relevance = interpolate(relevance_map)
            descending = np.sort(relevance, axis=None)[::-1]
            threshold = descending[
                int(
                    relevance_map.input_size
                    * relevance_map.input_size
                    * min(1 - relevance_map.similarity / 2, 1 - 1e-5)
                )
            ]
            pixels = np.array(image.visible)
            for y, row in enumerate(pixels):
                for x in range(len(row)):
                    at = (
                        int((y + 0.5) * relevance_map.input_size / len(pixels)),
                        int((x + 0.5) * relevance_map.input_size / len(row)),
                    )
                    if relevance[at] < threshold:
                        row[x] = 0
            return image.with_image(Image.fromarray(pixels))

        return masked

    def choose_heads(self, encoded: EncodedPrompt, encoded_without_image: EncodedPrompt, vhr: VHR) -> Factors:
        """Choose heads layer by layer, each from a pass in which the heads of lower layers are scaled."""
        depth = len(self.layers)
        wanted = {1} | {layer for layer in range(depth) if depth - layer <= round(vhr.late * depth)}
        factors: dict[tuple[int, int], float] = {}
        for layer in sorted(wanted):
            with_image, without = list[Tensor](), list[Tensor]()
            self.logits(encoded, [], factors, with_image)
            self.logits(encoded_without_image, [], {}, without)
            one, other = with_image[layer].numpy(), without[layer].numpy()
            divergence = np.sqrt(((one - other) ** 2).sum(-1))
            activity = (other**2).sum(-1)
            loud = (divergence > divergence.mean() + divergence.std()) & (activity > activity.mean() + activity.std())
            divergence[loud] = 0
            for head in np.flatnonzero(divergence > np.median(divergence)):
                factors[layer, int(head)] = vhr.alpha
        return factors

    @torch.no_grad()
    def paint_change(self, prompt: Prompt, paint: PAINT) -> Change:
        """Compute both sets of patches from the attention that the vision tower returns."""
        encoded, config = self.encode(prompt), self.model.config.vision_config
        own, config._attn_implementation = config._attn_implementation, "eager"
        seen = self.model.model.vision_tower(encoded.pixels, output_attentions=True).attentions
        config._attn_implementation = own
        first, late = (layer[0, :, 0, 1:].sum(0).numpy() for layer in (seen[0], seen[-2]))
        low, high = np.percentile(late, [25, 75])
        local = set(np.argsort(-first)[: int(paint.ratio * len(first))])
        summary = set(np.flatnonzero(late > high + 1.5 * (high - low)))
        louder_by = torch.tensor(
            [paint.beta if j in summary else paint.alpha if j in local else 0.0 for j in range(len(first))]
        )
        heads = None
        if paint.modulation == "sensitive":
            with_image, without = list[Tensor](), list[Tensor]()
            self.logits(encoded, [], {}, with_image)
            self.logits(self.encode(prompt.without_images()), [], {}, without)
            moved = (torch.stack(with_image) - torch.stack(without)).norm(dim=-1)
            heads = moved / moved.mean(-1, keepdim=True)
        return raise_image_scores(encoded.ids == self.model.config.image_token_id, louder_by, paint.first_layer, heads)

    @torch.no_grad()
    def hidden_tokens(self, encoded: EncodedPrompt, strategy: SID | AvisC | SIRA | DAMRO) -> dict[int, list[int]]:
        """Compute layer -> tokens that the branch does not see, from the attention that the model returns."""
        image_tokens = (encoded.ids == self.model.config.image_token_id).nonzero().flatten().tolist()
        if isinstance(strategy, SIRA):
            first = math.floor(strategy.boundary * len(self.layers) + 0.5)
            return dict.fromkeys(range(first, len(self.layers)), image_tokens)
        if isinstance(strategy, DAMRO):
            kept = rank_patches(self.model.model.vision_tower, encoded.pixels)[: strategy.kept]
            dropped = [place for number, place in enumerate(image_tokens) if number not in kept]
            return dict.fromkeys(range(len(self.layers)), dropped)
        config = self.decoder.config
        own, config._attn_implementation = config._attn_implementation, "eager"
        out = self.model(input_ids=encoded.ids[None], pixel_values=encoded.pixels, output_attentions=True)
        config._attn_implementation = own
        # [layers, tokens]
        attention = np.stack([layer[0, :, -1, image_tokens].mean(0).numpy() for layer in out.attentions])
        if isinstance(strategy, SID):
            kept = np.argsort(attention[strategy.layer - 1])[: int(strategy.kept * len(image_tokens))]
            first = strategy.layer
        else:
            shares = attention.sum(1) / attention.sum()
            aware_layers, held = [], 0.0
            for layer in np.argsort(-shares):
                if held < strategy.gamma:
                    aware_layers.append(layer)
                held += shares[layer]
            mean = attention[aware_layers].mean(0)
            kept, first = (
                np.flatnonzero(
                    mean >= mean.mean() + strategy.deviations * mean.std(ddof=int(strategy.deviation == "sample"))
                ),
                0,
            )
        dropped = [place for number, place in enumerate(image_tokens) if number not in kept]
        return dict.fromkeys(range(first, len(self.layers)), dropped)

    def describe(
        self,
        inner: Sequence[Strategy],
        prompt: Prompt,
        strategy: VDGD | Describe,
        description_prompt: str,
        grounded: str = "The input image is described as follows: {} {}",
    ) -> tuple[Prompt, list[Tensor]]:
        question = prompt.question
        asked = prompt.with_question(description_prompt.replace("{question}", question))
        decoded = self.decode(inner, asked, strategy.description_tokens, ends=True)
        text = self.processor.tokenizer.decode(decoded.tokens, skip_special_tokens=True).strip()
        return prompt.with_question(grounded.format(text, question)), [raw.log_softmax(-1) for raw in decoded.raw]


def apply_rule(
    strategy: Strategy,
    scores: Tensor,
    z: Tensor,
    branches: Mapping[str, Tensor],
    early: dict[int, Tensor],
    description: list[Tensor],
) -> Tensor:
    match strategy:
        case Truncate():
            return scores.where(plausible(z, strategy.beta), -math.inf)
        case Sharpen():
            return (strategy.scale * scores).where(plausible(z, strategy.beta), -math.inf)
        case RITUAL() | AGLA():
            raised = scores + strategy.alpha * branches[strategy.name]
            return raised.where(plausible(z, strategy.beta), -math.inf)
        case NoLan():
            return nolan_rule(scores, z, branches["nolan"], strategy)
        case SIRA():
            return (1 + strategy.alpha) * scores - strategy.alpha * branches["sira"]
        case VCD() | SID() | AvisC() | DAMRO():
            contrasted = (1 + strategy.alpha) * scores - strategy.alpha * branches[strategy.name]
            return contrasted.where(plausible(z, strategy.beta), -math.inf)
        case PAI() if strategy.gamma != 1:
            with_image, without_image = scores.log_softmax(-1), branches["pai"].log_softmax(-1)
            guided = strategy.gamma * (with_image - without_image) + without_image
            return guided.where(plausible(z, strategy.beta), -math.inf)
        case DoLa():
            premature = early[most_divergent_layer(z, early, is_official=strategy.divergence == "official")]
            return (scores.log_softmax(-1) - premature.log_softmax(-1)).where(plausible(z, strategy.beta), -math.inf)
        case DeCo():
            return deco_rule(scores, z, early, strategy)
        case VISTA():
            return (1 - strategy.gamma) * scores + strategy.gamma * sum(early.values()) / len(early)
        case VDGD():
            return vdgd_rule(scores, z, description, strategy)
        case _:
            return scores

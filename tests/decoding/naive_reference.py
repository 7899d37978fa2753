"""Slow reference: attention score by score, models that are cut off after a layer, and rules token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from PIL.Image import Transpose
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from decoding.prompt import ImageInput
from decoding.strategies.attention.adaiat import AdaIAT
from decoding.strategies.attention.hgai import HGAI
from decoding.strategies.attention.iat import IAT
from decoding.strategies.attention.spin import SPIN
from decoding.strategies.attention.vaf import VAF
from decoding.strategies.deco import DeCo
from decoding.strategies.nolan import NoLan
from decoding.strategies.steering.fade import FADE
from decoding.strategies.steering.rudder import RUDDER
from decoding.strategies.steering.steer import Steer as AddVectors
from decoding.strategies.steering.vista import VISTA
from decoding.strategies.steering.vti import VTI
from decoding.strategies.vdgd import VDGD

Change = Callable[[int, Tensor], None]  # layer, [heads, tokens, tokens] scores, which it edits in place

Gate = Callable[[int, Tensor, list[Tensor]], None]  # layer, scores, outputs of heads, which it edits in place

Factors = Mapping[tuple[int, int], float]  # (layer, head) -> what its output is multiplied by
Steer = Callable[[str, int, Tensor], Tensor]  # part of a layer, its number, [tokens, width] outputs -> the same, edited


class WeightChange(NamedTuple):
    """A change of weights after the softmax, instead of scores."""

    apply: Change


current: list[Change | WeightChange] = []
current_gates: list[Gate] = []


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Compute attention of one prompt head by head, all queries against all keys, in float64."""
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    scores = torch.stack(
        [query[0, head].double() @ key[0, head // shared].double().T * scaling for head in range(heads)]
    )
    own = scores.clone()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    for change in current:
        if not isinstance(change, WeightChange):
            change(layer, scores)
    if mask is not None:
        scores = scores + mask[0, 0]
    weights = torch.stack([scores[head].softmax(-1) for head in range(heads)])
    for change in current:
        if isinstance(change, WeightChange):
            change.apply(layer, weights)
    outputs = [weights[head] @ value[0, head // shared].double() for head in range(heads)]
    for gate in current_gates:
        gate(layer, own, outputs)
    return torch.stack(outputs, dim=1)[None].to(query.dtype), None


AttentionInterface.register("naive", attention)
AttentionMaskInterface.register("naive", eager_mask)


@contextmanager
def edit_attention(decoder: Any, *changes: Change | WeightChange, gates: Sequence[Gate] = ()) -> Iterator[None]:
    """Apply each change to the decoder's attention, in turn, and each gate to its heads by the first scores."""
    own = decoder.config._attn_implementation
    decoder.config._attn_implementation = "naive"
    current.extend(changes)
    current_gates.extend(gates)
    try:
        yield
    finally:
        current.clear()
        current_gates.clear()
        decoder.config._attn_implementation = own


@contextmanager
def steer_layers(decoder: Any, steers: Sequence[Steer]) -> Iterator[None]:
    """Apply each edit to what the parts of all layers return for one prompt, in turn."""
    replaced: list[Any] = []

    def replace(module: Any, part: str, number: int) -> None:
        own = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            result = own(*args, **kwargs)
            hidden = (result[0] if isinstance(result, tuple) else result)[0]
            for steer in steers:
                hidden = steer(part, number, hidden)
            return (hidden[None], *result[1:]) if isinstance(result, tuple) else hidden[None]

        module.forward = forward
        replaced.append(module)

    for number, layer in enumerate(decoder.layers) if steers else ():
        replace(layer, "layer", number)
        replace(layer.mlp, "feed_forward", number)
        replace(layer.self_attn, "attention", number)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def add_vectors(vectors: Tensor, steer: AddVectors, length: int, depth: int) -> Steer:
    """Add vectors as `steer` does, token by token in float64.

    Args:
        vectors: [layers, width].
        steer: The strategy.
        length: Tokens of the prompt.
        depth: Layers of the model.

    Returns:
        The edit.
    """
    first, last = (min(math.floor(share * depth + 0.5), depth - 1) for share in (steer.first, steer.last))

    def edit(part: str, number: int, hidden: Tensor) -> Tensor:
        if part != steer.part or not first <= number <= last:
            return hidden
        rows = [row.double() for row in hidden]
        for position in range(0 if steer.positions == "all" else length, len(rows)):
            moved = rows[position] + steer.strength * vectors[number].double()
            rows[position] = moved * (rows[position].norm() / moved.norm()) if steer.normalize else moved
        return torch.stack(rows).to(hidden.dtype)

    return edit


def weaken_layer(fade: FADE, start: int, depth: int) -> Steer:
    """Weaken the feed-forward network of a layer as FADE does, in a model of `depth` layers, after `start` tokens."""
    layer = min(math.floor(fade.layer * depth + 0.5), depth - 1)

    def edit(part: str, number: int, hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        if (part, number) == ("feed_forward", layer):
            for row in hidden[0 if fade.positions == "all" else start :]:
                row -= fade.alpha * row
        return hidden

    return edit


def record_layers(found: dict[int, Tensor]) -> Steer:
    """Record what leaves each layer at the last position."""

    def record(part: str, number: int, hidden: Tensor) -> Tensor:
        if part == "layer":
            found[number] = hidden[-1].double()
        return hidden

    return record


def record_attention(found: dict[int, Tensor]) -> Steer:
    """Record what the attention of each layer adds at every position."""

    def record(part: str, number: int, hidden: Tensor) -> Tensor:
        if part == "attention":
            found[number] = hidden.double()
        return hidden

    return record


def add_prompt_direction(updates: Mapping[int, Tensor], rudder: RUDDER) -> Steer:
    """Add the mean of what the attention of a layer adds to a prompt as RUDDER does, after the prompt.

    Args:
        updates: Layer -> [tokens of the prompt, width] that its attention adds.
        rudder: The strategy.

    Returns:
        The edit.
    """
    layer = min(math.floor(rudder.layer * len(updates) + 0.5), len(updates) - 1)
    start = len(updates[layer])
    sum_ = sum(row * (row.norm() if rudder.pooling == "weighted" else 1) for row in updates[layer])
    direction = sum_ / sum_.norm()
    stream: list[Tensor] = []

    def edit(part: str, number: int, hidden: Tensor) -> Tensor:
        if (part, number) == ("layer", layer - 1):
            stream[:] = hidden.double()
        if (part, number) != ("attention", layer):
            return hidden
        rows = [row.double() for row in hidden]
        for position in range(start, len(rows)):
            gate = 1.0
            if rudder.adaptive:
                cosine = float(stream[position] @ direction / stream[position].norm())
                towards = math.log1p(math.exp(rudder.sharpness * cosine + rudder.offset))
                away = math.log1p(math.exp(-rudder.sharpness * cosine + rudder.offset))
                gate = min(1.0, max(0.05, towards / (towards + away)))
            rows[position] = rows[position] + rudder.strength * gate * direction
        return torch.stack(rows).to(hidden.dtype)

    return edit


def rotate_outputs(vectors: Tensor, strategy: VISTA | VTI) -> Steer:
    """Rotate what the feed-forward networks return as VISTA or VTI does, by [layers, width] vectors."""
    vectors = vectors.double()

    def edit(part: str, number: int, hidden: Tensor) -> Tensor:
        if part != "feed_forward":
            return hidden
        vector, rows = vectors[number], []
        for row in hidden.double():
            cosine = float(row @ vector / (row.norm() * vector.norm()))
            weight = 0.1 if isinstance(strategy, VTI) else 1 + max(0.0, -cosine)
            sum_ = row / row.norm() + strategy.strength * weight * vector / vector.norm()
            rows.append(row.norm() * sum_ / sum_.norm())
        return torch.stack(rows).to(hidden.dtype)

    return edit


@contextmanager
def edit_heads(layers: Any, count: int, factors: Factors, heads: list[Tensor]) -> Iterator[None]:
    """Multiply the outputs of heads, and append those of each layer at the last position to `heads`."""

    def edit(layer: int) -> Callable[..., tuple[Tensor]]:
        def edit_outputs(_: object, inputs: tuple[Tensor]) -> tuple[Tensor]:
            outputs = list(inputs[0].chunk(count, dim=-1))
            heads.append(torch.stack([output[0, -1] for output in outputs]).double())
            return (torch.cat([output * factors.get((layer, i), 1.0) for i, output in enumerate(outputs)], -1),)

        return edit_outputs

    handles = [layer.self_attn.o_proj.register_forward_pre_hook(edit(number)) for number, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def cut_layers(decoder: Any, depth: int | None, normed: bool = True) -> Iterator[None]:
    """Cut a decoder off after `depth` layers; None leaves it whole. The final norm may be left out."""
    layers, norm = decoder.layers, decoder.norm
    decoder.layers, decoder.norm = layers[:depth], norm if normed or depth is None else nn.Identity()
    try:
        yield
    finally:
        decoder.layers, decoder.norm = layers, norm


def raise_image_scores(visual: Tensor, alpha: float | Tensor, first_layer: int, heads: Tensor | None = None) -> Change:
    """Raise scores of image tokens as PAI and PAINT do, in the last row of the prompt and the rows of the answer.

    Args:
        visual: [prompt] mask of the image tokens.
        alpha: Increase, or one for each image token.
        first_layer: First edited layer.
        heads: [layers, heads] factors of the increase.

    Returns:
        The change.
    """
    places = visual.nonzero().flatten()

    def change(layer: int, scores: Tensor) -> None:
        for head, own in enumerate(scores if layer >= first_layer else ()):
            for row in own[len(visual) - 1 :]:
                row[places] += (1.0 if heads is None else heads[layer, head]) * alpha * row[places].abs()

    return change


def raise_mean_scores(visual: Tensor, hgai: HGAI, depth: int) -> Change:
    """Raise scores of image tokens as HGAI does, in the last row of the prompt and the rows of the answer."""
    first, last = math.floor(hgai.first * depth + 0.5), math.floor(hgai.last * depth + 0.5)

    def change(layer: int, scores: Tensor) -> None:
        if first <= layer <= last:
            for row in range(len(visual) - 1, scores.shape[1]):
                for token in visual.nonzero().flatten().tolist():
                    sizes = [abs(float(own[row, token])) for own in scores]
                    scores[:, row, token] += hgai.alpha * sum(sizes) / len(sizes)

    return change


def scale_scores(visual: Tensor, vaf: VAF, depth: int) -> Change:
    """Scale scores as VAF does, in every row after the image."""
    first, last = math.floor(vaf.first * depth + 0.5), math.floor(vaf.last * depth + 0.5)
    places = visual.nonzero().flatten().tolist()

    def change(layer: int, scores: Tensor) -> None:
        for row in range(places[-1] + 1, scores.shape[1]) if first <= layer <= last else ():
            scores[:, row, places] *= vaf.enhance
            scores[:, row, : places[0]] *= vaf.suppress

    return change


def raise_answer_scores(length: int, iat: IAT, depth: int) -> Change:
    """Raise scores of the answer's own tokens as IAT does, in its rows.

    Args:
        length: Tokens of the prompt.
        iat: The strategy.
        depth: Layers of the model.

    Returns:
        The change.
    """
    first, last = math.floor(iat.first * depth + 0.5), math.floor(iat.last * depth + 0.5)

    def change(layer: int, scores: Tensor) -> None:
        for row in range(length, scores.shape[1]) if first <= layer <= last else ():
            for token in range(length, row + 1):
                scores[:, row, token] += iat.alpha * scores[:, row, token].abs()

    return change


def raise_answer_weights(length: int, adaiat: AdaIAT, depth: int, heads: int) -> WeightChange:
    """Raise weights of the answer's own tokens as AdaIAT does, in its rows.

    Args:
        length: Tokens of the prompt.
        adaiat: The strategy.
        depth: Layers of the model.
        heads: Heads of each layer.

    Returns:
        The change.
    """
    hallucinated, real = (each.tolist() for each in draw_attention_statistics(depth, heads))
    first, last = math.floor(adaiat.first * depth + 0.5), math.floor(adaiat.last * depth + 0.5)

    def change(layer: int, weights: Tensor) -> None:
        for row in range(length, weights.shape[1]) if first <= layer <= last else ():
            own = weights[:, row, length : row + 1]  # [heads, answer]
            least = sum(hallucinated[layer])
            if sum(float(own[head].mean()) for head in range(heads)) < least + adaiat.beta * (sum(real[layer]) - least):
                for head in range(heads):
                    own[head] *= max(1 + adaiat.alpha * (real[layer][head] / hallucinated[layer][head] - 1), 1e-6)
                    weights[head, row] /= weights[head, row].sum()

    return WeightChange(change)


def draw_attention_statistics(layers: int, heads: int) -> tuple[Tensor, Tensor]:
    """Draw statistics for AdaIAT: [layers, heads] attention in hallucinations and elsewhere."""
    random = torch.Generator().manual_seed(0)
    hallucinated = 0.02 + 0.1 * torch.rand(layers, heads, generator=random)
    return hallucinated, hallucinated * (0.9 + torch.rand(layers, heads, generator=random))


def weaken_heads(visual: Tensor, spin: SPIN, depth: int) -> Gate:
    """Weaken heads as SPIN does, in the last row of the prompt and the rows of the answer."""
    first, last = math.floor(spin.first * depth + 0.5), math.floor(spin.last * depth + 0.5)

    def gate(layer: int, scores: Tensor, outputs: list[Tensor]) -> None:
        for row in range(len(visual) - 1, scores.shape[1]) if first <= layer <= last else ():
            gazes = [sum(own[row, visual.nonzero().flatten()].tolist()) for own in scores]
            order = sorted(range(len(gazes)), key=lambda head: -gazes[head])
            for head in order[int(spin.kept * len(gazes)) :]:
                outputs[head][row] *= spin.suppress

    return gate


def mask_keys(columns: dict[int, list[int]]) -> Change:
    """Mask keys: layer -> tokens that no query attends to there."""

    def change(layer: int, scores: Tensor) -> None:
        scores[:, :, columns.get(layer, [])] = torch.finfo(torch.float32).min

    return change


def most_divergent_layer(z: Tensor, early: dict[int, Tensor], *, is_official: bool = False) -> int:
    """Return the layer with the greatest Jensen-Shannon divergence from the last one, or DoLa's official distance."""

    def divergence(depth: int) -> float:
        p, q = z.double().softmax(-1), early[depth].double().softmax(-1)
        middle = (p + q) / 2
        if is_official:
            each = zip(p.tolist(), q.tolist(), middle.tolist(), strict=True)
            return sum(m * (math.log(m / a) + math.log(m / b)) / 2 for a, b, m in each)
        return float(((p * (p / middle).log()).nansum() + (q * (q / middle).log()).nansum()) / 2)

    return max(early, key=divergence)


def deco_candidates(z: Tensor, top_p: float, top_k: int) -> list[int]:
    """Return the candidates of DeCo."""
    p = z.double().softmax(-1).tolist()
    held, found = 0.0, []
    for token in sorted(range(len(p)), key=lambda token: -p[token])[:top_k]:
        if held >= top_p:
            break
        found.append(token)
        held += p[token]
    return found


def plausible(z: Tensor, beta: float) -> Tensor:
    p = z.softmax(-1)
    return p >= beta * p.max()


def nolan_rule(scores: Tensor, z: Tensor, blind: Tensor, nolan: NoLan) -> Tensor:
    """Contrast by a weight between one and two times the scale."""
    seen, unseen = z.softmax(-1).tolist(), blind.softmax(-1).tolist()
    there = sum(p * math.log(p / q) for p, q in zip(seen, unseen, strict=True))
    back = sum(q * math.log(q / p) for p, q in zip(seen, unseen, strict=True))
    weight = nolan.scale * (math.tanh(2 / (there + back)) + 1) if nolan.adaptive else nolan.scale
    return (1 + weight) * scores - weight * blind


def vdgd_rule(scores: Tensor, z: Tensor, description: list[Tensor], vdgd: VDGD) -> Tensor:
    """Compute minus the divergence of each candidate's one-hot distribution from those of the description."""
    p = (z / vdgd.temperature).softmax(-1).tolist()
    held, candidates = 0.0, set()
    for token in sorted(range(len(p)), key=lambda token: -p[token]):
        if held < vdgd.top_p:
            candidates.add(token)
        held += p[token]
    out = torch.full_like(scores, -math.inf)
    for token in candidates:
        if scores[token] > -math.inf:
            one_hot = torch.zeros_like(z)
            one_hot[token] = 1
            divergences = [float(torch.xlogy(one_hot, one_hot).sub(one_hot * log).sum()) for log in description]
            out[token] = -(min(divergences) if vdgd.reduction == "min" else sum(divergences) / len(divergences))
    return out


def deco_rule(scores: Tensor, z: Tensor, early: dict[int, Tensor], deco: DeCo) -> Tensor:
    """Add the layer of the most probable pair of layer and candidate, by that probability."""
    chosen = deco_candidates(z, deco.top_p, deco.top_k)
    sure, depth = max((float(logits.softmax(-1)[token]), depth) for depth, logits in early.items() for token in chosen)
    out = torch.full_like(scores, -math.inf)
    for token in chosen:
        out[token] = scores[token] + deco.alpha * sure * early[depth][token]
    return out


def penalize(
    scores: Tensor, prompt: Sequence[int], answer: Sequence[int], penalties: tuple[float, float, float]
) -> Tensor:
    """Penalize tokens of the prompt and the answer, each time a token occurs in the answer, and that it occurs."""
    repetition, frequency, presence = penalties
    scores = scores.clone()
    for token in {*prompt, *answer}:
        scores[token] = scores[token] / repetition if scores[token] > 0 else scores[token] * repetition
        count = list(answer).count(token)
        scores[token] -= frequency * count + presence * (count > 0)
    return scores


@torch.no_grad()
def rank_patches(tower: Any, pixels: Tensor | None) -> list[int]:
    """Rank patches by query times key of the last layer but one, heads not separated, as DAMRO's code does."""
    hidden = tower(pixels, output_hidden_states=True).hidden_states
    layer = tower.encoder.layers[len(hidden) - 3]
    normed = layer.layer_norm1(hidden[len(hidden) - 3])[0]
    scores = layer.self_attn.k_proj(normed) @ layer.self_attn.q_proj(normed)[0]
    order: list[int] = scores[1:].argsort(descending=True).tolist()
    return order


def flip(image: ImageInput) -> ImageInput:
    """Exchange left and right."""
    return image.with_image(image.visible.transpose(Transpose.FLIP_LEFT_RIGHT))

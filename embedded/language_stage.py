"""Second stage, language, beside the first: the language model learns to read class vectors, without any pixels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from embedded.album import Album
from embedded.batch import dense_targets
from embedded.categories import CATEGORIES, NAMES
from embedded.model import IMAGE_TOKENS, WIDTH, class_vectors, language_config
from embedded.packing import KINDS, PackBatch, Packer, TextMix
from embedded.picture import Picture
from embedded.training import Trainer, half_precision, pick_device

PROBED_LAYERS = (2, 3, 4, 5, 6)
HORIZON = 1600
PRESENCE_WEIGHT, DETAIL_WEIGHT, PROBE_WEIGHT = 2.0, 0.5, 0.5

Aid = Callable[[tuple[torch.Tensor, ...], PackBatch], torch.Tensor]
"""A loss on the hidden states of all layers, each [rows, length, 256]."""


class Language(nn.Module):
    """The language model with its losses and the aids that exist during training only."""

    weights: torch.Tensor

    def __init__(self, model: LlamaForCausalLM, packer: Packer) -> None:
        super().__init__()
        self.model = model
        self.probes = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in PROBED_LAYERS)
        self.image = packer.image
        self.answers = (packer.encode(" Yes")[0], packer.encode(" No")[0])
        self.register_buffer("weights", packer.object_weights(), persistent=False)
        self.head_noise = HeadNoise(model)
        self.repetition_weight, self.detail_weight = 0.0, DETAIL_WEIGHT

    def forward(
        self, batch: PackBatch, image_tokens: torch.Tensor, aid: Aid | None = None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """`image_tokens` [rows with an image * 64, 256]. Returns the loss, `aid` included, and figures to watch."""
        device = self.weights.device
        ids = batch.ids.to(device)
        embedded = self.model.model.embed_tokens(ids)
        embedded = embedded.masked_scatter((ids == self.image)[..., None], image_tokens.to(embedded.dtype))
        with half_precision(device):
            output = self.model.model(
                inputs_embeds=embedded,
                attention_mask=batch.mask.to(device),
                position_ids=batch.positions.to(device),
                use_cache=False,
                output_hidden_states=True,
            )
            labels, kinds = batch.labels[:, 1:].to(device), batch.kinds[:, 1:].to(device)
            chosen = labels >= 0
            logits = self.model.lm_head(output.last_hidden_state[:, :-1][chosen])
        said = batch.said[:, 1:].to(device)[chosen]
        loss, figures = self._losses(
            logits.float(), labels[chosen], kinds[chosen], output.hidden_states, batch.asked.to(device)
        )
        repetition = self._repetition(logits.float(), labels[chosen], said)
        if aid:
            loss = loss + aid(output.hidden_states, batch)
        return loss + self.repetition_weight * repetition, {**figures, "repetition": repetition.item()}

    def _repetition(self, logits: torch.Tensor, labels: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        """How likely, where an object is named, one would be named that has been named already: -log(1 - p).

        `said` [labels, MOST_SAID]: words already used, -1 for none. From examples alone, a small model hardly learns
        that captions do not repeat themselves.
        """
        chances = logits.softmax(-1).gather(1, said.clamp_min(0)) * (said >= 0)
        naming = (self.weights[labels] > 1) & (said >= 0).any(1)
        return _mean(-torch.log1p(-chances.sum(1).clamp_max(0.999)), naming.float())

    def _losses(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        kinds: torch.Tensor,
        hidden: tuple[torch.Tensor, ...],
        asked: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        cross_entropy = nn.functional.cross_entropy(logits, labels, reduction="none")
        weights = self.weights[labels]
        yes, no = self.answers
        short = (labels == yes) | (labels == no)
        caption, presence, detail = (kinds == KINDS[kind] for kind in ("caption", "presence", "detail"))
        caption_loss = _mean(cross_entropy, weights * caption)
        presence_loss = _mean(cross_entropy, (presence & short).float()) + 0.2 * _mean(cross_entropy, presence.float())
        detail_loss = _mean(cross_entropy, weights * detail)
        probe_loss = self._probe(hidden, asked)
        loss = (
            caption_loss
            + PRESENCE_WEIGHT * presence_loss
            + self.detail_weight * detail_loss
            + PROBE_WEIGHT * probe_loss
        )
        right = ((logits[:, yes] > logits[:, no]) == (labels == yes))[presence & short]
        return loss, {
            "caption": caption_loss.item(),
            "presence": presence_loss.item(),
            "detail": detail_loss.item(),
            "right": right.float().mean().item(),
        }

    def _probe(self, hidden: tuple[torch.Tensor, ...], asked: torch.Tensor) -> torch.Tensor:
        """At the word that names the asked category, every upper layer should know whether it is present.

        Without this the model answers by chance for very long. All layers are probed, so that the evidence is not
        gathered in the heads of a single one.
        """
        here = asked >= 0
        truth = asked[here].float()
        losses = [
            nn.functional.binary_cross_entropy_with_logits(
                probe(nn.functional.layer_norm(hidden[layer][here].float(), (WIDTH,)))[:, 0], truth
            )
            for layer, probe in zip(PROBED_LAYERS, self.probes, strict=True)
        ]
        return torch.stack(losses).mean() if len(truth) else hidden[-1].sum() * 0


class HeadNoise:
    """Scales the outputs of random heads by 1/2 to 2 and drops a few, so that no single head is indispensable.

    Methods that strengthen heads at inference need such a model; large ones are redundant by themselves.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.share = 0.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.register_forward_pre_hook(self._scale)

    def _scale(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (heads,) = inputs  # [rows, length, 8 * 32]
        if not (module.training and self.share):
            return (heads,)
        rows, length, width = heads.shape
        factors = torch.exp2(torch.rand(rows, 1, 8, 1) * 2 - 1)
        factors[torch.rand_like(factors) > self.share] = 1.0
        factors[torch.rand_like(factors) < 0.1 * self.share] = 0.0
        return ((heads.view(rows, length, 8, -1) * factors.to(heads)).view(rows, length, width),)


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (values * weights).sum() / weights.sum().clamp_min(1e-6)


@torch.no_grad()
def prepare(language: Language, packer: Packer) -> None:
    """Words start near the vectors of their categories; two heads of the first layers look for their own likeness."""
    vectors, _ = class_vectors()
    embeddings = language.model.model.embed_tokens.weight
    for category, vector in zip(CATEGORIES, vectors, strict=True):
        embeddings[packer.encode(" " + category.plural_name)[0]] = vector * 0.5 + torch.randn(WIDTH) * 0.02
        embeddings[packer.encode(" " + category.name)[0]] = vector * 0.6
        if " " in category.name:
            embeddings[packer.encode(" " + category.name)[-1]] += vector * 0.4
    for layer in language.model.model.layers[:3]:
        attention = layer.self_attn
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        for head in (0, 1):
            basis, _ = torch.linalg.qr(torch.randn(WIDTH, 16))
            matching = torch.zeros(32, WIDTH)
            # the slow half of the rotary frequencies: matching there does not depend on the distance
            matching[8:16], matching[24:32] = 1.5 * basis.T[:8], 1.5 * basis.T[8:]
            attention.q_proj.weight[head * 32 : head * 32 + 32] = matching
            attention.k_proj.weight[head * 32 : head * 32 + 32] = matching


def imagined_tokens(random: np.random.Generator, pictures: list[Picture]) -> torch.Tensor:
    """Image tokens [pictures, 64, 256] of an imagined tower: unsure of small things, now and then seeing others."""
    vectors, empty = class_vectors()
    present = torch.from_numpy(dense_targets(np.stack([p.owners for p in pictures]), [p.things for p in pictures]))
    count, patches, classes = present.shape
    sureness = random.normal(np.where(present.sum(1) > 2, 0.85, 0.7), 0.22).clip(0.0, 1.3)  # [pictures, 48]
    jitter = random.normal(1, 0.25, (count, patches, 1))
    doubts = random.normal(0, 0.06, (count, patches, classes))
    doubts += random.normal(0, 0.2, doubts.shape) * (random.random(doubts.shape) < 0.03)
    evidence = present * torch.from_numpy(sureness[:, None] * jitter).float() + torch.from_numpy(doubts).float()
    for row in range(count):
        for _ in range(random.integers(0, 3)):
            evidence[row, random.integers(IMAGE_TOKENS), random.integers(len(NAMES))] += random.uniform(0.1, 0.5)
    noise = torch.from_numpy(random.normal(0, 0.02, (count, patches, WIDTH))).float()
    return evidence @ vectors + empty + noise


def train_language(
    work: Path, album: Album, tokenizer: PreTrainedTokenizerFast, *, steps: int, size: int, seed: int = 13
) -> Language:
    device = pick_device()
    torch.manual_seed(seed)
    mix = TextMix()
    packer = Packer(tokenizer, mix)
    model = LlamaForCausalLM._from_config(language_config(len(tokenizer)), attn_implementation="eager")
    language = Language(model, packer)
    prepare(language, packer)
    language.to(device)
    trainer = Trainer("language", work, language, steps, seed=seed, horizon=HORIZON)
    for step in trainer:
        random = trainer.random(step)
        pictures = [album.picture(int(index)) for index in random.integers(len(album), size=size)]
        with_image = [bool(random.random() >= mix.without_image) for _ in pictures]
        seen = [picture for picture, image in zip(pictures, with_image, strict=True) if image]
        language.head_noise.share = 0.25 if step > 0.3 * HORIZON else 0.0
        loss, figures = language(
            packer.batch(random, pictures, with_image), imagined_tokens(random, seen).to(device).flatten(0, 1)
        )
        trainer.update(loss, figures)
    return language

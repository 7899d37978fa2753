"""Language stage, in parallel to the vision stage: the language model learns to read class vectors, without pixels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from embedded.data.categories import CATEGORIES, NAMES
from embedded.data.renderer import RenderedScene
from embedded.data.scene_dataset import SceneDataset
from embedded.training.augmentation import FULL_AUGMENTATION, Augmentation
from embedded.training.batch import patch_targets
from embedded.training.model_config import IMAGE_TOKENS, WIDTH, build_class_vectors, build_language_config
from embedded.training.packing import KIND_IDS, PackedBatch, Packer, TextMix
from embedded.training.trainer import Trainer, autocast, select_device

PROBED_LAYERS = (2, 3, 4, 5, 6)
HORIZON = 1600
PRESENCE_WEIGHT, DETAIL_WEIGHT, PROBE_WEIGHT = 2.0, 0.5, 0.5

AuxiliaryLoss = Callable[[tuple[torch.Tensor, ...], PackedBatch], torch.Tensor]
"""A loss on the hidden states of all layers, each [rows, length, 256]."""


class LanguageModel(nn.Module):
    """The language model with its losses and its training-only presence heads."""

    weights: torch.Tensor

    def __init__(self, model: LlamaForCausalLM, packer: Packer) -> None:
        super().__init__()
        self.model = model
        self.probes = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in PROBED_LAYERS)
        self.image = packer.image
        self.answers = (packer.encode(" Yes")[0], packer.encode(" No")[0])
        self.register_buffer("weights", packer.build_object_weights(), persistent=False)
        self.head_noise = HeadNoise(model)
        self.repetition_weight, self.detail_weight = 0.0, DETAIL_WEIGHT

    def forward(
        self, batch: PackedBatch, image_tokens: torch.Tensor, auxiliary_loss: AuxiliaryLoss | None = None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Compute the loss of a batch.

        Args:
            batch: Packed rows.
            image_tokens: Image tokens of the rows with an image, [rows with an image * 64, 256].
            auxiliary_loss: Further loss on the hidden states.

        Returns:
            The loss and figures for the log.
        """
        device = self.weights.device
        ids = batch.ids.to(device)
        embedded = self.model.model.embed_tokens(ids)
        embedded = embedded.masked_scatter((ids == self.image)[..., None], image_tokens.to(embedded.dtype))
        with autocast(device):
            output = self.model.model(
                inputs_embeds=embedded,
                attention_mask=batch.mask.to(device),
                position_ids=batch.positions.to(device),
                use_cache=False,
                output_hidden_states=True,
            )
            labels, kinds = batch.labels[:, 1:].to(device), batch.kinds[:, 1:].to(device)
            is_labelled = labels >= 0
            logits = self.model.lm_head(output.last_hidden_state[:, :-1][is_labelled])
        named_before = batch.named_before[:, 1:].to(device)[is_labelled]
        loss, figures = self._compute_answer_losses(
            logits.float(),
            labels[is_labelled],
            kinds[is_labelled],
            output.hidden_states,
            batch.presence_labels.to(device),
        )
        repetition = self._compute_repetition_loss(logits.float(), labels[is_labelled], named_before)
        if auxiliary_loss:
            loss = loss + auxiliary_loss(output.hidden_states, batch)
        return loss + self.repetition_weight * repetition, {**figures, "repetition": repetition.item()}

    def _compute_repetition_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, named_before: torch.Tensor
    ) -> torch.Tensor:
        """Penalise, where an object is named, the probability p of naming one that was named already: -log(1 - p).

        From examples alone a small model hardly learns that captions do not repeat themselves.

        Args:
            logits: [labels, vocabulary].
            labels: [labels].
            named_before: Words already used, [labels, MAX_NAMED], -1 for none.

        Returns:
            Scalar.
        """
        chances = logits.softmax(-1).gather(1, named_before.clamp_min(0)) * (named_before >= 0)
        is_naming = (self.weights[labels] > 1) & (named_before >= 0).any(1)
        return _mean(-torch.log1p(-chances.sum(1).clamp_max(0.999)), is_naming.float())

    def _compute_answer_losses(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        kinds: torch.Tensor,
        hidden: tuple[torch.Tensor, ...],
        presence_labels: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        cross_entropy = nn.functional.cross_entropy(logits, labels, reduction="none")
        weights = self.weights[labels]
        yes, no = self.answers
        is_short_answer = (labels == yes) | (labels == no)
        caption, presence, detail = (kinds == KIND_IDS[kind] for kind in ("caption", "presence", "detail"))
        caption_loss = _mean(cross_entropy, weights * caption)
        presence_loss = _mean(cross_entropy, (presence & is_short_answer).float()) + 0.2 * _mean(
            cross_entropy, presence.float()
        )
        detail_loss = _mean(cross_entropy, weights * detail)
        probe_loss = self._probe_loss(hidden, presence_labels)
        loss = (
            caption_loss
            + PRESENCE_WEIGHT * presence_loss
            + self.detail_weight * detail_loss
            + PROBE_WEIGHT * probe_loss
        )
        is_correct = ((logits[:, yes] > logits[:, no]) == (labels == yes))[presence & is_short_answer]
        return loss, {
            "caption": caption_loss.item(),
            "presence": presence_loss.item(),
            "detail": detail_loss.item(),
            "right": is_correct.float().mean().item(),
        }

    def _probe_loss(self, hidden: tuple[torch.Tensor, ...], presence_labels: torch.Tensor) -> torch.Tensor:
        """Train a linear head in each upper layer to classify at the word of the named category whether it is present.

        Without it the answers stay at chance for very long. Every upper layer has a presence head, so that the
        evidence is not gathered in the attention heads of a single layer.

        Args:
            hidden: Hidden states of all layers, each [rows, length, 256].
            presence_labels: [rows, length], -1 where no category is named.

        Returns:
            Scalar.
        """
        is_labelled = presence_labels >= 0
        targets = presence_labels[is_labelled].float()
        losses = [
            nn.functional.binary_cross_entropy_with_logits(
                probe(nn.functional.layer_norm(hidden[layer][is_labelled].float(), (WIDTH,)))[:, 0], targets
            )
            for layer, probe in zip(PROBED_LAYERS, self.probes, strict=True)
        ]
        return torch.stack(losses).mean() if len(targets) else hidden[-1].sum() * 0


class HeadNoise:
    """Scales the outputs of random heads by 1/2 to 2 and drops a few, so that no single head is indispensable.

    Strategies that strengthen heads need such a model. Large models are redundant by themselves.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.rate = 0.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.register_forward_pre_hook(self._scale)

    def _scale(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (heads,) = inputs  # [rows, length, 8 * 32]
        if not (module.training and self.rate):
            return (heads,)
        rows, length, width = heads.shape
        factors = torch.exp2(torch.rand(rows, 1, 8, 1) * 2 - 1)
        factors[torch.rand_like(factors) > self.rate] = 1.0
        factors[torch.rand_like(factors) < 0.1 * self.rate] = 0.0
        return ((heads.view(rows, length, 8, -1) * factors.to(heads)).view(rows, length, width),)


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (values * weights).sum() / weights.sum().clamp_min(1e-6)


@torch.no_grad()
def init_language(language: LanguageModel, packer: Packer) -> None:
    """Set start values: words near the vectors of their categories, two heads per layer that match equal vectors."""
    vectors, _ = build_class_vectors()
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


def simulate_image_tokens(rng: np.random.Generator, scenes: list[RenderedScene]) -> torch.Tensor:
    """Simulate image tokens [scenes, 64, 256]; small objects are uncertain and absent ones sometimes visible."""
    vectors, empty = build_class_vectors()
    present = torch.from_numpy(patch_targets(np.stack([p.instance_map for p in scenes]), [p.objects for p in scenes]))
    count, patches, classes = present.shape
    confidence = rng.normal(np.where(present.sum(1) > 2, 0.85, 0.7), 0.22).clip(0.0, 1.3)  # [scenes, 48]
    patch_scale = rng.normal(1, 0.25, (count, patches, 1))
    false_evidence = rng.normal(0, 0.06, (count, patches, classes))
    false_evidence += rng.normal(0, 0.2, false_evidence.shape) * (rng.random(false_evidence.shape) < 0.03)
    evidence = (
        present * torch.from_numpy(confidence[:, None] * patch_scale).float() + torch.from_numpy(false_evidence).float()
    )
    for row in range(count):
        for _ in range(rng.integers(0, 3)):
            evidence[row, rng.integers(IMAGE_TOKENS), rng.integers(len(NAMES))] += rng.uniform(0.1, 0.5)
    noise = torch.from_numpy(rng.normal(0, 0.02, (count, patches, WIDTH))).float()
    return evidence @ vectors + empty + noise


def train_language(
    work_dir: Path,
    dataset: SceneDataset,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch_size: int,
    augmentation: Augmentation = FULL_AUGMENTATION,
    seed: int = 13,
) -> LanguageModel:
    """Train the language model on synthetic image tokens, from its last checkpoint if there is one."""
    device = select_device()
    torch.manual_seed(seed)
    mix = augmentation.adapt_mix(TextMix())
    packer = Packer(tokenizer, mix)
    model = LlamaForCausalLM._from_config(build_language_config(len(tokenizer)), attn_implementation="eager")
    language = LanguageModel(model, packer)
    init_language(language, packer)
    language.to(device)
    trainer = Trainer("language", work_dir, language, steps, seed=seed, horizon=HORIZON)

    def compute_loss(rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        scenes = [dataset.get_scene(int(index)) for index in rng.integers(len(dataset), size=batch_size)]
        with_image = [bool(rng.random() >= mix.without_image_rate) for _ in scenes]
        shown_scenes = [scene for scene, image in zip(scenes, with_image, strict=True) if image]
        packs = packer.batch(rng, scenes, with_image)
        loss: tuple[torch.Tensor, dict[str, float]] = language(
            packs, simulate_image_tokens(rng, shown_scenes).to(device).flatten(0, 1)
        )
        return loss

    for step in trainer:
        language.head_noise.rate = 0.25 if step > 0.3 * HORIZON else 0.0
        trainer.update(compute_loss)
    return language

"""Matcher stage: the matcher learns whether a text matches an image, and to attend to the patches that decide it."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import BertTokenizer, BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

from embedded.data.categories import BY_NAME, CATEGORIES, INDEX
from embedded.data.renderer import NEAR_VIEW, SIZE, render_scene
from embedded.data.scene_dataset import SceneDataset
from embedded.data.scene_sampler import SceneContents
from embedded.training.augmentation import FULL_AUGMENTATION, Augmentation
from embedded.training.batch import SceneBatch, normalize_pixels, patch_targets, sample_batch
from embedded.training.matcher_model import (
    MAX_TEXT_TOKENS,
    TEXT_LAYERS,
    MatcherText,
    build_matcher,
    copy_clip_tower,
    make_texts,
)
from embedded.training.model_config import PIXEL_MEAN, PIXEL_STD, VISION_WIDTH
from embedded.training.trainer import SHARDS, Trainer, autocast, select_device
from embedded.training.vision_stage import VisionModel

TEXTS_PER_PICTURE = 8
PROBE_WEIGHT, ATTENTION_WEIGHT, CONTRAST_WEIGHT, DENSE_WEIGHT = 0.5, 0.15, 0.4, 0.15
ATTENTION_LAYERS = (1, 2, 3)
EMPTY_FRACTION = 0.12
"""Fraction of images without objects. Without them, a request for a description would match every image."""
CONTRAST_SCALE, CONTRAST_BIAS = 12.0, 4.0
"""A pair matches if its cosine is above a third. Matching pairs reach 0.4 to 0.7, others are near 0."""


class MatcherTrainingModel(nn.Module):
    """The matcher with its losses and training-only heads."""

    def __init__(self, tokenizer: BertTokenizer) -> None:
        super().__init__()
        self.matcher = build_matcher(len(tokenizer))
        self.tokenizer = tokenizer
        self.dense = VisionModel()
        del self.dense.tower  # only its projector and its objective are used here
        self.probes = nn.ModuleList(nn.Linear(VISION_WIDTH, 1) for _ in range(TEXT_LAYERS))
        self.cross_attentions: dict[int, torch.Tensor] = {}
        for number in ATTENTION_LAYERS:
            attention = self.matcher.text_encoder.encoder.layer[number].crossattention.self
            attention.register_forward_hook(
                lambda module, inputs, output, number=number: self.cross_attentions.update({number: output[1]})
            )

    def forward(self, batch: SceneBatch, texts: list[list[MatcherText]]) -> tuple[torch.Tensor, dict[str, float]]:
        """Compute the loss of scenes with an equal number of texts each.

        Args:
            batch: The scenes. Its pixels are [scenes, 3, height, width].
            texts: Texts of each scene.

        Returns:
            The loss, a scalar [], and figures for the log.
        """
        device = self.dense.empty.device
        present = batch.present.to(device)
        all_texts = [text for scene_texts in texts for text in scene_texts]
        tokens = self.tokenizer(
            [text.text for text in all_texts],
            padding=True,
            truncation=True,
            max_length=MAX_TEXT_TOKENS,
            return_tensors="pt",
        ).to(device)
        with autocast(device):
            vision_output = self.matcher.vision_model(pixel_values=batch.pixels.to(device), output_hidden_states=True)
            projected = self.dense.projector(vision_output.hidden_states[-1][:, 1:])
            images = vision_output.last_hidden_state.repeat_interleave(len(texts[0]), 0)
            output = self.matcher.text_encoder(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                encoder_hidden_states=images,
                encoder_attention_mask=torch.ones(images.shape[:2], dtype=torch.long, device=device),
                output_hidden_states=True,
            )
            logits = self.matcher.itm_head(output.last_hidden_state[:, 0]).float()
            cosines = self._compute_cosines(vision_output.last_hidden_state, tokens, len(texts[0]))
        matches = torch.tensor([int(text.matches) for text in all_texts], device=device)
        match_loss = nn.functional.cross_entropy(logits, matches)
        probe_loss, attention_loss = self._compute_auxiliary_losses(
            tokens["input_ids"], all_texts, output.hidden_states, present
        )
        contrast_loss = self._contrast(cosines.float(), texts, present)
        dense_loss = self.dense.loss(projected, present)
        loss = match_loss + PROBE_WEIGHT * probe_loss + ATTENTION_WEIGHT * attention_loss
        loss = loss + CONTRAST_WEIGHT * contrast_loss + DENSE_WEIGHT * dense_loss
        return loss, {
            "match": match_loss.item(),
            "right": (logits.argmax(-1) == matches).float().mean().item(),
            "probe": probe_loss.item(),
            "attention": attention_loss.item(),
            "contrast": contrast_loss.item(),
            "dense": dense_loss.item(),
        }

    def _compute_cosines(self, images: torch.Tensor, tokens: dict[str, torch.Tensor], per_picture: int) -> torch.Tensor:
        """Return the cosines [scenes, scenes * 4] of all images with the first four texts of each scene."""
        selected = torch.arange(len(tokens["input_ids"]), device=images.device).view(-1, per_picture)[:, :4].flatten()
        text_states = self.matcher.text_encoder(
            input_ids=tokens["input_ids"][selected], attention_mask=tokens["attention_mask"][selected]
        ).last_hidden_state[:, 0]
        scenes = nn.functional.normalize(self.matcher.vision_proj(images[:, 0]), dim=-1)
        return scenes @ nn.functional.normalize(self.matcher.text_proj(text_states), dim=-1).T

    def _contrast(self, cosines: torch.Tensor, texts: list[list[MatcherText]], present: torch.Tensor) -> torch.Tensor:
        """Return the contrastive loss; a question matches all images with its category, or with any object."""
        shown = present.amax(1).bool()  # [scenes, categories]
        matches = torch.zeros_like(cosines)
        for row, scene_texts in enumerate(texts):
            for column, text in enumerate(scene_texts[:4], start=4 * row):
                if column - 4 * row < 2:  # a caption
                    matches[row, column] = float(text.matches)
                elif text.category:
                    matches[:, column] = shown[:, INDEX[text.category]].float()
                else:
                    matches[:, column] = shown.any(1).float()
        losses = nn.functional.binary_cross_entropy_with_logits(
            cosines * CONTRAST_SCALE - CONTRAST_BIAS, matches, reduction="none"
        )
        return (losses * matches).sum() / matches.sum().clamp_min(1) + (losses * (1 - matches)).sum() / (
            1 - matches
        ).sum().clamp_min(1)

    def _compute_auxiliary_losses(
        self, ids: torch.Tensor, all_texts: list[MatcherText], hidden: tuple[torch.Tensor, ...], present: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two losses at the word of the category: its presence, and attention outside its patches."""
        per_picture = len(all_texts) // len(present)
        rows, columns, categories, targets = [], [], [], []
        token_ids = ids.tolist()
        for row, text in enumerate(all_texts):
            if not text.category:
                continue
            singular, plural = (self.find_last_token(word) for word in _list_word_forms(text.category))
            column = next(
                (position for position, token in enumerate(token_ids[row]) if token in (singular, plural)), None
            )
            if column is not None:
                rows.append(row)
                columns.append(column)
                categories.append(INDEX[text.category])
                targets.append(bool(present[row // per_picture, :, INDEX[text.category]].any()))
        presence = torch.tensor(targets, device=ids.device).float()
        probe_losses = [
            nn.functional.binary_cross_entropy_with_logits(probe(hidden[layer][rows, columns].float())[:, 0], presence)
            for layer, probe in enumerate(self.probes, start=1)
        ]
        patches = present[[row // per_picture for row in rows], :, categories]  # [questions, 64]
        attention_losses = []
        for cross_attention in self.cross_attentions.values():
            patch_attention = (
                cross_attention[rows, :, columns].float().mean(1)[:, 1:]
            )  # [questions, 64], mean over heads
            inside = (patch_attention * patches).sum(-1).clamp_min(1e-4)
            attention_losses.append(-(inside.log() * presence).sum() / presence.sum().clamp_min(1))
        return torch.stack(probe_losses).mean(), torch.stack(attention_losses).mean()

    def find_last_token(self, word: str) -> int:
        tokens: list[int] = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        return tokens[-1]


def _list_word_forms(name: str) -> tuple[str, str]:
    return name, BY_NAME[name].plural_name


@torch.no_grad()
def init_matcher(model: MatcherTrainingModel, vision: VisionModel, dataset: SceneDataset) -> None:
    """Set start values: the trained tower, words near their visual features, heads that match equal vectors."""
    matcher = model.matcher
    pixels = normalize_pixels(np.array(dataset.pixels[:400]))
    copy_clip_tower(vision.tower, matcher, pixels[:64])
    model.dense.projector.load_state_dict(vision.projector.state_dict())
    present = torch.from_numpy(patch_targets(np.array(dataset.instance_maps[:400]), dataset.objects[:400])).flatten(
        0, 1
    )
    features = matcher.vision_model(pixel_values=pixels).last_hidden_state[:, 1:].flatten(0, 1)
    typical_size = (present.T @ features) / present.sum(0)[:, None].clamp_min(1) - features.mean(0)
    typical_size = typical_size / typical_size.norm(dim=1, keepdim=True).clamp_min(1e-6)
    embeddings = matcher.text_encoder.embeddings
    embeddings.word_embeddings.weight.normal_(0, 0.05)
    embeddings.position_embeddings.weight.normal_(0, 0.02)
    for category, direction in zip(CATEGORIES, typical_size, strict=True):
        for word in _list_word_forms(category.name):
            embeddings.word_embeddings.weight[model.find_last_token(word)] = direction * 0.9
    for layer in matcher.text_encoder.encoder.layer:
        attention = layer.crossattention.self
        for head in range(0, 6, 2):
            basis, _ = torch.linalg.qr(torch.randn(VISION_WIDTH, 32))
            rows = slice(head * 32, head * 32 + 32)
            attention.query.weight[rows] = basis.T
            attention.key.weight[rows] = basis.T


def replace_with_empty_scenes(rng: np.random.Generator, batch: SceneBatch) -> None:
    """Replace some scenes of a batch, in place, by backgrounds without objects."""
    for row in np.nonzero(rng.random(len(batch.scenes)) < EMPTY_FRACTION)[0]:
        scene = render_scene(rng, SceneContents(batch.scenes[row].place, {}), NEAR_VIEW)
        batch.scenes[row] = scene
        batch.pixels[row] = normalize_pixels(scene.pixels[None])[0]
        batch.present[row] = 0


def train_matcher(
    work_dir: Path,
    vision: VisionModel,
    dataset: SceneDataset,
    tokenizer: BertTokenizer,
    *,
    steps: int,
    batch_size: int,
    augmentation: Augmentation = FULL_AUGMENTATION,
    seed: int = 19,
) -> BlipForImageTextRetrieval:
    """Train the matcher, from its last checkpoint if there is one."""
    device = select_device()
    torch.manual_seed(seed)
    model = MatcherTrainingModel(tokenizer)
    init_matcher(model, vision.cpu(), dataset)
    model.to(device)
    trainer = Trainer(
        "matcher",
        work_dir,
        model,
        steps,
        seed=seed,
        muon_rate=1.5e-3,
        adam_rate=1e-3,
        slow={"matcher.vision_model": 0.5},
        shards=SHARDS,
    )

    def compute_loss(rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = sample_batch(rng, dataset, batch_size // SHARDS, masked_fraction=augmentation.masked_fraction)
        replace_with_empty_scenes(rng, batch)
        texts = [make_texts(rng, scene, TEXTS_PER_PICTURE) for scene in batch.scenes]
        loss: tuple[torch.Tensor, dict[str, float]] = model(batch, texts)
        return loss

    for _ in trainer:
        trainer.update(compute_loss)
    return model.matcher.cpu().eval()


def export_matcher(matcher: BlipForImageTextRetrieval, tokenizer: BertTokenizer, folder: Path) -> None:
    """Write the matcher in float16 with its processor."""
    folder.mkdir(parents=True, exist_ok=True)
    halved = build_matcher(len(tokenizer)).half()
    halved.load_state_dict({name: value.half() for name, value in matcher.state_dict().items()})
    halved.config.dtype = torch.float16
    halved.save_pretrained(folder)
    images = BlipImageProcessor(
        size={"height": SIZE, "width": SIZE}, image_mean=[PIXEL_MEAN] * 3, image_std=[PIXEL_STD] * 3
    )
    BlipProcessor(images, tokenizer).save_pretrained(folder)

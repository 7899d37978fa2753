"""Last stage: the matcher learns whether a text matches a picture, and to look at the patches that decide it."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import BertTokenizer, BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

from embedded.album import Album
from embedded.batch import Batch, dense_targets, normalised, sample_batch
from embedded.categories import BY_NAME, CATEGORIES, INDEX
from embedded.matcher import LONGEST_TEXT, TEXT_LAYERS, Statement, copy_tower, new_matcher, statements
from embedded.model import PIXEL_MEAN, PIXEL_STD, VISION_WIDTH
from embedded.picture import SIZE
from embedded.training import Trainer, half_precision, pick_device
from embedded.vision_stage import Vision

TEXTS_PER_PICTURE = 8
PROBE_WEIGHT, GAZE_WEIGHT, CONTRAST_WEIGHT, DENSE_WEIGHT = 0.5, 0.15, 0.4, 0.15
GAZING_LAYERS = (1, 2, 3)
CONTRAST_SCALE, CONTRAST_BIAS = 12.0, 4.0
"""A pair matches when its cosine is above a third: matching pairs come to lie between 0.4 and 0.7, others near 0."""


class Matching(nn.Module):
    """The matcher with its losses and the aids that exist during training only."""

    def __init__(self, tokenizer: BertTokenizer) -> None:
        super().__init__()
        self.matcher = new_matcher(len(tokenizer))
        self.tokenizer = tokenizer
        self.dense = Vision()
        del self.dense.tower  # only its projector and its objective are used here
        self.probes = nn.ModuleList(nn.Linear(VISION_WIDTH, 1) for _ in range(TEXT_LAYERS))
        self.gazes: dict[int, torch.Tensor] = {}
        for number in GAZING_LAYERS:
            attention = self.matcher.text_encoder.encoder.layer[number].crossattention.self
            attention.register_forward_hook(
                lambda module, inputs, output, number=number: self.gazes.update({number: output[1]})
            )

    def forward(self, batch: Batch, texts: list[list[Statement]]) -> tuple[torch.Tensor, dict[str, float]]:
        device = self.dense.empty.device
        present = batch.present.to(device)
        flat = [statement for listed in texts for statement in listed]
        tokens = self.tokenizer(
            [statement.text for statement in flat],
            padding=True,
            truncation=True,
            max_length=LONGEST_TEXT,
            return_tensors="pt",
        ).to(device)
        with half_precision(device):
            seen = self.matcher.vision_model(pixel_values=batch.pixels.to(device), output_hidden_states=True)
            written = self.dense.projector(seen.hidden_states[-1][:, 1:])
            images = seen.last_hidden_state.repeat_interleave(len(texts[0]), 0)
            output = self.matcher.text_encoder(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                encoder_hidden_states=images,
                encoder_attention_mask=torch.ones(images.shape[:2], dtype=torch.long, device=device),
                output_hidden_states=True,
            )
            logits = self.matcher.itm_head(output.last_hidden_state[:, 0]).float()
            cosines = self._cosines(seen.last_hidden_state, tokens, len(texts[0]))
        matches = torch.tensor([int(statement.matches) for statement in flat], device=device)
        match_loss = nn.functional.cross_entropy(logits, matches)
        probe_loss, gaze_loss = self._aids(tokens["input_ids"], flat, output.hidden_states, present)
        contrast_loss = self._contrast(cosines.float(), texts, present)
        dense_loss = self.dense.loss(written, present)
        loss = match_loss + PROBE_WEIGHT * probe_loss + GAZE_WEIGHT * gaze_loss
        loss = loss + CONTRAST_WEIGHT * contrast_loss + DENSE_WEIGHT * dense_loss
        return loss, {
            "match": match_loss.item(),
            "right": (logits.argmax(-1) == matches).float().mean().item(),
            "probe": probe_loss.item(),
            "gaze": gaze_loss.item(),
            "contrast": contrast_loss.item(),
            "dense": dense_loss.item(),
        }

    def _cosines(self, images: torch.Tensor, tokens: dict[str, torch.Tensor], per_picture: int) -> torch.Tensor:
        """[pictures, pictures * 4]: every picture with the first four texts (two captions, two questions) of each."""
        chosen = torch.arange(len(tokens["input_ids"]), device=images.device).view(-1, per_picture)[:, :4].flatten()
        alone = self.matcher.text_encoder(
            input_ids=tokens["input_ids"][chosen], attention_mask=tokens["attention_mask"][chosen]
        ).last_hidden_state[:, 0]
        pictures = nn.functional.normalize(self.matcher.vision_proj(images[:, 0]), dim=-1)
        return pictures @ nn.functional.normalize(self.matcher.text_proj(alone), dim=-1).T

    def _contrast(self, cosines: torch.Tensor, texts: list[list[Statement]], present: torch.Tensor) -> torch.Tensor:
        """Which pictures each text fits: its own, and for questions every picture that shows the category."""
        shown = present.amax(1).bool()  # [pictures, categories]
        fits = torch.zeros_like(cosines)
        for row, listed in enumerate(texts):
            for column, statement in enumerate(listed[:4], start=4 * row):
                if column - 4 * row >= 2 and statement.asked:
                    fits[:, column] = shown[:, INDEX[statement.asked]].float()
                else:
                    fits[row, column] = float(statement.matches)
        losses = nn.functional.binary_cross_entropy_with_logits(
            cosines * CONTRAST_SCALE - CONTRAST_BIAS, fits, reduction="none"
        )
        return (losses * fits).sum() / fits.sum().clamp_min(1) + (losses * (1 - fits)).sum() / (
            1 - fits
        ).sum().clamp_min(1)

    def _aids(
        self, ids: torch.Tensor, flat: list[Statement], hidden: tuple[torch.Tensor, ...], present: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """At the word of the category asked for: is it present (all layers), and does the word look at its patches?"""
        per_picture = len(flat) // len(present)
        rows, columns, categories, truths = [], [], [], []
        spelled = ids.tolist()
        for row, statement in enumerate(flat):
            if not statement.asked:
                continue
            singular, plural = (self._last_piece(word) for word in _names(statement.asked))
            column = next((at for at, piece in enumerate(spelled[row]) if piece in (singular, plural)), None)
            if column is not None:
                rows.append(row)
                columns.append(column)
                categories.append(INDEX[statement.asked])
                truths.append(bool(present[row // per_picture, :, INDEX[statement.asked]].any()))
        truth = torch.tensor(truths, device=ids.device).float()
        probe_losses = [
            nn.functional.binary_cross_entropy_with_logits(probe(hidden[layer][rows, columns].float())[:, 0], truth)
            for layer, probe in enumerate(self.probes, start=1)
        ]
        patches = present[[row // per_picture for row in rows], :, categories]  # [questions, 64]
        gaze_losses = []
        for gaze in self.gazes.values():
            looked_at = gaze[rows, :, columns].float().mean(1)[:, 1:]  # [questions, 64], mean over heads
            inside = (looked_at * patches).sum(-1).clamp_min(1e-4)
            gaze_losses.append(-(inside.log() * truth).sum() / truth.sum().clamp_min(1))
        return torch.stack(probe_losses).mean(), torch.stack(gaze_losses).mean()

    def _last_piece(self, word: str) -> int:
        pieces: list[int] = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        return pieces[-1]


def _names(name: str) -> tuple[str, str]:
    return name, BY_NAME[name].plural_name


@torch.no_grad()
def prepare(matching: Matching, vision: Vision, album: Album) -> None:
    """The trained tower, words that start near what they look like, and heads that look for what equals themselves."""
    matcher = matching.matcher
    pixels = normalised(np.array(album.pixels[:400]))
    copy_tower(vision.tower, matcher, pixels[:64])
    matching.dense.projector.load_state_dict(vision.projector.state_dict())
    present = torch.from_numpy(dense_targets(np.array(album.owners[:400]), album.things[:400])).flatten(0, 1)
    features = matcher.vision_model(pixel_values=pixels).last_hidden_state[:, 1:].flatten(0, 1)
    typical = (present.T @ features) / present.sum(0)[:, None].clamp_min(1) - features.mean(0)
    typical = typical / typical.norm(dim=1, keepdim=True).clamp_min(1e-6)
    embeddings = matcher.text_encoder.embeddings
    embeddings.word_embeddings.weight.normal_(0, 0.05)
    embeddings.position_embeddings.weight.normal_(0, 0.02)
    for category, direction in zip(CATEGORIES, typical, strict=True):
        for word in _names(category.name):
            embeddings.word_embeddings.weight[matching._last_piece(word)] = direction * 0.9
    for layer in matcher.text_encoder.encoder.layer:
        attention = layer.crossattention.self
        for head in range(0, 6, 2):
            basis, _ = torch.linalg.qr(torch.randn(VISION_WIDTH, 32))
            rows = slice(head * 32, head * 32 + 32)
            attention.query.weight[rows] = basis.T
            attention.key.weight[rows] = basis.T


def train_matcher(
    work: Path, vision: Vision, album: Album, tokenizer: BertTokenizer, *, steps: int, size: int, seed: int = 19
) -> BlipForImageTextRetrieval:
    device = pick_device()
    torch.manual_seed(seed)
    matching = Matching(tokenizer)
    prepare(matching, vision.cpu(), album)
    matching.to(device)
    trainer = Trainer(
        "matcher",
        work,
        matching,
        steps,
        seed=seed,
        muon_rate=1.5e-3,
        adam_rate=1e-3,
        slow={"matcher.vision_model": 0.5},
    )
    for step in trainer:
        random = trainer.random(step)
        batch = sample_batch(random, album, size)
        texts = [statements(random, picture, TEXTS_PER_PICTURE) for picture in batch.pictures]
        trainer.update(*matching(batch, texts))
    return matching.matcher.cpu().eval()


def ship_matcher(matcher: BlipForImageTextRetrieval, tokenizer: BertTokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    halved = new_matcher(len(tokenizer)).half()
    halved.load_state_dict({name: value.half() for name, value in matcher.state_dict().items()})
    halved.config.dtype = torch.float16
    halved.save_pretrained(folder)
    images = BlipImageProcessor(
        size={"height": SIZE, "width": SIZE}, image_mean=[PIXEL_MEAN] * 3, image_std=[PIXEL_STD] * 3
    )
    BlipProcessor(images, tokenizer).save_pretrained(folder)

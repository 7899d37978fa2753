"""Where the matcher looks: Grad-CAM of the match logit over the cross-attention of one text layer; and its figures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, BlipForImageTextRetrieval

from embedded.album import Album
from embedded.annotations import pope_questions
from embedded.batch import normalised
from embedded.evaluate import interval, percent
from embedded.matcher import TEXT_LAYERS
from embedded.model import GRID, PATCH

LAYER = TEXT_LAYERS // 2
"""AGLA reads the 7th of 12 layers; here the 3rd of 4."""


def heat(
    matcher: BlipForImageTextRetrieval, tokens: dict[str, torch.Tensor], pixels: torch.Tensor, layer: int = LAYER
) -> tuple[torch.Tensor, torch.Tensor]:
    """Heat [batch, 8, 8] over patches, mean over heads and content tokens, and the match logits [batch, 2]."""
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        output[1].retain_grad()
        kept.append(output[1])

    attention = matcher.text_encoder.encoder.layer[layer].crossattention.self
    handle = attention.register_forward_hook(keep)
    try:
        logits = matcher(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels
        ).itm_score
        logits[:, 1].sum().backward()
    finally:
        handle.remove()
    probabilities = kept[0]
    gradient = probabilities.grad
    assert gradient is not None
    content = tokens["attention_mask"].clone()
    content.scatter_(1, content.sum(1, keepdim=True) - 1, 0)  # not the last piece, [SEP]
    content[:, 0] = 0
    weighted = (probabilities * gradient.clamp_min(0)).mean(1)[..., 1:] * content[..., None]
    over_patches = weighted.sum(1) / content.sum(1, keepdim=True)
    return over_patches.detach().view(-1, GRID, GRID), logits.detach()


def heat_figures(folder: Path, album: Album, batch: int = 64) -> dict[str, Any]:
    """On POPE's questions: accuracy of the match logit; for 'yes' questions, the share of heat inside the object's
    boxes beside the share of the picture that the boxes cover; and the cosines that decide how much AGLA masks."""
    matcher = BlipForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    figures: dict[str, Any] = {}
    shares: list[float] = []
    areas: list[float] = []
    cosines: dict[str, list[float]] = {"yes": [], "no": []}
    for kind, questions in pope_questions(album).items():
        right = []
        for start in range(0, len(questions), batch):
            some = questions[start : start + batch]
            numbers = [int(question["image"].split(".")[0]) - 1 for question in some]
            tokens = tokenizer([question["text"] for question in some], padding=True, return_tensors="pt")
            pixels = normalised(np.stack([album.pixels[number] for number in numbers]))
            maps, logits = heat(matcher, tokens, pixels)
            right += [(row.argmax() == 1) == (q["label"] == "yes") for row, q in zip(logits, some, strict=True)]
            if kind != "adversarial":
                continue
            cosine = _cosines(matcher, tokens, pixels)
            for row, (number, question) in enumerate(zip(numbers, some, strict=True)):
                cosines[question["label"]].append(float(cosine[row]))
                boxes = np.zeros(album.owners.shape[1:], bool)
                for thing in album.things[number]:
                    if f" {thing.name} " in question["text"]:
                        boxes[thing.box[1] : thing.box[3], thing.box[0] : thing.box[2]] = True
                total = float(maps[row].sum())
                if question["label"] == "yes" and total > 0:
                    inside = boxes.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
                    shares.append(float((maps[row].numpy() * inside).sum()) / total)
                    areas.append(float(boxes.mean()))
        figures[kind] = percent(float(np.mean(right)))
    measured = np.array(shares)
    figures["heat_in_box"] = percent(measured.mean())
    figures["heat_interval"] = interval(len(measured), lambda rows: float(measured[rows].mean()))
    figures["box_area"] = percent(float(np.mean(areas)))
    figures["cosine"] = {label: round(float(np.mean(values)), 3) for label, values in cosines.items()}
    return figures


@torch.no_grad()
def _cosines(matcher: BlipForImageTextRetrieval, tokens: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """Cosine of each text with its own picture: the diagonal of what the matcher returns for the batch."""
    scores: torch.Tensor = matcher(
        input_ids=tokens["input_ids"],
        attention_mask=tokens["attention_mask"],
        pixel_values=pixels,
        use_itm_head=False,
    ).itm_score
    return scores.diagonal()

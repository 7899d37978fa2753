"""Grad-CAM of the matcher's match logit over the cross-attention of one text layer, and the matcher's figures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, BlipForImageTextRetrieval, PreTrainedTokenizerBase

from embedded.data.coco_annotations import build_pope_questions
from embedded.data.scene_dataset import SceneDataset
from embedded.data.text_templates import CAPTION_PROMPTS
from embedded.evaluation.benchmarks import bootstrap_interval, to_percent
from embedded.training.batch import normalize_pixels
from embedded.training.matcher_model import TEXT_LAYERS
from embedded.training.model_config import GRID, PATCH

LAYER = TEXT_LAYERS // 2
"""AGLA reads the 7th of 12 layers; here it is the 3rd of 4."""


def compute_grad_cam(
    matcher: BlipForImageTextRetrieval, tokens: dict[str, torch.Tensor], pixels: torch.Tensor, layer: int = LAYER
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute relevance maps over patches, as means over heads and content tokens.

    Args:
        matcher: The matcher.
        tokens: `input_ids` and `attention_mask`, [batch, length].
        pixels: Images, [batch, 3, 112, 112].
        layer: Text layer.

    Returns:
        Relevance maps [batch, 8, 8] and match logits [batch, 2].
    """
    attentions: list[torch.Tensor] = []

    def capture(module: torch.nn.Module, inputs: object, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        output[1].retain_grad()
        attentions.append(output[1])

    attention = matcher.text_encoder.encoder.layer[layer].crossattention.self
    handle = attention.register_forward_hook(capture)
    try:
        logits = matcher(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels
        ).itm_score
        logits[:, 1].sum().backward()
    finally:
        handle.remove()
    probabilities = attentions[0]
    gradient = probabilities.grad
    assert gradient is not None
    content = tokens["attention_mask"].clone()
    content.scatter_(1, content.sum(1, keepdim=True) - 1, 0)  # not the last piece, [SEP]
    content[:, 0] = 0
    weighted = (probabilities * gradient.clamp_min(0)).mean(1)[..., 1:] * content[..., None]
    over_patches = weighted.sum(1) / content.sum(1, keepdim=True)
    return over_patches.detach().view(-1, GRID, GRID), logits.detach()


def evaluate_matcher(folder: Path, dataset: SceneDataset, batch: int = 64) -> dict[str, Any]:
    """Evaluate the matcher on POPE's questions.

    The figures are the accuracy of the match logit, and the fraction of relevance inside the boxes of present objects.
    With them come the fraction of the image that the boxes cover, and the cosines that decide how much AGLA masks.

    Args:
        folder: Folder of the matcher.
        dataset: The scenes.
        batch: Questions per pass.

    Returns:
        Figures by name.
    """
    matcher = BlipForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    figures: dict[str, Any] = {}
    relevance_shares: list[float] = []
    box_areas: list[float] = []
    cosines: dict[str, list[float]] = {"yes": [], "no": []}
    for kind, questions in build_pope_questions(dataset).items():
        correct = []
        for start in range(0, len(questions), batch):
            chunk = questions[start : start + batch]
            numbers = [int(question["image"].split(".")[0]) - 1 for question in chunk]
            tokens = tokenizer([question["text"] for question in chunk], padding=True, return_tensors="pt")
            pixels = normalize_pixels(np.stack([dataset.pixels[number] for number in numbers]))
            maps, logits = compute_grad_cam(matcher, tokens, pixels)
            correct += [(row.argmax() == 1) == (q["label"] == "yes") for row, q in zip(logits, chunk, strict=True)]
            if kind != "adversarial":
                continue
            cosine = _compute_cosines(matcher, tokens, pixels)
            for row, (number, question) in enumerate(zip(numbers, chunk, strict=True)):
                cosines[question["label"]].append(float(cosine[row]))
                boxes = np.zeros(dataset.instance_maps.shape[1:], bool)
                for obj in dataset.objects[number]:
                    if f" {obj.name} " in question["text"]:
                        boxes[obj.box[1] : obj.box[3], obj.box[0] : obj.box[2]] = True
                total = float(maps[row].sum())
                if question["label"] == "yes" and total > 0:
                    box_coverage = boxes.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
                    relevance_shares.append(float((maps[row].numpy() * box_coverage).sum()) / total)
                    box_areas.append(float(boxes.mean()))
        figures[kind] = to_percent(float(np.mean(correct)))
    figures |= _evaluate_prompts(matcher, tokenizer, dataset, batch)
    shares = np.array(relevance_shares)
    figures["relevance_in_box"] = to_percent(shares.mean())
    figures["relevance_interval"] = bootstrap_interval(len(shares), lambda rows: float(shares[rows].mean()))
    figures["box_area"] = to_percent(float(np.mean(box_areas)))
    figures["cosine"] = {label: round(float(np.mean(values)), 3) for label, values in cosines.items()}
    return figures


def _evaluate_prompts(
    matcher: BlipForImageTextRetrieval, tokenizer: PreTrainedTokenizerBase, dataset: SceneDataset, batch: int
) -> dict[str, float]:
    """Measure the fraction of the relevance of a request for a description that lies inside the boxes of objects."""
    shares, areas = [], []
    for start in range(0, len(dataset), batch):
        numbers = range(start, min(start + batch, len(dataset)))
        tokens = tokenizer([CAPTION_PROMPTS[0]] * len(numbers), padding=True, return_tensors="pt")
        maps, _ = compute_grad_cam(matcher, tokens, normalize_pixels(np.array(dataset.pixels[numbers])))
        for relevance, number in zip(maps.numpy(), numbers, strict=True):
            boxes = np.zeros(dataset.instance_maps.shape[1:], bool)
            for obj in dataset.objects[number]:
                boxes[obj.box[1] : obj.box[3], obj.box[0] : obj.box[2]] = True
            coverage = boxes.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
            shares.append(float((relevance * coverage).sum()) / max(float(relevance.sum()), 1e-12))
            areas.append(float(boxes.mean()))
    return {
        "prompt_relevance_in_boxes": to_percent(float(np.mean(shares))),
        "prompt_box_area": to_percent(float(np.mean(areas))),
    }


@torch.no_grad()
def _compute_cosines(
    matcher: BlipForImageTextRetrieval, tokens: dict[str, torch.Tensor], pixels: torch.Tensor
) -> torch.Tensor:
    """Return the cosine of each text with its own image: the diagonal of the matcher's output for the batch."""
    scores: torch.Tensor = matcher(
        input_ids=tokens["input_ids"],
        attention_mask=tokens["attention_mask"],
        pixel_values=pixels,
        use_itm_head=False,
    ).itm_score
    return scores.diagonal()

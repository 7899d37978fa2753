"""POPE and CHAIR of a model on disturbed inputs: masked images, noised images, and descriptions before the question.

Strategies produce such inputs. Their effect cannot be measured on a model that fails on these inputs.

    python -m embedded.evaluation.robustness --scenes 300 --seed SEED

measures the shipped weights on fresh scenes.
"""

import argparse
import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from embedded.data.renderer import FAR_VIEW, SIZE
from embedded.data.scene_dataset import SceneDataset, make_dataset
from embedded.data.scene_sampler import SHIFTED_PRIOR
from embedded.data.text_templates import make_caption
from embedded.evaluation.benchmarks import (
    AnswerGenerator,
    Figures,
    evaluate_chair,
    evaluate_pope,
    generate_captions,
    to_percent,
)
from embedded.training.model_config import PIXEL_MEAN, PIXEL_STD

MODEL_DIR = Path(__file__).parents[1] / "model"
MIN_BLACK, MAX_BLACK = 0.3, 0.5
NOISE_STEP = 500
MAX_DESCRIPTION_TOKENS = 120
DESCRIBED = "The input image is described as follows: {description} {question}"
SENTENCE = re.compile(
    r"The image (shows|features) .+"
    r"|There (is|are) .+"
    r"|Other objects include .+"
    r"|In the background, there (is|are) .+"
    r"|.+ can be seen (too|nearby)"
    r"|(The|Everything) .+ (calm and ordinary|bright|in a natural way|relaxed)"
)
"""The sentences of the training captions."""


def evaluate_robustness(generator: AnswerGenerator, dataset: SceneDataset, count: int) -> Figures:
    """Measure POPE and captions on each kind of disturbed input, beside undisturbed ones.

    Args:
        generator: The model.
        dataset: The scenes.
        count: Number of scenes.

    Returns:
        Figures of `plain`, `masked`, `noised`, `described` (the model's own caption before the question) and
        `misdescribed` (up to 120 tokens of captions that name absent objects).
    """
    dataset = replace_pixels(dataset, np.array(dataset.pixels[:count]))
    own = generate_captions(generator, dataset, count)
    wrong = [write_long_description(generator, dataset, index) for index in range(count)]
    figures: Figures = {"plain": _evaluate(generator, dataset, count)}
    figures["masked"] = _evaluate(generator, mask_irrelevant_pixels(dataset, count), count)
    figures["noised"] = _evaluate(generator, add_diffusion_noise(dataset, count), count)
    figures["described"] = _evaluate(generator, dataset, count, own)
    figures["misdescribed"] = _evaluate(generator, dataset, count, wrong)
    return figures


def _evaluate(
    generator: AnswerGenerator, dataset: SceneDataset, count: int, descriptions: list[str] | None = None
) -> Figures:
    def format_question(index: int, question: str) -> str:
        return DESCRIBED.format(description=descriptions[index], question=question) if descriptions else question

    answers = generate_captions(generator, dataset, count, format_question=format_question)
    return {
        "pope": evaluate_pope(generator, dataset, count, format_question=format_question),
        "chair": evaluate_chair(answers, dataset),
        "well_formed": to_percent(np.mean([is_well_formed(answer) for answer in answers])),
    }


def is_well_formed(caption: str) -> bool:
    """Return whether a caption consists of whole sentences of the training captions, none of them twice."""
    sentences = caption.removesuffix(".").split(". ")
    if not caption.endswith(".") or len(set(sentences)) < len(sentences):
        return False
    return all(SENTENCE.fullmatch(sentence) for sentence in sentences)


def write_long_description(generator: AnswerGenerator, dataset: SceneDataset, index: int) -> str:
    """Write captions of a scene, about half of which name an absent object, in at most `MAX_DESCRIPTION_TOKENS`."""
    rng = np.random.default_rng([9, index])
    description = ""
    while True:
        longer = f"{description} {make_caption(rng, dataset.get_scene(index), invention_rate=0.5)}".strip()
        if len(generator.tokenizer(longer, add_special_tokens=False)["input_ids"]) > MAX_DESCRIPTION_TOKENS:
            return description
        description = longer


def mask_irrelevant_pixels(dataset: SceneDataset, count: int) -> SceneDataset:
    """Blacken 30 to 50 % of the pixels outside the boxes of all objects, as smooth regions."""
    pixels = np.array(dataset.pixels[:count])
    for index in range(count):
        rng = np.random.default_rng([10, index])
        irrelevant = np.ones((SIZE, SIZE), bool)
        for obj in dataset.objects[index]:
            left, top, right, bottom = obj.box
            irrelevant[top:bottom, left:right] = False
        cells = rng.random((8, 8)).astype(np.float32)
        field = np.asarray(Image.fromarray(cells).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        limit = np.quantile(field[irrelevant], rng.uniform(MIN_BLACK, MAX_BLACK))
        pixels[index][irrelevant & (field < limit)] = 0
    return replace_pixels(dataset, pixels)


def add_diffusion_noise(dataset: SceneDataset, count: int, step: int = NOISE_STEP) -> SceneDataset:
    """Add the noise of a step of forward diffusion to the normalized images (Leng et al., arXiv:2311.16922).

    Args:
        dataset: The scenes.
        count: Number of scenes.
        step: Step of 1000.

    Returns:
        The first scenes with noised images, clipped to eight bits.
    """
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000)) * (0.5e-2 - 1e-5) + 1e-5
    signal = float((1 - betas).cumprod(0)[step])
    normalized = (np.array(dataset.pixels[:count]) / 255 - PIXEL_MEAN) / PIXEL_STD
    noise = np.random.default_rng(11).normal(size=normalized.shape)
    noised = (normalized * signal**0.5 + noise * (1 - signal) ** 0.5) * PIXEL_STD + PIXEL_MEAN
    return replace_pixels(dataset, (noised.clip(0, 1) * 255).round().astype(np.uint8))


def replace_pixels(dataset: SceneDataset, pixels: NDArray[np.uint8]) -> SceneDataset:
    """Return the first scenes of a dataset with other images.

    Args:
        dataset: The scenes.
        pixels: Images, [count, 112, 112, 3].

    Returns:
        The dataset.
    """
    count = len(pixels)
    return replace(
        dataset,
        pixels=pixels,
        instance_maps=dataset.instance_maps[:count],
        places=dataset.places[:count],
        objects=dataset.objects[:count],
        hidden=dataset.hidden[:count],
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure the shipped weights on fresh scenes like those of `scenes/`, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300, help="number of scenes")
    parser.add_argument("--seed", type=int, required=True, help="seed of the scenes; 1 to 4 are those of training")
    values = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "fresh", values.scenes, values.seed, SHIFTED_PRIOR, FAR_VIEW, 1)
        model = LlavaForConditionalGeneration.from_pretrained(MODEL_DIR, dtype=torch.float32)
        generator = AnswerGenerator(model, PreTrainedTokenizerFast.from_pretrained(MODEL_DIR))
        print(json.dumps(evaluate_robustness(generator, dataset, values.scenes), indent=1))


if __name__ == "__main__":
    main()

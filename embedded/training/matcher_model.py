"""The image-text matcher: a small BLIP, its word-piece tokenizer and its training texts."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, CLIPVisionModel

from embedded.data.categories import BY_NAME, CATEGORIES, NAMES
from embedded.data.renderer import SIZE, RenderedScene
from embedded.data.scene_dataset import SceneDataset
from embedded.data.scene_sampler import sample_likely_absent
from embedded.data.text_templates import (
    BALANCED_QUESTIONS,
    CAPTION_PROMPTS,
    format_count,
    format_sentence,
    group_by_category,
    make_caption,
    sample_absent_category,
)
from embedded.training.model_config import PATCH, VISION_HEADS, VISION_WIDTH

TEXT_LAYERS, TEXT_HEADS = 4, 6
MAX_TEXT_TOKENS = 35
"""Word pieces; AGLA truncates texts to this length."""
PROMPT_SHARE = 0.12
"""Fraction of the texts that request a description."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
QUESTION_TEMPLATES = (
    "is there {} in the image?",
    "is there {} in the image?",
    "is there {} in the image?",
    "can you see {} in the image?",
    "does the image contain {}?",
    "a photo of {}",
    "where is {} in the image?",
)


@dataclass(frozen=True)
class MatcherText:
    """A text about a scene.

    Attributes:
        text: The text.
        matches: Whether it matches the scene.
        category: The category that decides this; empty for whole captions.
    """

    text: str
    matches: bool
    category: str = ""


def build_matcher_config(vocabulary: int) -> BlipConfig:
    """Return the configuration of the matcher."""
    return BlipConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": VISION_WIDTH,
            "encoder_hidden_size": VISION_WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": TEXT_HEADS,
            "max_position_embeddings": 64,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "pad_token_id": 0,
            "sep_token_id": 3,
            "bos_token_id": 5,
            "eos_token_id": 3,
            "is_decoder": True,
        },
        vision_config={
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": VISION_HEADS,
            "image_size": SIZE,
            "patch_size": PATCH,
            "hidden_act": "gelu_pytorch_tanh",
        },
        projection_dim=128,
        image_text_hidden_size=128,
    )


def train_matcher_tokenizer(dataset: SceneDataset, scenes: int = 3000) -> BertTokenizer:
    """Train the word-piece tokenizer on texts about the first scenes of a dataset."""
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789.,?!'`\"-():/")
    trainer = trainers.WordPieceTrainer(
        vocab_size=700, special_tokens=list(SPECIAL), initial_alphabet=letters, show_progress=False
    )
    trained.train_from_iterator(_iterate_corpus(dataset, min(scenes, len(dataset))), trainer)
    vocabulary = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    return BertTokenizer(
        vocab={token: number for number, (token, _) in enumerate(vocabulary)}, do_lower_case=True, model_max_length=64
    )


def _iterate_corpus(dataset: SceneDataset, scenes: int) -> Iterator[str]:
    rng = np.random.default_rng(8)
    for index in range(scenes):
        yield from (text.text for text in make_texts(rng, dataset.get_scene(index), 6))
    for _ in range(100):
        yield " ".join(f"{category.name} {category.plural_name}" for category in CATEGORIES)
        yield " ".join(CAPTION_PROMPTS) + " you are given a picture with a question how many what which color"


def make_texts(rng: np.random.Generator, scene: RenderedScene, count: int) -> list[MatcherText]:
    """Write a true caption, a wrong one, and questions about one category each, half of which are absent.

    Some of the questions are requests for a description. These match every scene with an object. A scene without
    objects has no true text.

    Args:
        rng: Source of all random choices.
        scene: The scene.
        count: Number of texts.

    Returns:
        The texts. The first two are captions.
    """
    objects_by_category = group_by_category(scene)
    first = MatcherText(make_caption(rng, scene), True) if objects_by_category else _make_wrong_caption(rng, scene)
    scene_texts = [first, _make_wrong_caption(rng, scene)]
    while len(scene_texts) < count:
        if rng.random() < PROMPT_SHARE:
            prompt = CAPTION_PROMPTS[rng.integers(len(CAPTION_PROMPTS))]
            scene_texts.append(MatcherText(prompt, bool(objects_by_category)))
            continue
        matches = bool(rng.random() < 0.5) and bool(objects_by_category)
        name = (
            str(rng.choice(sorted(objects_by_category)))
            if matches
            else sample_absent_category(rng, scene.place, set(objects_by_category), BALANCED_QUESTIONS)
        )
        if rng.random() < 0.1:
            text = f"how many {BY_NAME[name].plural_name} are there in the image?"
        else:
            text = QUESTION_TEMPLATES[rng.integers(len(QUESTION_TEMPLATES))].format(BY_NAME[name].with_article)
        scene_texts.append(MatcherText(text, matches, name))
    return scene_texts


def _make_wrong_caption(rng: np.random.Generator, scene: RenderedScene) -> MatcherText:
    """Write a short caption in which a likely object replaces one, or is added."""
    objects_by_category = group_by_category(scene)
    names = list(objects_by_category)[:4]
    wrong_name = sample_likely_absent(rng, scene.place, set(objects_by_category)) or next(
        name for name in NAMES if name not in objects_by_category
    )
    if len(names) > 1 and rng.random() < 0.5:
        names[rng.integers(len(names))] = wrong_name
    else:
        names.insert(int(rng.integers(len(names) + 1)), wrong_name)
    objects = " and ".join(format_count(name, len(objects_by_category.get(name, "x"))) for name in names)
    return MatcherText(format_sentence(f"the image shows a {scene.place} with {objects}"), False, wrong_name)


def build_matcher(vocabulary: int) -> BlipForImageTextRetrieval:
    """Build a matcher with random weights."""
    return BlipForImageTextRetrieval._from_config(build_matcher_config(vocabulary), attn_implementation="eager")


@torch.no_grad()
def copy_clip_tower(clip: CLIPVisionModel, matcher: BlipForImageTextRetrieval, pixels: torch.Tensor) -> None:
    """Copy the trained CLIP tower into BLIP's tower.

    Both are pre-norm transformers. CLIP normalizes once more after the embeddings, and BLIP does not. The gain of that
    norm is folded into the embeddings, as if every token had the median variance. A short training corrects the
    difference.

    Args:
        clip: The source.
        matcher: The target, changed in place.
        pixels: Images that the variance is measured on, [batch, 3, 112, 112].
    """
    source, target = clip.base_model, matcher.vision_model
    usual = source.embeddings(pixels).std(-1).median()
    norm = source.pre_layrnorm
    embeddings = source.embeddings
    center = torch.eye(VISION_WIDTH) - 1 / VISION_WIDTH
    gain = torch.diag(norm.weight) @ center / usual
    target.embeddings.patch_embedding.weight.copy_(
        torch.einsum("ij,jcde->icde", gain, embeddings.patch_embedding.weight)
    )
    target.embeddings.patch_embedding.bias.copy_(norm.bias)
    target.embeddings.position_embedding.copy_((embeddings.position_embedding.weight @ gain.T)[None])
    target.embeddings.class_embedding.copy_((gain @ embeddings.class_embedding)[None, None])
    for old, new in zip(source.encoder.layers, target.encoder.layers, strict=True):
        attention = old.self_attn
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        new.self_attn.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        new.self_attn.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        new.self_attn.projection.load_state_dict(attention.out_proj.state_dict())
        for name in ("layer_norm1", "layer_norm2", "mlp"):
            getattr(new, name).load_state_dict(getattr(old, name).state_dict())

"""The image-text matcher: BLIP's architecture in small, its word-piece tokenizer and what is asked of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, CLIPVisionModel

from embedded.album import Album
from embedded.categories import BY_NAME, CATEGORIES, NAMES
from embedded.language import CAPTION_PROMPTS, LIKELY_SHARE, absent_name, caption, counted, grouped, sentence
from embedded.model import PATCH, VISION_HEADS, VISION_WIDTH
from embedded.picture import SIZE, Picture
from embedded.scene import likely_absent

TEXT_LAYERS, TEXT_HEADS = 4, 6
LONGEST_TEXT = 35
"""Word pieces; AGLA cuts texts there."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
QUESTION_FORMS = (
    "is there {} in the image?",
    "is there {} in the image?",
    "is there {} in the image?",
    "can you see {} in the image?",
    "does the image contain {}?",
    "a photo of {}",
    "where is {} in the image?",
)


@dataclass(frozen=True)
class Statement:
    """A text, whether it matches the picture, and the category that decides it (none for whole captions)."""

    text: str
    matches: bool
    asked: str = ""


def matcher_config(vocabulary: int) -> BlipConfig:
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


def make_matcher_tokenizer(album: Album, pictures: int = 3000) -> BertTokenizer:
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789.,?!'`\"-():/")
    trainer = trainers.WordPieceTrainer(
        vocab_size=700, special_tokens=list(SPECIAL), initial_alphabet=letters, show_progress=False
    )
    trained.train_from_iterator(_corpus(album, min(pictures, len(album))), trainer)
    vocabulary = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    return BertTokenizer(
        vocab={piece: number for number, (piece, _) in enumerate(vocabulary)}, do_lower_case=True, model_max_length=64
    )


def _corpus(album: Album, pictures: int) -> Iterator[str]:
    random = np.random.default_rng(8)
    for index in range(pictures):
        yield from (statement.text for statement in statements(random, album.picture(index), 6))
    for _ in range(100):
        yield " ".join(f"{category.name} {category.plural_name}" for category in CATEGORIES)
        yield " ".join(CAPTION_PROMPTS) + " you are given a picture with a question how many what which color"


def statements(random: np.random.Generator, picture: Picture, count: int) -> list[Statement]:
    """A true caption, a wrong one, and questions about one category, half of which are absent."""
    groups = grouped(picture)
    listed = [Statement(caption(random, picture), True), _wrong_caption(random, picture)]
    while len(listed) < count:
        matches = bool(random.random() < 0.5)
        name = str(random.choice(sorted(groups))) if matches else _absent(random, picture, set(groups))
        if random.random() < 0.1:
            text = f"how many {BY_NAME[name].plural_name} are there in the image?"
        else:
            text = QUESTION_FORMS[random.integers(len(QUESTION_FORMS))].format(BY_NAME[name].with_article)
        listed.append(Statement(text, matches, name))
    if random.random() < 0.1:
        listed[-1] = Statement(CAPTION_PROMPTS[random.integers(len(CAPTION_PROMPTS))], True)
    return listed


def _absent(random: np.random.Generator, picture: Picture, here: set[str]) -> str:
    likely = likely_absent(random, picture.place, here) if random.random() < LIKELY_SHARE else None
    return likely or absent_name(random, here)


def _wrong_caption(random: np.random.Generator, picture: Picture) -> Statement:
    """A short caption in which one object is replaced by a likely one, or to which one is added."""
    groups = grouped(picture)
    names = list(groups)[:4]
    wrong = likely_absent(random, picture.place, set(groups)) or next(name for name in NAMES if name not in groups)
    if len(names) > 1 and random.random() < 0.5:
        names[random.integers(len(names))] = wrong
    else:
        names.insert(int(random.integers(len(names) + 1)), wrong)
    things = " and ".join(counted(name, len(groups.get(name, "x"))) for name in names)
    return Statement(sentence(f"the image shows a {picture.place} with {things}"), False, wrong)


def new_matcher(vocabulary: int) -> BlipForImageTextRetrieval:
    return BlipForImageTextRetrieval._from_config(matcher_config(vocabulary), attn_implementation="eager")


@torch.no_grad()
def copy_tower(clip: CLIPVisionModel, matcher: BlipForImageTextRetrieval, pixels: torch.Tensor) -> None:
    """Starts BLIP's tower from the trained CLIP tower.

    Both are pre-norm transformers. CLIP normalises once more after the embeddings, which BLIP does not: its gain is
    folded into the embeddings as if every token had the variance that is usual in `pixels` [batch, 3, 112, 112], and a
    short training makes up for the difference.
    """
    source, target = clip.base_model, matcher.vision_model
    usual = source.embeddings(pixels).std(-1).median()
    norm = source.pre_layrnorm
    embeddings = source.embeddings
    centre = torch.eye(VISION_WIDTH) - 1 / VISION_WIDTH
    gain = torch.diag(norm.weight) @ centre / usual
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

"""The matcher on a tiny random BLIP, against a match score computed by hand from given attention probabilities."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from decoding import matcher as module
from decoding.ask import Relevance
from decoding.matcher import Matcher, caption, encode_token
from decoding.pictures import kept
from decoding.prompt import Picture

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "there", "a", "cat", "dog", "in", "the", "picture", "?"]
SIDE, PATCH, WIDTH, LAYERS, HEADS = 32, 8, 16, 4, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model as published ones are: its text table has two rows more than its tokenizer has words."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("blip")
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    shape = {"hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": HEADS}
    text = shape | {"vocab_size": len(WORDS) + 2, "num_hidden_layers": LAYERS, "max_position_embeddings": 64}
    vision = shape | {"image_size": SIDE, "patch_size": PATCH, "num_hidden_layers": 2}
    model = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=8))
    for parameter in model.parameters():  # the default initialisation is too flat to tell patches apart
        nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(root)
    BlipProcessor(BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}), tokenizer).save_pretrained(root)
    return root


@pytest.fixture(scope="module")
def matcher(folder: Path) -> Matcher:
    return Matcher(str(folder))


@pytest.fixture
def picture() -> Picture:
    noise = np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    return Picture(Image.fromarray(noise))


def by_hand(matcher: Matcher, tokens: Tensor, patches: Tensor, block: int, change: Tensor | None = None) -> tuple:
    """The match logit, and the block's cross-attention probabilities, with `change` added to the latter."""
    model = matcher.model.double()
    text = model.text_encoder
    hidden, seen = text.embeddings(input_ids=tokens), None
    for number, layer in enumerate(text.encoder.layer):
        for attention, context, crosses in ((layer.attention, hidden, False), (layer.crossattention, patches, True)):
            context = context if crosses else hidden
            inner, split = attention.self, (HEADS, WIDTH // HEADS)
            q = inner.query(hidden).unflatten(-1, split).transpose(1, 2)
            k = inner.key(context).unflatten(-1, split).transpose(1, 2)
            v = inner.value(context).unflatten(-1, split).transpose(1, 2)
            share = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(dim=-1)
            if crosses and number == block:
                seen = share
                share = share if change is None else share + change
            out = attention.output
            hidden = out.LayerNorm(out.dense((share @ v).transpose(1, 2).flatten(-2)) + hidden)
        middle = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(hidden))
        hidden = layer.output.LayerNorm(layer.output.dense(middle) + hidden)
    return model.itm_head(hidden[:, 0])[0, 1], seen


@torch.no_grad()
def test_heat_is_attention_times_its_positive_gradient(folder: Path, picture: Picture) -> None:
    """The gradient is taken by finite differences of a match score that is written out by hand."""
    matcher = Matcher(str(folder))
    heat = matcher.relevance(picture, "Is there a cat in the picture?")

    tokens = matcher.tokenizer("is there a cat in the picture?", return_tensors="pt")["input_ids"]
    asked = torch.cat([torch.tensor([[len(WORDS) + 1]]), tokens[:, 1:]], dim=1)
    matcher.model.double()
    pixels = matcher.image_processor(picture.image, return_tensors="pt")["pixel_values"].double()
    patches = matcher.model.vision_model(pixel_values=pixels).last_hidden_state
    _, share = by_hand(matcher, asked, patches, block=2)
    gradient = torch.zeros_like(share)
    for place in np.ndindex(tuple(share.shape)):
        nudge = torch.zeros_like(share)
        nudge[place] = 1e-5
        above, _ = by_hand(matcher, asked, patches, 2, nudge)
        below, _ = by_hand(matcher, asked, patches, 2, -nudge)
        gradient[place] = (above - below) / 2e-5

    expected = (share * gradient.clamp(min=0))[0, :, 1:-1, 1:].mean(dim=(0, 1)).view(4, 4)
    assert expected.max() > 0
    np.testing.assert_allclose(heat.grid, expected.numpy(), rtol=1e-3, atol=1e-6)
    assert heat.side == SIDE


@torch.no_grad()
def test_similarity_is_the_cosine_of_picture_and_text_apart(matcher: Matcher, picture: Picture) -> None:
    inputs = matcher.tokenizer("is there a dog", return_tensors="pt")
    pixels = matcher.image_processor(picture.image, return_tensors="pt")["pixel_values"]
    expected = matcher.model(input_ids=inputs["input_ids"], pixel_values=pixels, use_itm_head=False).itm_score
    assert matcher.relevance(picture, "Is there a dog").similarity == pytest.approx(expected.item(), abs=1e-6)


def test_long_texts_are_cut_for_both_the_words_and_the_mask(matcher: Matcher, picture: Picture) -> None:
    """The official code cuts the words at 35 pieces and the mask at 512: longer questions fail there."""
    fits, long = " ".join(["cat"] * 33), " ".join(["cat"] * 33 + ["dog"] * 40)
    assert matcher._tokens([long])[0].shape == (1, 35)
    np.testing.assert_array_equal(matcher.relevance(picture, long).grid, matcher.relevance(picture, fits).grid)


def test_a_text_without_words_has_no_preference(matcher: Matcher, picture: Picture) -> None:
    """There is nothing to average over: a mean would be nan, and every pixel masked or none by accident."""
    heat = matcher.relevance(picture, " . ")
    assert not heat.grid.any()
    assert kept(heat).all()


def test_the_question_changes_the_heat(matcher: Matcher, picture: Picture) -> None:
    cat, dog = matcher.relevance(picture, "is there a cat"), matcher.relevance(picture, "is there a dog")
    assert not np.allclose(cat.grid, dog.grid)


def test_another_block_may_be_looked_at(folder: Path, matcher: Matcher, picture: Picture) -> None:
    assert matcher.block == 2
    first = Matcher(str(folder), block=0)
    assert not np.allclose(first.relevance(picture, "a cat").grid, matcher.relevance(picture, "a cat").grid)


def test_heats_are_remembered_within_bounds(folder: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    matcher = Matcher(str(folder))
    cat = matcher.relevance(picture, "cat")
    matcher.relevance(picture, "dog")
    assert matcher.relevance(Picture(picture.image.copy()), "cat") is cat
    matcher.relevance(picture, "picture")
    assert [text for _, text in matcher._heats] == ["cat", "picture"]


def test_what_is_asked_together_is_told_as_if_it_were_asked_alone(folder: Path, picture: Picture) -> None:
    """Texts of all lengths, two about one picture, one asked twice; and in one pass of the towers."""
    other = Picture(picture.image.rotate(180))
    texts = [(picture, "is there a cat in the picture?"), (other, "a dog"), (picture, " . "), (other, "a dog")]
    asked = [Relevance(seen, text) for seen, text in texts]
    matcher, passes = Matcher(str(folder)), []
    matcher.model.vision_model.register_forward_pre_hook(
        lambda _, __, named: passes.append(len(named["pixel_values"])), with_kwargs=True
    )
    together = matcher.heats(asked)
    assert passes == [2]
    assert together[1] is together[3]
    for one, heat in zip(asked, together, strict=True):
        alone = Matcher(str(folder)).relevance(one.picture, one.text)
        np.testing.assert_allclose(heat.grid, alone.grid, rtol=1e-4, atol=1e-7)
        assert heat.similarity == pytest.approx(alone.similarity, abs=1e-6)


def test_remembered_heats_cannot_be_changed(matcher: Matcher, picture: Picture) -> None:
    with pytest.raises(ValueError, match="read-only"):
        matcher.relevance(picture, "cat").grid[0, 0] = 1


def test_works_inside_inference_mode(folder: Path, matcher: Matcher, picture: Picture) -> None:
    """Engines run their models there, and no gradient exists in it."""
    with torch.inference_mode():
        inside = Matcher(str(folder)).relevance(picture, "a cat")
    np.testing.assert_array_equal(inside.grid, matcher.relevance(picture, "a cat").grid)


def test_half_precision_sees_the_same_patches(folder: Path, matcher: Matcher, picture: Picture) -> None:
    """As on a GPU, where the matcher runs in bfloat16."""
    assert (matcher.model.dtype, Matcher(str(folder), "meta").model.dtype) == (torch.float32, torch.bfloat16)
    halved = Matcher(str(folder))
    halved.model.bfloat16()
    rough, exact = (each.relevance(picture, "a red square").grid.flatten() for each in (halved, matcher))
    assert np.dot(rough, exact) / (np.linalg.norm(rough) * np.linalg.norm(exact)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Is there a CAT in the image?", "is there a cat in the image?"),
        ('A "red" (small) cat: #1; ok!', "a red small cat 1 ok"),
        (" one\n two  ", "one two"),
        ("word " * 60, " ".join(["word"] * 50)),
    ],
)
def test_captions_are_cleaned_as_blip_was_trained(text: str, cleaned: str) -> None:
    assert caption(text) == cleaned


def test_the_match_head_is_given_its_own_first_token() -> None:
    plain = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    assert encode_token(plain, rows=len(WORDS) + 2) == len(WORDS) + 1
    assert encode_token(plain, rows=len(WORDS)) == WORDS.index("[CLS]")
    named = BertTokenizer(vocab={word: i for i, word in enumerate([*WORDS, "[ENC]", "[DEC]"])})
    assert encode_token(named, rows=len(WORDS) + 2) == len(WORDS)

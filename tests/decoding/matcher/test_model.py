"""The matcher on a tiny random BLIP, against a match score computed by hand from given attention probabilities."""

import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from decoding.errors import Unsupported
from decoding.image_ops import relevance_mask
from decoding.matcher import model as module
from decoding.matcher.model import Matcher, find_encode_token, normalize_caption
from decoding.prompt import ImageInput
from decoding.requests import RelevanceRequest

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "there", "a", "cat", "dog", "in", "the", "picture", "?"]
SIDE, PATCH, WIDTH, LAYERS, HEADS = 32, 8, 16, 4, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random model. As in published ones, its text embedding has two rows more than its tokenizer has words."""
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


def test_weights_in_the_pickle_format_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "blip"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(folder / "model.safetensors"), copy / "pytorch_model.bin")
    with pytest.raises(
        Unsupported,
        match=r"matcher cannot be loaded.* neither model\.safetensors .* pytorch_model\.bin has another format",
    ):
        Matcher(str(copy))


@pytest.fixture
def image() -> ImageInput:
    noise = np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    return ImageInput(Image.fromarray(noise))


def compute_match(matcher: Matcher, tokens: Tensor, patches: Tensor, block: int, change: Tensor | None = None) -> tuple:
    """Compute the match logit and the block's cross-attention probabilities, with `change` added to the latter."""
    model = matcher.model.double()
    text = model.text_encoder
    hidden, probabilities = text.embeddings(input_ids=tokens), None
    for number, layer in enumerate(text.encoder.layer):
        for attention, context, crosses in ((layer.attention, hidden, False), (layer.crossattention, patches, True)):
            context = context if crosses else hidden
            inner, split = attention.self, (HEADS, WIDTH // HEADS)
            q = inner.query(hidden).unflatten(-1, split).transpose(1, 2)
            k = inner.key(context).unflatten(-1, split).transpose(1, 2)
            v = inner.value(context).unflatten(-1, split).transpose(1, 2)
            share = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(dim=-1)
            if crosses and number == block:
                probabilities = share
                share = share if change is None else share + change
            out = attention.output
            hidden = out.LayerNorm(out.dense((share @ v).transpose(1, 2).flatten(-2)) + hidden)
        middle = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(hidden))
        hidden = layer.output.LayerNorm(layer.output.dense(middle) + hidden)
    return model.itm_head(hidden[:, 0])[0, 1], probabilities


@torch.no_grad()
def test_relevance_is_attention_times_its_positive_gradient(folder: Path, image: ImageInput) -> None:
    """The gradient is computed by finite differences of a separate match score."""
    matcher = Matcher(str(folder))
    relevance = matcher.compute_relevance_map(image, "Is there a cat in the picture?")

    tokens = matcher.tokenizer("is there a cat in the picture?", return_tensors="pt")["input_ids"]
    requests = torch.cat([torch.tensor([[len(WORDS) + 1]]), tokens[:, 1:]], dim=1)
    matcher.model.double()
    pixels = matcher.image_processor(image.visible, return_tensors="pt")["pixel_values"].double()
    patches = matcher.model.vision_model(pixel_values=pixels).last_hidden_state
    _, share = compute_match(matcher, requests, patches, block=2)
    gradient = torch.zeros_like(share)
    for place in np.ndindex(tuple(share.shape)):
        nudge = torch.zeros_like(share)
        nudge[place] = 1e-5
        above, _ = compute_match(matcher, requests, patches, 2, nudge)
        below, _ = compute_match(matcher, requests, patches, 2, -nudge)
        gradient[place] = (above - below) / 2e-5

    expected = (share * gradient.clamp(min=0))[0, :, 1:-1, 1:].mean(dim=(0, 1)).view(4, 4)
    assert expected.max() > 0
    np.testing.assert_allclose(relevance.grid, expected.numpy(), rtol=1e-3, atol=1e-6)
    assert relevance.input_size == SIDE


@torch.no_grad()
def test_similarity_is_the_cosine_of_image_and_text(matcher: Matcher, image: ImageInput) -> None:
    inputs = matcher.tokenizer("is there a dog", return_tensors="pt")
    pixels = matcher.image_processor(image.visible, return_tensors="pt")["pixel_values"]
    expected = matcher.model(input_ids=inputs["input_ids"], pixel_values=pixels, use_itm_head=False).itm_score
    assert matcher.compute_relevance_map(image, "Is there a dog").similarity == pytest.approx(expected.item(), abs=1e-6)


def test_long_texts_are_truncated_with_their_mask(matcher: Matcher, image: ImageInput) -> None:
    """The official code cuts the words at 35 pieces and the mask at 512: longer questions fail there."""
    fits, long = " ".join(["cat"] * 33), " ".join(["cat"] * 33 + ["dog"] * 40)
    assert matcher._tokenize([long])[0].shape == (1, 35)
    np.testing.assert_array_equal(
        matcher.compute_relevance_map(image, long).grid, matcher.compute_relevance_map(image, fits).grid
    )


def test_text_without_words_has_zero_relevance(matcher: Matcher, image: ImageInput) -> None:
    """A mean over no words would be nan, and mask every pixel or none."""
    relevance = matcher.compute_relevance_map(image, " . ")
    assert not relevance.grid.any()
    assert relevance_mask(relevance).all()


def test_text_changes_the_relevance_map(matcher: Matcher, image: ImageInput) -> None:
    cat, dog = (
        matcher.compute_relevance_map(image, "is there a cat"),
        matcher.compute_relevance_map(image, "is there a dog"),
    )
    assert not np.allclose(cat.grid, dog.grid)


def test_block_can_be_chosen(folder: Path, matcher: Matcher, image: ImageInput) -> None:
    assert matcher.block == 2
    first = Matcher(str(folder), block=0)
    assert not np.allclose(
        first.compute_relevance_map(image, "a cat").grid, matcher.compute_relevance_map(image, "a cat").grid
    )


def test_another_salt_does_not_find_a_cached_map(
    matcher: Matcher, image: ImageInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    compute = matcher._compute
    monkeypatch.setattr(matcher, "_compute", lambda requests: computed.append(len(requests)) or compute(requests))
    requests = [RelevanceRequest(image, "a salted cat", salt) for salt in ("one", "two", None)]
    for request in (*requests, *requests):
        matcher.compute_relevance_maps([request])
    assert computed == [1, 1, 1]
    one, other = matcher.compute_relevance_maps([replace(request, text="a dog") for request in requests[:2]])
    assert computed[3:] == [2]
    assert np.array_equal(one.grid, other.grid)


def test_cache_is_bounded(folder: Path, image: ImageInput, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_SIZE", 2)
    matcher = Matcher(str(folder))
    cat = matcher.compute_relevance_map(image, "cat")
    matcher.compute_relevance_map(image, "dog")
    assert matcher.compute_relevance_map(ImageInput(image.visible.copy()), "cat") is cat
    matcher.compute_relevance_map(image, "picture")
    assert [text for *_, text in matcher._cache] == ["cat", "picture"]


def test_batch_equals_single_requests(folder: Path, image: ImageInput) -> None:
    """Texts of all lengths, two about one image, one of them twice, in one pass of the towers."""
    other = ImageInput(image.visible.rotate(180))
    texts = [(image, "is there a cat in the picture?"), (other, "a dog"), (image, " . "), (other, "a dog")]
    requests = [RelevanceRequest(shown, text) for shown, text in texts]
    matcher, passes = Matcher(str(folder)), []
    matcher.model.vision_model.register_forward_pre_hook(
        lambda _, __, named: passes.append(len(named["pixel_values"])), with_kwargs=True
    )
    together = matcher.compute_relevance_maps(requests)
    assert passes == [2]
    assert together[1] is together[3]
    for one, relevance in zip(requests, together, strict=True):
        alone = Matcher(str(folder)).compute_relevance_map(one.image, one.text)
        np.testing.assert_allclose(relevance.grid, alone.grid, rtol=1e-4, atol=1e-7)
        assert relevance.similarity == pytest.approx(alone.similarity, abs=1e-6)


def test_cached_maps_are_read_only(matcher: Matcher, image: ImageInput) -> None:
    with pytest.raises(ValueError, match="read-only"):
        matcher.compute_relevance_map(image, "cat").grid[0, 0] = 1


def test_matcher_works_inside_inference_mode(folder: Path, matcher: Matcher, image: ImageInput) -> None:
    """Engines run their models in inference mode, which has no gradients."""
    with torch.inference_mode():
        inside = Matcher(str(folder)).compute_relevance_map(image, "a cat")
    np.testing.assert_array_equal(inside.grid, matcher.compute_relevance_map(image, "a cat").grid)


def test_half_precision_gives_a_similar_map(folder: Path, matcher: Matcher, image: ImageInput) -> None:
    """As on a GPU, where the matcher runs in bfloat16."""
    assert (matcher.model.dtype, Matcher(str(folder), "meta").model.dtype) == (torch.float32, torch.bfloat16)
    halved = Matcher(str(folder))
    halved.model.bfloat16()
    rough, exact = (each.compute_relevance_map(image, "a red square").grid.flatten() for each in (halved, matcher))
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
def test_captions_are_normalized_as_in_blip_training(text: str, cleaned: str) -> None:
    assert normalize_caption(text) == cleaned


def test_encode_token_is_found() -> None:
    plain = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    assert find_encode_token(plain, rows=len(WORDS) + 2) == len(WORDS) + 1
    assert find_encode_token(plain, rows=len(WORDS)) == WORDS.index("[CLS]")
    named = BertTokenizer(vocab={word: i for i, word in enumerate([*WORDS, "[ENC]", "[DEC]"])})
    assert find_encode_token(named, rows=len(WORDS) + 2) == len(WORDS)


def test_pixels_equal_those_of_the_whole_image(matcher: Matcher, image: ImageInput) -> None:
    whole = matcher.image_processor(image.visible, return_tensors="pt")["pixel_values"]
    assert torch.equal(matcher._preprocess(image), whole)


def test_large_images_are_resized_before_they_are_copied(matcher: Matcher) -> None:
    images = [ImageInput(Image.new("RGB", (2000, 2000), (shade, 0, 0))) for shade in (1, 2)]  # 12 MB each
    requests = [RelevanceRequest(image, "a cat") for image in images]
    matcher.compute_relevance_maps([RelevanceRequest(ImageInput(Image.new("RGB", (8, 8))), "a cat")])  # first use
    tracemalloc.start()
    matcher.compute_relevance_maps(requests)
    peak = tracemalloc.get_traced_memory()[1]  # arrays of numpy and objects of Python
    tracemalloc.stop()
    assert peak < 12_000_000  # one whole image

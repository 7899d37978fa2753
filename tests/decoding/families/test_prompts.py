"""Prompts that a family's encoder accepts and rejects."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlavaNextVideoProcessor

from decoding.errors import BadRequest, Unsupported
from decoding.multimodal.image_size import get_image_token_id
from decoding.multimodal.model_families import get_family, get_max_model_len
from decoding.multimodal.processor import load_processor
from decoding.requests import Message, Prompt
from decoding.text.chat_template import use_chat_template
from decoding.text.prompt_encoder import PromptEncoder
from tests.decoding.families.checkpoints import CHECKPOINTS
from tests.decoding.families.prompts import BLIND, ONE, TWO, draw_image

Checkpoint = Callable[[str], Path]


def build_encoder(folder: Path) -> PromptEncoder:
    config = AutoConfig.from_pretrained(folder)
    family = get_family(config)
    return PromptEncoder(load_processor(str(folder), family), get_max_model_len(config), family)


@pytest.fixture
def own_copy(checkpoint: Checkpoint, tmp_path: Path) -> Checkpoint:
    return lambda name: Path(shutil.copytree(checkpoint(name), tmp_path / name))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_prompt_without_images_has_no_image_inputs(name: str, checkpoint: Checkpoint) -> None:
    encoder = build_encoder(checkpoint(name))
    blind = encoder.encode(ONE.without_images())
    assert blind.pixel_shape is None
    assert set(blind.extras) <= set(encoder.family.per_token)
    assert len(blind) < len(encoder.encode(ONE))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_image_tokens_are_those_of_the_config(name: str, checkpoint: Checkpoint) -> None:
    token, encoder = AutoConfig.from_pretrained(checkpoint(name)).image_token_id, build_encoder(checkpoint(name))
    assert encoder.encode(ONE).count_token(token) >= 4
    assert encoder.encode(BLIND).count_token(token) == 0


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_image_token_in_text_is_rejected(name: str, checkpoint: Checkpoint) -> None:
    encoder = build_encoder(checkpoint(name))
    with pytest.raises(BadRequest, match="reserves for itself"):
        encoder.encode(Prompt.from_text(f"What is {encoder.processor.image_token} here?"))


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 40), (150, 2)])
def test_small_and_narrow_images_are_encoded(name: str, size: tuple[int, int], checkpoint: Checkpoint) -> None:
    encoded = build_encoder(checkpoint(name)).encode(Prompt.from_text("What is it?", draw_image(*size, seed=1)))
    assert encoded.extras["pixel_values"].isfinite().all()


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("size", [(40, 40), (300, 120), (30, 400), (700, 700)])
def test_tokens_and_bytes_of_an_image_follow_from_its_size(
    name: str, size: tuple[int, int], checkpoint: Checkpoint
) -> None:
    encoder = build_encoder(checkpoint(name))
    encoded = encoder.encode(Prompt.from_text("What is it?", draw_image(*size, seed=1)))
    pixel_bytes = encoded.extras["pixel_values"].nbytes
    estimate = encoder.image_sizes.estimate_bytes([size], encoder.max_model_len)
    # Tiles of LLaVA-NeXT have padding, whose tokens are left out. Others have tokens between the tiles.
    assert pixel_bytes / 3 <= estimate
    assert estimate <= 1.5 * pixel_bytes or name == "idefics2"  # whose images have fewer pixels than the square probe
    image_token = get_image_token_id(encoder.processor)
    tokens = encoder.image_sizes.count_tokens([size])
    if name in ("instructblip", "idefics2", "deepseek_vl", "janus"):  # each image has the same number
        assert tokens is None
    else:
        assert tokens is not None
        assert encoded.count_token(image_token) <= tokens < len(encoded)
        assert encoder.image_sizes.count_tokens([size, size]) == 2 * tokens


def test_image_that_exceeds_the_context_is_refused_before_it_is_processed(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = build_encoder(checkpoint("qwen2_vl"))
    assert encoder.image_sizes.estimate_bytes([(700, 700)], 25) == 0
    monkeypatch.setattr(encoder, "max_model_len", 25)
    monkeypatch.setattr(encoder, "_process", None)
    with pytest.raises(BadRequest, match="25 tokens with its images; the model's context is 25") as error:
        encoder.encode(Prompt.from_text("What is it?", draw_image(700, 700, seed=1)))
    assert error.value.code == "context_length_exceeded"


def test_count_that_differs_from_the_prompt_is_not_used(tiny: Path) -> None:
    """Transformers counts by the crop, which the image processor of this checkpoint does not make."""
    assert build_encoder(tiny).image_sizes.count_tokens([(40, 40)]) is None


def test_size_that_the_processor_rejects_has_no_tokens(checkpoint: Checkpoint) -> None:
    assert build_encoder(checkpoint("qwen2_vl")).image_sizes.count_tokens([(1, 500)]) == 0


def test_instructblip_accepts_one_image(checkpoint: Checkpoint) -> None:
    with pytest.raises(BadRequest, match=r"takes 1 image\(s\) in a prompt; there are 2"):
        build_encoder(checkpoint("instructblip")).encode(TWO)


def test_instructblip_encodes_the_text_without_a_template(checkpoint: Checkpoint) -> None:
    encoder = build_encoder(checkpoint("instructblip"))
    messages = (Message("system", ("Be brief.",)), *BLIND.messages)
    text = encoder.tokenizer.decode(encoder.encode(Prompt(messages)).ids)
    assert text == "<s>Be brief.\nWhat is red in this detail?"


def test_processor_error_is_a_bad_request(checkpoint: Checkpoint) -> None:
    with pytest.raises(BadRequest, match="aspect ratio"):
        build_encoder(checkpoint("qwen2_vl")).encode(Prompt.from_text("What is it?", draw_image(1, 500, seed=1)))


def test_template_error_is_a_bad_request(own_copy: Checkpoint) -> None:
    folder = own_copy("gemma3")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('Roles must take turns.') }}")
    with pytest.raises(BadRequest, match="Roles must take turns"):
        build_encoder(folder).encode(BLIND)


def test_adjacent_texts_are_joined_for_the_template(own_copy: Checkpoint) -> None:
    folder = own_copy("gemma3")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content[0].text }}")
    encoder = build_encoder(folder)
    split, whole = (Prompt((Message("user", parts),)) for parts in (("Is it ", "red?"), ("Is it red?",)))
    torch.testing.assert_close(encoder.encode(split).ids, encoder.encode(whole).ids)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_image_without_text_can_be_removed(name: str, checkpoint: Checkpoint) -> None:
    image_alone = Prompt((Message("user", ONE.images),))
    encoder = build_encoder(checkpoint(name))
    assert len(encoder.encode(image_alone.without_images())) < len(encoder.encode(image_alone))


def test_template_that_drops_images_is_unsupported(own_copy: Checkpoint) -> None:
    folder = own_copy("llava")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content[-1].text }}")
    encoder = build_encoder(folder)
    assert len(encoder.encode(BLIND)) > 0
    with pytest.raises(Unsupported, match="no place for one of the images"):
        encoder.encode(ONE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # transformers does not close the file
def test_default_template_is_used_among_several(own_copy: Checkpoint) -> None:
    folder = own_copy("llava")
    usual = build_encoder(folder).encode(BLIND)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages[0].content[-1].text }}")
    torch.testing.assert_close(build_encoder(folder).encode(BLIND).ids, usual.ids)


def test_checkpoint_without_template_is_unsupported(own_copy: Checkpoint) -> None:
    folder = own_copy("llava")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(Unsupported, match="no chat template"):
        use_chat_template(build_encoder(folder), None)


def test_smolvlm_encoding_equals_its_own_processor(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own class needs a package for videos. The class that replaces it must process images alike."""
    from transformers.models.smolvlm import processing_smolvlm

    used, own = build_encoder(checkpoint("smolvlm")), build_encoder(checkpoint("smolvlm"))
    monkeypatch.setattr(processing_smolvlm, "num2words", str)
    monkeypatch.setattr(processing_smolvlm.SmolVLMProcessor, "check_argument_for_proper_class", lambda *_: None)
    own.processor = processing_smolvlm.SmolVLMProcessor(
        used.processor.image_processor,
        own.tokenizer,
        SimpleNamespace(num_frames=None, fps=None),
        image_seq_len=4,
        chat_template=used.processor.chat_template,
    )
    for prompt in (ONE, TWO, BLIND):
        one, other = used.encode(prompt), own.encode(prompt)
        torch.testing.assert_close(one.ids, other.ids)
        torch.testing.assert_close(dict(one.extras), dict(other.extras))


def test_encoding_of_llava_next_video_equals_its_own_processor(checkpoint: Checkpoint) -> None:
    encoder = build_encoder(checkpoint("llava_next_video"))
    used = encoder.processor
    own = LlavaNextVideoProcessor.__new__(LlavaNextVideoProcessor)
    own.__dict__.update(vars(used), video_processor=None, video_token="<video>", video_token_id=None)
    texts = [encoder.render(prompt) for prompt in (ONE, TWO)]
    for text, prompt in zip(texts, (ONE, TWO), strict=True):
        images = [[image.visible for image in prompt.images]]
        one, other = (each(text=[text], images=images, return_tensors="pt") for each in (used, own))
        torch.testing.assert_close(dict(one), dict(other))


def make_config(model_type: str, **text: Any) -> Any:
    inner = SimpleNamespace(**{"is_encoder_decoder": False, "model_type": "llama", **text})
    return SimpleNamespace(model_type=model_type, get_text_config=lambda: inner)


def test_unknown_family_is_unsupported() -> None:
    with pytest.raises(Unsupported, match=r"'blip-2' of the checkpoint .*'instructblip'.* types: llava, "):
        get_family(make_config("blip-2"))


def test_encoder_decoder_language_model_is_unsupported() -> None:
    from transformers import InstructBlipConfig

    flan = InstructBlipConfig(text_config={"model_type": "t5"})
    with pytest.raises(Unsupported, match="'t5' is an encoder-decoder"):
        get_family(flan)


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        (None, 4096),
        ({"rope_type": "default"}, 4096),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}, 4096),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096),
        ({"rope_type": "linear", "factor": 4.0}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"full_attention": {"rope_type": "linear", "factor": 8.0}}, 4096),
    ],
)
def test_max_model_len_follows_the_rope_scaling(rope: Any, context: int) -> None:
    assert get_max_model_len(make_config("llava", max_position_embeddings=4096, rope_parameters=rope)) == context

"""What a family's encoder accepts and refuses, before anything reaches the model."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from decoding.ask import Message, Prompt
from decoding.encoder import Encoder
from decoding.errors import BadRequest, Unsupported
from decoding.families import context_of, family_of
from decoding.processor import load_processor
from tests.decoding.families.checkpoints import RECIPES
from tests.decoding.families.conversations import BLIND, ONE, TWO, picture

Checkpoint = Callable[[str], Path]


def encoder_of(folder: Path) -> Encoder:
    config = AutoConfig.from_pretrained(folder)
    family = family_of(config)
    return Encoder(load_processor(str(folder), family), context_of(config), family)


@pytest.fixture
def own_copy(checkpoint: Checkpoint, tmp_path: Path) -> Checkpoint:
    return lambda name: Path(shutil.copytree(checkpoint(name), tmp_path / name))


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_of_a_picture_is_left_in_a_blind_prompt(name: str, checkpoint: Checkpoint) -> None:
    encoder = encoder_of(checkpoint(name))
    blind = encoder.encode(ONE.without_pictures())
    assert blind.pixel_shape is None
    assert set(blind.extras) <= set(encoder.family.per_token)
    assert len(blind) < len(encoder.encode(ONE))


@pytest.mark.parametrize("name", RECIPES)
def test_placeholders_cannot_be_written_by_hand(name: str, checkpoint: Checkpoint) -> None:
    encoder = encoder_of(checkpoint(name))
    with pytest.raises(BadRequest, match="reserves for itself"):
        encoder.encode(Prompt.of(f"What is {encoder.processor.image_token} here?"))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 40), (150, 2)])
def test_small_and_narrow_pictures_can_be_read(name: str, size: tuple[int, int], checkpoint: Checkpoint) -> None:
    encoded = encoder_of(checkpoint(name)).encode(Prompt.of("What is it?", picture(*size, seed=1)))
    assert encoded.extras["pixel_values"].isfinite().all()


def test_instructblip_takes_one_picture(checkpoint: Checkpoint) -> None:
    with pytest.raises(BadRequest, match=r"takes 1 picture\(s\) in a prompt; there are 2"):
        encoder_of(checkpoint("instructblip")).encode(TWO)


def test_instructblip_reads_the_bare_text(checkpoint: Checkpoint) -> None:
    encoder = encoder_of(checkpoint("instructblip"))
    talk = (Message("system", ("Be brief.",)), *BLIND.messages)
    text = encoder.tokenizer.decode(encoder.encode(Prompt(talk)).ids)
    assert text == "<s>Be brief.\nWhat is red in this detail?"


def test_what_the_processor_refuses_is_the_clients_to_mend(checkpoint: Checkpoint) -> None:
    with pytest.raises(BadRequest, match="aspect ratio"):
        encoder_of(checkpoint("qwen2_vl")).encode(Prompt.of("What is it?", picture(1, 500, seed=1)))


def test_what_the_template_refuses_is_the_clients_to_mend(own_copy: Checkpoint) -> None:
    folder = own_copy("gemma3")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('Roles must take turns.') }}")
    with pytest.raises(BadRequest, match="Roles must take turns"):
        encoder_of(folder).encode(BLIND)


def test_a_template_that_reads_the_first_text_reads_all(own_copy: Checkpoint) -> None:
    folder = own_copy("gemma3")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content[0].text }}")
    encoder = encoder_of(folder)
    split, whole = (Prompt((Message("user", parts),)) for parts in (("Is it ", "red?"), ("Is it red?",)))
    torch.testing.assert_close(encoder.encode(split).ids, encoder.encode(whole).ids)


@pytest.mark.parametrize("name", RECIPES)
def test_a_picture_without_text_can_be_taken_away(name: str, checkpoint: Checkpoint) -> None:
    picture_alone = Prompt((Message("user", ONE.pictures),))
    encoder = encoder_of(checkpoint(name))
    assert len(encoder.encode(picture_alone.without_pictures())) < len(encoder.encode(picture_alone))


def test_a_template_that_drops_pictures_is_no_text_only_answer(own_copy: Checkpoint) -> None:
    folder = own_copy("llava")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content[-1].text }}")
    encoder = encoder_of(folder)
    assert len(encoder.encode(BLIND)) > 0
    with pytest.raises(Unsupported, match="no place for one of the pictures"):
        encoder.encode(ONE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # transformers leaves the file open
def test_of_several_templates_the_default_is_used(own_copy: Checkpoint) -> None:
    folder = own_copy("llava")
    usual = encoder_of(folder).encode(BLIND)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages[0].content[-1].text }}")
    torch.testing.assert_close(encoder_of(folder).encode(BLIND).ids, usual.ids)


def test_a_checkpoint_without_template_is_refused_at_the_start(own_copy: Checkpoint) -> None:
    folder = own_copy("llava")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(Unsupported, match="no chat template"):
        encoder_of(folder)


def test_smolvlm_is_read_as_by_its_own_processor(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own class wants a package for videos; the one that is used instead must do the same with pictures."""
    from transformers.models.smolvlm import processing_smolvlm

    used, own = encoder_of(checkpoint("smolvlm")), encoder_of(checkpoint("smolvlm"))
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


def config(model_type: str, **text: Any) -> Any:
    inner = SimpleNamespace(**{"is_encoder_decoder": False, "model_type": "llama", **text})
    return SimpleNamespace(model_type=model_type, get_text_config=lambda: inner)


def test_unknown_families_are_refused_by_name() -> None:
    with pytest.raises(Unsupported, match=r"'blip-2' is not supported\. Supported: llava, "):
        family_of(config("blip-2"))


def test_language_models_with_an_encoder_are_refused() -> None:
    from transformers import InstructBlipConfig

    flan = InstructBlipConfig(text_config={"model_type": "t5"})
    with pytest.raises(Unsupported, match="'t5' is an encoder-decoder"):
        family_of(flan)


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
def test_context_is_what_the_positions_reach(rope: Any, context: int) -> None:
    assert context_of(config("llava", max_position_embeddings=4096, rope_parameters=rope)) == context

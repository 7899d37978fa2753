"""Chat templates of the operator."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from decoding.errors import Unsupported
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.settings import HFSettings
from decoding.multimodal.config import load_config
from decoding.multimodal.model_families import get_family
from decoding.multimodal.processor import load_processor
from decoding.prompt import Prompt
from decoding.text.chat_template import use_chat_template
from decoding.text.prompt_encoder import PromptEncoder
from tests.decoding.hf_engine.checkpoint import TEMPLATE


def build_encoder(folder: Path) -> PromptEncoder:
    family = get_family(load_config(str(folder)))
    return PromptEncoder(load_processor(str(folder), family), 100, family)


def test_template_of_the_file_replaces_that_of_the_checkpoint(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE.replace("ASSISTANT:", "ANSWER:"))
    model = Model(HFSettings(str(tiny), device="cpu", chat_template=file))
    assert model.encoder.render(Prompt.from_text("Hello.")) == "USER: Hello. ANSWER:"


def test_checkpoint_without_a_template_gets_that_of_the_file(tiny: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "model", tmp_path / "template.jinja"
    shutil.copytree(tiny, folder)
    (folder / "chat_template.jinja").rename(file)
    with pytest.raises(Unsupported, match=r"no chat template.*--chat-template"):
        Model(HFSettings(str(folder), device="cpu"))
    model = Model(HFSettings(str(folder), device="cpu", chat_template=file))
    assert model.encoder.render(Prompt.from_text("Hello.")) == "USER: Hello. ASSISTANT:"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for message in messages %}\n{{ message.content", "is no Jinja template: line 2: "),
        ("{{ nothing.of.this }}", "fails on a message with a text.*UndefinedError"),
        (
            "{% for message in messages %}{{ message.content + 'a' }}{% endfor %}",
            "fails on .* a text .TypeError.*parts",
        ),
        ("{{ raise_exception('not today') }}", "not today"),
        ("USER: nothing", "drops the text of a message with a text"),
        (TEMPLATE.replace("<image>", ""), "message with an image .*no place for one of the images"),
    ],
)
def test_unusable_template_is_explained(tiny: Path, tmp_path: Path, template: str, expected: str) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(template)
    with pytest.raises(Unsupported, match=expected) as refused:
        use_chat_template(build_encoder(tiny), file)
    assert str(file) in refused.value.message
    assert "\n" not in refused.value.message


def test_unreadable_file_is_explained(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("ü".encode("latin-1"))
    for name, reason in (("nothing", "No such file"), ("latin", "not UTF-8")):
        with pytest.raises(Unsupported, match=rf"{name} cannot be read \(.*{reason}"):
            use_chat_template(build_encoder(tiny), tmp_path / name)


def test_family_without_templates_refuses_one(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    encoder = build_encoder(checkpoint("instructblip"))
    use_chat_template(encoder, None)
    with pytest.raises(Unsupported, match="--chat-template has no effect"):
        use_chat_template(encoder, tmp_path / "template.jinja")

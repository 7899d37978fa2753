"""A chat template of the operator (`--chat-template`), in place of the one of the checkpoint."""

from __future__ import annotations

from pathlib import Path

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from PIL import Image

from decoding.errors import OnlySeenError, Unsupported
from decoding.multimodal.processor import get_chat_template
from decoding.prompt import ImageInput, Prompt
from decoding.text.prompt_encoder import PromptEncoder

TRIAL_TEXT = "What is in the image?"
CONTRACT = "A template gets `messages`, whose `content` is a list of parts of the type 'text' or 'image'."


def use_chat_template(encoder: PromptEncoder, file: Path | None) -> None:
    """Let an encoder use the template of a file, after a trial with a text and with an image.

    Args:
        encoder: The encoder.
        file: File with a Jinja template; None: the checkpoint's template stays.

    Raises:
        Unsupported: The file or its template cannot be used, or there is no template at all.
    """
    if file is None:
        if encoder.family.has_chat_template and get_chat_template(encoder.processor) is None:
            raise Unsupported(
                "The checkpoint has no chat template, so that it accepts no messages. Give one with --chat-template."
            )
        return
    if not encoder.family.has_chat_template:
        raise Unsupported(
            "--chat-template has no effect on this model, because its family reads plain texts. Leave the flag out."
        )
    try:
        encoder.processor.chat_template = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise Unsupported(f"The chat template {file} cannot be read ({reason}).") from error
    image = ImageInput(Image.new("RGB", (8, 8)))
    for name, prompt in (("a text", Prompt.from_text(TRIAL_TEXT)), ("an image", Prompt.from_text(TRIAL_TEXT, image))):
        try:
            rendered = encoder.render(prompt)
        except TemplateSyntaxError as error:
            raise Unsupported(
                f"The chat template {file} is no Jinja template: line {error.lineno}: {error}."
            ) from error
        except (TemplateError, OnlySeenError, ValueError, TypeError, LookupError, ArithmeticError) as error:
            problem = f"{type(error).__name__}: {error}".rstrip(".")
            raise Unsupported(
                f"The chat template {file} fails on a message with {name} ({problem}). {CONTRACT}"
            ) from error
        if TRIAL_TEXT not in rendered:
            raise Unsupported(f"The chat template {file} drops the text of a message with {name}. {CONTRACT}")

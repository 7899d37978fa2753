"""Parts that the tiny checkpoints of the families share."""

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerFast

WIDTH, LAYERS, HEADS = 32, 4, 4
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
VISION = {  # of a vision tower that takes images of 4 x 4 patches
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SQUARE = {"height": 32, "width": 32}


@dataclass(frozen=True)
class CheckpointParts:
    """Contents of a checkpoint. `config` lacks the vocabulary size and the end token of the text model."""

    config: dict[str, Any]
    tokenizer: PreTrainedTokenizerFast
    image_processor: Any  # the image processor
    processor: str  # class name, as the checkpoint has it
    settings: dict[str, Any] = field(default_factory=dict)  # of the processor
    chat_template: str | None = None
    seed: int = 0  # of the weights: one with which every image and strategy changes the tokens


def build_chat_template(user: str, assistant: str, end: str, image_token: str, start: str = "") -> str:
    """Build a chat template in the common form: roles, parts, and the model's turn."""
    return (
        f"{start}{{% for message in messages %}}"
        f"{{{{ '{user}' if message.role == 'user' else '{assistant}' if message.role == 'assistant' else '' }}}}"
        "{% for part in message.content %}"
        f"{{% if part.type == 'image' %}}{image_token}{{% else %}}{{{{ part.text }}}}{{% endif %}}"
        f"{{% endfor %}}{end}{{% endfor %}}{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    )


def build_chatml(image: str) -> str:
    """Build a template with ChatML's tokens, and the text `image` for each image."""
    return build_chat_template("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n", image)

"""A tiny random LLaVA on disk, whose weights are large enough that gaps between logits exceed rounding."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SIDE, PATCH = 32, 8
CONTEXT = 512
SPARE = 8  # rows of the head beyond the tokenizer's vocabulary, as in many published checkpoints
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
IMAGE = "<image>"
SENTENCES = [
    "USER: <image>\nPlease describe this image in detail. ASSISTANT: There is a cat on the table and a dog behind it.",
    "You will be asked about this image. Do not answer yet, name all objects with their colours and numbers.",
    "The input image is described as follows: two red apples, one green bottle. Is there a person? Yes. No.",
    "SYSTEM: You say only what you see. How many chairs are in the picture? Three of them, left of the window.",
]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{{ '</s>' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def write(folder: Path) -> None:
    tokenizer = byte_pairs()
    torch.manual_seed(0)  # `enlarge_weights` does not draw the tower's class token
    model = network(len(tokenizer), int(tokenizer.convert_tokens_to_ids(IMAGE)))
    enlarge_weights(model, silent=tokenizer.all_special_ids)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id)
    model.save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


def byte_pairs() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*SPECIAL.values(), IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    begin = SPECIAL["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=[IMAGE], **SPECIAL)


def network(words: int, image: int) -> LlavaForConditionalGeneration:
    text = LlamaConfig(
        vocab_size=words + SPARE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=vision, image_token_id=image, vision_feature_layer=-1)
    )


def enlarge_weights(model: LlavaForConditionalGeneration, silent: list[int]) -> None:
    """Enlarge the weights. By default image and position have no effect. `silent` tokens are never likely."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.0 if "embed" in name else parameter.shape[-1] ** -0.5 * 1.4)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head.mul_(2.5)
        head[silent] = 0

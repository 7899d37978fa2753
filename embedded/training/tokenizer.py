"""A byte-level BPE tokenizer of 1024 tokens for the texts of the scenes; other texts take more tokens."""

from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from embedded.data.categories import CATEGORIES, PLACES
from embedded.data.scene_dataset import SceneDataset
from embedded.data.text_templates import (
    CAPTION_PROMPTS,
    LIST_PROMPTS,
    add_description,
    make_caption_pair,
    make_detail_question,
    make_listing,
    make_presence_question,
)

VOCABULARY = 1024
PADDING, START, END, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ message['role'] | upper }}: "
    "{%- if message['content'] is string -%}{{ ' ' + message['content'] }}"
    "{%- else -%}{{ ' ' }}"
    "{%- for part in message['content'] if part['type'] in ('image', 'image_url') -%}{{ '<image>\n' }}{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}"
    "{%- endif -%}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}"
)
"""The turns of LLaVA-1.5, images first: `USER: <image>\\nquestion ASSISTANT: answer</s>USER: ...`."""
OTHER_WORDS = (
    "You are given a picture and a question about it. Based on the description, answer the following question. "
    "Is it true that this photo has a color? "
    "The assistant gives helpful, detailed and polite answers to the user's questions. "
    "Examine the image systematically and describe all foreground and background objects "
    "with their properties, relations, counts."
)


def train_tokenizer(dataset: SceneDataset, scenes: int = 5000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on texts about the first scenes of a dataset."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # An answer follows "ASSISTANT:" and so begins with a space, which is not part of the text.
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PADDING, START, END, UNKNOWN, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_iterate_corpus(dataset, min(scenes, len(dataset))), trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(START, tokenizer.token_to_id(START))]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PADDING,
        unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE],
        model_max_length=2048,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def _iterate_corpus(dataset: SceneDataset, scenes: int) -> Iterator[str]:
    rng = np.random.default_rng(5)
    for index in range(scenes):
        scene = dataset.get_scene(index)
        start = "" if index % 3 == 0 else "\n"  # with an image the question begins a line
        for pair in (
            make_caption_pair(rng, scene, 0.3),
            make_presence_question(rng, scene),
            make_presence_question(rng, scene),
            make_detail_question(rng, scene),
            make_listing(rng, scene),
        ):
            yield f"USER: {start}{pair.question} ASSISTANT: {pair.answer}"
        if index % 10 == 0:
            yield add_description(rng, scene, make_presence_question(rng, scene)).question
    for _ in range(300):
        for category in CATEGORIES:
            yield f"{category.name.capitalize()} {category.name} {category.plural_name} {category.with_article}"
    for _ in range(100):
        yield " ".join(place + " " + place.capitalize() for place in PLACES)
        yield " ".join(CAPTION_PROMPTS + LIST_PROMPTS)
        yield OTHER_WORDS

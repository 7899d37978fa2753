"""A small tokenizer with the special tokens that a family's processor requires."""

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Please describe this image in detail.",
    "Is there a cat in the picture? Yes, there is a red cat.",
    "What is it?",
]
MERGED = 40  # tokens beside the 256 bytes


def build_tokenizer(
    special: Sequence[str], *, bos: str | None = None, eos: str = "</s>", named: Mapping[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """Build a tokenizer. `named` are special tokens with an attribute; a `bos` precedes each text."""
    every = list(dict.fromkeys([*([bos] if bos else []), eos, *special, *(named or {}).values()]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = 256 + MERGED + len(every)
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=every, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos, extra_special_tokens=dict(named or {})
    )

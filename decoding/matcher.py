"""The image-text matcher: which patches of a picture matter to a text, by Grad-CAM (AGLA, arXiv:2406.12718)."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoTokenizer, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from decoding.answer import Heat
from decoding.ask import Relevance
from decoding.prompt import Picture

MOST_WORDS = 50
MOST_PIECES = 35  # word pieces, [CLS] and [SEP] included
REMEMBERED = 64  # heats
MATCH = 1  # class of the match head


class Matcher:
    """A BLIP image-text retrieval model. `block` is the text layer whose cross-attention is looked at.

    The paper's is number 6 (0-based) of 12; other depths take the layer half-way, too.
    """

    def __init__(self, source: str, device: str = "cpu", *, block: int | None = None) -> None:
        """`source` is a folder or a hub id. Float32 on the CPU, bfloat16 elsewhere."""
        model: Any = BlipForImageTextRetrieval.from_pretrained(
            source,
            dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            attn_implementation="eager",  # the others do not give the probabilities away
        )
        self.model = model.to(device).eval().requires_grad_(False)
        # By PIL, as the official code resizes, whether or not torchvision is there.
        self.image_processor = BlipImageProcessorPil.from_pretrained(source)
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.block = model.config.text_config.num_hidden_layers // 2 if block is None else block
        self.encode_token = encode_token(self.tokenizer, model.config.text_config.vocab_size)
        self._heats: OrderedDict[tuple[str, str], Heat] = OrderedDict()
        self._lock = Lock()

    def relevance(self, picture: Picture, text: str) -> Heat:
        return self.heats([Relevance(picture, text)])[0]

    def heats(self, asked: Sequence[Relevance]) -> list[Heat]:
        """How much each patch contributes to the match of picture and text, in one pass for all that is not remembered.

        Safe to call from several threads.
        """
        keys = [(one.picture.key, one.text) for one in asked]
        with self._lock:
            found = {key: self._heats[key] for key in keys if key in self._heats}
            new = {key: one for key, one in zip(keys, asked, strict=True) if key not in found}
            if new:
                found |= zip(new, self._look(list(new.values())), strict=True)
            for key in keys:
                self._heats[key] = found[key]
                self._heats.move_to_end(key)
            while len(self._heats) > REMEMBERED:
                self._heats.popitem(last=False)
        return [found[key] for key in keys]

    def _look(self, asked: Sequence[Relevance]) -> list[Heat]:
        pictures = {one.picture: number for number, one in enumerate({one.picture: one for one in asked}.values())}
        with torch.inference_mode(False), torch.no_grad():
            pixels = self.image_processor([each.image for each in pictures], return_tensors="pt")["pixel_values"]
            seen = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype))[0]
            patches = seen[[pictures[one.picture] for one in asked]]
            tokens, mask = self._tokens([one.text for one in asked])
            grids = self.attribution(tokens, mask, patches).float().cpu().numpy()
            similarities = self._similarities(tokens, mask, patches).tolist()
        grids.flags.writeable = False  # shared by everyone who asks again
        return [Heat(grid, similarity, pixels.shape[-1]) for grid, similarity in zip(grids, similarities, strict=True)]

    def attribution(self, tokens: Tensor, mask: Tensor, patches: Tensor) -> Tensor:
        """[texts, tokens], 1 where one is there, [texts, 1 + patches, width] -> [texts, rows, columns].

        With C the cross-attention probabilities of the block and G the gradient of the match logit with respect to
        them, C max(G, 0), averaged over the heads and over the tokens between [ENC] and [SEP].
        """
        asked = tokens.clone()
        asked[:, 0] = self.encode_token
        with torch.enable_grad():
            said = self.model.text_encoder(
                input_ids=asked,
                attention_mask=mask,
                # Parameters are frozen: the graph of the probabilities starts here.
                encoder_hidden_states=patches.detach().requires_grad_(),
                output_attentions=True,
            )
            attention = said.cross_attentions[self.block]  # [texts, heads, tokens, 1 + patches]
            match = self.model.itm_head(said.last_hidden_state[:, 0])[:, MATCH].sum()  # of texts that share nothing
            (gradient,) = torch.autograd.grad(match, attention)
        cam = (attention.detach() * gradient.clamp(min=0))[:, :, 1:-1, 1:].mean(dim=1)  # [texts, words, patches]
        is_word = mask[:, 2:, None]  # as many as there are tokens after the first two: [ENC] and [SEP] are no words
        relevance: Tensor = (cam * is_word).sum(dim=1) / is_word.sum(dim=1).clamp(min=1)
        return relevance.view(len(tokens), self._rows(), -1)

    def _similarities(self, tokens: Tensor, mask: Tensor, patches: Tensor) -> Tensor:
        """[texts] cosines of picture and text, each seen without the other."""
        said = self.model.text_encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        pictures, texts = self.model.vision_proj(patches[:, 0]), self.model.text_proj(said[:, 0])
        return cosine_similarity(pictures.float(), texts.float())

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """[texts, tokens] ids, and 1 where one is there."""
        pieces = self.tokenizer(
            [caption(text) for text in texts],
            truncation=True,
            max_length=MOST_PIECES,
            padding=True,
            return_tensors="pt",
        ).to(self.model.device)
        return pieces["input_ids"], pieces["attention_mask"]

    def _rows(self) -> int:
        vision = self.model.config.vision_config
        height: int = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
        patch: int = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
        return height // patch


def caption(text: str) -> str:
    """As BLIP was trained on: lower case, without most punctuation, at most 50 words. A question mark stays."""
    return " ".join(re.sub(r"[.!\"()*#:;~]", " ", text.lower()).split()[:MOST_WORDS])


def encode_token(tokenizer: Any, rows: int) -> int:
    """The token that BLIP's match head wants first, in place of [CLS].

    Published checkpoints embed it in their last row but leave it out of their tokenizer's vocabulary. A matcher that
    has no such token at all was trained with [CLS].
    """
    if "[ENC]" in tokenizer.get_vocab():
        return int(tokenizer.convert_tokens_to_ids("[ENC]"))
    return rows - 1 if rows > len(tokenizer) else int(tokenizer.cls_token_id)

"""The image-text matcher: Grad-CAM relevance of image patches to a text (AGLA, arXiv:2406.12718)."""

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

from decoding.errors import Unsupported
from decoding.multimodal.checkpoint_errors import explain_checkpoint_errors
from decoding.multimodal.weight_files import find_weight_folder, read_weight_counts
from decoding.outputs import RelevanceMap
from decoding.prompt import ImageInput
from decoding.requests import RelevanceRequest

MAX_WORDS = 50
MAX_TOKENS = 35  # word pieces, [CLS] and [SEP] included
CACHE_SIZE = 64  # relevance maps
MATCH_CLASS = 1  # output of the image-text matching head

RelevanceKey = tuple[str | None, str, str]  # salt, key of the image, text


class Matcher:
    """A BLIP image-text retrieval model that computes relevance maps and caches the latest ones."""

    def __init__(self, source: str, device: str = "cpu", *, block: int | None = None) -> None:
        """Load the model, in float32 on the CPU and in bfloat16 elsewhere.

        Args:
            source: Folder or hub id.
            device: Device of the model.
            block: Text layer whose cross-attention is used. None: the middle layer, which is the paper's number 6
                (0-based) of 12.
        """
        model = load_weights(source, torch.float32 if device == "cpu" else torch.bfloat16)
        self.model = model.to(device).eval().requires_grad_(False)
        # The PIL version resizes as the official code does, whether or not torchvision is installed.
        with explain_checkpoint_errors(source, "processor"):
            self.image_processor = BlipImageProcessorPil.from_pretrained(source)
            self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.block = model.config.text_config.num_hidden_layers // 2 if block is None else block
        self.encode_token = find_encode_token(self.tokenizer, model.config.text_config.vocab_size)
        self._cache: OrderedDict[RelevanceKey, RelevanceMap] = OrderedDict()
        self._lock = Lock()

    def compute_relevance_map(self, image: ImageInput, text: str) -> RelevanceMap:
        """Compute the relevance map of one image and text."""
        return self.compute_relevance_maps([RelevanceRequest(image, text)])[0]

    def compute_relevance_maps(self, requests: Sequence[RelevanceRequest]) -> list[RelevanceMap]:
        """Compute relevance maps, with one pass for all that are not cached.

        It is safe to call this from several threads.

        Returns:
            A map for each request.
        """
        keys = [(request.cache_salt, request.image.key, request.text) for request in requests]
        with self._lock:
            maps = {key: self._cache[key] for key in keys if key in self._cache}
            missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in maps}
            if missing:
                maps |= zip(missing, self._compute(list(missing.values())), strict=True)
            for key in keys:
                self._cache[key] = maps[key]
                self._cache.move_to_end(key)
            while len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        return [maps[key] for key in keys]

    def _compute(self, requests: Sequence[RelevanceRequest]) -> list[RelevanceMap]:
        images = {(request.cache_salt, request.image): request.image for request in requests}
        index = {key: number for number, key in enumerate(images)}
        with torch.inference_mode(False), torch.no_grad():
            pixels = torch.cat([self._preprocess(image) for image in images.values()])
            features = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype))[0]
            patches = features[[index[request.cache_salt, request.image] for request in requests]]
            tokens, mask = self._tokenize([request.text for request in requests])
            grids = self.grad_cam(tokens, mask, patches).float().cpu().numpy()
            similarities = self._compute_similarities(tokens, mask, patches).tolist()
        grids.flags.writeable = False  # cached maps are shared between requests
        return [
            RelevanceMap(grid, similarity, pixels.shape[-1])
            for grid, similarity in zip(grids, similarities, strict=True)
        ]

    def _preprocess(self, image: ImageInput) -> Tensor:
        """Return the [1, 3, height, width] pixels that the model reads.

        The processor copies a whole image several times before it resizes it, which is over 200 MB at 25 megapixels. It
        keeps an image that has its size already.
        """
        visible, processor = image.visible, self.image_processor
        if processor.do_resize:
            visible = visible.resize((processor.size["width"], processor.size["height"]), processor.resample)
        pixels: Tensor = processor(visible, return_tensors="pt")["pixel_values"]
        return pixels

    def grad_cam(self, tokens: Tensor, mask: Tensor, patches: Tensor) -> Tensor:
        """Compute the relevance of each patch.

        C are the cross-attention probabilities of the block. G is the gradient of the match logit with respect to C.
        The relevance is C max(G, 0), averaged over the heads and over the tokens between [ENC] and [SEP].

        Args:
            tokens: [texts, tokens] ids.
            mask: [texts, tokens], 1 at tokens and 0 at padding.
            patches: [texts, 1 + patches, width] vision features, class token first.

        Returns:
            [texts, rows, columns].

        Source:
            AGLA, arXiv:2406.12718.
        """
        match_tokens = tokens.clone()
        match_tokens[:, 0] = self.encode_token
        with torch.enable_grad():
            outputs = self.model.text_encoder(
                input_ids=match_tokens,
                attention_mask=mask,
                # Parameters are frozen: the graph of the probabilities starts here.
                encoder_hidden_states=patches.detach().requires_grad_(),
                output_attentions=True,
            )
            attention = outputs.cross_attentions[self.block]  # [texts, heads, tokens, 1 + patches]
            # The sum separates into one gradient a text, because texts share nothing.
            match = self.model.itm_head(outputs.last_hidden_state[:, 0])[:, MATCH_CLASS].sum()
            (gradient,) = torch.autograd.grad(match, attention)
        cam = (attention.detach() * gradient.clamp(min=0))[:, :, 1:-1, 1:].mean(dim=1)  # [texts, words, patches]
        is_word = mask[:, 2:, None]  # one entry less than tokens for [ENC], another for [SEP]
        relevance: Tensor = (cam * is_word).sum(dim=1) / is_word.sum(dim=1).clamp(min=1)
        return relevance.view(len(tokens), self._count_grid_rows(), -1)

    def _compute_similarities(self, tokens: Tensor, mask: Tensor, patches: Tensor) -> Tensor:
        """Compute [texts] cosines of image and text, each encoded without the other."""
        hidden = self.model.text_encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        images, texts = self.model.vision_proj(patches[:, 0]), self.model.text_proj(hidden[:, 0])
        return cosine_similarity(images.float(), texts.float())

    def _tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenize texts into [texts, tokens] ids and a mask that is 1 at tokens."""
        encoded = self.tokenizer(
            [normalize_caption(text) for text in texts],
            truncation=True,
            max_length=MAX_TOKENS,
            padding=True,
            return_tensors="pt",
        ).to(self.model.device)
        return encoded["input_ids"], encoded["attention_mask"]

    def _count_grid_rows(self) -> int:
        vision = self.model.config.vision_config
        height: int = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
        patch: int = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
        return height // patch


def load_weights(source: str, dtype: torch.dtype) -> Any:
    """Load the network from safetensors files. Weights in the pickle format can run code and are refused.

    Args:
        source: Folder or hub id.
        dtype: Precision of the weights.

    Returns:
        The network.

    Raises:
        Unsupported: The weights cannot be loaded.
    """
    try:
        if (folder := find_weight_folder(source)) is not None:
            read_weight_counts(folder)
        with explain_checkpoint_errors(source, "weights"):
            return BlipForImageTextRetrieval.from_pretrained(
                source,
                dtype=dtype,
                attn_implementation="eager",  # only eager attention returns its probabilities
                use_safetensors=True,
            )
    except Unsupported as error:
        raise Unsupported(f"The image-text matcher cannot be loaded. {error.message}") from error


def normalize_caption(text: str) -> str:
    """Normalize a text as BLIP was trained: lower case, little punctuation, at most 50 words. "?" stays."""
    return " ".join(re.sub(r"[.!\"()*#:;~]", " ", text.lower()).split()[:MAX_WORDS])


def find_encode_token(tokenizer: Any, rows: int) -> int:
    """Find the token that BLIP's match head expects first, in place of [CLS].

    Published checkpoints embed it in their last row but omit it from their tokenizer's vocabulary. A matcher without
    such a token was trained with [CLS].

    Args:
        tokenizer: The matcher's tokenizer.
        rows: Rows of the text embedding.

    Returns:
        The token's id.
    """
    if "[ENC]" in tokenizer.get_vocab():
        return int(tokenizer.convert_tokens_to_ids("[ENC]"))
    return rows - 1 if rows > len(tokenizer) else int(tokenizer.cls_token_id)

"""Turn the members of a gang into vLLM's requests: token ids, pixels with their positions, and sampling parameters.

The encoder of the transformers engine encodes the prompts, so that both engines see the same. vLLM's own processor is
not used, and neither is its cache, which would hide the pixels of an image from this engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm import SamplingParams as VllmSamplingParams
from vllm.inputs.engine import mm_input, tokens_input
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from decoding.errors import BadRequest
from decoding.prompt import ImageInput
from decoding.requests import MAIN
from decoding.sampling_params import SamplingParams
from decoding.text.prompt_encoder import ModelInputs
from decoding.vllm_engine.core.bounded_grammars import build_grammar_spec
from decoding.vllm_engine.frontend.checkpoint import Checkpoint
from decoding.vllm_engine.frontend.client import VllmEngineRequest
from decoding.vllm_engine.frontend.member_builder import MemberRequest, find_end_tokens
from decoding.vllm_engine.member import Member

IMAGE = "image"
PART_COUNTS = ("num_patches", "image_num_patches")  # names of the number of parts of each image in vLLM's models
SEED_RANGE = 1 << 63


class EngineRequestBuilder:
    """Builds vLLM's requests for one model.

    Args:
        model_config: vLLM's ModelConfig.
        checkpoint: The model's checkpoint.
    """

    def __init__(self, model_config: Any, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.dtype: torch.dtype = model_config.dtype
        self._processor = MULTIMODAL_REGISTRY.create_processor(model_config)
        self._numbers = itertools.count()

    def build(
        self,
        members: Sequence[MemberRequest],
        sampling: SamplingParams,
        max_new_tokens: int,
        prompt_logprobs: int | None = None,
    ) -> list[VllmEngineRequest]:
        """Build the requests of a gang.

        Args:
            members: Members of the gang, the main one first.
            sampling: Sampling parameters of the answer.
            max_new_tokens: Most tokens of the answer.
            prompt_logprobs: Likeliest tokens beside each token of the main prompt; None: no log-probabilities of it.

        Returns:
            The requests, the main one last: when it arrives, the gang is complete.
        """
        number = next(self._numbers)
        requests: list[VllmEngineRequest] = []
        for each in reversed(members):
            if each.name == MAIN or each.member is None:
                eos_token_ids = self.checkpoint.eos_token_ids
                params = build_main_params(sampling, max_new_tokens, eos_token_ids, each.member, prompt_logprobs)
            else:
                params = build_branch_params(max_new_tokens, each.member)
            inputs = self.build_engine_input(each.inputs, each.prompt.images, each.cache_salt, each.image_salt)
            requests.append(VllmEngineRequest(f"request-{number}-{each.name}", inputs, params))
        return requests

    def build_engine_input(
        self,
        inputs: ModelInputs,
        images: Sequence[ImageInput],
        cache_salt: str | None = None,
        image_salt: str | None = None,
    ) -> Any:
        """Build vLLM's form of an encoded prompt.

        Args:
            inputs: The encoded prompt.
            images: Its images.
            cache_salt: Separates its KV cache from that of equal prompts with another salt.
            image_salt: Separates the features of its images from those of equal images with another salt.

        Returns:
            vLLM's EngineInput.
        """
        ids: list[int] = inputs.ids.tolist()
        if not images:
            return tokens_input(ids, cache_salt=cache_salt)
        part_counts = self.checkpoint.encoder.split_sizes(inputs.extras, images)
        extras = BatchFeature(self._build_processor_outputs(inputs, part_counts))
        fields = self._processor._get_mm_fields_config(extras, {})
        items = MultiModalKwargsItems.from_hf_inputs(extras, fields)
        ranges = find_image_ranges(inputs.ids == self.checkpoint.image_token_id, part_counts)
        # The keys cover noise and masks.
        hashes = [image.key if image_salt is None else f"{image_salt}-{image.key}" for image in images]
        return mm_input(ids, items, {IMAGE: hashes}, {IMAGE: ranges}, cache_salt=cache_salt)

    def _build_processor_outputs(self, inputs: ModelInputs, part_counts: Sequence[int]) -> dict[str, Tensor]:
        """Return the encoder's tensors as vLLM's processors do: without prompt axis, with counts of image parts.

        Each vLLM model ignores the tensors that it has no use for.
        """
        has_prompt_axis = self.checkpoint.encoder.family.image_axis == 1
        extras = {name: self._cast(each[0] if has_prompt_axis else each) for name, each in inputs.extras.items()}
        return {
            **extras,
            **dict.fromkeys(PART_COUNTS, torch.tensor(part_counts)),
            "image_token_id": torch.tensor(self.checkpoint.image_token_id),
        }

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


class MainSamplingParams(VllmSamplingParams):
    """vLLM's sampling parameters of a main row, whose grammar is already compiled.

    vLLM would compile it for every choice, and in the event loop.
    """

    def _validate_structured_outputs(self, model_config: Any, structured_outputs_config: Any, tokenizer: Any) -> None:
        if self.structured_outputs is not None:
            self.structured_outputs._backend = structured_outputs_config.backend


def build_main_params(
    sampling: SamplingParams,
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    member: Member | None,
    prompt_logprobs: int | None = None,
) -> VllmSamplingParams:
    """Build vLLM's sampling parameters of a main row. The output processor handles stop strings.

    Args:
        sampling: Sampling parameters of the answer.
        max_new_tokens: Most tokens of the answer.
        eos_token_ids: Tokens that end an answer.
        member: The row's member; None without a gang.
        prompt_logprobs: Likeliest tokens beside each token of the prompt. vLLM then reads no prefix cache.

    Returns:
        vLLM's parameters.
    """
    prefix_length = member.answer_prefix_length if member else 0
    grammar = sampling.grammar
    return MainSamplingParams(
        max_tokens=max_new_tokens,
        min_tokens=max(0, min(sampling.min_tokens - prefix_length, max_new_tokens)),
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=None if sampling.seed is None else sampling.seed % SEED_RANGE,
        logit_bias=dict(sampling.logit_bias) or None,
        stop_token_ids=list(find_end_tokens(sampling, eos_token_ids)),
        ignore_eos=sampling.ignore_eos,
        structured_outputs=None if grammar is None else StructuredOutputsParams(json=build_grammar_spec(grammar)),
        logprobs=sampling.top_logprobs,
        prompt_logprobs=prompt_logprobs,
        flat_logprobs=True,  # vLLM keeps those of the whole answer: as objects, they make garbage collections slow
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=member.to_extra_args() if member else None,
        skip_reading_prefix_cache=bool(member and member.is_single_step) or None,
    )


def build_branch_params(max_new_tokens: int, member: Member) -> VllmSamplingParams:
    """Build vLLM's sampling parameters of a branch, which receives the tokens of the main row and ends with it."""
    return VllmSamplingParams(
        max_tokens=max_new_tokens + 1,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=member.to_extra_args(),
        skip_reading_prefix_cache=member.is_single_step or None,
    )


def find_image_ranges(is_image: Tensor, part_counts: Sequence[int]) -> list[PlaceholderRange]:
    """Find the tokens of each image in a prompt.

    One run of image tokens is one image, or each part of an image is a run with text between. Otherwise runs consist of
    several images of equal length.

    Args:
        is_image: [length] true for image tokens.
        part_counts: Number of parts of each image.

    Returns:
        The range of each image.

    Raises:
        BadRequest: The tokens cannot be assigned to images.
    """
    edges = torch.diff(is_image.int(), prepend=torch.zeros(1), append=torch.zeros(1))
    starts, ends = ((edges == sign).nonzero().flatten().tolist() for sign in (1, -1))
    runs: list[tuple[int, int]] = list(zip(starts, ends, strict=True))
    images = len(part_counts)
    if len(runs) == sum(part_counts) != images:
        first_parts = list(accumulate(part_counts, initial=0))
        runs = [(runs[first][0], runs[after - 1][1]) for first, after in pairwise(first_parts)]
    elif len(runs) != images:
        length, rest = divmod(int(is_image.sum()), images)
        if rest or any((end - start) % length for start, end in runs):
            raise BadRequest("The images cannot be distinguished: put text between them.", param="messages")
        runs = [(begin, begin + length) for start, end in runs for begin in range(start, end, length)]
    return [to_placeholder(is_image, start, end) for start, end in runs]


def to_placeholder(is_image: Tensor, start: int, end: int) -> PlaceholderRange:
    """Build vLLM's range of one image, which may contain text tokens."""
    own = is_image[start:end]
    return PlaceholderRange(offset=start, length=end - start, is_embed=None if own.all() else own)

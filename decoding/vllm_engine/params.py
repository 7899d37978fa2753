"""Sampling as vLLM spells it."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from decoding.sampling import Sampling
from decoding.vllm_engine.member import Member

SEEDS = 1 << 63


def of_main(sampling: Sampling, room: int, eos: Sequence[int], member: Member | None) -> SamplingParams:
    """`room`: most tokens of the answer. Stop strings are not vLLM's concern: the engine reads the text itself."""
    return SamplingParams(
        max_tokens=room,
        min_tokens=min(sampling.min_tokens, room),
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=None if sampling.seed is None else sampling.seed % SEEDS,
        stop_token_ids=[] if sampling.ignore_eos else list(eos),
        ignore_eos=sampling.ignore_eos,
        structured_outputs=None if sampling.grammar is None else StructuredOutputsParams(json=sampling.grammar),
        logprobs=sampling.top_logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=member.spell() if member else None,
        skip_reading_prefix_cache=bool(member and member.whole) or None,
    )


def of_branch(room: int, member: Member) -> SamplingParams:
    """A branch takes the main row's tokens and ends with it: it is given as much room, and nothing to choose by."""
    return SamplingParams(
        max_tokens=room + 1,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=member.spell(),
        skip_reading_prefix_cache=member.whole or None,
    )

"""Limits on the tokens of a gang. No vLLM is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from decoding.errors import BadRequest
from decoding.requests import MAIN, GenerateRequest, Prompt, SamplingParams, StateHandle
from decoding.text.prompt_encoder import AnswerStart, ModelInputs
from decoding.vllm_engine.frontend.member_builder import (
    EngineLimits,
    MemberRequest,
    build_members,
    compute_max_new_tokens,
)
from decoding.vllm_engine.member import Member
from tests.decoding.hf_engine.harness import build_stack


def make_members(*lengths: int) -> list[MemberRequest]:
    prompt = Prompt.from_text("?")
    return [
        MemberRequest(str(length), prompt, ModelInputs(torch.zeros(length, dtype=torch.long), {}), None)
        for length in lengths
    ]


def new_tokens(*lengths: int, tokens: int | None) -> int:
    limits = EngineLimits(max_model_len=256, max_rows=4, max_batched_tokens=512, blocks=10, block_size=32)
    return compute_max_new_tokens(
        GenerateRequest(Prompt.from_text("?"), SamplingParams(max_tokens=tokens)), make_members(*lengths), limits
    )


def test_max_new_tokens_are_limited_by_context_and_cache() -> None:
    assert new_tokens(100, 60, tokens=20) == 20
    assert new_tokens(100, tokens=1000) == 156  # the context
    assert new_tokens(250, tokens=20) == 6
    assert new_tokens(100, 60, tokens=None) == 68  # 168 and 128 tokens fill 6 and 4 blocks of 32


@pytest.mark.parametrize(
    ("lengths", "tokens", "reason"),
    [((100, 60), 100, "fit"), ((200, 200), None, "fit"), ((1, 50), 5, "one token")],
)
def test_gang_that_can_never_run_is_refused(lengths: tuple[int, ...], tokens: int | None, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        new_tokens(*lengths, tokens=tokens)


@pytest.mark.parametrize("key_salt", [None, "key"])
def test_only_main_rows_with_edited_attention_have_a_salt_of_their_gang(key_salt: str | None) -> None:
    salts: dict[tuple[str, str], list[str | None]] = {}
    for names in ("pai", "deco+pai", "deco"):
        request = GenerateRequest(Prompt.from_text("?"), stack=build_stack(names), cache_salt=key_salt)
        request = request.replace(branches={"pai/blind": request.prompt})
        inputs = dict.fromkeys((MAIN, "pai/blind"), ModelInputs(torch.zeros(4, dtype=torch.long), {}))
        for gang in ("one", "two"):
            for member in build_members(request, inputs, gang, {}, (), None, AnswerStart()):
                salts.setdefault((names, member.name), []).append(member.cache_salt)
    for names in ("pai", "deco+pai"):
        assert len({*salts[names, MAIN], key_salt}) == 3
        assert salts[names, "pai/blind"] == [key_salt] * 2
    assert salts["deco", MAIN] == salts["deco", "pai/blind"] == [key_salt] * 2


def test_branches_without_some_image_tokens_have_their_pruning_and_a_salt_of_their_gang() -> None:
    request = GenerateRequest(Prompt.from_text("?"), stack=build_stack("sid+vcd"), states={"sid": StateHandle("state")})
    branches = ("sid/least", "vcd/noisy")
    request = request.replace(branches=dict.fromkeys(branches, request.prompt))
    inputs = dict.fromkeys((MAIN, *branches), ModelInputs(torch.zeros(4, dtype=torch.long), {}))
    for gang in ("one", "two"):
        main, least, noisy = build_members(request, inputs, gang, {}, (), None, AnswerStart())
        assert least.member is not None
        assert least.member.pruning is not None
        assert (least.member.pruning.strategy.name, least.member.pruning.handle) == ("sid", "state")
        assert Member.from_sampling_params(SimpleNamespace(extra_args=least.member.to_extra_args())) == least.member
        assert gang in str(least.cache_salt)
        for other in (main, noisy):
            assert other.member is not None
            assert other.member.pruning is None
            assert other.cache_salt is None


def test_prompts_of_one_gang_with_keys_and_values_of_their_own_have_salts_of_their_own() -> None:
    names = ("sid/least", "avisc/blind")
    request = GenerateRequest(Prompt.from_text("?"), stack=build_stack("pai+sid+avisc"))
    request = request.replace(branches=dict.fromkeys(names, request.prompt))
    inputs = dict.fromkeys((MAIN, *names), ModelInputs(torch.zeros(4, dtype=torch.long), {}))
    members = build_members(request, inputs, "gang", {}, (), None, AnswerStart())
    assert len({member.cache_salt for member in members} - {None}) == 3

"""Prompts of `describe`."""

from __future__ import annotations

from typing import Any

import pytest

from decoding.pipeline.dry_run import build_fake_reply
from decoding.requests import GenerateRequest, SamplingParams
from decoding.strategies import code, vdgd
from decoding.strategies.code import CODE
from decoding.strategies.describe import Describe
from decoding.strategies.vdgd import VDGD
from decoding.strategy import Strategy
from tests.decoding.fakes import make_request

QUESTION = "Is there a {cat}?"


def run(strategy: Strategy, request: GenerateRequest, text: str = " A {red} cat.\n") -> tuple[Any, Any]:
    """Run a text side with one description. Return its request, and the final one."""
    program = strategy.run(request)
    effect = next(program)
    reply = build_fake_reply(effect)
    object.__setattr__(reply, "text", text)
    with pytest.raises(StopIteration) as stopped:
        program.send(reply)
    return effect, stopped.value.value


def test_description_goes_before_the_question() -> None:
    request = make_request(QUESTION)
    effect, final = run(Describe(), request)
    assert effect.prompt.question == "Detail the composition and subjects within the frame."
    assert effect.sampling == SamplingParams(max_tokens=512)
    assert final.prompt.question == "Image description:\nA {red} cat.\n\nIs there a {cat}?"
    assert effect.prompt.images == final.prompt.images == request.prompt.images
    assert final.sampling == request.sampling
    assert not final.branches


def test_style_vdgd_has_the_prompts_of_vdgd() -> None:
    request = make_request(QUESTION)
    own, other = run(Describe(style="vdgd"), request), run(VDGD(), request)
    assert [each.prompt for each in own] == [each.prompt for each in other]
    assert own[0].sampling == other[0].sampling
    assert QUESTION in own[0].prompt.question


def test_style_code_has_the_prompts_of_code_beside_the_image() -> None:
    request = make_request(QUESTION)
    (effect, final), (other, contrasted) = run(Describe(style="code"), request), run(CODE(), request)
    assert effect.prompt == other.prompt
    assert effect.sampling == other.sampling
    assert final.prompt.without_images() == contrasted.branches["description"]
    assert final.prompt.images == request.prompt.images


def test_own_prompt_replaces_that_of_the_style() -> None:
    effect, _ = run(Describe(style="code", description_prompt="For {question}: look."), make_request("Why?"))
    assert effect.prompt.question == "For Why?: look."


def test_empty_description_leaves_the_question_as_it_is() -> None:
    request = make_request(QUESTION)
    assert run(Describe(), request, "  \n")[1] == request


def test_prompts_of_both_strategies_are_their_defaults() -> None:
    """The styles read the constants of both modules."""
    assert VDGD().description_prompt == vdgd.DESCRIBE
    assert CODE().description_prompt == code.DESCRIBE

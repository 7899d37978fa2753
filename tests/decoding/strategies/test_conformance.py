"""Rules that every registered strategy keeps, whatever its method."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from decoding.conformance.rules import DTYPES, RULES, Rule, apply_rule, get_rule_name, make_lazy
from decoding.conformance.samples import Samples, collect_parameter_sets, get_numeric_bounds
from decoding.errors import BadRequest
from decoding.pipeline.program import StrategyProgram
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.registry import list_strategies
from decoding.requests import GenerateRequest, Prompt
from decoding.strategy import Strategy
from tests.decoding.fakes import make_request, random_image
from tests.decoding.toy_engine import ToyEngine

LARGE_IMAGE = random_image(size=(400, 300))  # large enough to be cut into crops
WITHOUT_IMAGES = {"steer", "vti", "plain", "truncate", "sharpen", "verify"}  # accept prompts without an image
SAMPLING_ONLY = {"plain", "truncate", "sharpen"}  # keep greedy answers
CHECKS_ANSWERS = {"verify"}  # changes answers by their claims: those of the toy model have none
FEW_TOKENS = {"damro": {"kept": 2}}  # by default, the images of the toy model have fewer tokens than it keeps
CHANGES_PROMPT = {"vdgd"}  # puts the description into the prompt, whatever the parameters

every_strategy = pytest.mark.parametrize("kind", list_strategies().values(), ids=list_strategies().keys())


@every_strategy
@pytest.mark.parametrize("rule", RULES, ids=get_rule_name)
def test_strategy_keeps_rule(kind: type[Strategy], rule: Rule) -> None:
    assert apply_rule(rule, kind).problems == ()


@every_strategy
def test_strategy_declares_neutral_parameters(kind: type[Strategy]) -> None:
    assert kind.neutral is not None
    assert {"default", "neutral", "largest", "smallest"} == collect_parameter_sets(kind).keys()


async def decode(stack: tuple[Strategy, ...], request: GenerateRequest) -> tuple[list[int], Prompt]:
    """Return the tokens of a toy model, and the prompt of the final request."""
    async with StrategyRunner(stack, ToyEngine()) as runner:
        outcome = await runner.resolve(request)
        answer = await collect_answer(runner.stream(outcome))
    final = outcome if isinstance(outcome, GenerateRequest) else request
    return [token.id for token in answer.tokens], final.prompt


@every_strategy
@pytest.mark.parametrize("question", ["Is there a cat?", "How many dogs?", "Describe the image."])
async def test_neutral_parameters_decode_like_the_plain_model(kind: type[Strategy], question: str) -> None:
    request = make_request(question)
    assert kind.neutral is not None
    tokens, prompt = await decode((kind(**kind.neutral),), request)
    assert (prompt == request.prompt) == (kind.name not in CHANGES_PROMPT)
    assert tokens == (await decode((), request.replace(prompt=prompt)))[0]


@every_strategy
async def test_default_parameters_change_an_answer(kind: type[Strategy]) -> None:
    """Otherwise the tests of neutral parameters would prove nothing."""
    for number in range(40):
        request = make_request(f"Are there {number} cats in the image?", LARGE_IMAGE)
        strategy = kind(**FEW_TOKENS.get(kind.name, {}))
        if (await decode((strategy,), request))[0] != (await decode((), request))[0]:
            assert kind.name not in SAMPLING_ONLY | CHECKS_ANSWERS
            return
    assert kind.name in SAMPLING_ONLY | CHECKS_ANSWERS


@every_strategy
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_likeliest_token_of_the_model_stays_possible(kind: type[Strategy], dtype: torch.dtype, seed: int) -> None:
    for parameters in collect_parameter_sets(kind).values():
        strategy = kind(**parameters)
        step = Samples(strategy).step(strategy, dtype, seed)
        assert strategy.logits(step)[step.raw.argmax()] > -torch.inf


@every_strategy
def test_lazy_branches_are_needed_where_the_model_is_uncertain(kind: type[Strategy]) -> None:
    strategy = make_lazy(kind())
    step = Samples(strategy).step(strategy)
    certain = step.raw.index_fill(-1, step.raw.argmax(), 50.0)
    uncertain = step.raw.where(step.raw == -torch.inf, 0.0)
    assert strategy.needs_branches(uncertain)
    assert bool(strategy.needs_branches(certain)) == (not strategy.has_lazy_branches())


@every_strategy
def test_prompt_without_image_is_refused_where_one_matters(kind: type[Strategy]) -> None:
    program = StrategyProgram(kind(), GenerateRequest(Prompt.from_text("Is there a cat?")))
    if kind.name in WITHOUT_IMAGES:
        program.advance(None)
        return
    with pytest.raises(BadRequest, match=f"'{kind.name}' needs an image") as refused:
        program.advance(None)
    assert refused.value.param == "messages"


@every_strategy
def test_docstring_names_the_paper(kind: type[Strategy]) -> None:
    assert kind.__doc__
    assert kind.paper == "none" or kind.paper in kind.__doc__


@every_strategy
def test_value_out_of_bounds_is_refused(kind: type[Strategy]) -> None:
    for name, info in kind.model_fields.items():
        wrong: list[Any] = [[], {}]
        if info.annotation in (int, float):
            bounds = get_numeric_bounds(kind, name)
            wrong += [bounds["least"] - 1, bounds["most"] + 1, math.nan, math.inf, -math.inf, "many", None]
        for value in wrong:
            with pytest.raises(ValidationError):
                kind.model_validate({name: value})

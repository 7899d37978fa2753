"""Votes of MVP, without a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from decoding.outputs import Answer, FinishInfo, Token, TokenLogprob, Usage
from decoding.requests import GenerateRequest
from decoding.strategies.agla import AGLA
from decoding.strategies.attention.vhr import VHR
from decoding.strategies.mvp import MVP, extract_vote
from decoding.strategies.plain import Plain
from decoding.strategies.zoomeye import ZoomEye
from tests.decoding.fakes import make_request

ONE_VIEW = MVP(bottom_up=0, top_down=0, regular=1)


def make_top_logprobs(shares: Mapping[str, float]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(id_, text, text.encode(), math.log(p)) for id_, (text, p) in enumerate(shares.items()))


def build_answer(*tokens: tuple[str, float, float]) -> Answer:
    """Build an answer from texts with the probabilities of the two likeliest tokens."""
    end = FinishInfo("length", Usage(prompt_tokens=9))
    made = [Token(0, text, top=make_top_logprobs({"a": one, "b": two})) for text, one, two in tokens]
    return Answer("".join(token.text for token in made), tuple(made), end)


def run_mvp(
    mvp: MVP, request: GenerateRequest, firsts: Mapping[str, float], *paths: Answer
) -> tuple[list[list[GenerateRequest]], GenerateRequest | Answer]:
    """First tokens of one view, and the texts of its paths."""
    program = mvp.run(request)
    requests = [next(program)]
    requests.append(program.send([build_answer(("A cat.", 0.9, 0.1))]))
    first = Answer("", (Token(0, "", top=make_top_logprobs(firsts)),), FinishInfo("length", Usage(prompt_tokens=9)))
    requests.append(program.send([first]))
    with pytest.raises(StopIteration) as stop:
        program.send(list(paths))
    return requests, stop.value.value  # type: ignore[return-value]


def read_votes(outcome: GenerateRequest | Answer) -> dict[str, float]:
    assert isinstance(outcome, Answer)
    return {each.text: math.exp(each.logprob) for each in outcome.tokens[0].top}


def make_request_with_logprobs() -> GenerateRequest:
    request = make_request("Is there a CAT?")
    return request.replace(sampling=request.sampling.__class__(top_logprobs=2))


def test_vote_is_first_token_probability_times_certainty() -> None:
    paths = (
        build_answer((" I", 1, 0.1), (" say", 0.5, 0.2), (" yes", 0.7, 0.2)),
        build_answer((" Well", 1, 0.1), (" no", 0.9, 0.1)),
    )
    firsts = {" No": 0.2, " I": 0.5, " Well": 0.25, " never": 0.0005}
    requests, outcome = run_mvp(ONE_VIEW, make_request_with_logprobs(), firsts, *paths)
    yes, no = 0.5 * (0.7 - 0.2), 0.2 + 0.25 * (0.9 - 0.1)
    assert read_votes(outcome) == pytest.approx({"No": no / (yes + no), "Yes": yes / (yes + no)})
    assert outcome.text == "No"  # type: ignore[union-attr]
    assert [path.sampling.forced_token_ids for path in requests[2]] == [
        (1,),
        (2,),
    ]  # " No" is an answer, " never" too unlikely
    assert requests[1][0].prompt.question == "Here is the caption of the image:\nA cat.\nQuestion: is there a cat?"


def test_path_without_an_answer_has_no_vote() -> None:
    """The official code counts it for Yes."""
    _, outcome = run_mvp(
        ONE_VIEW, make_request_with_logprobs(), {" It": 0.9, " No": 0.1}, build_answer((" It", 1, 0.1), (" is", 1, 0.1))
    )
    assert read_votes(outcome) == {"No": 1.0}


def test_path_without_an_answer_votes_for_yes_as_in_the_official_code() -> None:
    mvp = ONE_VIEW.model_copy(update={"unanswered": "yes"})
    path = build_answer((" It", 1, 0.1), (" is", 1, 0.1))
    _, outcome = run_mvp(mvp, make_request_with_logprobs(), {" It": 0.3, " No": 0.1}, path)
    assert read_votes(outcome) == pytest.approx({"Yes": 0.75, "No": 0.25})


@pytest.mark.parametrize("keeps_answers", [True, False])
def test_unlikely_answers_are_kept_as_in_the_official_code(keeps_answers: bool) -> None:
    mvp = ONE_VIEW.model_copy(update={"keeps_answers": keeps_answers, "least": 0.2})
    requests, outcome = run_mvp(mvp, make_request_with_logprobs(), {" Yes": 0.3, " No": 0.1, " It": 0.15})
    assert requests[2] == []
    votes = {"Yes": 0.75, "No": 0.25} if keeps_answers else {"Yes": 1.0}
    assert read_votes(outcome) == pytest.approx(votes)


def test_question_without_yes_or_no_answers_is_not_changed() -> None:
    request = make_request("What is it?")
    _, outcome = run_mvp(ONE_VIEW, request, {" A": 0.9}, build_answer((" A", 1, 0.1), (" cat", 1, 0.1)))
    assert outcome is request


def test_requests_for_choices_or_states_are_not_changed() -> None:
    for request in (make_request().replace(scored_texts=("Yes", "No")), make_request().replace(updates_state=True)):
        with pytest.raises(StopIteration) as stop:
            next(MVP().run(request))
        assert stop.value.value is request


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ([(" Y", 0.9, 0.1), ("es", 0.8, 0.1)], ("Yes", 1.0)),
        ([(" The", 0.9, 0.1), (" answer", 0.8, 0.1), (":", 0.8, 0.1), (" YES", 0.6, 0.3), ("!", 1, 0.1)], ("Yes", 0.3)),
        ([(" Nothing", 0.9, 0.1), (" now", 0.8, 0.1), (",", 0.8, 0.1), ("no", 0.6, 0.35)], ("No", 0.25)),
        ([(" Maybe", 0.9, 0.1)], None),
    ],
)
def test_first_whole_word_is_the_answer(
    tokens: list[tuple[str, float, float]], found: tuple[str, float] | None
) -> None:
    concluded = extract_vote(build_answer(*tokens))
    assert concluded == (None if found is None else (found[0], pytest.approx(found[1])))


def test_view_of_weight_zero_is_skipped() -> None:
    batches = next(MVP(top_down=0).run(make_request()))
    assert isinstance(batches, list)
    assert len(batches) == 2


def test_request_seed_is_added() -> None:
    request = make_request()
    batches = [
        next(MVP(seed=3).run(request.replace(sampling=request.sampling.__class__(seed=seed)))) for seed in (None, 10)
    ]
    seeds = [[request.sampling.seed for request in batch] for batch in batches if isinstance(batch, list)]
    assert seeds == [[3, 4, 5], [13, 14, 15]]


def test_strategies_with_hooks_are_refused_outside() -> None:
    assert MVP.incompatible_with(AGLA) is not None
    assert MVP.incompatible_with(VHR) is not None
    assert MVP.incompatible_with(ZoomEye) is None
    assert MVP.incompatible_with(Plain) is None

"""The votes, without a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from decoding.answer import Alternative, Answer, End, Token, Usage
from decoding.ask import Ask
from decoding.strategies.agla import AGLA
from decoding.strategies.mvp import MVP, conclusion
from decoding.strategies.plain import Plain
from decoding.strategies.vhr import VHR
from decoding.strategies.zoomeye import ZoomEye
from tests.decoding.fakes import asking

ONE_VIEW = MVP(bottom_up=0, top_down=0, regular=1)


def alternatives(shares: Mapping[str, float]) -> tuple[Alternative, ...]:
    return tuple(Alternative(id_, text, text.encode(), math.log(p)) for id_, (text, p) in enumerate(shares.items()))


def said(*tokens: tuple[str, float, float]) -> Answer:
    """Texts, each with the probabilities of the two likeliest tokens in its place."""
    end = End("length", Usage(prompt_tokens=9))
    made = [Token(0, text, top=alternatives({"a": one, "b": two})) for text, one, two in tokens]
    return Answer("".join(token.text for token in made), tuple(made), end)


def play(mvp: MVP, ask: Ask, firsts: Mapping[str, float], *paths: Answer) -> tuple[list[list[Ask]], Ask | Answer]:
    """One view's first tokens, and what its paths say."""
    program = mvp.run(ask)
    asked = [next(program)]
    asked.append(program.send([said(("A cat.", 0.9, 0.1))]))
    first = Answer("", (Token(0, "", top=alternatives(firsts)),), End("length", Usage(prompt_tokens=9)))
    asked.append(program.send([first]))
    with pytest.raises(StopIteration) as stop:
        program.send(list(paths))
    return asked, stop.value.value  # type: ignore[return-value]


def votes(outcome: Ask | Answer) -> dict[str, float]:
    assert isinstance(outcome, Answer)
    return {each.text: math.exp(each.logprob) for each in outcome.tokens[0].top}


def wanting_logprobs() -> Ask:
    ask = asking("Is there a CAT?")
    return ask.but(sampling=ask.sampling.__class__(top_logprobs=2))


def test_a_path_counts_what_its_first_token_and_its_certainty_are_worth() -> None:
    paths = (said((" I", 1, 0.1), (" say", 0.5, 0.2), (" yes", 0.7, 0.2)), said((" Well", 1, 0.1), (" no", 0.9, 0.1)))
    firsts = {" No": 0.2, " I": 0.5, " Well": 0.25, " never": 0.0005}
    asked, outcome = play(ONE_VIEW, wanting_logprobs(), firsts, *paths)
    yes, no = 0.5 * (0.7 - 0.2), 0.2 + 0.25 * (0.9 - 0.1)
    assert votes(outcome) == pytest.approx({"No": no / (yes + no), "Yes": yes / (yes + no)})
    assert outcome.text == "No"  # type: ignore[union-attr]
    assert [path.sampling.begin for path in asked[2]] == [(1,), (2,)]  # " No" is an answer, " never" too unlikely
    assert asked[1][0].prompt.question == "Here is the caption of the image:\nA cat.\nQuestion: is there a cat?"


def test_a_path_without_an_answer_contributes_nothing() -> None:
    """The published code gives it to Yes."""
    _, outcome = play(ONE_VIEW, wanting_logprobs(), {" It": 0.9, " No": 0.1}, said((" It", 1, 0.1), (" is", 1, 0.1)))
    assert votes(outcome) == {"No": 1.0}


def test_a_question_that_nobody_answers_with_yes_or_no_is_asked_as_it_is() -> None:
    ask = asking("What is it?")
    _, outcome = play(ONE_VIEW, ask, {" A": 0.9}, said((" A", 1, 0.1), (" cat", 1, 0.1)))
    assert outcome is ask


def test_questions_for_a_choice_or_for_logits_are_not_voted_on() -> None:
    for ask in (asking().but(choices=("Yes", "No")), asking().but(digest=VHR())):
        with pytest.raises(StopIteration) as stop:
            next(MVP().run(ask))
        assert stop.value.value is ask


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ([(" Y", 0.9, 0.1), ("es", 0.8, 0.1)], ("Yes", 1.0)),
        ([(" The", 0.9, 0.1), (" answer", 0.8, 0.1), (":", 0.8, 0.1), (" YES", 0.6, 0.3), ("!", 1, 0.1)], ("Yes", 0.3)),
        ([(" Nothing", 0.9, 0.1), (" now", 0.8, 0.1), (",", 0.8, 0.1), ("no", 0.6, 0.35)], ("No", 0.25)),
        ([(" Maybe", 0.9, 0.1)], None),
    ],
)
def test_the_first_whole_word_decides(tokens: list[tuple[str, float, float]], found: tuple[str, float] | None) -> None:
    concluded = conclusion(said(*tokens))
    assert concluded == (None if found is None else (found[0], pytest.approx(found[1])))


def test_a_view_of_no_weight_is_not_asked_for() -> None:
    looks = next(MVP(top_down=0).run(asking()))
    assert isinstance(looks, list)
    assert len(looks) == 2


def test_the_requests_seed_is_added_to_the_strategys() -> None:
    ask = asking()
    looks = [next(MVP(seed=3).run(ask.but(sampling=ask.sampling.__class__(seed=seed)))) for seed in (None, 10)]
    seeds = [[look.sampling.seed for look in asked] for asked in looks if isinstance(asked, list)]
    assert seeds == [[3, 4, 5], [13, 14, 15]]


def test_what_would_not_act_on_the_votes_is_refused_outside() -> None:
    assert MVP.refuses(AGLA) is not None
    assert MVP.refuses(VHR) is not None
    assert MVP.refuses(ZoomEye) is None
    assert MVP.refuses(Plain) is None

import numpy as np
import pytest

from decoding.answer import Heat
from decoding.ask import Ask, Prompt, Relevance
from decoding.strategies.agla import AGLA, without_short_answer
from tests.decoding.fakes import asking, speckled

TOP = Heat(np.array([[1, 1], [0, 0]], dtype=np.float32), similarity=1.0, side=64)
LEFT = Heat(np.array([[1, 0], [1, 0]], dtype=np.float32), similarity=1.0, side=64)


def play(strategy: AGLA, ask: Ask, *heats: Heat) -> tuple[list[Relevance], Ask]:
    program = strategy.run(ask)
    asked = [next(program)]
    try:
        for heat in heats:
            asked.append(program.send(heat))
    except StopIteration as stop:
        return asked, stop.value
    raise AssertionError("asks for more")


def test_each_picture_is_masked_by_its_own_relevance() -> None:
    one, two = speckled(1, (60, 40)), speckled(2, (60, 40))
    asked, ask = play(AGLA(), asking("Is there a cat?", one, two), TOP, LEFT)
    assert asked == [Relevance(one, "Is there a cat?"), Relevance(two, "Is there a cat?")]
    local = ask.branches["agla/local"]
    first, second = (np.asarray(picture.image).any(axis=-1) for picture in local.pictures)
    assert first[:20].mean() > 0.9 > 0.1 > first[20:].mean()
    assert second[:, :30].mean() > 0.9 > 0.1 > second[:, 30:].mean()
    assert local.question == "Is there a cat?"
    assert ask.prompt.pictures == (one, two)


def test_a_picture_shown_twice_is_matched_once() -> None:
    asked, ask = play(AGLA(), asking("Same?", speckled(), speckled()), TOP)
    assert len(asked) == 1
    assert len(ask.branches["agla/local"].pictures) == 2


def test_another_text_can_be_matched() -> None:
    asked, _ = play(AGLA(text="a cat on a mat"), asking("And now?"), TOP)
    assert [relevance.text for relevance in asked] == ["a cat on a mat"]


@pytest.mark.parametrize(
    ("question", "matched"),
    [
        ("Is there a dog? Please answer this question with one word.", "Is there a dog?"),
        ("Is there a dog?\nAnswer the question using a single word or phrase.", "Is there a dog?"),
        ("Is there a dog?\nAnswer the question using a single word or phrase. \n", "Is there a dog?"),
        ("Is there a dog? Please answer yes or no.", "Is there a dog? Please answer yes or no."),
        ("Please describe this image in detail.", "Please describe this image in detail."),
        ("Answer with one word.", "Answer with one word."),
        ("", ""),
    ],
)
def test_the_request_for_a_short_answer_is_not_matched(question: str, matched: str) -> None:
    """It says nothing about the picture. Questions that are nothing else are matched as they are."""
    assert without_short_answer(question) == matched


def test_the_last_question_is_matched() -> None:
    first = asking("Is there a dog?").prompt.messages
    ask = asking().but(prompt=Prompt((*first, *Prompt.of("And a cat?").messages)))
    asked, _ = play(AGLA(), ask, TOP)
    assert [relevance.text for relevance in asked] == ["And a cat?"]

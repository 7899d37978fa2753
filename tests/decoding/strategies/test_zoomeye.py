"""The search, without a model: a picture in which one pixel is what is looked for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from decoding.answer import Answer, End, Usage
from decoding.ask import Ask, Picture
from decoding.errors import BadRequest
from decoding.pictures import Box
from decoding.strategies.zoomeye import ZoomEye
from tests.decoding.fakes import asking, speckled

QUESTION = "Is there a cat in the image?"
Judge = Callable[[str, Picture], float]  # question, what is seen -> the probability of Yes


def needle(x: int, y: int, size: tuple[int, int] = (64, 64)) -> Picture:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[y, x] = 255
    return Picture(Image.fromarray(pixels))


def sees(seen: Picture) -> bool:
    return bool((np.asarray(seen.image) == 255).all(-1).any())


def play(strategy: ZoomEye, ask: Ask, judge: Judge, reply: str = "") -> tuple[list[Ask], Ask]:
    program, sent = strategy.run(ask), None
    asked: list[Ask] = []

    def answered(one: Ask) -> Answer:
        asked.append(one)
        yes = min(max(judge(one.prompt.question, one.prompt.pictures[-1]), 1e-9), 1 - 1e-9) if one.choices else 0.5
        choices = {"Yes": math.log(yes), "No": math.log(1 - yes)}
        return Answer(reply, (), End("stop", Usage(), choices=choices if one.choices else {}))

    try:
        while True:
            effect = program.send(sent)
            sent = [answered(one) for one in effect] if isinstance(effect, list) else answered(effect)
    except StopIteration as stop:
        return asked, stop.value


def sharp(question: str, seen: Picture) -> float:
    """Knows whether the needle is in what it sees, but can answer only close up."""
    if "Could you answer" in question:
        return 0.95 if sees(seen) and max(seen.image.size) <= 16 else 0.05
    return 0.9 if sees(seen) else 0.1


def test_it_goes_straight_to_what_is_looked_for() -> None:
    asked, ask = play(ZoomEye(side=16), asking(QUESTION, needle(50, 9)), sharp)
    (seen,) = ask.prompt.pictures
    assert sees(seen)
    assert seen.image.size == (16, 16)
    assert ask.prompt.question == QUESTION
    judged = [one for one in asked if "Could you answer" in one.prompt.question]
    assert len(judged) == 3  # the whole, a quarter, a sixteenth
    assert len(asked) == 3 + 2 * 8
    assert all(one.choices == ("Yes", "No") for one in asked)


def test_it_ends_at_once_where_the_whole_will_do() -> None:
    asked, ask = play(ZoomEye(side=16), whole := asking(QUESTION, needle(50, 9)), lambda *_: 0.9)
    assert len(asked) == 1
    assert ask.prompt == whole.prompt


def test_it_gives_up_where_nothing_will_do_and_answers_on_the_whole() -> None:
    asked, ask = play(ZoomEye(side=16), whole := asking(QUESTION, needle(50, 9)), lambda *_: 0.05)
    assert ask.prompt == whole.prompt
    # 3 visits a level, and 2 more for each of the thresholds .5, .4, .2 and 0.
    assert sum("Could you answer" in one.prompt.question for one in asked) == 3 * 3 + 4 * 2


def test_less_certainty_will_do_after_a_while() -> None:
    """0.74 is a confidence of .48: above .4, below .5."""
    asked, ask = play(ZoomEye(side=16, visits=1), asking(QUESTION, needle(50, 9)), lambda *_: 0.74)
    assert sum("Could you answer" in one.prompt.question for one in asked) == 3 + 2
    assert ask.prompt.pictures == asked[0].prompt.pictures


def test_a_picture_that_is_small_enough_is_answered_as_it_is() -> None:
    asked, ask = play(ZoomEye(), whole := asking(QUESTION, speckled(size=(335, 335))), sharp)
    assert (asked, ask) == ([], whole)


def test_the_whole_is_shown_beside_the_crop_with_a_frame() -> None:
    strategy = ZoomEye(family="qwen2.5-vl", side=16)
    _, ask = play(strategy, asking(QUESTION, picture := needle(50, 9)), lambda q, seen: 0.99 if sees(seen) else 0.01)
    assert ask.prompt.pictures == (picture,)  # sure of the whole
    _, ask = play(strategy, asking(QUESTION, picture), closer)
    whole, crop = ask.prompt.pictures
    assert whole.image.size == (64, 64)
    assert (np.asarray(whole.image) == (255, 0, 0)).all(-1).any()
    assert sees(crop)
    assert crop.image.size == (35, 35)  # a quarter, larger by a fifth, as far as there is room


def closer(question: str, seen: Picture) -> float:
    return 0.99 if sees(seen) and seen.image.size != (64, 64) else 0.01


def test_two_cues_are_searched_for_one_by_one_and_shown_together() -> None:
    picture = needle(5, 5)
    pixels = np.array(picture.image)
    pixels[60, 20] = 200
    both = Picture(Image.fromarray(pixels))

    def judge(question: str, seen: Picture) -> float:
        wanted = 255 if "cat" in question else 200
        found = (np.asarray(seen.image) == wanted).all(-1).any() and max(seen.image.size) <= 32
        return 0.95 if found else 0.05

    asked, ask = play(
        ZoomEye(side=32), asking("Is the cat left of the dog?", both), judge, "I need to look at the cat and the dog."
    )
    assert asked[0].prompt.question.endswith("Question: Is the cat left of the dog?\nAnswer:")
    assert "What is the appearance of the cat?" in asked[1].prompt.question
    assert ask.prompt.pictures[0].image.size == (64, 64)  # 32 x 64 in a square
    assert (np.asarray(ask.prompt.pictures[0].image)[0, 0] == (122, 116, 104)).all()


def test_all_of_a_kind_are_found() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    for x, y in ((3, 3), (60, 3)):
        pixels[y, x] = 255
    small = lambda _, seen: 0.95 if sees(seen) and max(seen.image.size) <= 16 else 0.05  # noqa: E731
    ask = asking("How many?", Picture(Image.fromarray(pixels)))
    asked, found = play(ZoomEye(side=16, cues="all cats"), ask, small)
    assert len(asked) == 1 + 4 + 16
    assert "Is there a cat in the image?" in asked[0].prompt.question
    assert np.asarray(found.prompt.pictures[0].image).shape == (64, 64, 3)
    assert (np.asarray(found.prompt.pictures[0].image)[24:40] == 0).any()


def test_a_reply_of_another_form_names_nothing_to_look_for() -> None:
    asked, ask = play(ZoomEye(side=16), whole := asking("Why?", needle(1, 1)), sharp, "A kitchen.")
    assert len(asked) == 1
    assert ask == whole


def test_several_pictures_are_refused() -> None:
    with pytest.raises(BadRequest, match="takes 1 picture"):
        next(ZoomEye().run(asking(QUESTION, speckled(1), speckled(2))))


@pytest.mark.parametrize(("size", "shape"), [((40, 41), (2, 2)), ((100, 50), (4, 1)), ((50, 101), (1, 4))])
def test_parts_cover_a_box_once(size: tuple[int, int], shape: tuple[int, int]) -> None:
    parts = Box(3, 5, 3 + size[0], 5 + size[1]).quartered()
    covered = np.zeros((5 + size[1], 3 + size[0]), int)
    for part in parts:
        covered[part.top : part.bottom, part.left : part.right] += 1
    assert (covered[5:, 3:] == 1).all()
    assert (len({part.left for part in parts}), len({part.top for part in parts})) == shape

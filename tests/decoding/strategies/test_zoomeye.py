"""Search of ZoomEye, without a model. The object is one pixel of the image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decoding.errors import BadRequest
from decoding.image_ops import Box
from decoding.outputs import Answer, FinishInfo, Usage
from decoding.requests import GenerateRequest, ImageInput
from decoding.strategies.zoomeye import ZoomEye
from tests.decoding.fakes import make_request, random_image

QUESTION = "Is there a cat in the image?"
Judge = Callable[[str, ImageInput], float]  # question, what is seen -> the probability of Yes


def draw_object(x: int, y: int, size: tuple[int, int] = (64, 64)) -> ImageInput:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[y, x] = 255
    return ImageInput(Image.fromarray(pixels))


def shows_object(view: ImageInput) -> bool:
    return bool((np.asarray(view.visible) == 255).all(-1).any())


def run_search(
    strategy: ZoomEye, request: GenerateRequest, judge: Judge, reply: str = ""
) -> tuple[list[GenerateRequest], GenerateRequest]:
    program, sent = strategy.run(request), None
    requests: list[GenerateRequest] = []

    def answer_request(one: GenerateRequest) -> Answer:
        requests.append(one)
        yes = min(max(judge(one.prompt.question, one.prompt.images[-1]), 1e-9), 1 - 1e-9) if one.scored_texts else 0.5
        logprobs = {"Yes": math.log(yes), "No": math.log(1 - yes)}
        return Answer(reply, (), FinishInfo("stop", Usage(), text_logprobs=logprobs if one.scored_texts else {}))

    try:
        while True:
            effect = program.send(sent)
            sent = [answer_request(one) for one in effect] if isinstance(effect, list) else answer_request(effect)
    except StopIteration as stop:
        return requests, stop.value


def judge_whole_search(question: str, view: ImageInput) -> float:
    """Judge a view: c_e is high where it has the object, c_a only in a small crop."""
    if "Could you answer" in question:
        return 0.95 if shows_object(view) and max(view.visible.size) <= 16 else 0.05
    return 0.9 if shows_object(view) else 0.1


def test_search_finds_the_object_by_the_best_priority() -> None:
    requests, request = run_search(ZoomEye(side=16), make_request(QUESTION, draw_object(50, 9)), judge_whole_search)
    (view,) = request.prompt.images
    assert shows_object(view)
    assert view.visible.size == (16, 16)
    assert request.prompt.question == QUESTION
    judged = [one for one in requests if "Could you answer" in one.prompt.question]
    assert len(judged) == 3  # the whole, a quarter, a sixteenth
    assert len(requests) == 3 + 2 * 8
    assert all(one.scored_texts == ("Yes", "No") for one in requests)


def test_search_ends_at_the_root_if_it_answers() -> None:
    requests, request = run_search(
        ZoomEye(side=16), whole := make_request(QUESTION, draw_object(50, 9)), lambda *_: 0.9
    )
    assert len(requests) == 1
    assert request.prompt == whole.prompt


def test_search_without_result_keeps_the_whole_image() -> None:
    requests, request = run_search(
        ZoomEye(side=16), whole := make_request(QUESTION, draw_object(50, 9)), lambda *_: 0.05
    )
    assert request.prompt == whole.prompt
    # 3 visits a level, and 2 more for each of the thresholds .5, .4, .2 and 0.
    assert sum("Could you answer" in one.prompt.question for one in requests) == 3 * 3 + 4 * 2


def test_threshold_drops_after_the_visits() -> None:
    """0.74 is a confidence of .48: above .4, below .5."""
    requests, request = run_search(
        ZoomEye(side=16, visits=1), make_request(QUESTION, draw_object(50, 9)), lambda *_: 0.74
    )
    assert sum("Could you answer" in one.prompt.question for one in requests) == 3 + 2
    assert request.prompt.images == requests[0].prompt.images


def test_small_image_is_not_cut() -> None:
    requests, request = run_search(
        ZoomEye(), whole := make_request(QUESTION, random_image(size=(335, 335))), judge_whole_search
    )
    assert (requests, request) == ([], whole)


def test_view_has_the_whole_image_with_a_frame_and_the_crop() -> None:
    strategy = ZoomEye(family="qwen2.5-vl", side=16)
    _, request = run_search(
        strategy,
        make_request(QUESTION, image := draw_object(50, 9)),
        lambda q, view: 0.99 if shows_object(view) else 0.01,
    )
    assert request.prompt.images == (image,)  # sure of the whole
    _, request = run_search(strategy, make_request(QUESTION, image), judge_crop)
    whole, crop = request.prompt.images
    assert whole.visible.size == (64, 64)
    assert (np.asarray(whole.visible) == (255, 0, 0)).all(-1).any()
    assert shows_object(crop)
    assert crop.visible.size == (35, 35)  # a quarter, larger by a fifth, as far as there is room


def judge_crop(question: str, view: ImageInput) -> float:
    return 0.99 if shows_object(view) and view.visible.size != (64, 64) else 0.01


def test_two_cues_give_one_view() -> None:
    image = draw_object(5, 5)
    pixels = np.array(image.visible)
    pixels[60, 20] = 200
    both = ImageInput(Image.fromarray(pixels))

    def judge(question: str, view: ImageInput) -> float:
        wanted = 255 if "cat" in question else 200
        found = (np.asarray(view.visible) == wanted).all(-1).any() and max(view.visible.size) <= 32
        return 0.95 if found else 0.05

    requests, request = run_search(
        ZoomEye(side=32),
        make_request("Is the cat left of the dog?", both),
        judge,
        "I need to look at the cat and the dog.",
    )
    assert requests[0].prompt.question.endswith("Question: Is the cat left of the dog?\nAnswer:")
    assert "What is the appearance of the cat?" in requests[1].prompt.question
    assert request.prompt.images[0].visible.size == (64, 64)  # 32 x 64 in a square
    assert (np.asarray(request.prompt.images[0].visible)[0, 0] == (122, 116, 104)).all()


def test_type_2_cue_finds_every_part() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    for x, y in ((3, 3), (60, 3)):
        pixels[y, x] = 255
    small = lambda _, view: 0.95 if shows_object(view) and max(view.visible.size) <= 16 else 0.05  # noqa: E731
    request = make_request("How many?", ImageInput(Image.fromarray(pixels)))
    requests, found = run_search(ZoomEye(side=16, cues="all cats"), request, small)
    assert len(requests) == 1 + 4 + 16
    assert "Is there a cat in the image?" in requests[0].prompt.question
    assert np.asarray(found.prompt.images[0].visible).shape == (64, 64, 3)
    assert (np.asarray(found.prompt.images[0].visible)[24:40] == 0).any()


def test_reply_of_another_form_has_no_cues() -> None:
    requests, request = run_search(
        ZoomEye(side=16), whole := make_request("Why?", draw_object(1, 1)), judge_whole_search, "A kitchen."
    )
    assert len(requests) == 1
    assert request == whole


def test_several_images_are_refused() -> None:
    with pytest.raises(BadRequest, match="takes 1 image"):
        next(ZoomEye().run(make_request(QUESTION, random_image(1), random_image(2))))


@pytest.mark.parametrize(("size", "shape"), [((40, 41), (2, 2)), ((100, 50), (4, 1)), ((50, 101), (1, 4))])
def test_parts_cover_a_box_once(size: tuple[int, int], shape: tuple[int, int]) -> None:
    parts = Box(3, 5, 3 + size[0], 5 + size[1]).split()
    covered = np.zeros((5 + size[1], 3 + size[0]), int)
    for part in parts:
        covered[part.top : part.bottom, part.left : part.right] += 1
    assert (covered[5:, 3:] == 1).all()
    assert (len({part.left for part in parts}), len({part.top for part in parts})) == shape


@pytest.mark.parametrize("family", ["llava-1.5", "qwen2.5-vl"])
@pytest.mark.parametrize("cue", ["cat", "all cats"])
@pytest.mark.parametrize(("size", "side"), [((8_192, 82), 8_192), ((4_900, 5_000), None)])
def test_views_of_a_large_image_stay_small(family: str, cue: str, size: tuple[int, int], side: int | None) -> None:
    """The requests of one effect have no more new pixels in memory than the largest image."""
    image = ImageInput(Image.new("RGB", size))
    strategy = ZoomEye.model_validate({"family": family, "side": side, "cues": cue, "visits": 1})
    program, most = strategy.run(make_request("Why?", image)), 0
    sent: Any = None
    answer = Answer("", (), FinishInfo("stop", Usage(), text_logprobs={"Yes": 0.0, "No": 0.0}))
    try:
        while True:
            effect: Any = program.send(sent)
            requests = effect if isinstance(effect, list) else [effect]
            views = {id(part.source): part.source for one in requests for part in one.prompt.images}
            most = max(most, sum(math.prod(view.size) for view in views.values() if view is not image.source))
            sent = [answer] * len(requests) if isinstance(effect, list) else answer
    except StopIteration:
        assert 0 < most < 25_000_000

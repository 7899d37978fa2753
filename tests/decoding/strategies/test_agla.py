import numpy as np
import pytest

from decoding.outputs import RelevanceMap
from decoding.requests import GenerateRequest, Prompt, RelevanceRequest
from decoding.strategies.agla import AGLA, without_short_answer
from tests.decoding.fakes import make_request, random_image

TOP = RelevanceMap(np.array([[1, 1], [0, 0]], dtype=np.float32), similarity=1.0, input_size=64)
LEFT = RelevanceMap(np.array([[1, 0], [1, 0]], dtype=np.float32), similarity=1.0, input_size=64)


def run_agla(
    strategy: AGLA, request: GenerateRequest, *relevances: RelevanceMap
) -> tuple[list[RelevanceRequest], GenerateRequest]:
    program = strategy.run(request)
    effects = [next(program)]
    try:
        for relevance in relevances:
            effects.append(program.send(relevance))
    except StopIteration as stop:
        return effects, stop.value
    raise AssertionError("requests for more")


def test_each_image_is_masked_by_its_own_relevance() -> None:
    one, two = random_image(1, (60, 40)), random_image(2, (60, 40))
    effects, request = run_agla(AGLA(), make_request("Is there a cat?", one, two), TOP, LEFT)
    assert effects == [RelevanceRequest(one, "Is there a cat?"), RelevanceRequest(two, "Is there a cat?")]
    local = request.branches["local"]
    first, second = (np.asarray(image.visible).any(axis=-1) for image in local.images)
    assert first[:20].mean() > 0.9 > 0.1 > first[20:].mean()
    assert second[:, :30].mean() > 0.9 > 0.1 > second[:, 30:].mean()
    assert local.question == "Is there a cat?"
    assert request.prompt.images == (one, two)


def test_repeated_image_is_matched_once() -> None:
    effects, request = run_agla(AGLA(), make_request("Same?", random_image(), random_image()), TOP)
    assert len(effects) == 1
    assert len(request.branches["local"].images) == 2


def test_parameter_replaces_the_matched_text() -> None:
    effects, _ = run_agla(AGLA(text="a cat on a mat"), make_request("And now?"), TOP)
    assert [relevance.text for relevance in effects] == ["a cat on a mat"]


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
def test_short_answer_suffix_is_not_matched(question: str, matched: str) -> None:
    """The suffix has no content of the image. A question that consists of it is matched unchanged."""
    assert without_short_answer(question) == matched


def test_last_question_is_matched() -> None:
    first = make_request("Is there a dog?").prompt.messages
    request = make_request().replace(prompt=Prompt((*first, *Prompt.from_text("And a cat?").messages)))
    effects, _ = run_agla(AGLA(), request, TOP)
    assert [relevance.text for relevance in effects] == ["And a cat?"]

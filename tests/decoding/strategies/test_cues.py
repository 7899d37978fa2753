import pytest

from decoding.strategies.cues import EXAMPLES, asked_for, listed, means_all, single, with_article


@pytest.mark.parametrize(
    ("question", "cue"),
    [
        ("Is there a cat in the image?", "cat"),
        ("Is there an old umbrella on this picture? Answer yes or no.", "old umbrella"),
        ("Here is a caption. Question: are there any dogs in the photo?", "dogs"),
        ("What color is the dog?", None),
        ("Is there a cat?", None),
    ],
)
def test_a_question_whether_something_is_there_names_it(question: str, cue: str | None) -> None:
    assert asked_for(question) == cue


@pytest.mark.parametrize(
    ("reply", "cues"),
    [
        ("I need to look at the umbrella.", ["umbrella"]),
        ("Sure. I need to look at the red car, a dog, and all boats.\nQuestion: more", ["red car", "dog", "all boats"]),
        ("I need to look at the dog and the dog.", ["dog"]),
        ("I need to look at it and the owner of this bag and their hat.", []),
        ("I need to look at her and the theatre.", ["theatre"]),
        ("The image shows a kitchen.", []),
        ("I need to look at", []),
    ],
)
def test_cues_are_listed_after_the_lead_without_pronouns(reply: str, cues: list[str]) -> None:
    assert listed(reply) == cues


def test_every_example_is_read_as_it_is_meant() -> None:
    answers = [line.removeprefix("Answer: ") for line in EXAMPLES.splitlines() if line.startswith("Answer: ")]
    assert len(answers) == 6
    assert all(listed(answer) for answer in answers)
    assert listed(answers[-1]) == ["all children", "ball", "kite", "dog"]


def test_all_of_a_kind() -> None:
    assert [means_all(cue) for cue in ("all boats", "All boats", "alligator", "boat")] == [True, True, False, False]
    assert [single(cue) for cue in ("all boats", "glass", "all children")] == ["boat", "glass", "children"]
    assert [with_article(cue) for cue in ("boat", "Umbrella")] == ["a boat", "an Umbrella"]

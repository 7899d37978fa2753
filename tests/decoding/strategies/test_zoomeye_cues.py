import pytest

from decoding.strategies.zoomeye.cues import (
    EXAMPLES,
    is_all_cue,
    parse_cues,
    parse_existence_cue,
    singularize,
    with_article,
)


@pytest.mark.parametrize(
    ("question", "cue"),
    [
        ("Is there a cat in the image?", "cat"),
        ("Is there an old umbrella on this image? Answer yes or no.", "old umbrella"),
        ("Here is a caption. Question: are there any dogs in the photo?", "dogs"),
        ("What color is the dog?", None),
        ("Is there a cat?", None),
    ],
)
def test_existence_question_names_its_cue(question: str, cue: str | None) -> None:
    assert parse_existence_cue(question) == cue


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
def test_cues_are_parsed_without_pronouns(reply: str, cues: list[str]) -> None:
    assert parse_cues(reply) == cues


def test_examples_in_the_prompt_can_be_parsed() -> None:
    answers = [line.removeprefix("Answer: ") for line in EXAMPLES.splitlines() if line.startswith("Answer: ")]
    assert len(answers) == 6
    assert all(parse_cues(answer) for answer in answers)
    assert parse_cues(answers[-1]) == ["all children", "ball", "kite", "dog"]


def test_all_cue_has_a_prefix() -> None:
    assert [is_all_cue(cue) for cue in ("all boats", "All boats", "alligator", "boat")] == [True, True, False, False]
    assert [singularize(cue) for cue in ("all boats", "glass", "all children")] == ["boat", "glass", "children"]
    assert [with_article(cue) for cue in ("boat", "Umbrella")] == ["a boat", "an Umbrella"]

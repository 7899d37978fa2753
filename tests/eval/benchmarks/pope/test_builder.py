"""The official rules of POPE's questions, on hand-made cases and against a second implementation."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.benchmarks.pope.builder import SPLITS, ImageObjects, NoAbsentObjectError, PopeBuilder, QuestionTemplate, Split

IMAGES = [
    ImageObjects("a.jpg", ["cup", "spoon", "table"]),
    ImageObjects("b.jpg", ["cup", "oven", "table", "person"]),
    ImageObjects("c.jpg", ["person", "dog", "car"]),
    ImageObjects("d.jpg", ["dog", "cat"]),  # too few for three questions
]


def build_rows(builder: PopeBuilder, split: Split) -> list[tuple[str, str, str]]:
    rows = builder.build_questions(split, QuestionTemplate("{}"))
    return [(str(row["image"]), str(row["text"]), str(row["label"])) for row in rows]


def test_positives_are_the_first_of_the_list_and_alternate_with_negatives() -> None:
    for split in SPLITS:
        rows = build_rows(PopeBuilder(IMAGES), split)
        assert [label for _, _, label in rows] == ["yes", "no"] * 9
        assert [text for _, text, label in rows if label == "yes"] == [
            *("cup", "spoon", "table"),
            *("cup", "oven", "table"),
            *("person", "dog", "car"),
        ]


def test_popular_ranks_by_frequency_then_by_first_occurrence() -> None:
    """Frequencies: cup 2, table 2, person 2, then spoon, oven, dog, car with 1 in the order of first occurrence."""
    negatives = [text for _, text, label in build_rows(PopeBuilder(IMAGES), "popular") if label == "no"]
    assert negatives == ["person", "oven", "dog", "spoon", "dog", "car", "cup", "table", "spoon"]


def test_adversarial_ranks_by_co_occurrence_with_the_present_object() -> None:
    negatives = [text for _, text, label in build_rows(PopeBuilder(IMAGES), "adversarial") if label == "no"]
    # Image a: cup occurs with table 2, spoon 1, oven 1, person 1. Spoon occurs only with cup and table, so one is
    # drawn. Table occurs with cup 2, spoon, oven, person. Oven is used before, person is left.
    assert negatives[0] == "oven"
    assert negatives[2] == "person" if negatives[1] != "person" else negatives[2] not in ("cup", "spoon", "table")
    # Image b: cup occurs with spoon. Oven and table occur only with objects in the image, so one is drawn.
    assert negatives[3] == "spoon"
    assert negatives[4] in ("dog", "car")
    assert negatives[5] in ("dog", "car")
    # Image c: person occurs with cup, oven, table, dog, car.
    assert negatives[6] == "cup"


def test_an_object_that_is_listed_twice_counts_twice() -> None:
    images = [ImageObjects("a", ["x", "y"]), ImageObjects("b", ["z", "z"]), ImageObjects("c", ["y", "x"])]
    assert build_rows(PopeBuilder([*images, ImageObjects("d", ["w", "x"])], per_image=1), "popular")[1] == (
        "a",
        "z",
        "no",
    )


def test_questions_depend_on_the_seed() -> None:
    many = [ImageObjects(str(n), [f"o{n}", f"o{n + 1}", f"o{n + 2}"]) for n in range(30)]
    first, again, other = (build_rows(PopeBuilder(many, seed=seed), "random") for seed in (0, 0, 1))
    assert first == again != other


def test_a_sample_is_drawn_before_the_questions() -> None:
    many = [ImageObjects(str(n), [f"o{n}", f"o{n + 1}", f"o{n + 2}"]) for n in range(30)]
    images = {image for image, _, _ in build_rows(PopeBuilder(many, sample=5, seed=3), "popular")}
    assert images == {image.image for image in random.Random(3).sample(many, 5)}


def test_an_image_with_all_objects_is_refused() -> None:
    with pytest.raises(NoAbsentObjectError, match=r"a\.jpg"):
        build_rows(
            PopeBuilder([ImageObjects("a.jpg", ["x", "y"]), ImageObjects("b.jpg", ["x", "z"])], per_image=2), "popular"
        )


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images have 3 objects or more, and 4 are needed"):
        PopeBuilder(IMAGES, sample=4)


@pytest.mark.parametrize(
    ("name", "clean", "official"),
    [
        ("cup", "Is there a cup in the image?", "Is there a cup in the image?"),
        ("apple", "Is there an apple in the image?", "Is there an apple in the imange?"),
        ("umbrella", "Is there an umbrella in the image?", "Is there an umbrella in the imange?"),
        ("Ant", "Is there an Ant in the image?", "Is there a Ant in the image?"),
        ("teddy bear", "Is there a teddy bear in the image?", "Is there a teddy bear in the image?"),
    ],
)
def test_template_fills_in_the_article(name: str, clean: str, official: str) -> None:
    assert QuestionTemplate().fill(name) == clean
    assert QuestionTemplate(official_article=True).fill(name) == official


def build_negatives_by_sorting(images: Sequence[ImageObjects], split: Split, generator: random.Random) -> list[str]:
    """Build the negatives by sorting: objects are ranked by count, then by first occurrence."""
    flat = [name for image in images for name in image.objects]
    vocabulary = sorted(set(flat), key=flat.index)
    negatives = []
    for image in images:
        used: list[str] = []
        for present in image.objects[:3]:
            used.append(present)
            co_occurring = [
                other
                for each in images
                for name in each.objects
                if name == present
                for other in each.objects
                if other != present
            ]
            ranked: list[str] = {
                "random": [],
                "popular": sorted(vocabulary, key=lambda name: (-flat.count(name), flat.index(name))),
                "adversarial": sorted(
                    set(co_occurring), key=lambda name: (-co_occurring.count(name), co_occurring.index(name))
                ),
            }[split]
            candidates = [name for name in ranked if name not in used and name not in image.objects]
            choice = candidates[0] if candidates else None
            while choice is None or choice in used or choice in image.objects:
                choice = generator.choice(vocabulary)
            used.append(choice)
            negatives.append(choice)
    return negatives


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=3, max_size=5), min_size=1, max_size=8),
    st.integers(0, 5),
)
def test_negatives_equal_those_of_a_second_implementation(objects: list[list[str]], seed: int) -> None:
    images = [
        ImageObjects(f"{number}.jpg", each)
        for number, each in enumerate([*objects, list("abc"), list("defg"), list("hij")])
    ]
    builder, generator = PopeBuilder(images, seed=seed), random.Random(seed)
    for split in SPLITS:
        built = [text for _, text, label in build_rows(builder, split) if label == "no"]
        assert built == build_negatives_by_sorting(images, split, generator)

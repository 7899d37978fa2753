"""The official rules of building POPE, by hand-worked cases and against a second telling of them."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.pope.builder import SPLITS, Builder, NothingToAskFor, Scene, Split, Wording
from tests.eval.command import command, lines

KITCHEN = [
    Scene("a.jpg", ["cup", "spoon", "table"]),
    Scene("b.jpg", ["cup", "oven", "table", "person"]),
    Scene("c.jpg", ["person", "dog", "car"]),
    Scene("d.jpg", ["dog", "cat"]),  # too few for three questions
]


def asked(builder: Builder, split: Split) -> list[tuple[str, str, str]]:
    rows = builder.questions(split, Wording("{}"))
    return [(str(row["image"]), str(row["text"]), str(row["label"])) for row in rows]


def test_positives_are_the_first_of_the_list_and_alternate_with_negatives() -> None:
    for split in SPLITS:
        rows = asked(Builder(KITCHEN), split)
        assert [label for _, _, label in rows] == ["yes", "no"] * 9
        assert [text for _, text, label in rows if label == "yes"] == [
            *("cup", "spoon", "table"),
            *("cup", "oven", "table"),
            *("person", "dog", "car"),
        ]


def test_popular_takes_the_most_frequent_and_ties_keep_the_order_of_first_meeting() -> None:
    """Frequencies: cup 2, table 2, person 2, then spoon, oven, dog, car with 1 in the order in which they were met."""
    negatives = [text for _, text, label in asked(Builder(KITCHEN), "popular") if label == "no"]
    assert negatives == ["person", "oven", "dog", "spoon", "dog", "car", "cup", "table", "spoon"]


def test_adversarial_takes_the_company_of_the_object_just_asked_for() -> None:
    negatives = [text for _, text, label in asked(Builder(KITCHEN), "adversarial") if label == "no"]
    # Image a: cup goes with table 2, spoon 1, oven 1, person 1; spoon with cup and table alone, so one is drawn;
    # table with cup 2, spoon, oven, person. Oven is taken by then, person is left.
    assert negatives[0] == "oven"
    assert negatives[2] == "person" if negatives[1] != "person" else negatives[2] not in ("cup", "spoon", "table")
    # Image b: cup with spoon; oven with nothing that is not in the image, so one is drawn; table with nothing either.
    assert negatives[3] == "spoon"
    assert negatives[4] in ("dog", "car")
    assert negatives[5] in ("dog", "car")
    # Image c: person with cup, oven, table, dog, car.
    assert negatives[6] == "cup"


def test_an_object_that_is_listed_twice_counts_twice() -> None:
    scenes = [Scene("a", ["x", "y"]), Scene("b", ["z", "z"]), Scene("c", ["y", "x"])]
    assert asked(Builder([*scenes, Scene("d", ["w", "x"])], per_image=1), "popular")[1] == ("a", "z", "no")


def test_the_same_seed_gives_the_same_questions_and_another_seed_others() -> None:
    many = [Scene(str(n), [f"o{n}", f"o{n + 1}", f"o{n + 2}"]) for n in range(30)]
    first, again, other = (asked(Builder(many, seed=seed), "random") for seed in (0, 0, 1))
    assert first == again != other


def test_a_sample_of_images_is_drawn_first() -> None:
    many = [Scene(str(n), [f"o{n}", f"o{n + 1}", f"o{n + 2}"]) for n in range(30)]
    images = {image for image, _, _ in asked(Builder(many, sample=5, seed=3), "popular")}
    assert images == {scene.image for scene in random.Random(3).sample(many, 5)}


def test_an_image_that_holds_everything_is_refused_where_the_official_code_loops_for_ever() -> None:
    with pytest.raises(NothingToAskFor, match=r"a\.jpg"):
        asked(Builder([Scene("a.jpg", ["x", "y"]), Scene("b.jpg", ["x", "z"])], per_image=2), "popular")


def test_too_few_images() -> None:
    with pytest.raises(ValueError, match="3 images hold 3 objects or more, and 4 are needed"):
        Builder(KITCHEN, sample=4)


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
def test_articles(name: str, clean: str, official: str) -> None:
    assert Wording().question(name) == clean
    assert Wording(official_article=True).question(name) == official


def told_again(scenes: Sequence[Scene], split: Split, chance: random.Random) -> list[str]:
    """The negatives, by sorting instead of counting: the rank of an object is its count, then its first place."""
    flat = [name for scene in scenes for name in scene.objects]
    vocabulary = sorted(set(flat), key=flat.index)
    negatives = []
    for scene in scenes:
        history: list[str] = []
        for present in scene.objects[:3]:
            history.append(present)
            met = [
                other
                for each in scenes
                for one in each.objects
                if one == present
                for other in each.objects
                if other != present
            ]
            ranked: list[str] = {
                "random": [],
                "popular": sorted(vocabulary, key=lambda name: (-flat.count(name), flat.index(name))),
                "adversarial": sorted(set(met), key=lambda name: (-met.count(name), met.index(name))),
            }[split]
            fitting = [name for name in ranked if name not in history and name not in scene.objects]
            choice = fitting[0] if fitting else None
            while choice is None or choice in history or choice in scene.objects:
                choice = chance.choice(vocabulary)
            history.append(choice)
            negatives.append(choice)
    return negatives


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=3, max_size=5), min_size=1, max_size=8),
    st.integers(0, 5),
)
def test_against_a_second_telling_of_the_rules(objects: list[list[str]], seed: int) -> None:
    scenes = [
        Scene(f"{number}.jpg", each) for number, each in enumerate([*objects, list("abc"), list("defg"), list("hij")])
    ]
    builder, chance = Builder(scenes, seed=seed), random.Random(seed)
    for split in SPLITS:
        built = [text for _, text, label in asked(builder, split) if label == "no"]
        assert built == told_again(scenes, split, chance)


def test_the_command(tmp_path: Path) -> None:
    objects = lines(tmp_path / "o.jsonl", [{"image": scene.image, "objects": list(scene.objects)} for scene in KITCHEN])
    done = command("build", "pope", "--objects", objects, "--out", tmp_path / "pope", "--seed", "3")
    assert done.returncode == 0, done.stderr
    for split in SPLITS:
        rows = [json.loads(line) for line in (tmp_path / "pope" / f"{split}.jsonl").read_text().splitlines()]
        assert [list(row) for row in rows] == [["question_id", "image", "text", "label"]] * 18
        assert [row["question_id"] for row in rows] == list(range(1, 19))
        assert rows[8] | {"question_id": 0} == {
            "question_id": 0,
            "image": "b.jpg",
            "text": "Is there an oven in the image?",
            "label": "yes",
        }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "x.jpg"}, ':2: field "objects": is missing'),
        ({"image": "x.jpg", "objects": "cup"}, ':2: field "objects": must be a list of texts'),
        ({"image": "x.jpg", "objects": ["cup", 3]}, ':2: field "objects": must be a list of texts'),
        ({"image": "x.jpg", "objects": ["cup", ""]}, ':2: field "objects": holds an empty name'),
        ({"image": 7, "objects": ["cup"]}, ':2: field "image": must be a text, not a number'),
    ],
)
def test_bad_objects(tmp_path: Path, row: dict[str, object], message: str) -> None:
    objects = lines(tmp_path / "o.jsonl", [{"image": "a.jpg", "objects": ["a", "b", "c"]}, row])
    done = command("build", "pope", "--objects", objects, "--out", tmp_path / "pope")
    assert (done.returncode, done.stderr) == (1, f"error: {objects}{message}\n")
    assert not (tmp_path / "pope").exists()

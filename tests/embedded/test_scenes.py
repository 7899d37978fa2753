"""Drawing is repeatable, annotations say what the pictures show, and POPE questions are true."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedded.annotations import POPE_KINDS, pope_questions, run_lengths
from embedded.categories import BY_NAME, CATEGORIES, LINKS, PLACES
from embedded.language import caption, grouped, presence
from embedded.picture import FAR, NEAR, Picture, Thing, sample_picture
from embedded.scene import SHIFTED, TRAINING, likely_absent, sample_contents

SCENES = Path(__file__).parents[2] / "embedded" / "scenes"
INSTANCES = json.loads((SCENES / "instances.json").read_text())
needs_font = pytest.mark.usefixtures("font")


def picture(*names: str) -> Picture:
    things = tuple(Thing(name, index, 900 - 100 * index, (0, 0, 30, 30)) for index, name in enumerate(names))
    return Picture("kitchen", np.zeros((112, 112, 3), np.uint8), np.full((112, 112), -1, np.int8), things)


@needs_font
def test_the_same_seed_draws_the_same_picture() -> None:
    first, second = (sample_picture(np.random.default_rng(7), SHIFTED, FAR) for _ in range(2))
    assert first.things == second.things
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.owners, second.owners)


@needs_font
def test_boxes_and_areas_are_those_of_the_owners_map() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        drawn = sample_picture(random, TRAINING, NEAR)
        assert set(np.unique(drawn.owners)) - {-1} == {thing.index for thing in drawn.things}
        for thing in drawn.things:
            rows, columns = np.nonzero(drawn.owners == thing.index)
            assert thing.area == len(rows)
            assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_places_and_links_speak_of_known_categories() -> None:
    named = {name for place in PLACES.values() for name in (*place.core, *place.secondary, *place.occasional)}
    named |= {name for first, second, _ in LINKS for name in (first, second)}
    assert named == set(BY_NAME)
    assert len({category.coco_id for category in CATEGORIES}) == len(CATEGORIES)


def test_held_out_scenes_keep_less_to_their_places_than_training_scenes() -> None:
    def share_of_core(seed: int) -> float:
        random, world = np.random.default_rng(seed), (TRAINING, SHIFTED)[seed]
        contents = [sample_contents(random, world) for _ in range(600)]
        core = [name in PLACES[content.place].core for content in contents for name in content.counts]
        return float(np.mean(core))

    assert share_of_core(0) > share_of_core(1) + 0.05


def test_captions_name_what_is_there_once_and_inventions_are_absent() -> None:
    random, shown = np.random.default_rng(0), picture("bowl", "cup", "fork", "apple", "knife")
    for _ in range(200):
        text = caption(random, shown, inventing=0.0)
        words = [name for name in BY_NAME if name in text]
        assert set(words) <= set(grouped(shown))
        assert all(text.count(name) == 1 for name in words)
        assert likely_absent(random, "kitchen", set(grouped(shown))) not in grouped(shown)


def test_presence_questions_are_answered_truthfully() -> None:
    random, shown = np.random.default_rng(0), picture("bowl", "cup")
    exchanges = [presence(random, shown) for _ in range(300)]
    assert all(exchange.present == (exchange.asked in grouped(shown)) for exchange in exchanges)
    assert all(exchange.answer.startswith("Yes" if exchange.present else "No") for exchange in exchanges)
    assert 0.4 < np.mean([exchange.present for exchange in exchanges]) < 0.6


def test_run_lengths_decode_to_the_mask() -> None:
    mask = np.random.default_rng(0).random((9, 7)) < 0.5
    encoded = run_lengths(mask)
    flat = np.repeat(np.arange(len(encoded["counts"])) % 2 == 1, encoded["counts"])
    assert np.array_equal(flat.reshape(mask.shape, order="F"), mask)


def test_shipped_pictures_and_annotations_belong_together() -> None:
    files = {image["file_name"] for image in INSTANCES["images"]}
    assert files == {path.name for path in (SCENES / "images").iterdir()}
    names = {category["id"]: category["name"] for category in INSTANCES["categories"]}
    assert names == {category.coco_id: category.name for category in CATEGORIES}
    with Image.open(SCENES / "images" / min(files)) as first:
        width, height = first.size
    for annotation in INSTANCES["annotations"]:
        left, top, box_width, box_height = annotation["bbox"]
        assert 0 <= left < left + box_width <= width
        assert 0 <= top < top + box_height <= height
        assert sum(annotation["segmentation"]["counts"][1::2]) == annotation["area"] <= box_width * box_height
    captions = json.loads((SCENES / "captions.json").read_text())["annotations"]
    assert len(captions) == 5 * len(files)


@pytest.mark.parametrize("kind", POPE_KINDS)
def test_shipped_pope_questions_are_true(kind: str) -> None:
    names = {category["id"]: category["name"] for category in INSTANCES["categories"]}
    files = {image["id"]: image["file_name"] for image in INSTANCES["images"]}
    shown: dict[str, set[str]] = defaultdict(set)
    for annotation in INSTANCES["annotations"]:
        shown[files[annotation["image_id"]]].add(names[annotation["category_id"]])
    questions = [json.loads(line) for line in (SCENES / "pope" / f"{kind}.jsonl").read_text().splitlines()]
    assert [question["question_id"] for question in questions] == list(range(1, len(questions) + 1))
    assert len({(question["image"], question["text"]) for question in questions}) == len(questions)
    assert [question["label"] for question in questions] == ["yes", "no"] * (len(questions) // 2)
    for question in questions:
        article = "an" if question["text"].startswith("Is there an ") else "a"
        name = question["text"].removeprefix(f"Is there {article} ").removesuffix(" in the image?")
        assert (article == "an") == (name[0] in "aeiou")
        assert (name in shown[question["image"]]) == (question["label"] == "yes")


@needs_font
def test_popular_negatives_are_the_most_frequent_categories(tmp_path: Path) -> None:
    from embedded.album import make_album

    album = make_album(tmp_path / "album", 30, 5, SHIFTED, FAR, 1)
    questions = pope_questions(album)
    asked = [question["text"] for question in questions["popular"] if question["label"] == "no"]
    assert len(set(asked)) < len({q["text"] for q in questions["random"] if q["label"] == "no"})

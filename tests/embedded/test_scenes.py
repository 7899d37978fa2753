"""Tests of rendering, annotations and POPE questions."""

import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedded.data.categories import BY_NAME, CATEGORIES, COOCCURRENCES, PLACES
from embedded.data.coco_annotations import POPE_KINDS, build_pope_questions, encode_rle
from embedded.data.renderer import FAR_VIEW, NEAR_VIEW, RenderedScene, SceneObject, sample_scene
from embedded.data.scene_dataset import make_dataset
from embedded.data.scene_sampler import SHIFTED_PRIOR, TRAINING_PRIOR, sample_contents, sample_likely_absent
from embedded.data.text_templates import (
    BALANCED_QUESTIONS,
    QuestionMix,
    add_hidden_categories,
    group_by_category,
    make_caption,
    make_presence_question,
)

SCENES = Path(__file__).parents[2] / "embedded" / "scenes"
INSTANCES = json.loads((SCENES / "instances.json").read_text())
needs_font = pytest.mark.usefixtures("font")


def make_scene(*names: str) -> RenderedScene:
    objects = tuple(SceneObject(name, index, 900 - 100 * index, (0, 0, 30, 30)) for index, name in enumerate(names))
    return RenderedScene("kitchen", np.zeros((112, 112, 3), np.uint8), np.full((112, 112), -1, np.int8), objects)


@needs_font
def test_rendering_is_repeatable_for_a_seed() -> None:
    first, second = (sample_scene(np.random.default_rng(7), SHIFTED_PRIOR, FAR_VIEW) for _ in range(2))
    assert first.objects == second.objects
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.instance_map, second.instance_map)


@needs_font
def test_boxes_and_areas_match_the_instance_map() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        scene = sample_scene(rng, TRAINING_PRIOR, NEAR_VIEW)
        assert set(np.unique(scene.instance_map)) - {-1} == {obj.index for obj in scene.objects}
        for obj in scene.objects:
            rows, columns = np.nonzero(scene.instance_map == obj.index)
            assert obj.area == len(rows)
            assert obj.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_places_and_cooccurrences_name_known_categories() -> None:
    names = {name for place in PLACES.values() for name in (*place.core, *place.secondary, *place.occasional)}
    names |= {name for first, second, _ in COOCCURRENCES for name in (first, second)}
    assert names == set(BY_NAME)
    assert len({category.coco_id for category in CATEGORIES}) == len(CATEGORIES)


def test_held_out_scenes_have_fewer_core_objects_than_training_scenes() -> None:
    def share_of_core(seed: int) -> float:
        rng, prior = np.random.default_rng(seed), (TRAINING_PRIOR, SHIFTED_PRIOR)[seed]
        contents = [sample_contents(rng, prior) for _ in range(600)]
        core = [name in PLACES[content.place].core for content in contents for name in content.counts]
        return float(np.mean(core))

    assert share_of_core(0) > share_of_core(1) + 0.05


def test_captions_name_present_objects_once_and_likely_absent_objects_are_absent() -> None:
    rng, scene = np.random.default_rng(0), make_scene("bowl", "cup", "fork", "apple", "knife")
    for _ in range(200):
        text = make_caption(rng, scene, invention_rate=0.0)
        words = [name for name in BY_NAME if name in text]
        assert set(words) <= set(group_by_category(scene))
        assert all(text.count(name) == 1 for name in words)
        assert sample_likely_absent(rng, "kitchen", set(group_by_category(scene))) not in group_by_category(scene)


def test_presence_answers_are_true_and_balanced() -> None:
    rng, scene = np.random.default_rng(0), make_scene("bowl", "cup")
    pairs = [make_presence_question(rng, scene) for _ in range(300)]
    assert all(pair.present == (pair.category_word in group_by_category(scene)) for pair in pairs)
    assert all(pair.answer.startswith("Yes" if pair.present else "No") for pair in pairs)
    assert 0.4 < np.mean([pair.present for pair in pairs]) < 0.6


def test_writers_know_what_is_hidden() -> None:
    rng = np.random.default_rng(0)
    scene = replace(make_scene("bowl", "cup"), hidden=("knife",))
    pairs = [make_presence_question(rng, scene) for _ in range(200)]
    assert {pair.category_word for pair in pairs if pair.answer.startswith("Yes")} == {"bowl", "cup", "knife"}
    assert {pair.category_word for pair in pairs if pair.present} == {"bowl", "cup"}


def test_writers_see_likely_objects_beyond_the_frame() -> None:
    rng, scene = np.random.default_rng(0), make_scene("bowl", "cup")
    hidden = [add_hidden_categories(rng, scene, QuestionMix(0.0, 0.0, beyond_rate=0.5)).hidden for _ in range(400)]
    counts = {name: sum(name in names for names in hidden) for name in BY_NAME}
    assert counts["bowl"] == counts["cup"] == 0
    assert counts["knife"] > counts["carrot"] > counts["train"]
    assert add_hidden_categories(rng, scene, BALANCED_QUESTIONS).hidden == ()


def test_rle_decodes_to_the_mask() -> None:
    mask = np.random.default_rng(0).random((9, 7)) < 0.5
    encoded = encode_rle(mask)
    flat = np.repeat(np.arange(len(encoded["counts"])) % 2 == 1, encoded["counts"])
    assert np.array_equal(flat.reshape(mask.shape, order="F"), mask)


def test_shipped_annotations_match_the_shipped_images() -> None:
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
def test_shipped_pope_labels_are_true(kind: str) -> None:
    names = {category["id"]: category["name"] for category in INSTANCES["categories"]}
    files = {image["id"]: image["file_name"] for image in INSTANCES["images"]}
    present: dict[str, set[str]] = defaultdict(set)
    for annotation in INSTANCES["annotations"]:
        present[files[annotation["image_id"]]].add(names[annotation["category_id"]])
    questions = [json.loads(line) for line in (SCENES / "pope" / f"{kind}.jsonl").read_text().splitlines()]
    assert [question["question_id"] for question in questions] == list(range(1, len(questions) + 1))
    assert len({(question["image"], question["text"]) for question in questions}) == len(questions)
    assert [question["label"] for question in questions] == ["yes", "no"] * (len(questions) // 2)
    for question in questions:
        article = "an" if question["text"].startswith("Is there an ") else "a"
        name = question["text"].removeprefix(f"Is there {article} ").removesuffix(" in the image?")
        assert (article == "an") == (name[0] in "aeiou")
        assert (name in present[question["image"]]) == (question["label"] == "yes")


@needs_font
def test_popular_negatives_have_less_variety_than_random_ones(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "dataset", 30, 5, SHIFTED_PRIOR, FAR_VIEW, 1)
    questions = build_pope_questions(dataset)
    absent_questions = [question["text"] for question in questions["popular"] if question["label"] == "no"]
    assert len(set(absent_questions)) < len({q["text"] for q in questions["random"] if q["label"] == "no"})


@needs_font
def test_readme_example_draws_and_writes_fresh_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (SCENES.parent / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert len(list((tmp_path / "fresh-scenes" / "images").iterdir())) == 20
    assert (tmp_path / "fresh-scenes" / "pope" / "adversarial.jsonl").is_file()

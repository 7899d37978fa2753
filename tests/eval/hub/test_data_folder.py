"""Tables of the hub as data of a run, with the columns of the published data sets."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval.benchmarks.registry import load_task
from eval.core.task import BenchmarkQuestion, TaskOptions
from eval.errors import EvaluationError, InputError
from eval.hub.data_folder import open_data_folder
from tests.eval.cli_driver import invoke, invoke_run, output_of
from tests.eval.fake_server import ScriptedServer

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onlyseen" / "data"


def draw(shade: int, kind: str = "JPEG", path: str | None = None) -> Row:
    """Draw an image, as the library `datasets` stores it."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, format=kind)
    return {"bytes": buffer.getvalue(), "path": path}


def write_table(file: Path, rows: list[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def pope_rows(*splits: str) -> list[Row]:
    return [
        {
            "id": str(index), "question_id": str(number), "question": f"Is there a {name} in the image?",
            "answer": answer, "image_source": f"COCO_val2014_{number}", "image": draw(number), "category": split,
        }
        for index, (split, number, name, answer) in enumerate(
            (split, number, name, answer)
            for split in splits
            for number, (name, answer) in enumerate((("dog", "yes"), ("cup", "no")), 1)
        )
    ]  # fmt: skip


def hallusionbench_row(figure: int, image: Row | None) -> Row:
    return {
        "category": "VD", "subcategory": "chart", "visual_input": "1" if image else "0", "set_id": "0",
        "figure_id": str(figure), "sample_note": "", "question_id": "0", "question": "Is it?", "gt_answer": "1",
        "gt_answer_details": "It is.", "filename": None, "image": image,
    }  # fmt: skip


MMHAL = {
    "question_type": "attribute", "question_topic": "", "image_id": "a", "image_src": "https://host/x/a.jpg",
    "image_content": ["cup"], "question": "What?", "gt_answer": "A cup.", "image": draw(1),
}  # fmt: skip
TABLES: Mapping[str, Mapping[str, list[Row]]] = {
    # The repository of the hub has the same questions in two configurations.
    "pope": {
        "data/test-00000-of-00001.parquet": pope_rows("random", "popular"),
        "Full/random-00000-of-00001.parquet": pope_rows("random"),
    },
    "hallusionbench": {
        "data/image-00000-of-00001.parquet": [hallusionbench_row(1, draw(1, "PNG"))],
        "data/non_image-00000-of-00001.parquet": [hallusionbench_row(0, None)],
    },
    "mme": {
        "data/test-00000-of-00001.parquet": [
            {"question_id": f"{name}/1.png", "image": draw(1, "PNG"), "question": f"{text} Please answer yes or no.",
             "answer": answer, "category": name}
            for name in ("count", "code_reasoning")
            for text, answer in (("Is it one?", "Yes"), ("Are they two?", "No"))
        ]
    },
    "mmvp": {
        "data/train-00000-of-00001.parquet": [
            {"Index": index, "Question": 'Is it, "really"?', "Options": "(a) Yes (b) No", "Correct Answer": answer,
             "image": draw(index)}
            for index, answer in ((1, "(a)"), (2, "(b)"))
        ]
    },
    "dash-b": {
        "data/test-00000-of-00001.parquet": [
            {"question_id": number, "image": draw(number), "question": "Can you see a kite in this image?",
             "object": "kite", "answer": answer, "img_id": "0.jpg"}
            for number, answer in ((0, "no"), (1, "yes"))
        ]
    },
    "amber": {
        "discriminative/train-00000-of-00001.parquet": [
            {"image": draw(1, path="AMBER_1.jpg"), "id": 1005, "query": "Is the sky blue?",
             "type": "discriminative-attribute-state", "truth": "yes"}
        ]
    },
    "mmhal": {"data/test-00000-of-00001.parquet": [MMHAL]},
}  # fmt: skip
EXPECTED = {
    "pope": [("random/1", "yes", "COCO_val2014_1.jpg"), ("random/2", "no", "COCO_val2014_2.jpg"),
             ("popular/1", "yes", "COCO_val2014_1.jpg"), ("popular/2", "no", "COCO_val2014_2.jpg")],
    "hallusionbench": [("VD/chart/0/1/0", "yes", "0_1.png"), ("VD/chart/0/0/0", "yes", None)],
    "mme": [("count/1/1", "yes", "1.png"), ("count/1/2", "no", "1.png")],
    "mmvp": [("1", "A", "1.jpg"), ("2", "B", "2.jpg")],
    "dash-b": [("neg/hub/kite/0-0.jpg", "no", "0-0.jpg"), ("pos/hub/kite/1-0.jpg", "yes", "1-0.jpg")],
    "amber": [("1005", "yes", "AMBER_1.jpg")],
    "mmhal": [("0", "attribute", "a.jpg")],
}  # fmt: skip


def write_repository(folder: Path, task: str) -> Path:
    for name, rows in TABLES[task].items():
        write_table(folder / name, rows)
    return folder


def load_questions(task: str, data: str | Path) -> list[BenchmarkQuestion]:
    return load_task(task, open_data_folder(str(data), task), TaskOptions()).load_questions()


@pytest.mark.parametrize("task", TABLES)
def test_tables_of_the_hub_have_the_questions_of_the_official_files(task: str, tmp_path: Path) -> None:
    questions = load_questions(task, write_repository(tmp_path / "hub", task))
    found = [(each.id.rpartition("amber/")[2], each.truth["label"], each.image and each.image.name)
             for each in questions]  # fmt: skip
    assert found == EXPECTED[task]


def test_images_keep_the_bytes_of_the_table(tmp_path: Path) -> None:
    question, *_ = load_questions("pope", write_repository(tmp_path / "hub", "pope"))
    assert question.read_image() == ("image/jpeg", draw(1)["bytes"])


def test_a_file_is_unpacked_once_until_it_changes(tmp_path: Path, cache_folder: Path) -> None:
    file = write_table(tmp_path / "random-00000-of-00001.parquet", pope_rows("random"))
    first = open_data_folder(str(file), "pope")
    (first / "mark").touch()
    assert open_data_folder(str(file), "pope") == first
    assert (first / "mark").is_file()
    write_table(file, pope_rows("random")[:1])
    os.utime(file, (1, 1))
    assert open_data_folder(str(file), "pope") != first
    assert len(list(cache_folder.iterdir())) == 2  # and no temporary folder


def test_a_split_without_category_is_that_of_its_file(tmp_path: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != "category"} for row in pope_rows("random")]
    write_table(tmp_path / "hub" / "Full" / "adversarial" / "0000.parquet", rows)
    assert {each.scope for each in load_questions("pope", tmp_path / "hub")} == {"adversarial"}


def test_a_saved_dataset_and_a_named_one_are_loaded_with_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    features = datasets.Features({**{name: datasets.Value("string") for name in pope_rows("random")[0]},
                                  "image": datasets.Image()})  # fmt: skip
    saved = datasets.DatasetDict({"test": datasets.Dataset.from_list(pope_rows("random"), features=features)})
    saved.save_to_disk(str(tmp_path / "saved"))
    write_repository(tmp_path / "hub", "pope")
    for data, count in ((str(tmp_path / "saved"), 2), (f"hf:{tmp_path / 'saved'}", 2), (f"hf:{tmp_path / 'hub'}", 4)):
        questions = load_questions("pope", data)
        assert [(each.id, each.truth["label"], each.image and each.image.name) for each in questions] == EXPECTED[
            "pope"
        ][:count]
        assert questions[0].read_image() == ("image/jpeg", draw(1)["bytes"])
    with pytest.raises(InputError, match='nowhere: field "--data": cannot be loaded'):
        open_data_folder(f"hf:{tmp_path / 'nowhere'}", "pope")


def test_a_run_from_a_parquet_file_can_be_verified(server: ScriptedServer, tmp_path: Path) -> None:
    file = write_table(tmp_path / "random-00000-of-00001.parquet", pope_rows("random"))
    result = invoke_run(server, file, tmp_path / "run")
    assert result.exit_code == 0, output_of(result)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["data"] == str(file)
    assert invoke("verify", tmp_path / "run").exit_code == 0
    labels = [{"question_id": 1, "image": "COCO_val2014_1.jpg", "text": "Is there a dog in the image?", "label": "no"}]
    (tmp_path / "coco_repope_random.json").write_text(json.dumps(labels))
    rescored = invoke("rescore", tmp_path / "run", "--labels", tmp_path, "--out", tmp_path / "rescored")
    assert rescored.exit_code == 0, output_of(rescored)


def change(**values: object) -> list[Row]:
    rows = pope_rows("random")
    return [rows[0], {**rows[1], **values}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (change(answer="maybe"), r'\[1\].answer": is \'maybe\', not yes or no'),
        (change(answer=None), r'\[1\].answer": is missing or has no text, and so are label. The columns are id, '),
        (change(category="odd"), r'\[1\].category": is \'odd\', not one of random, popular, adversarial'),
        (change(image=None), r'\[1\].image": has no image'),
        (change(image={"bytes": b"text", "path": None}), r'\[1\].image": is not an image'),
        (change(image={"bytes": None, "path": "no.jpg"}), r'\[1\].image": no.jpg cannot be read: No such file'),
        (change(image_source="COCO_val2014_1"), r"COCO_val2014_1.jpg is the name of two different images"),
        (change(question_id="1"), r"\('random', '1'\) is used twice, with different values"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(rows: list[Row], message: str, tmp_path: Path, cache_folder: Path) -> None:
    file = write_table(tmp_path / "random.parquet", rows)
    with pytest.raises(InputError, match=rf"^{file}: field .*{message}"):
        open_data_folder(str(file), "pope")
    assert list(cache_folder.iterdir()) == []


def test_broken_tables_and_other_tasks_are_refused(tmp_path: Path) -> None:
    file = write_table(tmp_path / "random.parquet", pope_rows("random"))
    with pytest.raises(EvaluationError, match="chair is not read from tables"):
        open_data_folder(str(file), "chair")
    file.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        open_data_folder(str(file), "pope")

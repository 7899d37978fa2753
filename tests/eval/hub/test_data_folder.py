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
from eval.hub.layouts import list_companions
from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results
from tests.eval.fake_server import ScriptedReply, ScriptedServer

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
    "amber-generative": {
        "generative/train-00000-of-00001.parquet": [
            {"image": draw(number, path=f"AMBER_{number}.jpg"), "id": number, "query": "Describe this image.",
             "type": "generative", "truth": ["dog"], "hallu": ["cat"]}
            for number in (1, 2)
        ]
    },
    "mmhal": {"data/test-00000-of-00001.parquet": [MMHAL]},
}  # fmt: skip
COMPANIONS = {"relation.json": '{"dog": ["puppy"], "cat": []}', "safe_words.txt": "image\n"}
EXPECTED = {
    "pope": [("random/1", "yes", "COCO_val2014_1.jpg"), ("random/2", "no", "COCO_val2014_2.jpg"),
             ("popular/1", "yes", "COCO_val2014_1.jpg"), ("popular/2", "no", "COCO_val2014_2.jpg")],
    "hallusionbench": [("VD/chart/0/1/0", "yes", "0_1.png"), ("VD/chart/0/0/0", "yes", None)],
    "mme": [("count/1/1", "yes", "1.png"), ("count/1/2", "no", "1.png")],
    "mmvp": [("1", "A", "1.jpg"), ("2", "B", "2.jpg")],
    "dash-b": [("neg/hub/kite/0-0.jpg", "no", "0-0.jpg"), ("pos/hub/kite/1-0.jpg", "yes", "1-0.jpg")],
    "amber": [("1005", "yes", "AMBER_1.jpg")],
    "amber-generative": [("1", None, "AMBER_1.jpg"), ("2", None, "AMBER_2.jpg")],
    "mmhal": [("0", "attribute", "a.jpg")],
}  # fmt: skip


def write_repository(folder: Path, task: str) -> Path:
    for name, rows in TABLES[task].items():
        write_table(folder / name, rows)
    if task == "amber-generative":
        for name, text in COMPANIONS.items():
            (folder / name).write_text(text)
    return folder


def load_questions(task: str, data: str | Path) -> list[BenchmarkQuestion]:
    return load_task(task, open_data_folder(str(data), task), TaskOptions()).load_questions()


@pytest.mark.parametrize("task", TABLES)
def test_tables_of_the_hub_have_the_questions_of_the_official_files(task: str, tmp_path: Path) -> None:
    questions = load_questions(task, write_repository(tmp_path / "hub", task))
    found = [(each.id, each.truth.get("label"), each.image and each.image.name) for each in questions]
    assert found == EXPECTED[task]


def test_captions_of_amber_from_a_table_are_scored(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.benchmarks.amber.generative.build_noun_extractor", lambda: str.split)
    server.script = lambda _: ScriptedReply("a puppy and a cat in the image")
    folder, out = write_repository(tmp_path / "hub", "amber-generative"), tmp_path / "run"
    result = invoke_run(server, folder, out, "--no-similarity", task="amber-generative")
    assert result.exit_code == 0, output_of(result)
    [scope] = read_results(out)["scopes"]
    metrics = scope["rows"][0]["metrics"]
    assert [metrics[name]["value"] for name in ("chair", "cover", "hal", "cog")] == [0.5, 1, 1, 1]
    assert invoke("verify", out).exit_code == 0


def test_files_beside_the_tables_are_needed_and_read_again(tmp_path: Path, cache_folder: Path) -> None:
    folder = write_repository(tmp_path / "hub", "amber-generative")
    (folder / "relation.json").unlink()
    with pytest.raises(InputError, match=rf"{folder}: field .--data.: amber-generative also needs relation.json of"):
        open_data_folder(str(folder), "amber-generative")
    assert not cache_folder.exists()
    for text in (COMPANIONS["relation.json"], '{"dog": [], "cat": []}'):
        (folder / "relation.json").write_text(text)
        assert (open_data_folder(str(folder), "amber-generative") / "relation.json").read_text() == text


@pytest.mark.parametrize(
    "objects", [["cup"], [{"class": "cup"}], {"class": ["cup"]}], ids=["texts", "structs", "columns"]
)
def test_objects_of_mmhal_may_have_the_form_of_the_loading_script(objects: object, tmp_path: Path) -> None:
    write_table(tmp_path / "test.parquet", [{**MMHAL, "image_content": objects}])
    file = open_data_folder(str(tmp_path / "test.parquet"), "mmhal") / "response_template.json"
    assert json.loads(file.read_text())[0]["image_content"] == ["cup"]


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


CONFIGS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    # Configurations of the README in each repository: name, then split and pattern of its files.
    "pope": {"Full": {"random": "Full/random-*"}, "default": {"test": "data/test-*"}},
    "hallusionbench": {"default": {"image": "data/image-*", "non_image": "data/non_image-*"}},
    "amber": {"discriminative": {"train": "discriminative/train-*"}},
}


def write_download(cache: Path, name: str, task: str) -> Path:
    """Write a repository as the hub's client stores a download: blobs, links to them in a snapshot, and a reference."""
    repository = cache / f"datasets--{name.replace('/', '--')}"
    snapshot = write_repository(repository / "snapshots" / ("a" * 40), task)
    configs = [
        {"config_name": config, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
        for config, splits in CONFIGS[task].items()
    ]
    (snapshot / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(each for each in snapshot.rglob("*") if each.is_file())):
        blob = repository / "blobs" / str(number)
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, file.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return snapshot


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache of downloads, without a connection."""
    pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "downloads"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path / "downloads"


@pytest.mark.parametrize(
    ("task", "data", "count"),
    [
        ("pope", "hf:lmms-lab/POPE", 4),
        ("pope", "hf:lmms-lab/POPE:Full", 2),
        ("hallusionbench", "hf:lmms-lab/HallusionBench", 2),
        ("amber", "hf:qgallouedec/amber:discriminative", 1),
    ],
)
def test_a_downloaded_repository_is_read_without_a_connection(
    task: str, data: str, count: int, hub_cache: Path
) -> None:
    write_download(hub_cache, data.split(":")[1], task)
    questions = load_questions(task, data)
    found = [(each.id, each.truth["label"], each.image and each.image.name) for each in questions]
    assert found == EXPECTED[task][:count]


def test_a_dataset_that_no_cache_has_is_named(hub_cache: Path) -> None:
    with pytest.raises(InputError, match=r'hf:lmms-lab/MME: field "--data": cannot be loaded: Couldn\'t reach'):
        open_data_folder("hf:lmms-lab/MME", "mme")


def test_files_beside_a_named_dataset_need_a_folder(hub_cache: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{name: value for name, value in row.items() if name != "image"} for row in TABLES["amber-generative"][
        "generative/train-00000-of-00001.parquet"]]  # fmt: skip
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError, match=r"also needs relation\.json and safe_words\.txt .*Put them in this folder"):
        open_data_folder(f"hf:{tmp_path / 'saved'}", "amber-generative")
    with pytest.raises(InputError, match=r"hf:a/b: field .*Put them in a folder with the downloaded tables"):
        list_companions("amber-generative", "hf:a/b", None)


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

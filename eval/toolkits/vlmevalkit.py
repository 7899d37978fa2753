"""A folder for `LMUData` of VLMEvalKit: a table with images in base64, and a configuration for `run.py`."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path

from eval.toolkits.question_set import QuestionSet

HEADERS = ("index", "image", "question", "answer", "category", "id")
RATED_LIKE_POPE = "OnlySeen_POPE"  # a name with POPE selects its rating: F1, accuracy, precision and recall by split
RATED_BY_ACCURACY = "OnlySeen_YesNo"
README = """VLMEvalKit runs these questions. Use its `run.py`, because a name alone selects another class of data set:

export LMUData={folder}
python run.py --config {folder}/config.json --work-dir logs

The configuration has the model {model} at http://127.0.0.1:8000.
A strategy follows the name of the model, as in {model}:agla.
"""


def write_vlmevalkit(questions: QuestionSet, folder: Path) -> list[Path]:
    """Write the folder.

    An image occurs once in the table. Other rows have the index of its row.

    Args:
        questions: The questions.
        folder: An existing folder.

    Returns:
        The files that a user names or reads.
    """
    name = RATED_LIKE_POPE if questions.task == "pope" else RATED_BY_ACCURACY
    indices: dict[str, int] = {}
    with (folder / f"{name}.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(HEADERS)
        for index, question in enumerate(questions.questions):
            first = indices.setdefault(question.image_name, index)
            content = base64.b64encode(question.image.read_bytes()).decode() if first == index else str(first)
            answer = question.label.capitalize()  # other spellings score 0
            writer.writerow([index, content, question.prompt, answer, question.scope, question.id])
    model = {
        "class": "GPT4V",
        "model": questions.model,
        "key": "none",
        "api_base": "http://127.0.0.1:8000/v1/chat/completions",
        "max_tokens": questions.max_tokens,
        "temperature": 0,
    }
    config = {"model": {"onlyseen": model}, "data": {name: {"class": "ImageYORNDataset", "dataset": name}}}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    readme = README.format(folder=folder.resolve(), model=questions.model)
    (folder / "README.txt").write_text(readme, encoding="utf-8")
    return [folder / "README.txt", folder / f"{name}.tsv", folder / "config.json"]

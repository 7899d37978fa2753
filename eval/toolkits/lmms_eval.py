"""A folder for `--include_path` of lmms-eval: a parquet file and a YAML file for each scope, and a group of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from eval.core.parquet import import_parquet
from eval.toolkits.question_set import QuestionSet, ToolkitQuestion

IMAGE_FEATURE = {"_type": "Image"}
TEXT_FEATURE = {"dtype": "string", "_type": "Value"}
COLUMNS = ("question_id", "question", "answer")
METRICS = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
FUNCTIONS = (
    "pope_doc_to_visual",
    "pope_doc_to_text",
    "pope_process_results",
    *(f"pope_aggregate_{metric}" for metric in METRICS),
)
UTILS = '''"""The functions of lmms-eval's own POPE, which answer yes or no alone and count "Yes." as wrong."""

from lmms_eval.tasks.pope.utils import (
{names}
)

__all__ = [
{quoted}
]
'''
README = """lmms-eval 0.7.3 runs these questions. Paths in the YAML files are absolute: after a move, export again.

export OPENAI_API_KEY=none
lmms-eval --model openai --tasks {name} --include_path {folder} --log_samples --output_path logs \\
  --model_args model_version={model},base_url=http://127.0.0.1:8000/v1,timeout=300,num_concurrent=8

A strategy follows the name of the model, as in {model}:agla or {model}:agla:alpha=1.
lmms-eval needs filelock below 3.21.
"""


def write_lmms_eval(questions: QuestionSet, folder: Path) -> list[Path]:
    """Write the folder.

    Args:
        questions: The questions.
        folder: An existing folder.

    Returns:
        The files that a user names or reads.
    """
    # The library `datasets` serves old rows for a file with an old name, so that the folder has the hash.
    data = folder.resolve() / "data" / questions.hash[:16]
    data.mkdir(parents=True, exist_ok=True)
    names = {scope: f"{questions.name}_{re.sub(r'[^A-Za-z0-9]+', '_', scope)}" for scope in questions.scopes}
    for scope, name in names.items():
        table = data / f"{name}.parquet"
        _write_table([each for each in questions.questions if each.scope == scope], table)
        _write_yaml(folder / f"{name}.yaml", _describe_task(name, table, questions.max_tokens))
    _write_yaml(folder / f"{questions.name}.yaml", {"group": questions.name, "task": list(names.values())})
    listed = {
        "names": "".join(f"    {name},\n" for name in FUNCTIONS),
        "quoted": "".join(f'    "{name}",\n' for name in FUNCTIONS),
    }
    (folder / "utils.py").write_text(UTILS.format(**{key: text.rstrip("\n") for key, text in listed.items()}))
    readme = README.format(name=questions.name, folder=folder.resolve(), model=questions.model)
    (folder / "README.txt").write_text(readme, encoding="utf-8")
    return [folder / "README.txt", folder / f"{questions.name}.yaml"]


def _write_table(questions: list[ToolkitQuestion], file: Path) -> None:
    """Write a table whose metadata name the feature of the image. Without them, `datasets` does not decode it."""
    parquet = import_parquet()
    import pyarrow

    features = {**dict.fromkeys(COLUMNS, TEXT_FEATURE), "image": IMAGE_FEATURE}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema(
        [*((name, pyarrow.string()) for name in COLUMNS), ("image", image)],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [
        {
            "question_id": each.id,
            "question": each.prompt,
            "answer": each.label,
            "image": {"bytes": each.image.read_bytes(), "path": each.image_name},
        }
        for each in questions
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), file)


def _describe_task(name: str, table: Path, max_tokens: int) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(table)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_visual": _name_function("pope_doc_to_visual"),
        "doc_to_text": _name_function("pope_doc_to_text"),
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": max_tokens, "temperature": 0, "do_sample": False},
        "process_results": _name_function("pope_process_results"),
        "metric_list": [
            {
                "metric": f"pope_{metric}",
                "aggregation": _name_function(f"pope_aggregate_{metric}"),
                "higher_is_better": True,
            }
            for metric in METRICS
        ],
        "lmms_eval_specific_kwargs": {"default": {"pre_prompt": "", "post_prompt": ""}},
        "metadata": [{"version": 0.0}],
    }


def _name_function(name: str) -> str:
    return f"!function utils.{name}"


def _write_yaml(file: Path, value: dict[str, Any]) -> None:
    """Write a YAML file. The tag of a function stands without quotes."""
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    file.write_text(re.sub(r"'(!function [\w.]+)'", r"\1", text), encoding="utf-8")

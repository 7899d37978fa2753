"""A folder with a task of inspect_ai: JSON lines, images, and the Python file that `inspect eval` takes."""

from __future__ import annotations

import json
from pathlib import Path

from eval.toolkits.question_set import QuestionSet

TASK = '''"""Yes/no questions about images. An answer is right if it begins with the label."""

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import json_dataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import accuracy, match, stderr
from inspect_ai.solver import generate


@task
def {name}():
    return Task(
        dataset=json_dataset(str(Path(__file__).parent / "questions.jsonl")),
        solver=generate(),
        scorer=match(location="begin"),
        metrics=[accuracy(), stderr(cluster="image")],
        config=GenerateConfig(temperature=0, max_tokens={max_tokens}),
    )
'''
README = """inspect_ai runs these questions:

cd {folder}
export ONLYSEEN_BASE_URL=http://127.0.0.1:8000/v1 ONLYSEEN_API_KEY=none
inspect eval {name}.py --model openai-api/onlyseen/{model} --log-dir logs

A strategy follows the name of the model, as in openai-api/onlyseen/{model}:agla.
"""


def write_inspect(questions: QuestionSet, folder: Path) -> list[Path]:
    """Write the folder.

    Args:
        questions: The questions.
        folder: An existing folder.

    Returns:
        The files that a user names or reads.
    """
    questions.copy_images(folder / "images")
    lines = []
    for question in questions.questions:
        content = [
            {"type": "image", "image": f"images/{question.image_name}"},
            {"type": "text", "text": question.prompt},
        ]
        sample = {
            "id": question.id,
            "input": [{"role": "user", "content": content}],
            "target": question.label,
            "metadata": {"scope": question.scope, "image": question.image_name},
        }
        lines.append(json.dumps(sample, ensure_ascii=False) + "\n")
    (folder / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
    task = TASK.format(name=questions.name, max_tokens=questions.max_tokens)
    (folder / f"{questions.name}.py").write_text(task, encoding="utf-8")
    readme = README.format(folder=folder.resolve(), name=questions.name, model=questions.model)
    (folder / "README.txt").write_text(readme, encoding="utf-8")
    return [folder / "README.txt", folder / f"{questions.name}.py"]

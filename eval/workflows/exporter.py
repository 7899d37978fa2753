"""`eval export`: write the answers of a run in the formats of the authors' scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from eval.core.answer_store import StoredAnswer
from eval.errors import RunError
from eval.runs.plan import Arm, RunPlan
from eval.workflows.finished_run import FinishedRun


@dataclass(frozen=True)
class OfficialAnswer:
    """One answer with the fields that the official formats need.

    Attributes:
        question_id: Id of the question. For CHAIR, the id of the image.
        image: File name of the image.
        question: The question without a suffix.
        answer: The answer.
        label: The label, if the question has one.
        group: The group by which the benchmark splits its files, such as the subtask of MME.
        row: The official row of the question, to which a script expects the answer to be added.
        parsed: The answer as the official reader parses it.
    """

    question_id: int | str
    image: str
    question: str
    answer: str
    label: str = ""
    group: str = ""
    row: Mapping[str, JsonValue] = field(default_factory=dict)
    parsed: JsonValue = None


def write_pope(answers: Iterable[OfficialAnswer], file: Path) -> None:
    """Write the input of evaluate.py of AoiDragon/POPE, which pairs answers and questions by order."""
    _write_jsonl(file, ({"question": each.question, "answer": each.answer} for each in answers))


def write_llava(answers: Iterable[OfficialAnswer], file: Path) -> None:
    """Write the answer files of LLaVA and VCD, with `question_id` and `text`."""
    _write_jsonl(
        file, ({"question_id": each.question_id, "prompt": each.question, "text": each.answer} for each in answers)
    )


def write_chair(answers: Iterable[OfficialAnswer], file: Path) -> None:
    """Write the input of CHAIR's stand-alone script and of OPERA.

    Image ids must be numbers of COCO's annotations. The script reads lines from a .jsonl file and an array from .json.
    """
    rows = [{"image_id": each.question_id, "caption": each.answer} for each in answers]
    if file.suffix == ".json":
        _write_text(file, json.dumps(rows, ensure_ascii=False))
    else:
        _write_jsonl(file, rows)


def write_amber(answers: Iterable[OfficialAnswer], file: Path) -> None:
    """Write the input of inference.py of AMBER: an array of `id` and `response`."""
    _write_text(file, json.dumps([{"id": each.question_id, "response": each.answer} for each in answers]))


def write_mme(answers: Sequence[OfficialAnswer], folder: Path) -> None:
    """Write a file for each subtask of MME, with tab-separated fields. Whitespace in answers becomes single spaces."""
    for group in dict.fromkeys(each.group for each in answers):
        rows = (
            "\t".join([each.image, each.question, each.label, " ".join(each.answer.split())])
            for each in answers
            if each.group == group
        )
        _write_text(folder / f"{group}.txt", "".join(f"{row}\n" for row in rows))


def write_dash_b(answers: Iterable[OfficialAnswer], file: Path) -> None:
    """Write the answers as evaluate.py of DASH-B stores them."""
    rows = [{**each.row, "response": each.answer, "answer": each.parsed} for each in answers]
    _write_text(file, json.dumps(rows, indent=4, ensure_ascii=False))


def write_mmvp(answers: Iterable[OfficialAnswer], file: Path) -> None:
    """Write the input of gpt_grader.py of MMVP, which takes two lines as a pair."""
    _write_jsonl(file, ({**each.row, "response": each.answer} for each in answers))


def write_hallusionbench(answers: Iterable[OfficialAnswer], file: Path) -> None:
    """Write the input of evaluation.py of HallusionBench."""
    rows = [{**each.row, "model_prediction": each.answer} for each in answers]
    _write_text(file, json.dumps(rows, indent=1, ensure_ascii=False))


def write_mmhal(answers: Iterable[OfficialAnswer], file: Path) -> None:
    """Write the input of eval_gpt4.py of MMHal-Bench."""
    _write_text(file, json.dumps([{**each.row, "model_answer": each.answer} for each in answers], indent=2))


WRITERS: dict[str, Callable[[Sequence[OfficialAnswer], Path], None]] = {
    "pope": write_pope,
    "llava": write_llava,
    "chair": write_chair,
    "amber": write_amber,
    "amber-generative": write_amber,
    "mmhal": write_mmhal,
    "mme": write_mme,
    "dash-b": write_dash_b,
    "mmvp": write_mmvp,
    "hallusionbench": write_hallusionbench,
}
SINGLE_FILES = {
    "dash-b": "answers.json",
    "mmvp": "answers.jsonl",
    "hallusionbench": "HallusionBench_result.json",
    "amber": "answers.json",
    "amber-generative": "answers.json",
    "mmhal": "response.json",
}
"""Names of files with the answers of all scopes."""


def export_run(path: Path, strategy: str, out: Path, style: str, data: str | None = None) -> list[Path]:
    """Export the answers of one strategy.

    A strategy that the run does not have raises `RunError`. So does a question without an answer, because official
    scripts would pair it with the next answer.

    Args:
        path: Folder of the run.
        strategy: Label of the strategy.
        out: Folder for the files.
        style: `official` for the format of the benchmark, or `llava`.
        data: Current data folder, if it has moved.

    Returns:
        The files: one for each scope of the task, and a set of them for every seed.
    """
    run = FinishedRun.load(path, data)
    arm = run.get_arm(strategy)
    return [
        file
        for seed in run.plan.effective_seeds
        for file in _write_files(run.plan, _collect_answers(run, arm, seed), out, style, seed)
    ]


def _collect_answers(run: FinishedRun, arm: Arm, seed: int | None) -> list[OfficialAnswer]:
    found: list[StoredAnswer] = []
    for question in run.questions:
        answer = run.find_answer(arm, question, seed)
        if answer is None:
            raise RunError(f"{question.id} has no answer under {arm.label} yet. Finish the run first.")
        found.append(answer)
    scores = run.task.score_answers(run.questions, [each.text for each in found])
    collected = []
    for question, answer, score in zip(run.questions, found, scores, strict=True):
        row = question.truth.get("row")
        question_id = question.id.rpartition("/")[2]
        collected.append(
            OfficialAnswer(
                question_id=int(question_id) if question_id.isdecimal() else question_id,
                image=question.image.name if question.image else "",
                question=str(question.truth.get("question", question.prompt)),
                answer=answer.text,
                label=str(question.truth.get("label", "")).capitalize(),
                group=question.scope,
                row=row if isinstance(row, dict) else {},
                parsed=score.detail.get("parsed"),
            )
        )
    return collected


def _write_files(plan: RunPlan, answers: list[OfficialAnswer], out: Path, style: str, seed: int | None) -> list[Path]:
    write = WRITERS["llava" if style == "llava" else plan.task]
    folder = out if seed is None else out / f"seed{seed}"
    groups = list(dict.fromkeys(each.group for each in answers))
    if plan.task == "mme" and style != "llava":  # `write_mme` writes the files of all groups.
        write(answers, folder)
        return [folder / f"{group}.txt" for group in groups]
    if name := SINGLE_FILES.get(plan.task) if style != "llava" else None:
        write(answers, folder / name)
        return [folder / name]
    for group in groups:
        write([each for each in answers if each.group == group], folder / f"{group}.jsonl")
    return [folder / f"{group}.jsonl" for group in groups]


def _write_jsonl(file: Path, rows: Iterable[Mapping[str, object]]) -> None:
    _write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_text(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")

"""`eval export`: what a run has stored, as the authors' scripts read it."""

from __future__ import annotations

from pathlib import Path

from eval import manifest
from eval.errors import RunError
from eval.export import FORMATS, Reply
from eval.folder import Folder
from eval.plan import Contender, Plan
from eval.question import Question
from eval.store import Answer, stored


def hand_out(path: Path, strategy: str, out: Path, style: str, data: str | None = None) -> list[Path]:
    """The files written: one for each part of the task, and one more set for every seed.

    Raises: RunError: no such strategy in this run, or a question without an answer, which official scripts would pair
        with the next one's.
    """
    written = manifest.read(path).plan
    plan = written.model_copy(update={"data": data}) if data else written
    contender = next((each for each in plan.contenders if each.label == strategy), None)
    if contender is None:
        raise RunError(f"{path} has no '{strategy}'. It has {', '.join(plan.labels)}.")
    questions = plan.questions(plan.make_task())
    answers = stored(Folder(path).answers)
    return [
        file
        for seed in plan.drawn_seeds
        for file in _files(plan, replies(plan, contender, questions, answers, seed), out, style, seed)
    ]


def replies(
    plan: Plan, contender: Contender, questions: list[Question], answers: dict[str, Answer], seed: int | None
) -> list[Reply]:
    found = []
    for question in questions:
        answer = answers.get(plan.request(contender, question, seed).key)
        if answer is None:
            raise RunError(f"{question.id} has no answer under {contender.label} yet: finish the run first.")
        number = question.id.rpartition("/")[2]
        found.append(
            Reply(
                question_id=int(number) if number.isdecimal() else number,
                image=question.image.name,
                question=str(question.truth.get("asked", question.prompt)),
                answer=answer.text,
                label=str(question.truth.get("label", "")).capitalize(),
                group=question.scope,
            )
        )
    return found


def _files(plan: Plan, found: list[Reply], out: Path, style: str, seed: int | None) -> list[Path]:
    write = FORMATS["llava" if style == "llava" else plan.task]
    folder = out if seed is None else out / f"seed{seed}"
    groups = list(dict.fromkeys(each.group for each in found))
    if plan.task == "mme" and style != "llava":  # one call writes all of its files
        write(found, folder)
        return [folder / f"{group}.txt" for group in groups]
    for group in groups:
        write([each for each in found if each.group == group], folder / f"{group}.jsonl")
    return [folder / f"{group}.jsonl" for group in groups]

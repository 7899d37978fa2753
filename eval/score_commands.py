"""`score mme`, `score amber`, `score hallusionbench`, and the judged `score mmhal` and `score vallu`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from eval import hallusionbench, mme
from eval.amber import discriminative, generative
from eval.amber.answers import items
from eval.errors import EvaluationError
from eval.inputs import lines
from eval.judge import MMHAL, VALLU, Ask, Judge, kept, mmhal, vallu
from eval.store import Store
from eval.table import printed

Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
Url = Annotated[str, typer.Option(help="Of the judge: an OpenAI-compatible server, with /v1.")]
Key = Annotated[str | None, typer.Option(envvar="JUDGE_API_KEY", help="Of the judge.", show_default=False)]
Prompt = Annotated[Path | None, typer.Option(help="Another prompt; {names} are replaced by the fields of a row.")]

Verdicts = Annotated[
    Path | None,
    typer.Option(help="Keeps what the judge said, and goes on from there. Left out: beside the results."),
]


def score_mme(
    results: Annotated[Path, typer.Option(help="Folder with existence.txt, count.txt, position.txt, color.txt.")],
    as_json: Json = False,
) -> None:
    """MME's hallucination subset: 200 for each of four subtasks."""
    _show({"mme": mme.score(results)}, as_json)


def score_amber(
    answers: Annotated[Path, typer.Option(help='Array of `{"id": ..., "response": ...}`.')],
    annotations: Annotated[Path, typer.Option(help="annotations.json of AMBER.")],
    relation: Annotated[Path | None, typer.Option(help="relation.json of AMBER; captions need it.")] = None,
    safe_words: Annotated[Path | None, typer.Option(help="safe_words.txt of AMBER; captions need it.")] = None,
    no_similarity: Annotated[
        bool, typer.Option("--no-similarity", help="Without spaCy: only words that the files name.")
    ] = False,
    as_json: Json = False,
) -> None:
    """AMBER: captions, if the answers hold any, and yes/no questions."""
    answered = items(answers, annotations)
    result: dict[str, Mapping[str, object]] = {}
    if any(item.kind == discriminative.GENERATIVE for item in answered):
        if relation is None or safe_words is None:
            raise EvaluationError(f"{answers} holds captions, which need --relation and --safe-words of AMBER")
        words = generative.Words.load(relation, safe_words)
        similar = (lambda one, other: False) if no_similarity else generative.spacy_similar()
        result["generative"] = generative.score(answered, words, generative.nltk_nouns(), similar)
    result |= discriminative.score(answered)
    if "generative" in result and "all" in result:
        chair, f1 = result["generative"]["chair"], result["all"]["f1"]
        assert isinstance(chair, float)
        assert isinstance(f1, float)
        result["both"] = {"amber": (100 - chair + f1) / 2}
    _show(result, as_json)


def score_hallusionbench(
    results: Annotated[Path, typer.Option(help="HallusionBench.json with `model_prediction` in every row.")],
    as_json: Json = False,
) -> None:
    """HallusionBench without a judge: accuracy of questions, figures and pairs."""
    rows = hallusionbench.rows(results)
    parts = {"all": rows, **{name: [row for row in rows if row.category == name] for name in ("VD", "VS")}}
    _show({name: hallusionbench.score(part) for name, part in parts.items() if part}, as_json)


def score_mmhal(
    results: Annotated[Path, typer.Option(help="MMHal's array with `model_answer` in every row.")],
    judge_url: Url,
    judge_model: Annotated[str, typer.Option(help="Its name there.")],
    judge_api_key: Key = None,
    prompt: Prompt = None,
    verdicts: Verdicts = None,
    as_json: Json = False,
) -> None:
    """MMHal-Bench, rated by a judge model."""
    _judged(mmhal, MMHAL, results, Judge(judge_url, judge_model, judge_api_key), prompt, verdicts, as_json)


def score_vallu(
    results: Annotated[Path, typer.Option(help="Rows of `question`, `gt_answer` and `model_answer`.")],
    judge_url: Url,
    judge_model: Annotated[str, typer.Option(help="Its name there.")],
    judge_api_key: Key = None,
    prompt: Prompt = None,
    verdicts: Verdicts = None,
    as_json: Json = False,
) -> None:
    """VaLLu, rated by a judge model."""
    _judged(vallu, VALLU, results, Judge(judge_url, judge_model, judge_api_key), prompt, verdicts, as_json)


def _judged(
    rate: Callable[[Path, Ask, str], dict[str, object]],
    ours: str,
    results: Path,
    judge: Judge,
    prompt: Path | None,
    verdicts: Path | None,
    as_json: bool,
) -> None:
    template = "\n".join(lines(prompt)) if prompt else ours
    with Store(verdicts or results.with_name(f"{results.name}.verdicts.jsonl")) as store:
        numbers = rate(results, kept(judge.model, judge, store), template)
    asked = str(prompt) if prompt else "ours"
    _show({f"judged by {judge.model}": {**numbers, "judge": judge.model, "prompt": asked}}, as_json)


def _show(result: Mapping[str, Mapping[str, object]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result))
        return
    for name, numbers in result.items():
        typer.echo(printed({name: numbers}))

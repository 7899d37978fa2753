"""The commands `score ...`, which score files in the authors' formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from eval.benchmarks import llm_judge
from eval.benchmarks.amber import answers as amber_answers
from eval.benchmarks.amber import discriminative, generative
from eval.benchmarks.chair import score as chair
from eval.benchmarks.chair.breakdown import count_by_category, count_by_position
from eval.benchmarks.chair.object_extraction import Variant
from eval.benchmarks.hallusionbench import score as hallusionbench
from eval.benchmarks.mme.score import score_results
from eval.benchmarks.pope import score as pope
from eval.benchmarks.pope.parsers import PARSERS, AnswerParser
from eval.benchmarks.pope.relabelling import compute_balanced_rates, relabel_answers
from eval.core.answer_store import AnswerStore, describe_unreadable
from eval.core.jsonl import read_lines
from eval.core.task import CONSTANT_ANSWERS
from eval.errors import EvaluationError

MAX_WARNINGS = 5  # further warnings are only counted

ParserName = Literal["official", "opera", "vcd", "lmms-eval", "vlmevalkit"]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
JudgeUrl = Annotated[str, typer.Option(help="Address of the judge: an OpenAI-compatible server, with /v1.")]
JudgeModel = Annotated[str, typer.Option(help="Model name of the judge.")]
JudgeKey = Annotated[str | None, typer.Option(envvar="JUDGE_API_KEY", help="API key of the judge.", show_default=False)]
Prompt = Annotated[Path | None, typer.Option(help="File with another prompt. {names} are fields of a row.")]
Verdicts = Annotated[
    Path | None,
    typer.Option(help="File for the verdicts. An existing file is continued. Default: beside the results."),
]


def score_pope(
    questions: Annotated[Path, typer.Option(help="Question file in the official format.")],
    answers: Annotated[Path, typer.Option(help="Answer file with `answer`, `text`, `caption` or `response`.")],
    labels: Annotated[
        Path | None, typer.Option(help="Other labels for these questions, such as coco_repope_random.json of RePOPE.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="With --labels: accept labels of questions that were not asked.")
    ] = False,
    parser: Annotated[ParserName, typer.Option(help="Parser of yes and no.")] = "official",
    compare: Annotated[bool, typer.Option("--compare", help="All parsers, and their disagreement.")] = False,
    as_json: Json = False,
) -> None:
    """Accuracy, precision, recall, F1 and yes ratio of answers to POPE's questions."""
    parsers = list(PARSERS.values()) if compare else [PARSERS[parser]]
    pairs = pope.read_labelled_answers(questions, answers, parsers)
    for warning in pairs.warnings[:MAX_WARNINGS]:
        typer.echo(f"warning: {warning}", err=True)
    if len(pairs.warnings) > MAX_WARNINGS:
        typer.echo(f"warning: and {len(pairs.warnings) - MAX_WARNINGS} more", err=True)
    joined: dict[str, object] = {}
    if labels is not None:
        relabelled = relabel_answers(questions, pairs, labels, parsers, allow_missing=allow_missing)
        pairs, joined = relabelled.pairs, relabelled.as_json()
    scores = {each.name: _compute_pope_numbers(pairs.labels, pairs.answers, each, bool(joined)) for each in parsers}
    constants = {
        name: _compute_pope_numbers(pairs.labels, [answer] * len(pairs.labels), PARSERS[parser], bool(joined))
        for name, answer in CONSTANT_ANSWERS.items()
    }
    disagreement = pope.measure_parser_disagreement(pairs.labels, pairs.answers)
    if as_json:
        result: dict[str, object] = {**scores[parser]}
        if compare:
            result = {"parsers": scores, "disagreement": disagreement, "n": len(pairs.labels)}
        result["constant_answers"] = constants
        typer.echo(json.dumps({**result, **({"labels": joined} if joined else {})}))
        return
    typer.echo(_format_table(scores | constants))
    if joined:
        typer.echo(", ".join(f"{name} {value}" for name, value in joined.items()))
    if compare:
        typer.echo(f"The parsers disagree on {disagreement:.1%} of the answers.")


def _compute_pope_numbers(
    labels: Sequence[str], answers: Sequence[str], parser: AnswerParser, balanced: bool
) -> dict[str, object]:
    score = pope.compute_score(labels, answers, parser)
    return {**score.as_json(), **(compute_balanced_rates(score) if balanced else {})}


def score_chair(
    captions: Annotated[Path, typer.Option(help='Lines of `{"image_id": ..., "caption": ...}`.')],
    annotations: Annotated[Path, typer.Option(help="Folder with instances_*.json and captions_*.json of COCO.")],
    synonyms: Annotated[Path | None, typer.Option(help="The official table. Default: our own.")] = None,
    variant: Annotated[
        Variant, typer.Option(help="How words are found. Results of different variants are not comparable.")
    ] = "original",
    per_caption: Annotated[Path | None, typer.Option(help="File for the objects of every caption.")] = None,
    breakdown: Annotated[
        bool, typer.Option("--breakdown", help="Hallucinations by object and by position in the caption.")
    ] = False,
    as_json: Json = False,
) -> None:
    """CHAIR of captions: the share of mentioned objects that are not in the image."""
    by_variant = chair.score_captions(captions, annotations, (variant, "fixed"), synonyms)
    scores = by_variant[variant]
    empty = sum(not each.caption.strip() for each in scores)
    if empty:
        typer.echo(
            f"warning: {captions}: {empty} captions are empty. They count as captions without hallucination", err=True
        )
    repeated = len(scores) - len({each.image_id for each in scores})
    if repeated:
        typer.echo(
            f"warning: {captions}: {repeated} captions are of an image that has another caption. All count", err=True
        )
    if per_caption is not None:
        lines = "".join(json.dumps(each.as_json()) + "\n" for each in scores)
        per_caption.write_text(lines, encoding="utf-8")
    result = chair.compute_score(scores).as_json()
    fixed = chair.compute_score(by_variant["fixed"]).as_json()
    if as_json:
        typer.echo(json.dumps({**result, "fixed": fixed, **(_build_breakdown(scores) if breakdown else {})}))
        return
    typer.echo(_format_table({variant: result, "fixed": fixed}))
    if breakdown:
        typer.echo(_format_breakdown(scores))


def _build_breakdown(scores: Sequence[chair.CaptionScore]) -> dict[str, object]:
    return {
        "by_category": [each.as_json() for each in count_by_category(scores)],
        "by_position": [each.as_json() for each in count_by_position(scores)],
    }


def _format_breakdown(scores: Sequence[chair.CaptionScore]) -> str:
    categories = {each.node: each for each in count_by_category(scores) if each.hallucinated}
    positions = {f"{part.start:.0%} to {part.end:.0%}": part for part in count_by_position(scores)}
    width = max(map(len, [*categories, *positions]))
    lines = [f"\n{'object':<{width}}{'mentions':>14}{'hallucinated':>14}  in images with"]
    lines += [
        f"{node:<{width}}{each.mentions:>14}{each.hallucinated:>14}  {', '.join(name for name, _ in each.co_occurring)}"
        for node, each in categories.items()
    ]
    lines += [f"\n{'position':<{width}}{'mentions':>14}{'hallucinated':>14}"]
    lines += [f"{name:<{width}}{part.mentions:>14}{part.hallucinated:>14}" for name, part in positions.items()]
    return "\n".join(lines)


def score_mme(
    results: Annotated[Path, typer.Option(help="Folder with existence.txt, count.txt, position.txt, color.txt.")],
    as_json: Json = False,
) -> None:
    """MME's hallucination subset: up to 200 for each of four subtasks."""
    constants = {name: {"mme": score_results(results, answer)} for name, answer in CONSTANT_ANSWERS.items()}
    _print_tables({"mme": score_results(results)}, as_json, constants)


def score_amber(
    answers: Annotated[
        list[Path], typer.Option(help='Array of `{"id": ..., "response": ...}`. Give it twice for two files.')
    ],
    annotations: Annotated[Path, typer.Option(help="annotations.json of AMBER.")],
    relation: Annotated[Path | None, typer.Option(help="relation.json of AMBER, for captions.")] = None,
    safe_words: Annotated[Path | None, typer.Option(help="safe_words.txt of AMBER, for captions.")] = None,
    no_similarity: Annotated[
        bool, typer.Option("--no-similarity", help="Without spaCy: only words of the official files match.")
    ] = False,
    as_json: Json = False,
) -> None:
    """AMBER: yes/no questions, and captions if the answers contain any. Both together give the AMBER score."""
    loaded = amber_answers.read_answers(answers, annotations)
    result: dict[str, Mapping[str, object]] = {}
    if any(answer.type == amber_answers.GENERATIVE for answer in loaded):
        if relation is None or safe_words is None:
            files = ", ".join(map(str, answers))
            raise EvaluationError(f"{files}: there are captions, which need --relation and --safe-words of AMBER")
        vocabulary = generative.AmberVocabulary.load(relation, safe_words)
        are_similar = (lambda first, second: False) if no_similarity else generative.build_similarity_test()
        extract_nouns = generative.build_noun_extractor()
        result["generative"] = generative.score_captions(loaded, vocabulary, extract_nouns, are_similar)
    captions = result.get("generative")
    result |= discriminative.score_questions(loaded)
    constants: dict[str, dict[str, Mapping[str, object]]] = {
        name: {**discriminative.score_questions(loaded, answer)} for name, answer in CONSTANT_ANSWERS.items()
    }
    if captions is not None and "all" in result:
        for numbers in (result, *constants.values()):
            chair_percent, f1 = captions["chair"], numbers["all"]["f1"]
            assert isinstance(chair_percent, float)
            assert isinstance(f1, float)
            numbers["both"] = {"amber": (100 - chair_percent + f1) / 2}
    _print_tables(result, as_json, constants)


def score_hallusionbench(
    results: Annotated[Path, typer.Option(help="HallusionBench.json with `model_prediction` in every row.")],
    as_json: Json = False,
) -> None:
    """HallusionBench without a judge: accuracy of questions, figures and pairs."""
    answers = hallusionbench.read_answers(results)
    groups = {
        "all": answers,
        **{name: [each for each in answers if each.question.category == name] for name in ("VD", "VS")},
    }
    groups = {name: group for name, group in groups.items() if group}
    constants = {
        name: {
            group: hallusionbench.compute_scores(hallusionbench.replace_answers(each, answer.lower()))
            for group, each in groups.items()
        }
        for name, answer in CONSTANT_ANSWERS.items()
    }
    _print_tables({name: hallusionbench.compute_scores(group) for name, group in groups.items()}, as_json, constants)


def score_mmhal(
    results: Annotated[Path, typer.Option(help="MMHal's array with `model_answer` in every row.")],
    judge_url: JudgeUrl,
    judge_model: JudgeModel,
    judge_api_key: JudgeKey = None,
    prompt: Prompt = None,
    verdicts: Verdicts = None,
    as_json: Json = False,
) -> None:
    """MMHal-Bench, rated by a judge model."""
    judge = llm_judge.Judge(judge_url, judge_model, judge_api_key)
    _score_with_judge(llm_judge.score_mmhal, llm_judge.MMHAL, results, judge, prompt, verdicts, as_json)


def score_vallu(
    results: Annotated[Path, typer.Option(help="Rows of `question`, `gt_answer` and `model_answer`.")],
    judge_url: JudgeUrl,
    judge_model: JudgeModel,
    judge_api_key: JudgeKey = None,
    prompt: Prompt = None,
    verdicts: Verdicts = None,
    as_json: Json = False,
) -> None:
    """VaLLu, rated by a judge model."""
    judge = llm_judge.Judge(judge_url, judge_model, judge_api_key)
    _score_with_judge(llm_judge.score_vallu, llm_judge.VALLU, results, judge, prompt, verdicts, as_json)


def _score_with_judge(
    rate: Callable[[Path, llm_judge.JudgeFunction, str], dict[str, object]],
    default_prompt: str,
    results: Path,
    judge: llm_judge.Judge,
    prompt: Path | None,
    verdicts: Path | None,
    as_json: bool,
) -> None:
    template = "\n".join(read_lines(prompt)) if prompt else default_prompt
    with AnswerStore(verdicts or results.with_name(f"{results.name}.verdicts.jsonl")) as store:
        if store.unreadable:
            typer.echo(f"warning: {describe_unreadable(store.file, store.unreadable)}", err=True)
        numbers = rate(results, llm_judge.cache_verdicts(judge.model, judge, store), template)
    prompt_name = str(prompt) if prompt else "ours"
    _print_tables({f"judged by {judge.model}": {**numbers, "judge": judge.model, "prompt": prompt_name}}, as_json)


def _print_tables(
    result: Mapping[str, Mapping[str, object]],
    as_json: bool,
    constants: Mapping[str, Mapping[str, Mapping[str, object]]] | None = None,
) -> None:
    """Print one table for each part of the result, with a column for each constant answer that has the part.

    Args:
        result: Numbers by part.
        as_json: Print JSON instead.
        constants: The numbers of constant answers, by name of the answer and part.
    """
    constants = {name: parts for name, parts in (constants or {}).items() if parts}
    if as_json:
        typer.echo(json.dumps({**result, **({"constant_answers": constants} if constants else {})}))
        return
    for name, numbers in result.items():
        beside = {answer: parts[name] for answer, parts in constants.items() if name in parts}
        typer.echo(_format_table({name: numbers, **beside}))


def _format_table(columns: Mapping[str, Mapping[str, object]]) -> str:
    """Format one column for each scorer and one row for each number, with the notes below."""
    rows = dict.fromkeys(name for numbers in columns.values() for name in numbers if name != "notes")
    width = max(map(len, rows))
    header = " " * width + "".join(f"{name:>14}" for name in columns)
    body = [
        f"{row:<{width}}" + "".join(f"{_format_cell(numbers.get(row)):>14}" for numbers in columns.values())
        for row in rows
    ]
    notes = []
    for name, numbers in columns.items():
        reasons = numbers.get("notes")
        if isinstance(reasons, Mapping):
            notes += [f"{name}: {row} has no value: {reason}" for row, reason in reasons.items()]
    return "\n".join([header, *body, *notes])


def _format_cell(value: object) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)

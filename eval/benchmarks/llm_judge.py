"""Scores from a judge model behind an OpenAI-compatible URL: MMHal-Bench and VaLLu.

These numbers depend on the judge, its version and its prompt, so every output marks them as judged. The prompts are
our own. The scale and the parsing are those of the authors, whose prompts can be given as a file. The official prompt
of MMHal-Bench also has five rated examples, which ours has not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic_core import from_json
from rich.console import Console
from rich.progress import track
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from eval.core.answer_store import AnswerStore, StoredAnswer
from eval.core.hashing import hash_json
from eval.core.jsonl import JsonRecord, read_records
from eval.errors import EvaluationError

MMHAL = """\
You judge the answer that a vision-language model gave about a picture you cannot see. These objects are in it:
{image_content}

Question: {question}
A correct answer: {gt_answer}
The model's answer: {model_answer}

Say whether the answer claims anything that the objects, the question and the correct answer do not support. Such a
claim is a hallucination. Then give one rating:
6: very informative with good analysis or reasoning, no hallucination
5: very informative, no hallucination
4: somewhat informative, no hallucination
3: not informative, no hallucination
2: very informative, with hallucination
1: somewhat informative, with hallucination
0: not informative, with hallucination
End with a line of exactly this form, with the number: Rating: <number>
"""
VALLU = """\
You judge the answer that a vision-language model gave to a question about a picture you cannot see.

Question: {question}
Reference answer: {gt_answer}
The model's answer: {model_answer}

Rate each from 1 (worst) to 5 (best): helpfulness, clarity, correctness, depth, engagement. Correctness is about
agreement with the reference alone. Answer with five lines of exactly this form: <name>: <number>
"""
HALLUCINATED_BELOW = 3
"""MMHal-Bench counts answers with a lower rating as hallucinated."""
ASPECTS = ("helpfulness", "clarity", "correctness", "depth", "engagement")

JudgeFunction = Callable[[str], str]
"""Maps a prompt to the verdict of the judge."""


@dataclass(frozen=True)
class Judge:
    """A judge model, called with one prompt at a time at temperature 0.

    Attributes:
        base_url: Address of an OpenAI-compatible server, with /v1.
        model: Name of the model.
        api_key: Sent as a bearer token.
        timeout: Seconds for one response.
    """

    base_url: str
    model: str
    api_key: str | None = None
    timeout: float = 120.0

    def __call__(self, prompt: str) -> str:
        """Return the verdict of the judge.

        Args:
            prompt: The prompt.

        Returns:
            The text of the response.

        Raises:
            EvaluationError: No attempt gives a valid response.
        """
        try:
            return self._complete(prompt)
        except (httpx.HTTPError, KeyError, IndexError, TypeError, ValueError) as error:
            raise EvaluationError(f"the judge {self.model} at {self.base_url} gave no answer: {error!r}") from error

    @retry(
        retry=retry_if_exception_type((httpx.TransportError, httpx.HTTPStatusError)),
        stop=stop_after_attempt(4),
        wait=wait_random_exponential(0.2, max=10),
        reraise=True,
    )
    def _complete(self, prompt: str) -> str:
        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        response = httpx.post(url, json=body, headers=headers, timeout=self.timeout)
        response.raise_for_status()
        # Unlike `json`, this parser rejects lone surrogates, which no file can hold, and deeply nested values.
        text = from_json(response.content)["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError("the content of the response is not a string")
        if not text.strip():
            raise ValueError("the content of the response is empty")
        return text


def hash_verdict(model: str, prompt: str) -> str:
    """Compute the key of a verdict: the SHA-256 of judge and prompt."""
    return hash_json({"judge": model, "prompt": prompt})


def cache_verdicts(model: str, judge: JudgeFunction, store: AnswerStore) -> JudgeFunction:
    """Wrap a judge so that each verdict is stored at once and requested only once, because verdicts cost money."""

    def judge_once(prompt: str) -> str:
        key = hash_verdict(model, prompt)
        if key not in store:
            start = time.perf_counter()
            text = judge(prompt)
            seconds = time.perf_counter() - start
            store.add(StoredAnswer(key=key, question=prompt, strategy=f"judge {model}", text=text, seconds=seconds))
        return store[key].text

    return judge_once


def score_mmhal(file: Path, judge: JudgeFunction, prompt: str = MMHAL) -> dict[str, object]:
    """Rate the answers of MMHal-Bench.

    A verdict without exactly one rating counts as 0, as in the official script, and is counted as unparsed.

    Args:
        file: The official array with `model_answer` in every row.
        judge: The judge.
        prompt: Template with the fields of a row in braces.

    Returns:
        Mean rating from 0 to 6, share of answers rated below 3, and mean rating of each of the 8 question types.
    """
    ratings = [parse_rating(verdict) for verdict in _request_verdicts(file, judge, prompt)]
    scores = [rating or 0 for rating in ratings]
    by_type = [scores[offset::8] for offset in range(min(8, len(scores)))]
    return {
        "judged": True,
        "rating": _mean(scores),
        "hallucination_rate": sum(score < HALLUCINATED_BELOW for score in scores) / len(scores),
        "rating_by_type": [_mean(each) for each in by_type],
        "n": len(scores),
        "unparsed": ratings.count(None),
    }


def score_vallu(file: Path, judge: JudgeFunction, prompt: str = VALLU) -> dict[str, object]:
    """Rate the answers of VaLLu. Papers report correctness.

    Verdicts that lack an aspect are left out and counted as unparsed.

    Args:
        file: Rows of `question`, `gt_answer` and `model_answer`.
        judge: The judge.
        prompt: Template with the fields of a row in braces.

    Returns:
        Mean of each of the five aspects, from 1 to 5.
    """
    verdicts = [_parse_aspects(verdict) for verdict in _request_verdicts(file, judge, prompt)]
    complete = [each for each in verdicts if len(each) == len(ASPECTS)]
    return {
        "judged": True,
        **{name: _mean([each[name] for each in complete]) for name in ASPECTS},
        "n": len(verdicts),
        "unparsed": len(verdicts) - len(complete),
    }


def _request_verdicts(file: Path, judge: JudgeFunction, prompt: str) -> list[str]:
    """Request a verdict for every row, in order. All prompts are built first, so that a bad row costs no request."""
    prompts = [fill_template(prompt, record) for record in read_records(file)]
    console = Console(stderr=True)
    return [judge(each) for each in track(prompts, "judged", console=console, disable=not console.is_terminal)]


def fill_template(prompt: str, record: JsonRecord) -> str:
    """Replace the names in braces by the fields of a row. A field that is missing raises `InputError`."""

    def get_field(name: re.Match[str]) -> str:
        value: Any = record.value[record.find_first_key(name[1])]
        return ", ".join(record.get_strings(name[1])) if isinstance(value, list) else record.get_string(name[1])

    return re.sub(r"\{(\w+)\}", get_field, prompt)


def parse_rating(verdict: str) -> int | None:
    """Parse a rating as the official script of MMHal-Bench does.

    Args:
        verdict: The verdict.

    Returns:
        The rating from 0 to 6. None if there is none or more than one, which counts as 0.
    """
    ratings = [rating for rating in range(7) if f"rating: {rating}" in verdict.lower()]
    return ratings[0] if len(ratings) == 1 else None


def _parse_aspects(verdict: str) -> dict[str, int]:
    found = re.findall(rf"\b({'|'.join(ASPECTS)})\W*:\W*([1-5])\b", verdict.lower())
    return {name: int(number) for name, number in found}


def _mean(numbers: Sequence[int]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None

"""Keys and seeds of requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.core.task import BenchmarkQuestion
from eval.runs.request import EvalRequest, SamplingSettings, derive_seed
from eval.runs.stack_spec import PLAIN, parse_spec


def make_request(tmp_path: Path, **changes: object) -> EvalRequest:
    image = tmp_path / str(changes.pop("image", "one.png"))
    image.write_bytes(image.name.encode())
    question = BenchmarkQuestion("1", "all", image, str(changes.pop("prompt", "Is it?")))
    fields = {"spec": PLAIN, "full_spec": PLAIN, "sampling": SamplingSettings(), "model": "m", "seed": None}
    return EvalRequest(question=question, **{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"image": "two.png"},
        {"prompt": "Is it not?"},
        {"sampling": SamplingSettings(temperature=1)},
        {"sampling": SamplingSettings(max_tokens=1)},
        {"model": "n"},
        {"weights": "abc"},
        {"seed": 1},
        {"full_spec": parse_spec("agla")},
        {"full_spec": parse_spec("plain:alpha=1")},
    ],
)
def test_the_key_depends_on_all_that_the_answer_depends_on(tmp_path: Path, change: dict[str, object]) -> None:
    assert make_request(tmp_path).key == make_request(tmp_path).key
    assert make_request(tmp_path).key != make_request(tmp_path, **change).key


def test_seeds_differ_between_questions_and_are_reproducible(tmp_path: Path) -> None:
    first, second = make_request(tmp_path).question, make_request(tmp_path, prompt="And this?").question
    assert derive_seed(0, first) == derive_seed(0, first)
    assert len({derive_seed(0, first), derive_seed(1, first), derive_seed(0, second)}) == 3
    assert 0 <= derive_seed(0, first) < 2**31


def test_a_question_without_an_image_is_sent_as_text() -> None:
    sampling = SamplingSettings(max_tokens=4)
    asked = BenchmarkQuestion("1", "all", None, "Is it?", cluster_name="set 1")
    request = EvalRequest(asked, PLAIN, PLAIN, sampling, "m", None)
    assert request.build_body("none")["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Is it?"}]}]
    other = BenchmarkQuestion("2", "all", None, "Was it?", cluster_name="set 1")
    assert request.key != EvalRequest(other, PLAIN, PLAIN, sampling, "m", None).key
    assert (asked.cluster, asked.image_hash) == ("set 1", None)

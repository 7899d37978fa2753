"""What `auto` asks for, and when."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from decoding.answer import Heat, Memory
from decoding.ask import Ask, Probe, Relevance
from decoding.strategies.auto import Auto
from decoding.strategies.vcd import VCD
from decoding.strategy import Step
from tests.decoding.fakes import asking

GRID = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)


def play(auto: Auto, ask: Ask, similarity: float = 0.9) -> tuple[list[Probe | Relevance], Ask]:
    program, sent = auto.run(ask), None
    asked: list[Any] = []
    try:
        while True:
            asked.append(program.send(sent))
            sent = Memory("m") if isinstance(asked[-1], Probe) else Heat(GRID, similarity, 32)
    except StopIteration as stop:
        return asked, stop.value


def test_it_probes_the_heads_and_makes_its_views() -> None:
    whole = asking("Is there a cat? Please answer this question with one word.")
    (probe, relevance), ask = play(Auto(noise=1), whole)
    assert isinstance(probe, Probe)
    assert probe.layerwise
    assert isinstance(relevance, Relevance)
    assert relevance.text == "Is there a cat?"
    assert ask.memories == {"auto": Memory("m")}
    assert set(ask.branches) == {"auto/blind", "auto/noisy", "auto/local"}
    assert ask.branches["auto/noisy"].pictures == VCD().noisy(ask.prompt).pictures != ask.prompt.pictures
    assert ask.branches["auto/blind"] == ask.prompt.without_pictures()
    assert ask.branches["auto/local"].pictures != ask.prompt.pictures


def test_a_picture_that_has_little_to_do_with_the_question_is_not_masked() -> None:
    _, ask = play(Auto(noise=0), asking("Please describe this image in detail."), similarity=0.1)
    assert set(ask.branches) == {"auto/blind"}


@pytest.mark.parametrize(
    ("parameters", "asked", "branches"),
    [
        ({"heads_by": 1}, [Relevance], {"auto/blind", "auto/local"}),
        ({"local": 0}, [Probe], {"auto/blind"}),
        ({"heads_by": 1, "local": 0}, [], {"auto/blind"}),
        ({"heads_by": 1, "local": 0, "blind": 0, "noise": 1}, [], {"auto/blind", "auto/noisy"}),
        ({"heads_by": 1, "local": 0, "blind": 0}, [], set()),
    ],
)
def test_what_is_turned_off_is_not_asked_for(parameters: dict[str, Any], asked: list[type], branches: set[str]) -> None:
    effects, ask = play(Auto(**{"noise": 0} | parameters), asking())
    assert [type(effect) for effect in effects] == asked
    assert set(ask.branches) == branches


def test_rows_of_a_batch_are_settled_one_by_one() -> None:
    auto = Auto(torn=0.5, grounded=1.0, blind=1, noise=0, local=0, beta=0)
    raw = torch.tensor([[5.0, 0.0, 0.0], [1.0, 0.5, 0.0], [1.0, 0.5, 0.0]])  # certain, torn, torn
    blind = torch.tensor([[0.0, 5.0, 0.0], [0.0, 2.0, 0.0], [1.0, 0.6, 0.0]])  # -, by the picture, by the language
    after = auto.logits(Step(raw, raw, {"auto/blind": blind}, {}, torch.zeros(3, 1)))
    assert auto.wakes(raw).tolist() == [False, True, True]
    torch.testing.assert_close(after[:2], raw[:2])
    torch.testing.assert_close(after[2], 2 * raw[2] - blind[2])

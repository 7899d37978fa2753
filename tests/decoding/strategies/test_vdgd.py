import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, one_hot

from decoding.answer import Answer, End, Memory, Usage
from decoding.ask import Ask
from decoding.strategies.vdgd import VDGD
from decoding.strategy import Captured, Step, Tensors
from tests.decoding.fakes import asking, speckled

VOCABULARY = 11
REDUCTIONS = {"min": torch.amin, "mean": torch.mean, "sum": torch.sum}


def told(strategy: VDGD, description: Tensor) -> Tensors:
    memory: Tensors = {}
    for logits in description:
        memory = strategy.digest(memory, Captured(logits=logits))
    return memory


def answered(strategy: VDGD, description: Tensor, raw: Tensor) -> Tensor:
    return strategy.logits(Step(raw, raw, {}, told(strategy, description), torch.tensor([0])))


def brute_force(description: Tensor, reduction: str) -> Tensor:
    """[tokens, vocab] logits -> [vocab]: -reduce_j KL(onehot_w || P_j), with every one-hot written out."""
    words = one_hot(torch.arange(VOCABULARY), VOCABULARY).double()
    divergences = [
        torch.stack([kl_div(row.log_softmax(-1), word, reduction="sum") for word in words])
        for row in description.double()
    ]
    return -REDUCTIONS[reduction](torch.stack(divergences), dim=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_closed_form_is_the_divergence_from_every_one_hot(reduction: str) -> None:
    random = torch.Generator().manual_seed(1)
    description = 3 * torch.randn(7, VOCABULARY, generator=random)
    raw = torch.randn(VOCABULARY, generator=random)
    everything = VDGD.model_validate({"reduction": reduction, "truncation": "plausibility", "beta": 0})
    expected = brute_force(description, reduction).float()
    torch.testing.assert_close(answered(everything, description, raw), expected)

    nucleus = VDGD.model_validate({"reduction": reduction, "top_p": 0.8})
    expected[~nucleus.candidates(raw)] = -torch.inf
    torch.testing.assert_close(answered(nucleus, description, raw), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_order_of_the_description_does_not_matter(reduction: str) -> None:
    random = torch.Generator().manual_seed(2)
    description = torch.randn(4, VOCABULARY, generator=random)
    raw = torch.randn(VOCABULARY, generator=random)
    strategy = VDGD.model_validate({"reduction": reduction, "truncation": "plausibility"})
    first, *others = (answered(strategy, description[list(order)], raw) for order in itertools.permutations(range(4)))
    for other in others:
        torch.testing.assert_close(other, first)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_memory_does_not_grow_with_the_description(reduction: str) -> None:
    strategy = VDGD.model_validate({"reduction": reduction})
    memory = told(strategy, torch.randn(50, VOCABULARY))
    assert {name: tuple(tensor.shape) for name, tensor in memory.items()} == {"told": (VOCABULARY,), "tokens": (1,)}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_words_that_no_description_token_could_be_stay_impossible(reduction: str) -> None:
    """Models with padded vocabularies give -inf there; sums and averages of it must not become nan."""
    description, raw = torch.randn(3, VOCABULARY), torch.randn(VOCABULARY)
    description[:, 4] = -torch.inf
    strategy = VDGD.model_validate({"reduction": reduction, "truncation": "plausibility", "beta": 0})
    after = answered(strategy, description, raw)
    assert after[4] == -torch.inf
    assert not after.isnan().any()


def test_official_scale_makes_the_choice_within_the_set_uniform() -> None:
    """The published code averages over the vocabulary where it should sum: 0.3 against 0.6 becomes 1/2 against 1/2."""
    description = torch.full((1, 32000), 0.1 / 31998)
    description[0, :2] = torch.tensor([0.3, 0.6])
    raw = torch.zeros(32000)
    raw[:2] = 10
    parameters: dict[str, Any] = {"truncation": "plausibility", "beta": 0.1}
    intended = answered(VDGD(**parameters), description.log(), raw).softmax(-1)
    torch.testing.assert_close(intended[:2], torch.tensor([0.3333, 0.6667]), atol=1e-4, rtol=0)
    official = answered(VDGD(**parameters, official_scale=True), description.log(), raw).softmax(-1)
    torch.testing.assert_close(official[:2], torch.tensor([0.499995, 0.500005]), atol=1e-5, rtol=0)


def play(strategy: VDGD, ask: Ask, description: str) -> tuple[Ask, Ask]:
    program = strategy.run(ask)
    question = next(program)
    assert isinstance(question, Ask)
    with pytest.raises(StopIteration) as stop:
        program.send(Answer(description, (), End("stop", Usage(), Memory("m"))))
    return question, stop.value.value


def test_it_describes_greedily_and_then_answers_with_the_description() -> None:
    ask = asking("Is there a cat?")
    strategy = VDGD(description_tokens=77)
    question, final = play(strategy, ask, " A cat on a mat. ")
    assert "Is there a cat?" in question.prompt.question
    assert question.prompt.pictures == ask.prompt.pictures
    assert question.sampling.temperature == 0
    assert question.sampling.max_tokens == 77
    assert question.digest is strategy
    assert final.prompt.question == "The input image is described as follows: A cat on a mat. Is there a cat?"
    assert final.prompt.pictures == ask.prompt.pictures
    assert final.memories == {"vdgd": Memory("m")}
    assert final.sampling == ask.sampling


def test_the_description_is_asked_for_without_what_belongs_to_the_answer() -> None:
    """Outer strategies act on the answer that they return: their branches hold its prompt, not the description's."""
    outer = asking().branch(VDGD(), "other", asking("other", speckled(3)).prompt).but(choices=("Yes", "No"))
    question, final = play(VDGD(), outer.but(stack=(VDGD(),)), "A cat.")
    assert (question.branches, question.stack, question.choices, question.memories) == ({}, (), (), {})
    assert final.branches == outer.branches
    assert final.choices == ("Yes", "No")


def test_questions_with_braces_are_taken_literally() -> None:
    """A format string from a request could read attributes of our objects."""
    strategy = VDGD(description_prompt="Prepare for {question} and {question.__class__}")
    question, final = play(strategy, asking("What is {description} {0}?"), "A {mat}")
    assert question.prompt.question == "Prepare for What is {description} {0}? and {question.__class__}"
    assert final.prompt.question.endswith("A {mat} What is {description} {0}?")

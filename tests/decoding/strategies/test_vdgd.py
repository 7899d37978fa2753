import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, one_hot

from decoding.outputs import Answer, FinishInfo, StateHandle, Usage
from decoding.requests import GenerateRequest
from decoding.strategies.vdgd import VDGD
from decoding.strategy import Activations, Step, Tensors
from tests.decoding.fakes import make_request, random_image

VOCABULARY = 11
REDUCTIONS = {"min": torch.amin, "mean": torch.mean, "sum": torch.sum}


def fold_description(strategy: VDGD, description: Tensor) -> Tensors:
    state: Tensors = {}
    for logits in description:
        state = strategy.update_state(state, Activations(logits=logits))
    return state


def compute_scores(strategy: VDGD, description: Tensor, raw: Tensor) -> Tensor:
    return strategy.logits(Step(raw, raw, {}, fold_description(strategy, description), torch.tensor([0])))


def enumerate_divergences(description: Tensor, reduction: str) -> Tensor:
    """Compute -reduce_j KL(onehot_w || P_j), [vocab], with every one-hot written out."""
    words = one_hot(torch.arange(VOCABULARY), VOCABULARY).double()
    divergences = [
        torch.stack([kl_div(row.log_softmax(-1), word, reduction="sum") for word in words])
        for row in description.double()
    ]
    return -REDUCTIONS[reduction](torch.stack(divergences), dim=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_closed_form_equals_the_divergence_of_every_one_hot(reduction: str) -> None:
    random = torch.Generator().manual_seed(1)
    description = 3 * torch.randn(7, VOCABULARY, generator=random)
    raw = torch.randn(VOCABULARY, generator=random)
    everything = VDGD.model_validate({"reduction": reduction, "truncation": "plausibility", "beta": 0})
    expected = enumerate_divergences(description, reduction).float()
    torch.testing.assert_close(compute_scores(everything, description, raw), expected)

    nucleus = VDGD.model_validate({"reduction": reduction, "top_p": 0.8})
    expected[~nucleus.mask_candidates(raw)] = -torch.inf
    torch.testing.assert_close(compute_scores(nucleus, description, raw), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_order_of_the_description_does_not_matter(reduction: str) -> None:
    random = torch.Generator().manual_seed(2)
    description = torch.randn(4, VOCABULARY, generator=random)
    raw = torch.randn(VOCABULARY, generator=random)
    strategy = VDGD.model_validate({"reduction": reduction, "truncation": "plausibility"})
    first, *others = (
        compute_scores(strategy, description[list(order)], raw) for order in itertools.permutations(range(4))
    )
    for other in others:
        torch.testing.assert_close(other, first)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_state_size_does_not_depend_on_the_description(reduction: str) -> None:
    strategy = VDGD.model_validate({"reduction": reduction})
    state = fold_description(strategy, torch.randn(50, VOCABULARY))
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {"support": (VOCABULARY,), "tokens": (1,)}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_tokens_impossible_in_the_description_stay_impossible(reduction: str) -> None:
    """Models with padded vocabularies give -inf there; sums and averages of it must not become nan."""
    description, raw = torch.randn(3, VOCABULARY), torch.randn(VOCABULARY)
    description[:, 4] = -torch.inf
    strategy = VDGD.model_validate({"reduction": reduction, "truncation": "plausibility", "beta": 0})
    after = compute_scores(strategy, description, raw)
    assert after[4] == -torch.inf
    assert not after.isnan().any()


def test_official_scale_gives_a_nearly_uniform_choice() -> None:
    """The official code averages over the vocabulary instead of summing: 0.3 against 0.6 becomes 1/2 against 1/2."""
    description = torch.full((1, 32000), 0.1 / 31998)
    description[0, :2] = torch.tensor([0.3, 0.6])
    raw = torch.zeros(32000)
    raw[:2] = 10
    parameters: dict[str, Any] = {"truncation": "plausibility", "beta": 0.1}
    intended = compute_scores(VDGD(**parameters), description.log(), raw).softmax(-1)
    torch.testing.assert_close(intended[:2], torch.tensor([0.3333, 0.6667]), atol=1e-4, rtol=0)
    official = compute_scores(VDGD(**parameters, official_scale=True), description.log(), raw).softmax(-1)
    torch.testing.assert_close(official[:2], torch.tensor([0.499995, 0.500005]), atol=1e-5, rtol=0)


def run_vdgd(strategy: VDGD, request: GenerateRequest, description: str) -> tuple[GenerateRequest, GenerateRequest]:
    program = strategy.run(request)
    question = next(program)
    assert isinstance(question, GenerateRequest)
    with pytest.raises(StopIteration) as stop:
        program.send(Answer(description, (), FinishInfo("stop", Usage(), StateHandle("m"))))
    return question, stop.value.value


def test_run_describes_greedily_and_adds_the_description() -> None:
    request = make_request("Is there a cat?")
    strategy = VDGD(description_tokens=77)
    question, final = run_vdgd(strategy, request, " A cat on a mat. ")
    assert "Is there a cat?" in question.prompt.question
    assert question.prompt.images == request.prompt.images
    assert question.sampling.temperature == 0
    assert question.sampling.max_tokens == 77
    assert question.updates_state
    assert final.prompt.question == "The input image is described as follows: A cat on a mat. Is there a cat?"
    assert final.prompt.images == request.prompt.images
    assert final.state == StateHandle("m")
    assert final.sampling == request.sampling


def test_description_request_has_no_branches_of_outer_strategies() -> None:
    """Outer strategies act on the answer that they return: their branches hold its prompt, not the description's."""
    outer = (
        make_request()
        .with_branch("other", make_request("other", random_image(3)).prompt)
        .with_strategy(VDGD())
        .replace(scored_texts=("Yes", "No"))
    )
    question, final = run_vdgd(VDGD(), outer.replace(stack=(VDGD(),)), "A cat.")
    assert (question.branches, question.stack, question.scored_texts, question.states) == ({}, (), (), {})
    assert final.branches == outer.branches
    assert final.scored_texts == ("Yes", "No")


def test_braces_in_the_question_are_kept() -> None:
    """A format string from a request could read attributes of objects."""
    strategy = VDGD(description_prompt="Prepare for {question} and {question.__class__}")
    question, final = run_vdgd(strategy, make_request("What is {description} {0}?"), "A {mat}")
    assert question.prompt.question == "Prepare for What is {description} {0}? and {question.__class__}"
    assert final.prompt.question.endswith("A {mat} What is {description} {0}?")

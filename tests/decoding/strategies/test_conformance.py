"""What every registered strategy must do, whatever its method."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor

from decoding.ask import Ask, Prompt
from decoding.errors import BadRequest
from decoding.onion import joined
from decoding.registry import strategies
from decoding.rehearsal import canned, rehearse
from decoding.stack import Run, collect
from decoding.strategy import PER_ROW, TEXT_SIDE, Captured, Keys, Step, Strategy, Tensors
from tests.decoding.fakes import asking, speckled
from tests.decoding.strategies.registered import NEUTRAL, REWORDS, every_strategy, extreme, limits
from tests.decoding.toy import ToyEngine

VOCABULARY, LAYERS, HEADS, WIDTH = 50, 8, 6, 4
LARGE = speckled(size=(400, 300))  # enough to be cut
PICTURE, KEYS = 16, 21  # tokens of a picture, and all that is attended to

BLIND = {"plain", "truncate", "sharpen"}  # work without a picture
GREEDY_AS_PLAIN = {"plain", "truncate", "sharpen"}  # act on sampling only

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def digested(strategy: Strategy, seed: int) -> Tensors:
    """A memory folded from random captures, of the kind that the strategy asks for."""
    random = torch.Generator().manual_seed(seed)
    memory: Tensors = {}
    needs = rehearse(type(strategy)()).needs
    if "digest" in needs:
        for _ in range(5):
            memory = strategy.digest(memory, Captured(logits=torch.randn(VOCABULARY, generator=random)))
    if "probe" in needs:
        for layer in range(LAYERS):
            heads = {name: torch.randn(HEADS, WIDTH, generator=random) for name in ("seeing", "blind")}
            vision = dict.fromkeys(heads, torch.rand(4, 1, 2, PICTURE, generator=random))
            attention = {name: torch.rand(HEADS, PICTURE, generator=random).softmax(-1) for name in heads}
            memory = strategy.digest(memory, Captured(heads, layer, LAYERS, vision, attention))
    return memory


def random_step(strategy: Strategy, dtype: torch.dtype = torch.float32, seed: int = 0) -> Step:
    """Logits as models give them; some tokens are ruled out everywhere, others by the strategy inside or a branch."""
    random = torch.Generator().manual_seed(seed)

    def logits(*ruled_out: slice) -> Tensor:
        drawn = (4 * torch.randn(VOCABULARY, generator=random)).to(dtype)
        for tokens in ruled_out:
            drawn[tokens] = -torch.inf
        return drawn

    nowhere, inside, in_branch = slice(0, 5), slice(5, 10), slice(8, 12)
    raw = logits(nowhere)
    raw[20] = raw.max() + 1  # the likeliest stays possible
    scores = raw.clone()
    scores[inside] = -torch.inf
    branches = {name: logits(nowhere, in_branch) for name in rehearse(strategy).branches}
    heard = [logits(nowhere, in_branch) for _ in strategy.exits(LAYERS, False).layers]
    early = torch.stack(heard) if heard else None
    return Step(scores, raw, branches, digested(strategy, seed), torch.tensor([seed]), early)


def random_attention(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Keys]:
    """Scores of one row in a late layer, and which of its keys belong to a picture."""
    random = torch.Generator().manual_seed(seed)
    scores = (3 * torch.randn(HEADS, KEYS, generator=random)).to(dtype)
    return scores, Keys(torch.tensor([-1, -1, *range(PICTURE), -1, -1, -1]), LAYERS - 1, LAYERS)


def tensors(step: Step) -> list[Tensor]:
    early = [] if step.early is None else [step.early]
    return [step.scores, step.raw, step.position, *step.branches.values(), *step.memory.values(), *early]


def together(steps: list[Step]) -> Step:
    return Step(
        torch.stack([step.scores for step in steps]),
        torch.stack([step.raw for step in steps]),
        {name: torch.stack([step.branches[name] for step in steps]) for name in steps[0].branches},
        {name: torch.stack([step.memory[name] for step in steps]) for name in steps[0].memory},
        torch.stack([step.position for step in steps]),
        torch.stack(heard) if (heard := [step.early for step in steps if step.early is not None]) else None,
    )


async def tokens(stack: tuple[Strategy, ...], ask: Ask) -> tuple[list[int], Prompt]:
    """What a toy model says under the stack, and the prompt it ends with: the question's where it is voted on."""
    async with Run(stack, ToyEngine()) as run:
        outcome = await run.resolve(ask)
        answer = await collect(run.stream(outcome))
    return [token.id for token in answer.tokens], (outcome if isinstance(outcome, Ask) else ask).prompt


@every_strategy
@pytest.mark.parametrize("question", ["Is there a cat?", "How many dogs?", "Describe the image."])
async def test_neutral_parameters_decode_greedily_like_the_plain_model(kind: type[Strategy], question: str) -> None:
    ask = asking(question)
    said, prompt = await tokens((kind(**NEUTRAL[kind.name]),), ask)
    assert (prompt == ask.prompt) == (kind.name not in REWORDS)
    assert said == (await tokens((), ask.but(prompt=prompt)))[0]


@every_strategy
async def test_defaults_change_answers_unless_greedy_ones_are_left_alone(kind: type[Strategy]) -> None:
    """Else the tests of neutral parameters would prove nothing."""
    for number in range(40):
        ask = asking(f"Are there {number} cats in the image?", LARGE)
        if (await tokens((kind(),), ask))[0] != (await tokens((), ask))[0]:
            assert kind.name not in GREEDY_AS_PLAIN
            return
    assert kind.name in GREEDY_AS_PLAIN


@every_strategy
@every_dtype
def test_neutral_parameters_keep_the_likeliest_token(kind: type[Strategy], dtype: torch.dtype) -> None:
    strategy = kind(**NEUTRAL[kind.name])
    step = random_step(strategy, dtype)
    assert strategy.logits(step).argmax() == step.scores.argmax()
    if kind.name not in REWORDS:
        assert torch.equal(strategy.logits(step), step.scores)
    if (factors := strategy.heads(step.memory)) is not None:
        assert torch.equal(factors, torch.ones_like(factors))
    scores, keys = random_attention(dtype)
    assert torch.equal(strategy.attend(scores, keys, step.memory), scores)


@every_strategy
@every_dtype
def test_hooks_keep_shape_dtype_and_device(kind: type[Strategy], dtype: torch.dtype) -> None:
    strategy = kind()
    step = random_step(strategy, dtype)
    after = strategy.logits(step)
    assert (after.shape, after.dtype, after.device) == (step.scores.shape, dtype, step.scores.device)
    if (factors := strategy.heads(step.memory)) is not None:
        assert factors.shape == (LAYERS, HEADS)
    scores, keys = random_attention(dtype)
    attended = strategy.attend(scores, keys, step.memory)
    assert (attended.shape, attended.dtype, attended.device) == (scores.shape, dtype, scores.device)
    assert attended.isfinite().all()


@every_strategy
def test_hooks_leave_their_inputs_as_they_are(kind: type[Strategy]) -> None:
    strategy = kind()
    step = random_step(strategy)
    scores, keys = random_attention()
    inputs = [*tensors(step), scores, keys.pictures]
    before = [tensor.clone() for tensor in inputs]
    strategy.logits(step)
    strategy.heads(step.memory)
    strategy.attend(scores, keys, step.memory)
    if "digest" in strategy.hooks():
        heads = {"seeing": torch.randn(HEADS, WIDTH), "blind": torch.randn(HEADS, WIDTH)}
        for layer in range(LAYERS):
            attention = {"seeing": torch.rand(HEADS, PICTURE)}
            strategy.digest(
                step.memory, Captured(heads, layer, LAYERS, attention=attention, logits=torch.randn(VOCABULARY))
            )
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))


@every_strategy
@every_dtype
@pytest.mark.parametrize("seed", range(5))
def test_impossible_tokens_stay_impossible_and_nothing_is_nan(
    kind: type[Strategy], dtype: torch.dtype, seed: int
) -> None:
    for parameters in ({}, NEUTRAL[kind.name], extreme(kind, top=True), extreme(kind, top=False)):
        strategy = kind(**parameters)
        step = random_step(strategy, dtype, seed)
        after = strategy.logits(step)
        assert not after.isnan().any()
        assert not (after == torch.inf).any()
        assert (after[step.scores == -torch.inf] == -torch.inf).all()
        assert after[step.raw.argmax()] > -torch.inf


@every_strategy
@every_dtype
def test_a_batch_is_its_rows(kind: type[Strategy], dtype: torch.dtype) -> None:
    strategy = kind()
    steps = [random_step(strategy, dtype, seed) for seed in range(4)]
    batch = together(steps)
    assert torch.equal(strategy.logits(batch), torch.stack([strategy.logits(step) for step in steps]))
    if (factors := strategy.heads(batch.memory)) is not None:
        rows = [strategy.heads(step.memory) for step in steps]
        assert torch.equal(factors, torch.stack([row for row in rows if row is not None]))
    attention = [random_attention(dtype, seed) for seed in range(4)]
    keys = Keys(torch.stack([keys.pictures for _, keys in attention]), LAYERS - 1, LAYERS)
    attended = [strategy.attend(*one, step.memory) for one, step in zip(attention, steps, strict=True)]
    at_once = strategy.attend(torch.stack([scores for scores, _ in attention]), keys, batch.memory)
    assert torch.equal(at_once, torch.stack(attended))


@pytest.mark.parametrize("kind", [kind for kind in strategies().values() if kind.marked(PER_ROW)])
@every_dtype
def test_rows_that_differ_in_parameters_get_what_each_would_get_alone(kind: type[Strategy], dtype: torch.dtype) -> None:
    drawn, bounds = Random(0), {name: limits(kind, name) for name in kind.marked(PER_ROW)}
    rows = [kind(**{name: each["least"] for name, each in bounds.items()})] + [
        kind(**{name: drawn.uniform(each["least"], min(each["most"], 4)) for name, each in bounds.items()})
        for _ in range(7)
    ]
    steps = [random_step(kind(), dtype, seed) for seed in range(len(rows))]
    assert len({row.kind() for row in rows}) == 1
    (whole,) = joined([(row,) for row in rows], torch.device("cpu"))
    assert all(getattr(whole, name).shape == (len(rows), 1) for name in bounds)
    alone = torch.stack([row.logits(step) for row, step in zip(rows, steps, strict=True)])
    assert torch.equal(whole.logits(together(steps)), alone)


@every_strategy
def test_no_hook_reads_what_its_mark_says_it_does_not(kind: type[Strategy]) -> None:
    """Requests that differ in such parameters share the hooks' calls."""
    without_text = kind().model_copy(update=dict.fromkeys(kind.marked(TEXT_SIDE)))
    without = without_text.model_copy(update=dict.fromkeys(kind.marked(PER_ROW)))
    step = random_step(kind())
    assert torch.equal(without_text.logits(step), kind().logits(step))
    assert without.wakes(step.raw) == kind().wakes(step.raw)
    assert without.exits(LAYERS, False) == kind().exits(LAYERS, False)
    memory, expected = digested(without, seed=1), digested(kind(), seed=1)
    assert memory.keys() == expected.keys()
    assert all(torch.equal(memory[name], expected[name]) for name in memory)
    for hook in ("heads", "narrow"):
        found, known = getattr(without, hook)(memory), getattr(kind(), hook)(memory)
        assert found is known is None or torch.equal(found, known)
    scores, keys = random_attention()
    assert torch.equal(without.attend(scores, keys, step.memory), kind().attend(scores, keys, step.memory))


@every_strategy
def test_a_row_does_not_depend_on_its_neighbours(kind: type[Strategy]) -> None:
    strategy = kind()
    first, second, third = (random_step(strategy, seed=seed) for seed in range(3))
    assert torch.equal(strategy.logits(together([first, second]))[0], strategy.logits(together([first, third]))[0])


@every_strategy
@pytest.mark.parametrize("seed", range(5))
def test_branches_that_sleep_would_not_have_mattered(kind: type[Strategy], seed: int) -> None:
    """An engine may run them in every step, or only in those that wake them."""
    strategy, step = kind(), random_step(kind(), seed=seed)
    asleep = replace(step, branches={})
    if "wakes" in kind.hooks() and not strategy.wakes(step.raw):
        assert torch.equal(strategy.logits(step), strategy.logits(asleep))
    certain = replace(step, raw=step.raw.index_fill(-1, step.raw.argmax(), 50.0))
    torn = replace(step, raw=step.raw.where(step.raw == -torch.inf, 0.0))
    if "wakes" in kind.hooks():
        assert not strategy.wakes(certain.raw)
        assert torch.equal(strategy.logits(certain), certain.scores)
        assert strategy.wakes(torn.raw)
    else:
        assert strategy.wakes(certain.raw)


@every_strategy
def test_run_closes_cleanly_at_any_yield(kind: type[Strategy]) -> None:
    for yields in range(10):
        program, reply = kind().run(asking()), None
        try:
            for _ in range(yields):
                reply = canned(program.send(reply))
        except StopIteration:
            return
        program.close()
    pytest.fail("the strategy asks without end")


@every_strategy
@every_dtype
@pytest.mark.parametrize("top", [True, False])
def test_attention_is_edited_within_bounds(kind: type[Strategy], dtype: torch.dtype, top: bool) -> None:
    strategy = kind(**extreme(kind, top=top))
    scores, keys = random_attention(dtype)
    assert strategy.attend(scores, keys, random_step(strategy, dtype).memory).isfinite().all()


@every_strategy
def test_exits_are_layers_of_the_model(kind: type[Strategy]) -> None:
    for parameters in ({}, extreme(kind, top=False)):
        for layers in (1, 2, 3, 6, 8, 28, 32, 48):
            for tied in (True, False):
                exits = kind(**parameters).exits(layers, tied).layers
                assert all(0 <= exit_ < layers for exit_ in exits)
                assert bool(exits) == ("exits" in kind.hooks())


@every_strategy
def test_branches_and_memories_are_named_by_their_owner(kind: type[Strategy]) -> None:
    assert all(branch.startswith(f"{kind.name}/") for branch in rehearse(kind()).branches)


@every_strategy
def test_a_picture_is_demanded_where_it_matters(kind: type[Strategy]) -> None:
    program = kind().run(Ask(Prompt.of("Is there a cat?")))
    if kind.name in BLIND:
        with pytest.raises(StopIteration):
            next(program)
    else:
        with pytest.raises(BadRequest, match=f"'{kind.name}' needs a picture") as refused:
            next(program)
        assert refused.value.param == "messages"


@every_strategy
def test_docstring_names_the_paper(kind: type[Strategy]) -> None:
    assert kind.__doc__
    assert kind.paper == "none" or kind.paper in kind.__doc__
    assert kind.__doc__ != Strategy.__doc__


@every_strategy
def test_what_a_strategy_asks_follows_from_its_parameters(kind: type[Strategy]) -> None:
    """A strategy that is random without a seed could not be repeated, nor its cost told beforehand."""
    assert rehearse(kind()) == rehearse(kind())

"""The driver, with an engine that has no model."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, ClassVar

import pytest

from decoding.answer import Answer, Memory
from decoding.ask import Ask, Probe, Prompt, Relevance
from decoding.errors import BadRequest, EngineFailed, Unsupported
from decoding.stack import GROUNDING, Run, collect
from decoding.strategies.agla import AGLA
from decoding.strategies.auto import Auto
from decoding.strategies.vcd import VCD
from decoding.strategies.vdgd import VDGD
from decoding.strategies.vhr import VHR
from decoding.strategy import Program, Strategy
from tests.decoding.fakes import FakeEngine, asking, speckled


class Recorded(Strategy):
    """Base of the strategies below: notes in `log` what happens to its program."""

    paper = "none"
    log: ClassVar[list[str]] = []

    def run(self, ask: Ask) -> Program:
        self.log.append(f"{self.name} begins")
        try:
            return (yield from self.talk(ask))
        finally:
            self.log.append(f"{self.name} ends")

    def talk(self, ask: Ask) -> Program:
        return ask
        yield


class Draft(Recorded):
    """Asks for a draft, then for the answer in view of it."""

    name = "draft"

    def talk(self, ask: Ask) -> Program:
        draft: Answer = yield Ask(Prompt.of("draft", *ask.prompt.pictures))
        return ask.but(prompt=ask.prompt.with_question(f"{ask.prompt.question} <{draft.text}>"))


class Shout(Recorded):
    """Changes the question of everything that is asked through it."""

    name = "shout"

    def talk(self, ask: Ask) -> Program:
        return ask.but(prompt=ask.prompt.with_question(ask.prompt.question.upper()))
        yield


class Vote(Recorded):
    """Asks three times at once and ends without another answer."""

    name = "vote"

    def talk(self, ask: Ask) -> Program:
        answers: list[Answer] = yield [ask.but(prompt=Prompt.of(str(number))) for number in range(3)]
        texts = [answer.text for answer in answers]
        return answers[texts.index(max(texts, key=texts.count))]


class Slow(Recorded):
    """Thinks until it is let go, then asks."""

    name = "slow"
    thinking: ClassVar[threading.Event] = threading.Event()
    let_go: ClassVar[threading.Event] = threading.Event()

    def talk(self, ask: Ask) -> Program:
        self.thinking.set()
        self.let_go.wait(5)
        yield Ask(Prompt.of("draft"))
        return ask


@pytest.fixture(autouse=True)
def log() -> list[str]:
    Recorded.log.clear()
    Slow.thinking.clear()
    Slow.let_go.clear()
    return Recorded.log


async def answered(engine: FakeEngine, *stack: Strategy, ask: Ask | None = None, **options: Any) -> tuple[str, Run]:
    async with Run(stack, engine) as run:
        answer = await collect(run.stream(await run.resolve(ask or asking("Seen?"), **options)))
    return answer.text, run


def questions(engine: FakeEngine) -> list[str]:
    return [effect.prompt.question for effect in engine.history if isinstance(effect, Ask)]


async def test_without_strategies_the_ask_goes_to_the_engine_as_it_is() -> None:
    engine, ask = FakeEngine("Yes."), asking("Seen?")
    assert (await answered(engine, ask=ask))[0] == "Yes."
    assert engine.history == [ask]


async def test_questions_of_the_outer_strategy_go_through_the_inner_ones() -> None:
    engine = FakeEngine("A mat.", "Yes.")
    text, _ = await answered(engine, Draft(), Shout())
    assert text == "Yes."
    assert questions(engine) == ["DRAFT", "SEEN? <A MAT.>"]


async def test_questions_of_the_inner_strategy_do_not_go_through_the_outer_one() -> None:
    engine = FakeEngine("A mat.", "Yes.")
    await answered(engine, Shout(), Draft())
    assert questions(engine) == ["draft", "SEEN? <A mat.>"]


async def test_the_engine_gets_the_stack_outermost_first_and_with_every_branch_and_memory() -> None:
    engine, stack = FakeEngine(), (VCD(), AGLA(), VHR())
    await answered(engine, *stack)
    relevance, probe, final = engine.history
    assert isinstance(relevance, Relevance)
    assert isinstance(probe, Probe)
    assert isinstance(final, Ask)
    assert final.stack == stack
    assert set(final.branches) == {"vcd/noisy", "agla/local"}
    assert final.memories == {"vhr": Memory("memory 0")}


async def test_hooks_of_a_strategy_do_not_act_on_its_own_questions() -> None:
    engine, vdgd, vhr, agla = FakeEngine("A mat.", "Yes."), VDGD(), VHR(), AGLA()
    await answered(engine, agla, vdgd, vhr)
    description, final = (effect for effect in engine.history if isinstance(effect, Ask))
    assert description.stack == (vhr,)
    assert description.branches == {}
    assert final.stack == (agla, vdgd, vhr)


async def test_grounding_is_measured_on_the_prompt_that_the_strategies_leave() -> None:
    engine = FakeEngine("A mat.", "Yes.")
    await answered(engine, VDGD(), VCD(), grounding=True)
    description, final = (effect for effect in engine.history if isinstance(effect, Ask))
    assert GROUNDING not in description.branches
    assert final.compare == GROUNDING
    assert list(final.branches) == ["vcd/noisy", GROUNDING]
    assert final.branches[GROUNDING] == final.prompt.without_pictures()
    assert "A mat." in final.branches[GROUNDING].question


async def test_an_answer_ends_the_stack_without_another_question(log: list[str]) -> None:
    engine = FakeEngine("Yes.", "No.", "Yes.")
    assert (await answered(engine, Vote(), Shout()))[0] == "Yes."
    assert len(engine.history) == 3
    assert log[-1] == "vote ends"


async def test_what_the_questions_cost_is_added_up_and_the_answer_is_not() -> None:
    engine = FakeEngine()
    async with Run((VDGD(), VHR()), engine) as run:
        outcome = await run.resolve(asking())
        # A description with its two probed prompts, and the answer's two probed prompts.
        assert run.spent.forward_passes == engine.rows * (1 + 2 + 2)
        await collect(run.stream(outcome))
        assert run.spent.forward_passes == engine.rows * 5
        assert run.spent.steps == 0
        assert run.spent.seconds["prepare"] > 0


async def test_voting_costs_every_voice() -> None:
    engine = FakeEngine()
    assert (await answered(engine, Vote()))[1].spent.forward_passes == 3 * engine.rows


async def test_questions_asked_together_run_together_and_keep_their_order() -> None:
    engine = FakeEngine("A.", "B.", "B.")
    assert (await answered(engine, Vote()))[0] == "B."
    assert engine.most_running == 3
    assert questions(engine) == ["0", "1", "2"]


async def test_memories_are_forgotten_when_the_answer_is_done() -> None:
    engine = FakeEngine()
    async with Run((VDGD(), VHR()), engine) as run:
        await collect(run.stream(await run.resolve(asking())))
        assert len(engine.left) == 3
    assert engine.left == []


async def test_memories_are_forgotten_after_an_error(log: list[str]) -> None:
    engine = FakeEngine("A mat.", "A mat.", EngineFailed("It broke."))
    with pytest.raises(EngineFailed):
        await answered(engine, VHR(), VDGD(), Draft())
    assert len(engine.forgotten) == 2
    assert engine.left == []
    assert log == ["draft begins", "draft ends"] * 2


async def test_memories_are_forgotten_and_programs_closed_when_the_request_is_cancelled(log: list[str]) -> None:
    engine = FakeEngine(stuck_after=1)
    task = asyncio.create_task(answered(engine, VHR(), Draft()))
    await engine.stuck.acquire()
    assert len(engine.left) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.left == []
    assert engine.running == 0
    assert log[-1] == "draft ends"


async def test_a_request_can_be_cancelled_while_its_strategy_thinks(log: list[str]) -> None:
    """A generator cannot be closed while a thread runs it: `close` used to raise ValueError over the cancellation."""
    engine = FakeEngine()
    task = asyncio.create_task(answered(engine, Slow()))
    await asyncio.to_thread(Slow.thinking.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["slow begins"]
    Slow.let_go.set()
    for _ in range(500):
        await asyncio.sleep(0.01)
        if len(log) > 1:
            break
    assert log == ["slow begins", "slow ends"]
    assert engine.history == []


async def test_questions_asked_together_are_cancelled_together(log: list[str]) -> None:
    engine = FakeEngine(stuck_after=0)
    task = asyncio.create_task(answered(engine, Vote()))
    for _ in range(3):
        await engine.stuck.acquire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.running == 0
    assert engine.cut_short == 3
    assert log[-1] == "vote ends"


async def test_one_failure_among_questions_asked_together_ends_the_others_and_keeps_its_kind() -> None:
    """A server turns BadRequest into a 400; an exception group around it would be a 500."""
    engine = FakeEngine("A long answer that goes on and on.", BadRequest("Too long."), "Another long answer of words.")
    with pytest.raises(BadRequest, match="Too long"):
        await answered(engine, Vote())
    assert engine.running == 0
    assert engine.cut_short == 3


async def test_several_failures_among_questions_asked_together_are_one() -> None:
    engine = FakeEngine(EngineFailed("One."), EngineFailed("Two."), EngineFailed("Three."))
    with pytest.raises(EngineFailed):
        await answered(engine, Vote())


async def test_closing_the_stream_closes_the_engines_at_once() -> None:
    engine = FakeEngine("A long answer that goes on and on.")
    async with Run((), engine) as run:
        stream = run.stream(await run.resolve(asking()))
        await anext(stream)
        await stream.aclose()
        assert engine.cut_short == 1
        assert engine.running == 0


async def test_a_strategy_that_needs_a_picture_refuses_before_anything_runs() -> None:
    engine = FakeEngine()
    with pytest.raises(BadRequest, match="'vhr' needs a picture"):
        await answered(engine, VHR(), ask=Ask(Prompt.of("Seen?")))
    assert engine.history == []


async def test_a_strategy_that_the_engine_cannot_run_is_refused_before_the_others_ask_anything() -> None:
    """Previously, AGLA's picture was matched first."""
    engine = FakeEngine(lacks={"heads", "wakes"})
    async with Run((AGLA(), VHR()), engine) as run:
        with pytest.raises(Unsupported, match="cannot run 'vhr': it lacks heads") as refused:
            await run.resolve(asking())
    assert refused.value.param == "decoding.strategy"
    assert not engine.history
    async with Run((Auto(heads_by=1.0),), FakeEngine(lacks={"wakes"})) as run:
        assert isinstance(await run.resolve(asking()), Ask)


async def test_equal_asks_leave_equal_requests_to_the_engine() -> None:
    """What goes to the engine follows from the request alone."""
    engines = FakeEngine(), FakeEngine()
    for engine in engines:
        await answered(engine, AGLA(), VCD(), VHR(), ask=asking("Seen?", speckled(1), speckled(2)))
    assert engines[0].history == engines[1].history

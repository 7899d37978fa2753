"""The strategy runner, with a fake engine."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, ClassVar

import pytest
from structlog.testing import capture_logs

from decoding.errors import BadRequest, EngineFailed, StrategyFailed, Unsupported
from decoding.outputs import Answer, StateHandle
from decoding.pipeline.runner import GROUNDING, StrategyRunner, collect_answer
from decoding.requests import GenerateRequest, ProbeRequest, Prompt, RelevanceRequest
from decoding.strategies.agla import AGLA
from decoding.strategies.attention.vhr import VHR
from decoding.strategies.mvp import MVP
from decoding.strategies.vcd import VCD
from decoding.strategies.vdgd import VDGD
from decoding.strategies.verify import Verify
from decoding.strategy import Program, Strategy
from tests.decoding.fakes import RecordingEngine, make_request, random_image


class RecordedStrategy(Strategy):
    """Base class that records in `log` when its program begins and ends."""

    paper = "none"
    log: ClassVar[list[str]] = []

    def run(self, request: GenerateRequest) -> Program:
        self.log.append(f"{self.name} begins")
        try:
            return (yield from self.steps(request))
        finally:
            self.log.append(f"{self.name} ends")

    def steps(self, request: GenerateRequest) -> Program:
        return request
        yield


class DraftFirst(RecordedStrategy):
    """Makes a draft, and adds it to the question."""

    name = "draft"

    def steps(self, request: GenerateRequest) -> Program:
        draft: Answer = yield GenerateRequest(Prompt.from_text("draft", *request.prompt.images))
        return request.replace(prompt=request.prompt.with_question(f"{request.prompt.question} <{draft.text}>"))


class UpperCase(RecordedStrategy):
    """Changes the question to upper case."""

    name = "shout"

    def steps(self, request: GenerateRequest) -> Program:
        return request.replace(prompt=request.prompt.with_question(request.prompt.question.upper()))
        yield


class ThreeRequests(RecordedStrategy):
    """Makes three requests at once and returns one of the answers."""

    name = "vote"

    def steps(self, request: GenerateRequest) -> Program:
        answers: list[Answer] = yield [request.replace(prompt=Prompt.from_text(str(number))) for number in range(3)]
        texts = [answer.text for answer in answers]
        return answers[texts.index(max(texts, key=texts.count))]


class BlockingStrategy(RecordedStrategy):
    """Blocks until `may_continue` is set, then makes a request."""

    name = "slow"
    has_begun: ClassVar[threading.Event] = threading.Event()
    may_continue: ClassVar[threading.Event] = threading.Event()

    def steps(self, request: GenerateRequest) -> Program:
        self.has_begun.set()
        self.may_continue.wait(5)
        yield GenerateRequest(Prompt.from_text("draft"))
        return request


@pytest.fixture(autouse=True)
def log() -> list[str]:
    RecordedStrategy.log.clear()
    BlockingStrategy.has_begun.clear()
    BlockingStrategy.may_continue.clear()
    return RecordedStrategy.log


async def run_stack(
    engine: RecordingEngine, *stack: Strategy, request: GenerateRequest | None = None, **options: Any
) -> tuple[str, StrategyRunner]:
    async with StrategyRunner(stack, engine) as run:
        answer = await collect_answer(run.stream(await run.resolve(request or make_request("Seen?"), **options)))
    return answer.text, run


class SaltForger(Strategy):
    """A strategy that makes requests of every kind, with a salt of its own choice."""

    name = "forger"
    paper = "none"

    def run(self, request: GenerateRequest) -> Program:
        yield ProbeRequest({"with_image": request.prompt}, main="with_image", cache_salt="forged")
        yield RelevanceRequest(request.prompt.images[0], "a cat", cache_salt="forged")
        forged = GenerateRequest(request.prompt.with_question("Forged?"), cache_salt="forged")
        yield [forged, GenerateRequest(request.prompt)]
        yield forged
        return request.replace(cache_salt="forged")


@pytest.mark.parametrize("salt", ["own", None])
@pytest.mark.parametrize(
    "stack", [(SaltForger(),), (SaltForger(), VDGD()), (AGLA(), SaltForger()), (Verify(),), (MVP(),)]
)
async def test_every_request_of_a_strategy_has_the_salt_of_the_runner(
    stack: tuple[Strategy, ...], salt: str | None
) -> None:
    engine = RecordingEngine()
    request = make_request("Seen?")
    async with StrategyRunner(stack, engine, cache_salt=salt) as runner:
        outcome = await runner.resolve(request, check=Verify())
        await collect_answer(runner.stream(outcome))
    assert len(engine.history) > 1
    assert {effect.cache_salt for effect in engine.history} == {salt}


def questions(engine: RecordingEngine) -> list[str]:
    return [effect.prompt.question for effect in engine.history if isinstance(effect, GenerateRequest)]


async def test_empty_stack_passes_the_request_on() -> None:
    engine, request = RecordingEngine("Yes."), make_request("Seen?")
    assert (await run_stack(engine, request=request))[0] == "Yes."
    assert engine.history == [request]


async def test_requests_of_the_outer_strategy_go_through_the_inner_ones() -> None:
    engine = RecordingEngine("A mat.", "Yes.")
    text, _ = await run_stack(engine, DraftFirst(), UpperCase())
    assert text == "Yes."
    assert questions(engine) == ["DRAFT", "SEEN? <A MAT.>"]


async def test_requests_of_the_inner_strategy_skip_the_outer_one() -> None:
    engine = RecordingEngine("A mat.", "Yes.")
    await run_stack(engine, UpperCase(), DraftFirst())
    assert questions(engine) == ["draft", "SEEN? <A mat.>"]


async def test_engine_receives_the_stack_with_all_branches_and_states() -> None:
    engine, stack = RecordingEngine(), (VCD(), AGLA(), VHR())
    await run_stack(engine, *stack)
    relevance, probe, final = engine.history
    assert isinstance(relevance, RelevanceRequest)
    assert isinstance(probe, ProbeRequest)
    assert isinstance(final, GenerateRequest)
    assert final.stack == stack
    assert set(final.branches) == {"vcd/noisy", "agla/local"}
    assert final.states == {"vhr": StateHandle("state 0")}


async def test_hooks_of_a_strategy_do_not_act_on_its_own_requests() -> None:
    engine, vdgd, vhr, agla = RecordingEngine("A mat.", "Yes."), VDGD(), VHR(), AGLA()
    await run_stack(engine, agla, vdgd, vhr)
    description, final = (effect for effect in engine.history if isinstance(effect, GenerateRequest))
    assert description.stack == (vhr,)
    assert description.branches == {}
    assert final.stack == (agla, vdgd, vhr)


async def test_grounding_uses_the_final_prompt() -> None:
    engine = RecordingEngine("A mat.", "Yes.")
    await run_stack(engine, VDGD(), VCD(), grounding=True)
    description, final = (effect for effect in engine.history if isinstance(effect, GenerateRequest))
    assert GROUNDING not in description.branches
    assert final.grounding_branch == GROUNDING
    assert list(final.branches) == ["vcd/noisy", GROUNDING]
    assert final.branches[GROUNDING] == final.prompt.without_images()
    assert "A mat." in final.branches[GROUNDING].question


async def test_answer_ends_the_stack(log: list[str]) -> None:
    engine = RecordingEngine("Yes.", "No.", "Yes.")
    assert (await run_stack(engine, ThreeRequests(), UpperCase()))[0] == "Yes."
    assert len(engine.history) == 3
    assert log[-1] == "vote ends"


async def test_prior_usage_excludes_the_final_answer() -> None:
    engine = RecordingEngine()
    async with StrategyRunner((VDGD(), VHR()), engine) as run:
        outcome = await run.resolve(make_request())
        # A description with its two probed prompts, and the answer's two probed prompts.
        assert run.prior_usage.forward_passes == engine.rows * (1 + 2 + 2)
        await collect_answer(run.stream(outcome))
        assert run.prior_usage.forward_passes == engine.rows * 5
        assert run.prior_usage.steps == 0
        assert run.prior_usage.seconds["prepare"] > 0


async def test_prior_usage_includes_every_vote() -> None:
    engine = RecordingEngine()
    assert (await run_stack(engine, ThreeRequests()))[1].prior_usage.forward_passes == 3 * engine.rows


async def test_requests_of_a_list_run_together_and_keep_their_order() -> None:
    engine = RecordingEngine("A.", "B.", "B.")
    assert (await run_stack(engine, ThreeRequests()))[0] == "B."
    assert engine.most_running == 3
    assert questions(engine) == ["0", "1", "2"]


async def test_states_are_freed_after_the_answer() -> None:
    engine = RecordingEngine()
    async with StrategyRunner((VDGD(), VHR()), engine) as run:
        await collect_answer(run.stream(await run.resolve(make_request())))
        assert len(engine.held_states) == 3
    assert engine.held_states == []


async def test_states_are_freed_after_an_error(log: list[str]) -> None:
    engine = RecordingEngine("A mat.", "A mat.", EngineFailed("It broke."))
    with pytest.raises(EngineFailed):
        await run_stack(engine, VHR(), VDGD(), DraftFirst())
    assert len(engine.freed_states) == 2
    assert engine.held_states == []
    assert log == ["draft begins", "draft ends"] * 2


async def test_cancellation_frees_states_and_closes_programs(log: list[str]) -> None:
    engine = RecordingEngine(stuck_after=1)
    task = asyncio.create_task(run_stack(engine, VHR(), DraftFirst()))
    await engine.stuck.acquire()
    assert len(engine.held_states) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.held_states == []
    assert engine.running == 0
    assert log[-1] == "draft ends"


async def test_request_can_be_cancelled_while_its_text_side_runs(log: list[str]) -> None:
    """A generator cannot be closed while a thread runs it: `close` used to raise ValueError over the cancellation."""
    engine = RecordingEngine()
    task = asyncio.create_task(run_stack(engine, BlockingStrategy()))
    await asyncio.to_thread(BlockingStrategy.has_begun.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["slow begins"]
    BlockingStrategy.may_continue.set()
    for _ in range(500):
        await asyncio.sleep(0.01)
        if len(log) > 1:
            break
    assert log == ["slow begins", "slow ends"]
    assert engine.history == []


async def test_requests_of_a_list_are_cancelled_together(log: list[str]) -> None:
    engine = RecordingEngine(stuck_after=0)
    task = asyncio.create_task(run_stack(engine, ThreeRequests()))
    for _ in range(3):
        await engine.stuck.acquire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.running == 0
    assert engine.num_closed_early == 3
    assert log[-1] == "vote ends"


async def test_failure_of_a_request_cancels_the_rest_of_the_list() -> None:
    """A server turns BadRequest into a 400; an exception group around it would be a 500."""
    engine = RecordingEngine(
        "A long answer that goes on and on.", BadRequest("Too long."), "Another long answer of words."
    )
    with pytest.raises(BadRequest, match="Too long"):
        await run_stack(engine, ThreeRequests())
    assert engine.running == 0
    assert engine.num_closed_early == 3


async def test_several_failures_of_a_list_are_one_error() -> None:
    engine = RecordingEngine(EngineFailed("One."), EngineFailed("Two."), EngineFailed("Three."))
    with pytest.raises(EngineFailed):
        await run_stack(engine, ThreeRequests())


async def test_closing_the_stream_closes_the_engine_stream() -> None:
    engine = RecordingEngine("A long answer that goes on and on.")
    async with StrategyRunner((), engine) as run:
        stream = run.stream(await run.resolve(make_request()))
        await anext(stream)
        await stream.aclose()
        assert engine.num_closed_early == 1
        assert engine.running == 0


async def test_missing_image_is_refused_before_a_request_runs() -> None:
    engine = RecordingEngine()
    with pytest.raises(BadRequest, match="'vhr' needs an image"):
        await run_stack(engine, VHR(), request=GenerateRequest(Prompt.from_text("Seen?")))
    assert engine.history == []


async def test_missing_capability_is_refused_before_a_request_runs() -> None:
    """AGLA's image is not matched first."""
    engine = RecordingEngine(lacks={"head_scales", "needs_branches"})
    async with StrategyRunner((AGLA(), VHR()), engine) as run:
        with pytest.raises(Unsupported, match="cannot run 'vhr': it lacks head_scales") as refused:
            await run.resolve(make_request())
    assert refused.value.param == "decoding.strategy"
    assert not engine.history
    async with StrategyRunner((VCD(lazy=True),), RecordingEngine(lacks={"needs_branches"})) as run:
        assert isinstance(await run.resolve(make_request()), GenerateRequest)


async def test_equal_requests_give_equal_engine_requests() -> None:
    """Requests to the engine depend on the client's request only."""
    engines = RecordingEngine(), RecordingEngine()
    for engine in engines:
        await run_stack(engine, AGLA(), VCD(), VHR(), request=make_request("Seen?", random_image(1), random_image(2)))
    assert engines[0].history == engines[1].history


class FailingTextSide(Strategy):
    """Makes one request, then does what `how` names."""

    name = "failing"
    paper = "none"
    how: str

    def run(self, request: GenerateRequest) -> Any:
        yield GenerateRequest(request.prompt)
        match self.how:
            case "raises":
                raise LookupError("a secret")
            case "yields text":
                yield "text"
            case "yields a mixed list":
                yield [request, "text"]


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("raises", "failed: LookupError."),
        ("yields text", "yielded str instead of a request."),
        ("yields a mixed list", "yielded list instead of a request."),
        ("returns nothing", "returned NoneType instead of a GenerateRequest or an Answer."),
    ],
)
async def test_failing_text_side_is_named_and_logged(how: str, problem: str) -> None:
    engine = RecordingEngine()
    with capture_logs() as logs, pytest.raises(StrategyFailed) as failed:
        await run_stack(engine, VHR(), FailingTextSide(how=how))
    assert failed.value.message == f"Strategy 'failing' {problem}"
    assert isinstance(failed.value, EngineFailed)
    (event,) = logs
    assert (event["event"], event["strategy"]) == ("strategy_failed", "failing")
    assert engine.held_states == []


class RenamedVDGD(VDGD):
    """A subclass under another name."""

    name = "collector"


async def test_names_are_qualified_by_the_strategy_that_adds_them() -> None:
    engine = RecordingEngine("A mat.", "Yes.")
    await run_stack(engine, VCD(), RenamedVDGD(), VHR())
    first, description, second, final = engine.history
    assert isinstance(first, ProbeRequest)
    assert first.strategy == second.strategy == VHR()  # type: ignore[union-attr]
    assert isinstance(description, GenerateRequest)
    assert isinstance(description.state_updater, RenamedVDGD)
    assert isinstance(final, GenerateRequest)
    assert final.state_updater is None
    assert list(final.branches) == ["vcd/noisy"]
    assert set(final.states) == {"collector", "vhr"}
    assert final.state is None


@pytest.mark.parametrize("name", ["", "vcd/noisy", "/"])
def test_branch_name_with_a_slash_is_refused(name: str) -> None:
    request = make_request()
    with pytest.raises(ValueError, match="must not be empty or contain a slash"):
        request.with_branch(name, request.prompt)


def test_request_without_strategy_is_refused() -> None:
    prompt = make_request().prompt
    with pytest.raises(ValueError, match="needs a strategy"):
        _ = GenerateRequest(prompt, updates_state=True).state_updater
    with pytest.raises(ValueError, match="needs a strategy"):
        _ = ProbeRequest({"main": prompt}, main="main").strategy


async def test_request_with_a_state_is_not_drafted() -> None:
    """Its state folds the logits of one generation from start to end."""
    engine = RecordingEngine("A mat.", "Yes.")
    text, _ = await run_stack(engine, VDGD(), Verify())
    assert text == "Yes."
    assert engine.held_states == []

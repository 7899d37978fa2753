"""`verify` against scripted drafts and checks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from decoding.errors import BadRequest
from decoding.outputs import Answer
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.prompt import Shift
from decoding.requests import GenerateRequest, Prompt, SamplingParams
from decoding.sampling_params import Grammar
from decoding.strategies.verify import Verify, list_spellings
from decoding.text.stop_string_detector import StopStringDetector
from tests.decoding.fakes import make_request
from tests.decoding.scripted_engine import ScriptedEngine

SCENE = "The image shows a park with a dog. There is a cat and a bench. A kite can be seen."


def write_always(text: str) -> Any:
    """Write the same text whatever is ruled out."""
    return lambda prefix, ruled_out, seed: text[len(prefix) :] if text.startswith(prefix) else ""


async def verify(
    engine: ScriptedEngine, request: GenerateRequest | None = None, **parameters: Any
) -> tuple[Answer, StrategyRunner]:
    async with StrategyRunner([Verify(**{"views": 0, **parameters})], engine) as runner:
        return await collect_answer(runner.stream(await runner.resolve(request or make_request("Describe.")))), runner


def list_claims(answer: Answer) -> list[tuple[str, str | None]]:
    return [(claim.text, claim.action) for token in answer.tokens for claim in token.claims]


def list_ids(answer: Answer) -> list[int]:
    return [token.id for token in answer.tokens if token.id >= 0]


async def test_an_answer_whose_claims_pass_is_that_of_one_draft() -> None:
    engine = ScriptedEngine(write_always(SCENE), {})
    answer, runner = await verify(engine)
    assert answer.text == SCENE
    assert list_ids(answer) == [*engine.ids(SCENE), 100_000]
    assert answer.finish.reason == "stop"
    assert list_claims(answer) == [("dog", "kept"), ("cat", "kept"), ("bench", "kept"), ("kite", "kept")]
    assert len(engine.drafts) == 1
    assert engine.drafts[0].answer_prefix == ()
    assert engine.checked_questions == [f"Is there a {noun} in the image?" for noun in ("dog", "cat", "bench", "kite")]
    assert answer.finish.usage.completion_tokens == len(list_ids(answer))
    assert runner.prior_usage.forward_passes == 4  # the checks
    assert answer.finish.usage.forward_passes == len(list_ids(answer)) + 1


async def test_claims_have_the_offsets_of_the_answer() -> None:
    answer, _ = await verify(ScriptedEngine(write_always(SCENE), {}))
    for claim in (claim for token in answer.tokens for claim in token.claims):
        assert answer.text[claim.start : claim.end] == claim.text


async def test_a_failed_phrase_is_cut_off_and_ruled_out() -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        if "cat" in ruled_out:
            assert prefix == "The image shows a park with a dog. There is"
            return " a bird. A kite can be seen."
        return SCENE

    engine = ScriptedEngine(write, {"cat": 0.1})
    answer, _ = await verify(engine)
    assert answer.text == "The image shows a park with a dog. There is a bird. A kite can be seen."
    assert engine.drafts[1].ruled_out == ("cat", "cats", "Cat", "Cats")
    assert list_claims(answer) == [("dog", "kept"), ("cat", "replaced"), ("bird", "kept"), ("kite", "kept")]
    assert len(engine.checked_questions) == len(set(engine.checked_questions)), "equal questions are sent once"


async def test_all_failed_phrases_of_a_sentence_are_ruled_out_at_once() -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        return "." if prefix.endswith("is") and ruled_out else SCENE[len(prefix) :]

    engine = ScriptedEngine(write, {"cat": 0.1, "bench": 0.2})
    await verify(engine)
    assert {"cat", "bench"} <= set(engine.drafts[1].ruled_out)


async def test_nothing_is_sent_before_its_sentence_has_passed() -> None:
    engine = ScriptedEngine(write_always(SCENE), {"cat": 0.1})
    async with StrategyRunner([Verify(tries=0)], engine) as runner:
        text = ""
        async for token in runner.stream(await runner.resolve(make_request("Describe."))):
            text += token.text
            assert "cat" not in text


async def test_a_sentence_that_can_end_before_the_phrase_is_cut_short() -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        return "" if prefix.endswith("dog.") else "The image shows a park with a dog and a cat on a mat."[len(prefix) :]

    engine = ScriptedEngine(write, {"cat": 0.1})
    answer, _ = await verify(engine, tries=0)
    assert answer.text == "The image shows a park with a dog."
    assert list_claims(answer) == [("dog", "kept"), ("cat", "dropped")]
    assert engine.decode(engine.drafts[-1].answer_prefix) == answer.text
    assert answer.finish.reason == "stop"


async def test_a_sentence_that_is_cut_short_may_have_its_full_stop_already() -> None:
    """The draft after the failed phrase begins with the full stop, and its own end is not grammatical."""

    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        if prefix.endswith("boats."):
            return " A bench can be seen."
        return ". A" if ruled_out else "The image shows two boats cat."

    engine = ScriptedEngine(write, {"cat": 0.1})
    answer, _ = await verify(engine, tries=1)
    assert answer.text == "The image shows two boats. A bench can be seen."
    assert engine.drafts[-1].answer_prefix == tuple(engine.ids("The image shows two boats."))


async def test_a_sentence_that_cannot_end_before_the_phrase_is_dropped() -> None:
    engine = ScriptedEngine(write_always("The image shows a dog. A cat sits there."), {"cat": 0.1})
    answer, _ = await verify(engine, tries=2)
    assert answer.text == "The image shows a dog."
    assert list_claims(answer)[-1] == ("cat", "dropped")
    assert answer.finish.reason == "stop"
    assert len(engine.drafts) == 3


async def test_a_sentence_that_cannot_end_before_the_phrase_is_generated_from_its_beginning() -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        if prefix.endswith("dog."):
            return " There is a bench."
        return "The image shows a dog. People hold a cat there."[len(prefix) :]

    engine = ScriptedEngine(write, {"cat": 0.1})
    answer, _ = await verify(engine, tries=1)
    assert answer.text == "The image shows a dog. There is a bench."
    assert engine.decode(engine.drafts[-1].answer_prefix) == "The image shows a dog."
    assert "cat" in engine.drafts[-1].ruled_out
    assert list_claims(answer)[-1] == ("bench", "kept")


async def test_ungrammatical_text_does_not_replace_a_phrase() -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        if prefix.endswith("park."):
            return ""
        return " There is a park." if ruled_out else "The image shows a park and a cat."

    engine = ScriptedEngine(write, {"cat": 0.1})
    answer, _ = await verify(engine, tries=4)
    assert answer.text == "The image shows a park."
    assert len(engine.drafts) == 3, "without an alternative there are no more tries"


async def test_a_phrase_of_the_answer_does_not_replace_another() -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        if not ruled_out:
            return "There is a dog. There is a cat."
        return " a bench. A dog sits." if "dog" in ruled_out else " a dog."

    engine = ScriptedEngine(write, {"cat": 0.1})
    answer, _ = await verify(engine)
    assert answer.text == "There is a dog. There is a bench. A dog sits."
    assert list_claims(answer)[1:3] == [("cat", "replaced"), ("dog", "replaced")]


async def test_a_repeated_phrase_is_ruled_out_beside_a_failed_one() -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        if not ruled_out:
            return "There is a dog. There is a cat."
        return " a kite and a bench." if "bird" in ruled_out else " a dog and a bird."

    engine = ScriptedEngine(write, {"cat": 0.1, "bird": 0.1})
    answer, _ = await verify(engine)
    assert answer.text == "There is a dog. There is a kite and a bench."
    assert engine.decode(engine.drafts[-1].answer_prefix) == "There is a dog. There is"


async def test_text_without_a_phrase_leaves_it_out() -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        if prefix.endswith("park."):
            return ""
        return ". People sit on a bench." if ruled_out else "The image shows a park with a cat. People sit."

    answer, _ = await verify(ScriptedEngine(write, {"cat": 0.1}))
    assert answer.text == "The image shows a park."
    assert list_claims(answer) == [("cat", "dropped")]


async def test_the_sentence_behind_is_no_part_of_the_judged_one() -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        if not ruled_out:
            return "There is a dog and a cat. A kite flies."
        return " A kite flies." if prefix.endswith(".") else " a bench and a bird. A kite flies."

    answer, _ = await verify(ScriptedEngine(write, {"cat": 0.1, "bird": 0.1}), tries=1)
    assert answer.text == "There is a dog and a bench. A kite flies."
    assert list_claims(answer) == [
        ("cat", "replaced"),
        ("dog", "kept"),
        ("bench", "kept"),
        ("bird", "dropped"),
        ("kite", "kept"),
    ]


@pytest.mark.parametrize("first", ["There is a dog.", "There are two dogs."])
async def test_a_sentence_is_not_cut_down_to_one_that_names_nothing_new(first: str) -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        if prefix == first and ruled_out:
            return " A kite flies."
        return f"{first} There is a dog and a cat. A kite flies."[len(prefix) :] if not ruled_out else "."

    answer, _ = await verify(ScriptedEngine(write, {"cat": 0.1}))
    assert answer.text == f"{first} A kite flies."


@pytest.mark.parametrize(("stop", "text"), [(".", "There is a dog"), ("dog.", "There is a "), ("x", "There is a dog.")])
async def test_a_sentence_that_is_cut_short_ends_at_a_stop_string(stop: str, text: str) -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        return "There is a dog and a cat" if not ruled_out else ""

    request = make_request("Describe.").replace(sampling=SamplingParams(stop=(stop,)))
    answer, _ = await verify(ScriptedEngine(write, {"cat": 0.1}), request, tries=0)
    assert (answer.text, answer.finish.reason) == (text, "stop")


@pytest.mark.parametrize(
    ("text", "stop", "expected", "passes"),
    [
        ("A dog sits, a cat sits there.", ",", "A dog sits", 4),
        ("There is a dog, a bench, a cat.", ",", "There is a dog", 5),
        ("Yes, there is a cat.", ",", "Yes", 2),
        ("There is a dog. There is a cat.", ". There", "There is a dog", 7),
        ("There is a dog.\nThere is a cat.", "\n", "There is a dog.", 6),
    ],
)
@pytest.mark.parametrize("tries", [0, 2])
async def test_what_follows_a_stop_string_is_neither_checked_nor_awaited(
    text: str, stop: str, expected: str, passes: int, tries: int
) -> None:
    engine = ScriptedEngine(write_always(text), {"cat": 0.1, "bench": 0.1})
    request = make_request("Describe.").replace(sampling=SamplingParams(stop=(stop,)))
    answer, _ = await verify(engine, request, tries=tries)
    assert (answer.text, answer.finish.reason) == (expected, "stop")
    assert len(engine.drafts) == 1
    assert {name for name, _ in list_claims(answer)} <= {"dog"}
    assert answer.finish.usage.completion_tokens <= passes


@pytest.mark.parametrize("min_tokens", [0, 3, 8, 30])
async def test_a_stop_string_within_min_tokens_is_ordinary_text(min_tokens: int) -> None:
    text = "There is a dog, a bench, a kite. There is a cat, too."
    request = make_request("Describe.").replace(sampling=SamplingParams(stop=(",",), min_tokens=min_tokens))
    engine = ScriptedEngine(write_always(text), {})
    answer, _ = await verify(engine, request)
    detector, expected = StopStringDetector((",",), min_tokens), ""
    for id_ in engine.ids(text):
        if not detector.is_stopped:
            expected += detector.add(engine.words[id_])
    assert answer.text == expected + detector.flush()


async def test_a_claim_that_fails_before_a_stop_string_is_replaced() -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        return f"There is a {'dog' if ruled_out else 'cat'}, and a bench."[len(prefix) :]

    request = make_request("Describe.").replace(sampling=SamplingParams(stop=(",",)))
    answer, _ = await verify(ScriptedEngine(write, {"cat": 0.1, "bench": 0.1}), request)
    assert answer.text == "There is a dog"
    assert list_claims(answer) == [("cat", "replaced"), ("dog", "kept")]


@pytest.mark.parametrize("sampling", [SamplingParams(min_tokens=40), SamplingParams(ignore_eos=True)])
async def test_a_repeated_sentence_does_not_end_an_answer_that_must_go_on(sampling: SamplingParams) -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        return " a kite. There is a dog. A bird sits." if ruled_out else "There is a dog. There is a cat."

    engine = ScriptedEngine(write, {"cat": 0.1})
    answer, _ = await verify(engine, make_request("Describe.").replace(sampling=sampling))
    assert answer.text == "There is a dog. There is a kite. There is a dog. A bird sits."


async def test_an_answer_that_repeats_a_sentence_ends() -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        return " a dog. There is a dog. There is a dog." if ruled_out else "There is a dog. There is a cat."

    answer, _ = await verify(ScriptedEngine(write, {"cat": 0.1}))
    assert answer.text == "There is a dog."


async def test_an_answer_may_repeat_itself_while_nothing_is_ruled_out() -> None:
    text = "There is a dog. There is a dog."
    answer, _ = await verify(ScriptedEngine(write_always(text), {}))
    assert answer.text == text


@pytest.mark.parametrize("text", ["Yes", "Cat", "Everything is arranged in a natural way.", "Ein Hund auf der Bank."])
async def test_answers_without_claims_cost_nothing(text: str) -> None:
    engine = ScriptedEngine(write_always(text), {})
    answer, runner = await verify(engine)
    assert (answer.text, engine.checked_questions, len(engine.drafts)) == (text, [], 1)
    assert runner.prior_usage.forward_passes == 0


async def test_without_an_image_nothing_is_checked() -> None:
    engine = ScriptedEngine(write_always(SCENE), {"cat": 0.0})
    answer, _ = await verify(engine, GenerateRequest(Prompt.from_text("Describe a park.")))
    assert (answer.text, engine.checked_questions) == (SCENE, [])


async def test_a_grammar_is_refused_by_field() -> None:
    request = make_request("Describe.").replace(sampling=SamplingParams(grammar=Grammar("{}")))
    with pytest.raises(BadRequest) as caught:
        await verify(ScriptedEngine(write_always(SCENE), {}), request)
    assert caught.value.param == "response_format"


async def test_a_grammar_without_an_image_is_kept() -> None:
    text_only = GenerateRequest(Prompt.from_text("Write JSON."), SamplingParams(grammar=Grammar("{}")))
    answer, _ = await verify(ScriptedEngine(write_always(SCENE), {}), text_only)
    assert answer.text == SCENE


async def test_equal_questions_of_several_choices_are_put_once() -> None:
    engine = ScriptedEngine(write_always(SCENE), {"cat": 0.1})
    async with StrategyRunner([Verify(views=0)], engine) as runner:
        outcome = await runner.resolve(make_request("Describe."))
        first, second = [await collect_answer(runner.stream(outcome)) for _ in range(2)]
    assert first.text == second.text
    assert len(engine.checked_questions) == len(set(engine.checked_questions))


async def test_requests_for_choices_pass_by() -> None:
    engine = ScriptedEngine(write_always(""), {"dog": 0.25})
    request = make_request("Is there a dog in the image?").replace(scored_texts=("Yes", "yes", "No", "no"))
    async with StrategyRunner([Verify()], engine) as runner:
        outcome = await runner.resolve(request)
    assert outcome == request


async def test_max_tokens_ends_the_answer() -> None:
    engine = ScriptedEngine(write_always(SCENE), {})
    answer, _ = await verify(engine, make_request("Describe.").replace(sampling=SamplingParams(max_tokens=12)))
    assert list_ids(answer) == engine.ids(SCENE)[:12]
    assert answer.finish.reason == "length"


async def test_min_tokens_keeps_a_sentence_that_would_be_dropped() -> None:
    engine = ScriptedEngine(write_always("A cat sits there. A dog."), {"cat": 0.1})
    answer, _ = await verify(engine, make_request("Describe.").replace(sampling=SamplingParams(min_tokens=3)), tries=1)
    assert answer.text.startswith("A cat sits there.")
    assert ("cat", "kept") in list_claims(answer)


async def test_drafts_have_different_seeds_and_the_first_has_the_client_s() -> None:
    engine = ScriptedEngine(write_always("The image shows a dog. A cat sits there."), {"cat": 0.1})
    await verify(engine, make_request("Describe.").replace(sampling=SamplingParams(temperature=1.0, seed=7)), tries=2)
    seeds = [draft.sampling.seed for draft in engine.drafts]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3


async def test_debias_subtracts_the_log_odds_without_the_image() -> None:
    engine = ScriptedEngine(write_always("There is a dog."), {"dog": 0.6, "blind": 0.8})
    answer, _ = await verify(engine, debias=1.0, threshold=0.0)
    (claim,) = (claim for token in answer.tokens for claim in token.claims)
    assert claim.probability == pytest.approx((0.6 / 0.4) / (0.6 / 0.4 + 0.8 / 0.2))
    assert len(engine.checked_questions) == 2


async def test_each_question_is_put_about_each_view() -> None:
    engine = ScriptedEngine(write_always("There is a dog. A dog and a cat sit."), {"dog": (0.6, 0.9), "cat": 0.3})
    answer, _ = await verify(engine, views=2, threshold=0.0)
    dog, _, cat = (claim.probability for token in answer.tokens for claim in token.claims)
    assert dog == pytest.approx(1 / (1 + ((0.4 / 0.6) * (0.1 / 0.9)) ** 0.5))
    assert cat == pytest.approx(0.3)
    checks = [each for each in engine.history if isinstance(each, GenerateRequest) and each.scored_texts]
    assert [each.prompt.question for each in checks] == [
        question for noun in ("dog", "cat") for question in [f"Is there a {noun} in the image?"] * 2
    ]
    (draft,) = engine.drafts
    shifts = [image.shift for each in checks for image in each.prompt.images]
    assert shifts == [Shift(0.03, 0.03), None] * 2
    assert all(each.prompt.images[0].source is draft.prompt.images[0].source for each in checks)


async def test_choices_share_the_views() -> None:
    engine = ScriptedEngine(write_always("There is a dog."), {})
    async with StrategyRunner([Verify()], engine) as runner:
        outcome = await runner.resolve(make_request("Describe."))
        streams = [runner.stream(outcome) for _ in range(2)]
        await asyncio.gather(*map(collect_answer, streams))
    views = {
        id(each.prompt.images[0]) for each in engine.history if isinstance(each, GenerateRequest) and each.scored_texts
    }
    assert len(views) == 3


async def test_debias_subtracts_once_from_the_mean_of_the_views() -> None:
    engine = ScriptedEngine(write_always("There is a dog."), {"dog": 0.6, "blind": 0.8})
    answer, _ = await verify(engine, views=2, debias=1.0, threshold=0.0)
    (claim,) = (claim for token in answer.tokens for claim in token.claims)
    assert claim.probability == pytest.approx((0.6 / 0.4) / (0.6 / 0.4 + 0.8 / 0.2))
    assert len(engine.checked_questions) == 3


async def test_the_forward_passes_add_up() -> None:
    engine = ScriptedEngine(write_always("The image shows a dog. A cat sits there."), {"cat": 0.1})
    answer, runner = await verify(engine, tries=2)
    total = runner.prior_usage.forward_passes + answer.finish.usage.forward_passes
    most = sum(2 + len(engine.ids("The image shows a dog. A cat sits there.")) for _ in engine.drafts)
    assert 2 + len(list_ids(answer)) < total <= most + len(engine.checked_questions)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"threshold": 1.1}, "threshold"),
        ({"tries": -1}, "tries"),
        ({"debias": 2.0}, "debias"),
        ({"views": 4}, "views"),
        ({"views": -1}, "views"),
        ({"question": "Is it there?"}, "question"),
        ({"question": "<image> Is there {claim}?"}, "question"),
        ({"question": "[INST] Is there {claim}?"}, "question"),
        ({"language": "tlh"}, "language"),
    ],
)
def test_parameters_out_of_bounds_are_refused(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Verify(**parameters)
    assert caught.value.errors()[0]["loc"][0] == field


def test_spellings_include_plural_and_capital() -> None:
    assert list_spellings("person") == ["person", "people", "Person", "People"]
    assert list_spellings("wine glass") == ["wine glass", "wine glasses", "Wine glass", "Wine glasses"]

from decoding.answer import Answer
from decoding.ask import Ask, Probe, Relevance
from decoding.registry import strategies
from decoding.rehearsal import Rehearsal, rehearse
from decoding.strategy import Program, Strategy


class Vote(Strategy):
    """Asks three at once for a choice, and ends with what one of them said."""

    name = "vote"
    paper = "none"

    def run(self, ask: Ask) -> Program:
        answers: list[Answer] = yield [ask.but(choices=("Yes", "No"))] * 3
        return answers[0]


def test_needs_and_costs_follow_from_what_is_asked() -> None:
    nothing = Rehearsal(frozenset(), (), {})
    found = {name: rehearse(kind()) for name, kind in strategies().items()}
    assert found["zoomeye"].needs == {"choices"}
    assert set(found["zoomeye"].questions) == {"answers"}
    expected = {
        "plain": nothing,
        "truncate": Rehearsal(frozenset({"logits"}), (), {}),
        "sharpen": Rehearsal(frozenset({"logits"}), (), {}),
        "vcd": Rehearsal(frozenset({"logits", "branches", "noise"}), ("vcd/noisy",), {}),
        "icd": Rehearsal(frozenset({"logits", "branches"}), ("icd/disturbed",), {}),
        "m3id": Rehearsal(frozenset({"logits", "branches"}), ("m3id/blind",), {}),
        "sid": Rehearsal(
            frozenset({"logits", "branches", "narrow", "probe", "attention"}), ("sid/least",), {"probed prompts": 1}
        ),
        "avisc": Rehearsal(
            frozenset({"logits", "branches", "narrow", "probe", "attention"}), ("avisc/blind",), {"probed prompts": 1}
        ),
        "paint": Rehearsal(frozenset({"attend", "probe", "vision"}), (), {"probed prompts": 1}),
        "pai": Rehearsal(frozenset({"logits", "branches", "attend"}), ("pai/blind",), {}),
        "dola": Rehearsal(frozenset({"logits", "exits"}), (), {}),
        "deco": Rehearsal(frozenset({"logits", "exits"}), (), {}),
        "agla": Rehearsal(frozenset({"logits", "branches", "relevance"}), ("agla/local",), {"relevance maps": 1}),
        "vhr": Rehearsal(frozenset({"heads", "probe"}), (), {"probed prompts": 2}),
        "vdgd": Rehearsal(frozenset({"logits", "digest"}), (), {"answers": 1}),
        "auto": Rehearsal(
            frozenset({"logits", "branches", "noise", "heads", "probe", "relevance"}),
            ("auto/blind", "auto/noisy", "auto/local"),
            {"probed prompts": 2, "relevance maps": 1},
        ),
        "code": Rehearsal(frozenset({"logits", "branches"}), ("code/told",), {"answers": 1}),
        "mvp": Rehearsal(frozenset({"logprobs", "begin"}), (), {"answers": 3 + 3 + 9}, votes=True),
    }
    assert {name: found[name] for name in expected} == expected


def test_questions_asked_together_are_counted_one_by_one() -> None:
    assert rehearse(Vote()) == Rehearsal(frozenset({"choices"}), (), {"answers": 3}, votes=True)


def test_every_effect_has_a_canned_reply() -> None:
    """Probing, matching and asking in one program."""

    class Everything(Strategy):
        name = "everything"
        paper = "none"

        def run(self, ask: Ask) -> Program:
            (picture,) = ask.prompt.pictures
            yield Probe(self, {"seeing": ask.prompt}, main="seeing")
            yield Relevance(picture, ask.prompt.question)
            answer: Answer = yield ask.but(digest=self)
            assert answer.memory is not None
            return ask.remember(self, answer.memory)

    assert rehearse(Everything()) == Rehearsal(
        frozenset({"probe", "relevance", "digest"}), (), {"answers": 1, "probed prompts": 1, "relevance maps": 1}
    )

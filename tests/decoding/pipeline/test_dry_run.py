import pytest

from decoding.errors import StrategyFailed
from decoding.outputs import Answer
from decoding.pipeline.dry_run import DryRun, dry_run
from decoding.registry import list_strategies
from decoding.requests import GenerateRequest, ProbeRequest, RelevanceRequest
from decoding.strategy import Program, Strategy


class ThreeScoredRequests(Strategy):
    """Makes three requests for scored texts at once, and returns one of the answers."""

    name = "vote"
    paper = "none"

    def run(self, request: GenerateRequest) -> Program:
        answers: list[Answer] = yield [request.replace(scored_texts=("Yes", "No"))] * 3
        return answers[0]


def test_needs_and_costs_follow_from_the_requests() -> None:
    nothing = DryRun(frozenset(), (), {})
    found = {name: dry_run(kind()) for name, kind in list_strategies().items()}
    assert found["zoomeye"].needs == {"scored_texts"}
    assert set(found["zoomeye"].extra_requests) == {"answers"}
    expected = {
        "plain": nothing,
        "truncate": DryRun(frozenset({"logits"}), (), {}),
        "sharpen": DryRun(frozenset({"logits"}), (), {}),
        "vcd": DryRun(frozenset({"logits", "branches", "noise"}), ("noisy",), {}),
        "icd": DryRun(frozenset({"logits", "branches"}), ("disturbed",), {}),
        "m3id": DryRun(frozenset({"logits", "branches"}), ("blind",), {}),
        "sid": DryRun(
            frozenset({"logits", "branches", "keep_image_tokens", "probe", "attention"}),
            ("least",),
            {"probed prompts": 1},
            extra_rows=1,
        ),
        "avisc": DryRun(
            frozenset({"logits", "branches", "keep_image_tokens", "probe", "attention"}),
            ("blind",),
            {"probed prompts": 1},
            extra_rows=1,
        ),
        "ritual": DryRun(frozenset({"logits", "branches"}), ("transformed",), {}),
        "nolan": DryRun(frozenset({"logits", "branches"}), ("blind",), {}),
        "iat": DryRun(frozenset({"edit_attention_scores"}), (), {}),
        "adaiat": DryRun(frozenset({"edit_attention_scores", "attention_statistics"}), (), {}),
        "vaf": DryRun(frozenset({"edit_attention_scores"}), (), {}),
        "vista": DryRun(
            frozenset({"logits", "steer", "early_exit_layers", "probe", "hidden_states"}),
            (),
            {"probed prompts": 2},
            extra_rows=2,
        ),
        "fade": DryRun(frozenset({"steer"}), (), {}),
        "rudder": DryRun(
            frozenset({"steer", "probe", "attention_updates", "layer_inputs"}), (), {"probed prompts": 1}, extra_rows=1
        ),
        "vti": DryRun(frozenset({"steer", "vectors"}), (), {}),
        "steer": DryRun(frozenset({"steer", "vectors"}), (), {}),
        "spin": DryRun(frozenset({"gate_heads"}), (), {}),
        "hgai": DryRun(frozenset({"edit_attention_scores"}), (), {}),
        "sira": DryRun(
            frozenset({"logits", "branches", "keep_image_tokens", "probe", "attention"}),
            ("late",),
            {"probed prompts": 1},
            extra_rows=1,
        ),
        "damro": DryRun(
            frozenset({"logits", "branches", "keep_image_tokens", "probe", "vision_attention"}),
            ("outlier",),
            {"probed prompts": 1},
            extra_rows=1,
        ),
        "paint": DryRun(
            frozenset({"edit_attention_scores", "probe", "vision_attention"}), (), {"probed prompts": 1}, extra_rows=1
        ),
        "pai": DryRun(frozenset({"logits", "branches", "edit_attention_scores"}), ("blind",), {}),
        "dola": DryRun(frozenset({"logits", "early_exit_layers"}), (), {}),
        "deco": DryRun(frozenset({"logits", "early_exit_layers"}), (), {}),
        "agla": DryRun(frozenset({"logits", "branches", "relevance"}), ("local",), {"relevance maps": 1}),
        "vhr": DryRun(frozenset({"head_scales", "probe"}), (), {"probed prompts": 2}, extra_rows=2),
        "vdgd": DryRun(frozenset({"logits", "update_state"}), (), {"answers": 1}, extra_rows=1),
        "describe": DryRun(frozenset(), (), {"answers": 1}, extra_rows=1),
        "code": DryRun(frozenset({"logits", "branches"}), ("description",), {"answers": 1}, extra_rows=1),
        "mvp": DryRun(
            frozenset({"logprobs", "forced_token_ids"}), (), {"answers": 3 + 3 + 9}, extra_rows=9, votes=True
        ),
    }
    assert {name: found[name] for name in expected} == expected


def test_requests_of_a_list_are_counted_one_by_one() -> None:
    assert dry_run(ThreeScoredRequests()) == DryRun(
        frozenset({"scored_texts"}), (), {"answers": 3}, extra_rows=3, votes=True
    )


def test_every_effect_has_a_fake_reply() -> None:
    """One program makes requests of all kinds."""

    class Everything(Strategy):
        name = "everything"
        paper = "none"

        def run(self, request: GenerateRequest) -> Program:
            (image,) = request.prompt.images
            yield ProbeRequest({"with_image": request.prompt}, main="with_image")
            yield RelevanceRequest(image, request.prompt.question)
            answer: Answer = yield request.replace(updates_state=True)
            assert answer.state is not None
            return request.with_state(answer.state)

    assert dry_run(Everything()) == DryRun(
        frozenset({"probe", "relevance", "update_state"}),
        (),
        {"answers": 1, "probed prompts": 1, "relevance maps": 1},
        extra_rows=1,
    )


def test_strategy_without_end_is_refused() -> None:
    class Endless(Strategy):
        name = "endless"
        paper = "none"

        def run(self, request: GenerateRequest) -> Program:
            while True:
                yield [request] * 1000

    with pytest.raises(StrategyFailed, match="'endless' does not end a dry run"):
        dry_run(Endless())

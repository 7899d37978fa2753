"""Each rule reports a class that breaks it, and names the hook."""

from __future__ import annotations

from random import random
from typing import Annotated, Any, ClassVar

import pytest
import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from decoding.conformance.rules import RULES, get_rule_name, run_rules
from decoding.drafts import DraftProgram, ReadDraft, Segment, SendTokens, StartDraft
from decoding.logits_ops import mask_logits, plausibility_mask
from decoding.requests import GenerateRequest, ProbeRequest, RelevanceRequest
from decoding.strategy import (
    PER_ROW,
    TEXT_SIDE,
    Activations,
    AttentionKeys,
    EarlyExits,
    Program,
    Step,
    Strategy,
    Tensors,
)


class Base(Strategy):
    """A strategy without fault."""

    name = "base"
    paper = "none"


class ProbingStrategy(Base):
    """A strategy without fault that probes."""

    def run(self, request: GenerateRequest) -> Program:
        return request.with_state((yield ProbeRequest({"main": request.prompt}, main="main")))

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        return {"heads": activations.heads["main"].new_ones(activations.layers, len(activations.heads["main"]))}


class Undocumented(Strategy):
    name = "undocumented"
    paper = "none"


class Unpublished(Base):
    """A strategy whose paper is not a string."""

    paper: ClassVar[Any] = None


class Undescribed(Base):
    """A parameter without a description."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5


class Unbounded(Base):
    """A number without an upper bound."""

    alpha: Annotated[float, Field(ge=0, description="Weight.")] = 0.5


class LongText(Base):
    """A text without a maximum length."""

    text: Annotated[str | None, Field(description="Text.")] = None


class LongList(Base):
    """A list of unbounded numbers without a maximum length."""

    layers: Annotated[tuple[int, ...], Field(description="Layers.")] = ()


class Mutable(Base):
    """Parameters that can be changed."""

    model_config = ConfigDict(frozen=False)
    alpha: Annotated[float, Field(ge=0, le=1, description="Weight.")] = 0.5


class Lenient(Base):
    """Accepts unknown parameters."""

    model_config = ConfigDict(extra="ignore")


class NotAGenerator(Base):
    """A `run` that returns the request."""

    def run(self, request: GenerateRequest) -> Any:
        return request


class YieldsText(Base):
    """A `run` that yields something else than a request."""

    def run(self, request: GenerateRequest) -> Any:
        yield "text"


class ReturnsNothing(Base):
    """A `run` without a return value."""

    def run(self, request: GenerateRequest) -> Any:
        yield GenerateRequest(request.prompt)


class Raises(Base):
    """A `run` that raises."""

    def run(self, request: GenerateRequest) -> Program:
        raise LookupError("no such thing")
        yield


class NeedsImage(Base):
    """Takes an image for granted."""

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        assert request.prompt.images[0]
        return request


class Moody(Base):
    """Makes other requests in every other run."""

    runs: ClassVar[list[None]] = []

    def run(self, request: GenerateRequest) -> Program:
        self.runs.append(None)
        if len(self.runs) % 2:
            yield RelevanceRequest(request.prompt.require_images(self.name)[0], "a cat")
        return request


class RandomPrompt(Base):
    """A question that another run does not repeat, in as many requests as before."""

    def run(self, request: GenerateRequest) -> Program:
        yield GenerateRequest(request.prompt.with_question(f"Is this number {random()}?"))
        return request


class RandomBranch(Base):
    """A branch whose question another run does not repeat."""

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request.with_branch("noisy", request.prompt.with_question(str(random())))

    def logits(self, step: Step) -> Tensor:
        return step.scores + 0 * step.branches["noisy"].nan_to_num()


class DraftReadingStrategy(Base):
    """A strategy without fault that reads its own answer."""

    def stream(self, request: GenerateRequest) -> DraftProgram:
        yield StartDraft()
        segment: Segment = yield ReadDraft(lambda text: text.endswith("."))
        while segment.reason is None:
            yield SendTokens(segment.tokens)
            segment = yield ReadDraft(lambda text: text.endswith("."))
        yield SendTokens(segment.tokens)
        return segment.reason


class SendsTwice(Base):
    """Tokens that are sent as they are read, and then again."""

    def stream(self, request: GenerateRequest) -> DraftProgram:
        yield StartDraft()
        segment: Segment = yield ReadDraft(lambda text: False, send=True)
        yield SendTokens(segment.tokens)
        return "stop"


class RandomCheck(Base):
    """A question about the draft that another run does not repeat."""

    def stream(self, request: GenerateRequest) -> DraftProgram:
        yield StartDraft()
        yield ReadDraft(lambda text: False, send=True)
        yield [GenerateRequest(request.prompt.with_question(str(random())), scored_texts=("Yes", "No"))]
        return "stop"


class RestartsForever(Base):
    """A draft after every answer that is not Yes."""

    def stream(self, request: GenerateRequest) -> DraftProgram:
        answer = "No"
        while answer != "Yes":
            yield StartDraft()
            (reply,) = yield [GenerateRequest(request.prompt, scored_texts=("Yes", "No"))]
            answer = max(reply.text_logprobs, key=reply.text_logprobs.__getitem__)
        yield ReadDraft(lambda text: False, send=True)
        return "stop"


class NoDraft(Base):
    """Reads before a draft is started."""

    def stream(self, request: GenerateRequest) -> DraftProgram:
        yield ReadDraft(lambda text: False, send=True)
        return "stop"


class OtherReason(Base):
    """A finish reason that does not exist."""

    def stream(self, request: GenerateRequest) -> DraftProgram:
        yield StartDraft()
        return "done"  # type: ignore[return-value]


class Unstoppable(Base):
    """A `run` that goes on when it is closed."""

    def run(self, request: GenerateRequest) -> Program:
        try:
            yield GenerateRequest(request.prompt)
        except GeneratorExit:
            yield GenerateRequest(request.prompt)
        return request


class UnusedBranch(Base):
    """A branch that `logits` does not read."""

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request.with_branch("same", request.prompt)


class MissingBranch(Base):
    """A branch that the text side does not add."""

    def logits(self, step: Step) -> Tensor:
        return step.branches["noisy"]


class Wider(Base):
    """Scores of another dtype."""

    def logits(self, step: Step) -> Tensor:
        return step.scores.double()


class Cropped(Base):
    """Scores of another shape."""

    def logits(self, step: Step) -> Tensor:
        return step.scores[..., 1:]


class OneScale(ProbingStrategy):
    """Head scales of another shape."""

    def head_scales(self, state: Tensors) -> Tensor:
        return state["heads"][:1]


class WideAttention(Base):
    """Attention scores of another dtype."""

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        return scores.double()


class NotANumber(Base):
    """Makes nan from two -inf."""

    def logits(self, step: Step) -> Tensor:
        return step.scores - step.raw + step.raw


class NothingLeft(Base):
    """Rules out every token."""

    def logits(self, step: Step) -> Tensor:
        return torch.full_like(step.scores, -torch.inf)


class Revives(Base):
    """Makes tokens possible that are ruled out."""

    def logits(self, step: Step) -> Tensor:
        return step.scores.clamp(min=-100)


class Infinite(Base):
    """Attention scores that are not finite."""

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        return scores / 0


class InPlace(Base):
    """Changes its input."""

    def logits(self, step: Step) -> Tensor:
        return step.scores.mul_(2)


class Averages(Base):
    """Mixes the rows of a batch."""

    def logits(self, step: Step) -> Tensor:
        return step.scores - step.raw.max()


class Flat(Base):
    """Takes the first row of a batch for the vocabulary."""

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        return scores * (1 if scores.dim() == 2 else 2)


class ReadsTextSide(Base):
    """Reads a parameter in a hook that its mark excludes."""

    alpha: Annotated[float, Field(ge=0, le=1, description="Weight."), TEXT_SIDE] = 0.5

    def logits(self, step: Step) -> Tensor:
        return step.scores * (self.alpha or 1)


class NotPerRow(Base):
    """Reads a parameter in a way that a tensor does not allow."""

    alpha: Annotated[float, Field(ge=0, le=1, description="Weight."), PER_ROW] = 0.5

    def logits(self, step: Step) -> Tensor:
        return step.scores * round(self.alpha, 1)


class AlwaysReads(Base):
    """Reads its branch in a step that does not need it."""

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request.with_branch("blind", request.prompt.without_images())

    def needs_branches(self, raw: Tensor) -> Tensor:
        return torch.zeros(raw.shape[:-1], dtype=torch.bool, device=raw.device)

    def logits(self, step: Step) -> Tensor:
        return step.scores + 1 if step.branches.get("blind") is not None else step.scores


class TooDeep(Base):
    """Exits after the last layer."""

    def early_exit_layers(self, layers: int, tied: bool) -> EarlyExits:
        return EarlyExits((layers,))


class Resurrects(ProbingStrategy):
    """Keeps image tokens that an earlier layer has dropped."""

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request

    def keep_image_tokens(self, state: Tensors) -> Tensor:
        kept = torch.ones(8, 16, dtype=torch.bool)
        kept[2] = False
        return kept


class StillCut(Base):
    """Declares parameters as those without a cut which are not."""

    uncut = {"alpha": 0}
    alpha: Annotated[float, Field(ge=0, le=1, description="Weight.")] = 0.5

    def logits(self, step: Step) -> Tensor:
        return mask_logits(step.scores, plausibility_mask(step.raw, 0.5))


class NotNeutral(Base):
    """Declares parameters as neutral which are not."""

    neutral = {"alpha": 0}
    alpha: Annotated[float, Field(ge=0, le=1, description="Weight.")] = 0.5

    def logits(self, step: Step) -> Tensor:
        return step.scores * (2 + self.alpha)


class CopiesFromHost(Base):
    """Adds a tensor that it makes from numbers of the host."""

    def logits(self, step: Step) -> Tensor:
        return step.scores + torch.tensor([0.0, 0.0], device=step.scores.device)[0].to(step.scores.dtype)


class WaitsForValue(Base):
    """Decides by a value of the device."""

    def logits(self, step: Step) -> Tensor:
        return step.scores if step.raw.max() > 100 else step.raw.where(step.scores > -torch.inf, step.scores)


class SelectsByMask(Base):
    """Uses a mask as an index."""

    def logits(self, step: Step) -> Tensor:
        scores = step.scores.clone()
        scores[scores.isnan()] = -torch.inf
        return scores + 0 * step.raw[step.raw > -torch.inf].mean()


class MixesDevices(Base):
    """Adds a tensor of the host."""

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        return scores + torch.zeros(scores.shape, dtype=scores.dtype)


class StateOnHost(ProbingStrategy):
    """A state that is not on the device of the activations."""

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        return {"heads": torch.zeros(activations.layers, len(activations.heads["main"]))}


@pytest.mark.parametrize("strategy_class", [Base, ProbingStrategy, DraftReadingStrategy])
def test_correct_strategy_passes_every_rule(strategy_class: type[Strategy]) -> None:
    assert {result.rule: result.problems for result in run_rules(strategy_class)} == {
        get_rule_name(rule): () for rule in RULES
    }


@pytest.mark.parametrize(
    ("strategy_class", "rule", "problem"),
    [
        (Undocumented, "class-attributes", "the class has no docstring"),
        (Unpublished, "class-attributes", "`paper` is not a string"),
        (Undescribed, "parameters", "parameter `alpha` has no description"),
        (Unbounded, "parameters", "parameter `alpha` has no upper bound"),
        (LongText, "parameters", "parameter `text` has no maximum length"),
        (LongList, "parameters", "parameter `layers` has no maximum length"),
        (LongList, "parameters", "parameter `layers` has no lower bound"),
        (Mutable, "immutability", "parameter `alpha` can be changed"),
        (Lenient, "immutability", "unknown parameters are accepted"),
        (NotAGenerator, "text-side", "returned GenerateRequest from its text side, which must be a generator"),
        (YieldsText, "text-side", "yielded str instead of a request"),
        (ReturnsNothing, "text-side", "returned NoneType instead of a GenerateRequest or an Answer"),
        (Raises, "text-side", "Strategy 'base' failed: LookupError. (no such thing)"),
        (NeedsImage, "text-side", "`run` with 0 images: Strategy 'base' failed: IndexError"),
        (Moody, "text-side", "`run` makes other requests in a second dry run"),
        (RandomPrompt, "text-side", "`run` makes other requests in a second dry run"),
        (RandomBranch, "text-side", "`run` makes other requests in a second dry run"),
        (SendsTwice, "stream", "`stream` sends a token of a draft twice"),
        (RandomCheck, "stream", "`stream` has other effects in a second run with equal drafts"),
        (RestartsForever, "stream", "`stream` does not end within 1000 effects"),
        (NoDraft, "stream", "read a draft before it started one"),
        (OtherReason, "stream", "returned 'done' from `stream` instead of a finish reason"),
        (Unstoppable, "text-side", "`run` cannot be closed after 1 requests"),
        (UnusedBranch, "branches", "`logits` does not read the branch 'same'"),
        (MissingBranch, "branches", "`logits` raised KeyError: 'noisy'"),
        (Wider, "layout-kept", "returned torch.float64 [50] on cpu from `logits`"),
        (Cropped, "layout-kept", "from `logits` instead of torch.float32 [50]"),
        (OneScale, "layout-kept", "`head_scales` returned [1, 6] instead of [layers, heads]"),
        (WideAttention, "layout-kept", "`edit_attention_scores` returned torch.float64"),
        (NotANumber, "values", "`logits` returned nan"),
        (NothingLeft, "values", "`logits` left no token"),
        (Revives, "values", "`logits` made a token possible whose score was -inf"),
        (Infinite, "values", "`edit_attention_scores` returned values that are not finite"),
        (InPlace, "inputs-unchanged", "`logits` modifies its input"),
        (Averages, "batch", "`logits` gives rows of a batch other values than alone"),
        (Flat, "batch", "`edit_attention_scores` gives rows of a batch other values than alone"),
        (ReadsTextSide, "marks", "`logits` reads a parameter whose mark excludes it"),
        (NotPerRow, "marks", "`logits` raised TypeError"),
        (AlwaysReads, "lazy-branches", "`logits` depends on branches in a step for which `needs_branches` is false"),
        (TooDeep, "early-exits", "`early_exit_layers` returned (1,) for a model of 1 layers"),
        (Resurrects, "image-tokens", "`keep_image_tokens` keeps a token in a layer after one that drops it"),
        (CopiesFromHost, "device", "`logits` raised"),
        (WaitsForValue, "device", "`logits` raised DataDependentOutputException"),
        (SelectsByMask, "device", "`logits` raised DynamicOutputShapeException"),
        (MixesDevices, "device", "`edit_attention_scores` raised"),
        (StateOnHost, "device", "`update_state` returned 'heads' on the host"),
        (StillCut, "uncut", "`logits` rules tokens out with the `uncut` parameters"),
        (NotNeutral, "neutral", "`logits` changes scores with neutral parameters"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_broken_strategy_is_reported_by_rule_and_hook(strategy_class: type[Strategy], rule: str, problem: str) -> None:
    results = {result.rule: result.problems for result in run_rules(strategy_class)}
    assert [each for each in results[rule] if problem in each], results

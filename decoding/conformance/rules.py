"""Rules of the plugin interface. Each rule yields the problems that it finds in a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from decoding.conformance.device_rule import check_device
from decoding.conformance.fake_drafts import MAX_EFFECTS, FakeDrafts, list_sent_tokens
from decoding.conformance.hook_calls import HookError, Problems, Rule, call
from decoding.conformance.samples import (
    DTYPES,
    HEADS,
    IMAGE_TOKENS,
    LAYERS,
    MODEL_DEPTHS,
    RecordedBranches,
    Samples,
    batch_steps,
    collect_parameter_sets,
    draw_activations,
    draw_attention,
    get_numeric_bounds,
    list_tensors,
    stack_keys,
)
from decoding.conformance.steering_rule import check_steering
from decoding.drafts import ReadDraft
from decoding.errors import OnlySeenError, StrategyFailed
from decoding.outputs import NO_TOKEN
from decoding.pipeline.composition import batch_stacks, check_layout, find_invalid_values
from decoding.pipeline.dry_run import QUESTION, build_fake_reply, create_blank_image, run_program
from decoding.pipeline.program import ProgramResult, StrategyProgram, start_program
from decoding.requests import GenerateRequest, ProbeRequest, Prompt
from decoding.strategy import PER_ROW, TEXT_SIDE, Strategy
from decoding.tensor_hooks import ATTENTION_HOOKS

SEEDS = range(4)
MAX_PROBLEMS = 5  # reported per rule


@dataclass(frozen=True, slots=True)
class RuleResult:
    """Outcome of one rule."""

    rule: str
    problems: tuple[str, ...]


def run_rules(strategy_class: type[Strategy]) -> list[RuleResult]:
    """Apply all rules."""
    return [apply_rule(rule, strategy_class) for rule in RULES]


def apply_rule(rule: Rule, strategy_class: type[Strategy]) -> RuleResult:
    """Apply one rule. An exception of the strategy is a problem."""
    problems: list[str] = []
    try:
        for problem in rule(strategy_class):
            if problem not in problems:
                problems.append(problem)
            if len(problems) == MAX_PROBLEMS:
                break
    except HookError as error:
        problems.append(str(error))
    except StrategyFailed as error:
        problems.append(describe_failure(error))
    except Exception as error:
        problems.append(f"an exception that no hook call explains: {type(error).__name__}: {error}")
    return RuleResult(get_rule_name(rule), tuple(problems))


def get_rule_name(rule: Rule) -> str:
    """Return the name of a rule in reports, as in "inputs-unchanged"."""
    return rule.__name__.removeprefix("check_").replace("_", "-")


def describe_failure(error: StrategyFailed) -> str:
    """Return the message of an error with the text of its cause."""
    return f"{error.message} ({error.__cause__})" if error.__cause__ else error.message


def check_class_attributes(strategy_class: type[Strategy]) -> Problems:
    """Require a name, a paper and a docstring of the class."""
    for attribute in ("name", "paper"):
        if not isinstance(getattr(strategy_class, attribute, None), str):
            yield f"`{attribute}` is not a string"
    if not (strategy_class.__doc__ or "").strip() or strategy_class.__doc__ == Strategy.__doc__:
        yield "the class has no docstring"


def check_parameters(strategy_class: type[Strategy]) -> Problems:
    """Require a default and a description of every parameter, and bounds of every number, text and list."""
    for name, info in strategy_class.model_fields.items():
        if info.is_required():
            yield f"parameter `{name}` has no default"
        if not info.description:
            yield f"parameter `{name}` has no description"
    for name, schema in strategy_class.model_json_schema().get("properties", {}).items():
        yield from (f"parameter `{name}` {problem}" for problem in find_missing_bounds(schema))


def find_missing_bounds(schema: Mapping[str, Any]) -> Problems:
    """Find values of a JSON schema that have no bound."""
    for alternative in schema.get("anyOf", ()):
        yield from find_missing_bounds(alternative)
    match schema.get("type"):
        case "number" | "integer":
            if "minimum" not in schema and "exclusiveMinimum" not in schema:
                yield "has no lower bound"
            if "maximum" not in schema and "exclusiveMaximum" not in schema:
                yield "has no upper bound"
        case "string" if "enum" not in schema and "const" not in schema and "maxLength" not in schema:
            yield "has no maximum length"
        case "array":
            if "maxItems" not in schema:
                yield "has no maximum length"
            yield from find_missing_bounds(schema.get("items", {}))


def check_immutability(strategy_class: type[Strategy]) -> Problems:
    """Require that parameters cannot change, unknown ones are refused, and JSON rebuilds an equal strategy."""
    for name in strategy_class.model_fields:
        try:
            setattr(strategy_class(), name, 1)
        except (ValidationError, TypeError, AttributeError):
            continue
        yield f"parameter `{name}` can be changed; keep `frozen` in `model_config`"
    try:
        strategy_class.model_validate({"no_such_parameter": 1})
        yield 'unknown parameters are accepted; keep `extra` at "forbid" in `model_config`'
    except ValidationError:
        pass
    for label, parameters in collect_parameter_sets(strategy_class).items():
        strategy = strategy_class(**parameters)
        if strategy_class.model_validate_json(strategy.model_dump_json()) != strategy:
            yield f"JSON does not rebuild an equal strategy ({label} parameters)"


def check_text_side(strategy_class: type[Strategy]) -> Problems:
    """Require that `run` ends in a dry run, makes equal requests each time, and can be closed at any yield."""
    if not have_equal_effects(*(run_program(strategy_class()) for _ in range(2))):
        yield "`run` makes other requests in a second dry run; draw random numbers from a seed among the parameters"
    for images in (0, 2):
        program = start_program(
            strategy_class(), GenerateRequest(Prompt.from_text(QUESTION, *[create_blank_image()] * images))
        )
        try:
            program.advance(None)
        except StrategyFailed as error:
            yield f"`run` with {images} images: {describe_failure(error)}"
        except OnlySeenError:
            continue
        yield from close(program, f"on a prompt with {images} images")
    yields, is_finished = 0, False
    while not is_finished:
        request, reply = GenerateRequest(Prompt.from_text(QUESTION, create_blank_image())), None
        program = start_program(strategy_class(), request)
        for _ in range(yields):
            effect = program.advance(reply)
            if isinstance(effect, ProgramResult):
                is_finished = True
                break
            reply = build_fake_reply(effect)
        yield from close(program, f"after {yields} requests")
        yields += 1


def have_equal_effects(one: tuple[Sequence[Any], Any], other: tuple[Sequence[Any], Any]) -> bool:
    """Compare the effects and the outcomes of two runs. The functions of `ReadDraft` are not compared."""
    comparable = [
        ([replace(effect, until=bool) if isinstance(effect, ReadDraft) else effect for effect in effects], outcome)
        for effects, outcome in (one, other)
    ]
    return comparable[0] == comparable[1]


def check_stream(strategy_class: type[Strategy]) -> Problems:
    """Require that `stream` ends, has equal effects for equal drafts, and sends each token of a draft at most once."""
    if not strategy_class.overrides_stream():
        return
    for favoured in ("first", "last"):
        case = f"where the {favoured} scored text is the likeliest"
        runs = [FakeDrafts(favoured == "first").run(strategy_class()) for _ in range(2)]
        if not have_equal_effects(*runs):
            yield f"`stream` has other effects in a second run with equal drafts, {case}"
        effects, outcome = runs[0]
        if outcome is None:
            yield f"`stream` does not end within {MAX_EFFECTS} effects, {case}"
        sent = Counter(token.id for token in list_sent_tokens(effects) if token.id != NO_TOKEN)
        if any(count > 1 for count in sent.values()):
            yield f"`stream` sends a token of a draft twice, {case}"


def close(program: StrategyProgram, case: str) -> Problems:
    """Close a program, which must not raise."""
    try:
        program.close()
    except Exception as error:
        yield f"`run` cannot be closed {case}: {type(error).__name__}: {error}"


def check_branches(strategy_class: type[Strategy]) -> Problems:
    """Require that `logits` reads every branch that the text side adds, and no other."""
    strategy = strategy_class()
    samples = Samples(strategy)
    step = samples.step(strategy)
    branches = RecordedBranches(step.branches)
    call(strategy, "logits", replace(step, branches=branches))
    for name in samples.branches:
        if name not in branches.names_read:
            yield f"`logits` does not read the branch '{name}'"


def check_layout_kept(strategy_class: type[Strategy]) -> Problems:
    """Require that hooks keep shape, dtype and device."""
    strategy = strategy_class()
    samples = Samples(strategy)
    for dtype in DTYPES:
        step = samples.step(strategy, dtype)
        check_layout(strategy, call(strategy, "logits", step), step.scores)
        scales = call(strategy, "head_scales", step.state)
        if scales is not None and scales.shape != (LAYERS, HEADS):
            yield f"`head_scales` returned {list(scales.shape)} instead of [layers, heads], {[LAYERS, HEADS]}"
        scores, keys = draw_attention(dtype)
        for hook, like in (("edit_attention_scores", scores), ("gate_heads", scores[..., 0])):
            found = call(strategy, hook, scores, keys, step.state)
            if found is not None and (found.shape, found.dtype, found.device) != (like.shape, dtype, like.device):
                yield f"`{hook}` returned {found.dtype} {list(found.shape)} instead of {dtype} {list(like.shape)}"


def check_values(strategy_class: type[Strategy]) -> Problems:
    """Require that hooks return no nan and no infinity, keep -inf at -inf, and leave a token to sample."""
    for label, parameters in collect_parameter_sets(strategy_class).items():
        strategy = strategy_class(**parameters)
        samples = Samples(strategy)
        for dtype in DTYPES:
            case = f"({label} parameters, {dtype})"
            for seed in SEEDS:
                step = samples.step(strategy, dtype, seed)
                after = check_layout(strategy, call(strategy, "logits", step), step.scores)
                if (problem := find_invalid_values(after)) is not None:
                    yield f"`logits` {problem} {case}"
                if (after[step.scores == -torch.inf] > -torch.inf).any():
                    yield f"`logits` made a token possible whose score was -inf {case}"
                scales = call(strategy, "head_scales", step.state)
                if scales is not None and not scales.isfinite().all():
                    yield f"`head_scales` returned values that are not finite {case}"
                for hook in sorted(ATTENTION_HOOKS):
                    found = call(strategy, hook, *draw_attention(dtype, seed), step.state)
                    if found is not None and not found.isfinite().all():
                        yield f"`{hook}` returned values that are not finite {case}"


def check_inputs_unchanged(strategy_class: type[Strategy]) -> Problems:
    """Require that hooks do not modify the tensors that they receive."""
    strategy = strategy_class()
    samples = Samples(strategy)
    step = samples.step(strategy)
    scores, keys = draw_attention()
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("logits", (step,)),
        ("needs_branches", (step.raw,)),
        ("head_scales", (step.state,)),
        ("keep_image_tokens", (step.state,)),
        ("edit_attention_scores", (scores, keys, step.state)),
        ("gate_heads", (scores, keys, step.state)),
    ]
    for request in samples.requests:
        if isinstance(request, ProbeRequest) or (isinstance(request, GenerateRequest) and request.updates_state):
            calls += [("update_state", (step.state, activations)) for activations in draw_activations(request, seed=1)]
    inputs = [*list_tensors(step), scores, keys.image_token_index, keys.is_generated]
    before = [tensor.clone() for tensor in inputs]
    for hook, arguments in calls:
        call(strategy, hook, *arguments)
        if not all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True)):
            yield f"`{hook}` modifies its input"
            return


def check_batch(strategy_class: type[Strategy]) -> Problems:
    """Require that a batch gives each row the result that it has alone, whatever the other rows are."""
    strategy = strategy_class()
    samples = Samples(strategy)
    for dtype in DTYPES:
        steps = [samples.step(strategy, dtype, seed) for seed in SEEDS]
        batch = batch_steps(steps)
        yield from compare_rows("logits", call(strategy, "logits", batch), [call(strategy, "logits", s) for s in steps])
        scales = [call(strategy, "head_scales", step.state) for step in steps]
        if scales[0] is not None:
            yield from compare_rows("head_scales", call(strategy, "head_scales", batch.state), scales)
        needed = [call(strategy, "needs_branches", step.raw) for step in steps]
        yield from compare_rows("needs_branches", call(strategy, "needs_branches", batch.raw), needed)
        attention = [draw_attention(dtype, seed) for seed in SEEDS]
        keys = stack_keys([each for _, each in attention])
        scores = torch.stack([each for each, _ in attention])
        for hook in sorted(ATTENTION_HOOKS):
            alone = [call(strategy, hook, *each, step.state) for each, step in zip(attention, steps, strict=True)]
            if alone[0] is not None:
                yield from compare_rows(hook, call(strategy, hook, scores, keys, batch.state), alone)


def compare_rows(hook: str, batch: Tensor, rows: list[Tensor]) -> Problems:
    """Compare the result of a batch, [rows, *shape], with the results of its rows, each [*shape]."""
    expected = torch.stack(rows)
    if batch.shape != expected.shape:
        yield f"`{hook}` returned {list(batch.shape)} instead of {list(expected.shape)} for a batch"
    elif not torch.equal(batch.nan_to_num(), expected.nan_to_num()):
        yield f"`{hook}` gives rows of a batch other values than alone"


def check_marks(strategy_class: type[Strategy]) -> Problems:
    """Require that only `logits` and `needs_branches` read `PER_ROW` parameters, and no hook `TEXT_SIDE` parameters."""
    samples = Samples(strategy_class())
    step = samples.step(strategy_class())
    without_text = strategy_class().model_copy(update=dict.fromkeys(strategy_class.find_marked_fields(TEXT_SIDE)))
    without = without_text.model_copy(update=dict.fromkeys(strategy_class.find_marked_fields(PER_ROW)))
    scores, keys = draw_attention()
    calls: list[tuple[Strategy, str, tuple[Any, ...]]] = [
        (without_text, "logits", (step,)),
        (without_text, "needs_branches", (step.raw,)),
        (without, "early_exit_layers", (LAYERS, False)),
        (without, "head_scales", (step.state,)),
        (without, "keep_image_tokens", (step.state,)),
        (without, "edit_attention_scores", (scores, keys, step.state)),
        (without, "gate_heads", (scores, keys, step.state)),
    ]
    for strategy, hook, arguments in calls:
        expected = call(strategy_class(), hook, *arguments)
        try:
            is_equal = has_equal_value(call(strategy, hook, *arguments), expected)
        except HookError:
            is_equal = False
        if not is_equal:
            yield f"`{hook}` reads a parameter whose mark excludes it"
    state = samples.fold_state(strategy_class(), seed=1)
    if not has_equal_value(samples.fold_state(without, seed=1), state):
        yield "`update_state` reads a parameter whose mark excludes it"
    yield from check_per_row_values(strategy_class, samples)


def check_per_row_values(strategy_class: type[Strategy], samples: Samples) -> Problems:
    """Require that rows whose `PER_ROW` parameters differ get in one call what each gets alone."""
    bounds = {name: get_numeric_bounds(strategy_class, name) for name in strategy_class.find_marked_fields(PER_ROW)}
    if not bounds:
        return
    random = Random(0)
    rows = [strategy_class(**{name: each["least"] for name, each in bounds.items()})] + [
        strategy_class(**{name: random.uniform(each["least"], min(each["most"], 4)) for name, each in bounds.items()})
        for _ in range(7)
    ]
    (batched,) = batch_stacks([(row,) for row in rows], torch.device("cpu"))
    lazy_rows = [make_lazy(row) for row in rows]
    (lazy_batched,) = batch_stacks([(row,) for row in lazy_rows], torch.device("cpu"))
    for dtype in DTYPES:
        steps = [samples.step(strategy_class(), dtype, seed) for seed in range(len(rows))]
        batch = batch_steps(steps)
        alone = [call(row, "logits", step) for row, step in zip(rows, steps, strict=True)]
        needed = [call(row, "needs_branches", step.raw) for row, step in zip(lazy_rows, steps, strict=True)]
        for problem in (
            *compare_rows("logits", call(batched, "logits", batch), alone),
            *compare_rows("needs_branches", call(lazy_batched, "needs_branches", batch.raw), needed),
        ):
            yield f"{problem}, where `PER_ROW` parameters differ"


def has_equal_value(value: Any, expected: Any) -> bool:
    """Compare results of hooks: tensors, states, layers or None."""
    if isinstance(expected, Tensor):
        return isinstance(value, Tensor) and torch.equal(value, expected)
    if isinstance(expected, Mapping):
        return value.keys() == expected.keys() and all(torch.equal(value[name], expected[name]) for name in expected)
    return bool(value == expected)


def check_lazy_branches(strategy_class: type[Strategy]) -> Problems:
    """Require that branches do not change the output where `needs_branches` is false."""
    strategy = make_lazy(strategy_class())
    if not strategy.has_lazy_branches():
        return
    samples = Samples(strategy)
    for seed in SEEDS:
        drawn = samples.step(strategy, seed=seed)
        certain = replace(drawn, raw=drawn.raw.index_fill(-1, drawn.raw.argmax(), 50.0))
        for step in (drawn, certain):
            needed = call(strategy, "needs_branches", step.raw)
            if (needed.shape, needed.dtype) != (step.raw.shape[:-1], torch.bool):
                yield f"`needs_branches` returned {needed.dtype} {list(needed.shape)} instead of one bool per row"
            elif not needed:
                without = call(strategy, "logits", replace(step, branches={}))
                if not have_equal_output(call(strategy, "logits", step), without):
                    yield "`logits` depends on branches in a step for which `needs_branches` is false"


def make_lazy(strategy: Strategy) -> Strategy:
    """Set a parameter `lazy`, if the strategy has one."""
    return strategy.model_copy(update={"lazy": True}) if "lazy" in type(strategy).model_fields else strategy


def have_equal_output(scores: Tensor, other: Tensor) -> bool:
    """Return whether [vocab] scores are equal, or leave the same single token."""
    is_possible, other_is_possible = scores > -torch.inf, other > -torch.inf
    is_certain = int(is_possible.sum()) == 1 and torch.equal(is_possible, other_is_possible)
    return is_certain or torch.equal(scores, other)


def check_early_exits(strategy_class: type[Strategy]) -> Problems:
    """Require that `early_exit_layers` selects layers that the model has, before its last one."""
    if "early_exit_layers" not in strategy_class.list_hooks():
        return
    for label, parameters in collect_parameter_sets(strategy_class).items():
        if label == "largest":  # may name a layer that small models lack, which engines refuse by name
            continue
        for layers in MODEL_DEPTHS:
            for tied in (True, False):
                found = call(strategy_class(**parameters), "early_exit_layers", layers, tied).layers
                if not found or not all(0 <= layer < layers for layer in found):
                    yield f"`early_exit_layers` returned {found} for a model of {layers} layers ({label} parameters)"


def check_image_tokens(strategy_class: type[Strategy]) -> Problems:
    """Require that `keep_image_tokens` returns a mask in which no layer keeps a token that an earlier one dropped."""
    if "keep_image_tokens" not in strategy_class.list_hooks():
        return
    strategy = strategy_class()
    kept = call(strategy, "keep_image_tokens", Samples(strategy).fold_state(strategy))
    if kept is None:
        return
    if (kept.shape, kept.dtype) != ((LAYERS, IMAGE_TOKENS), torch.bool):
        yield f"`keep_image_tokens` returned {kept.dtype} {list(kept.shape)} instead of bool [layers, image tokens]"
    elif (kept[1:] & ~kept[:-1]).any():
        yield "`keep_image_tokens` keeps a token in a layer after one that drops it"


def check_neutral(strategy_class: type[Strategy]) -> Problems:
    """Require that decoding with the `neutral` parameters, if declared, equals the plain model's."""
    if strategy_class.neutral is None:
        return
    strategy = strategy_class(**strategy_class.neutral)
    samples = Samples(strategy)
    blank = Prompt.from_text(QUESTION, create_blank_image())
    changes_prompt = isinstance(samples.outcome, GenerateRequest) and samples.outcome.prompt != blank
    for dtype in DTYPES:
        step = samples.step(strategy, dtype)
        after = check_layout(strategy, call(strategy, "logits", step), step.scores)
        if after.argmax() != step.scores.argmax():
            yield f"`logits` changes the likeliest token with neutral parameters ({dtype})"
        elif not changes_prompt and not torch.equal(after, step.scores):
            yield f"`logits` changes scores with neutral parameters ({dtype})"
        scales = call(strategy, "head_scales", step.state)
        if scales is not None and not torch.equal(scales, torch.ones_like(scales)):
            yield "`head_scales` scales heads with neutral parameters"
        scores, keys = draw_attention(dtype)
        if not torch.equal(call(strategy, "edit_attention_scores", scores, keys, step.state), scores):
            yield f"`edit_attention_scores` changes scores with neutral parameters ({dtype})"
        gates = call(strategy, "gate_heads", scores, keys, step.state)
        if gates is not None and not torch.equal(gates, torch.ones_like(gates)):
            yield f"`gate_heads` scales heads with neutral parameters ({dtype})"


def check_uncut(strategy_class: type[Strategy]) -> Problems:
    """Require that `logits` rules no token out with the `uncut` parameters, if they are declared."""
    if not strategy_class.uncut:
        return
    strategy = strategy_class().without_cut()
    step = Samples(strategy).step(strategy, DTYPES[0])
    after = check_layout(strategy, call(strategy, "logits", step), step.scores)
    inputs = torch.stack([step.scores, *step.branches.values()])
    if (torch.isinf(after) & ~torch.isinf(inputs).any(0)).any():  # inner strategies may have ruled tokens out
        yield "`logits` rules tokens out with the `uncut` parameters"


RULES: tuple[Rule, ...] = (
    check_class_attributes,
    check_parameters,
    check_immutability,
    check_text_side,
    check_stream,
    check_branches,
    check_layout_kept,
    check_values,
    check_inputs_unchanged,
    check_batch,
    check_marks,
    check_lazy_branches,
    check_early_exits,
    check_image_tokens,
    check_neutral,
    check_uncut,
    check_steering,
    check_device,
)

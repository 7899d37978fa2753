"""Prefill the prompts of requests that join the batch. Equal prompts and equal prefixes of one cache salt run once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from decoding.hf_engine.kv_cache.aligned_cache import KVState
from decoding.hf_engine.kv_cache.prefix_cache import PrefixCache, PrefixKey
from decoding.hf_engine.model.model import Model, PrefillOutput
from decoding.hf_engine.pass_hook_runner import PassHookRunner
from decoding.hf_engine.request import RequestState
from decoding.hf_engine.taps.token_pruning import restore_columns
from decoding.requests import MAIN
from decoding.text.prompt_encoder import ModelInputs

PREFILL_TOKENS = 2048  # most tokens of one pass over prompts, padding included
PromptOf = tuple[RequestState, str]  # a request and the name of one of its prompts
PrefillOutputs = dict[tuple[int, str], PrefillOutput]  # id of a request, name of a prompt -> its output


def prefill_requests(model: Model, requests: Sequence[RequestState], prefix_cache: PrefixCache) -> PrefillOutputs:
    """Prefill every prompt of every request. A pass that prompts share counts for each of them.

    Args:
        model: The model.
        requests: Requests that join the batch.
        prefix_cache: Cache of prompt prefixes.

    Returns:
        The output of each prompt. A request for the log-probabilities of its prompt has none.
    """
    outputs: PrefillOutputs = {}
    sharing: dict[object, list[PromptOf]] = {}  # prompts that run once
    for request in requests:
        request.stats.scheduled_time = request.stats.scheduled_time or time.perf_counter()
        if (count := request.source.prompt_logprobs) is not None:  # needs no keys and values
            request.prompt_scores = model.score_prompt(request.inputs[MAIN], count)
            request.stats.forward_passes += 1
            continue
        for name, prompt in request.row_prompts.items():
            probed = request.find_probe_prefill() if name == MAIN else None
            if probed is not None:
                outputs[id(request), name] = probed
            else:
                edits = None if request.is_plain(name) else (name, request.stack_key, *request.source.states.items())
                key = (request.source.cache_salt, prompt, request.answer_start.ids, edits)
                sharing.setdefault(key, []).append((request, name))
    unique = [prompts[0] for prompts in sharing.values()]
    pruned = [[prompt] for prompt in unique if is_pruned(prompt)]
    plan = PrefixPlan(prefix_cache, [prompt for prompt in unique if not is_pruned(prompt)])
    for group in [*iter_groups(plan.full), *pruned]:
        for (request, name), output in zip(group, run_prefill(model, group), strict=True):
            outputs[id(request), name] = output
            plan.store_prefix((request, name), output)
    for group in iter_groups(plan.continued):
        for by_prefix in group_by_prefix(group, plan):
            outputs |= extend_prefixes(model, by_prefix, plan)
    for prompts in sharing.values():
        first, first_name = prompts[0]
        for request, name in prompts:
            request.stats.forward_passes += not request.generated_ids  # not again after a preemption
            request.failure = first.failure or request.failure
            outputs[id(request), name] = outputs[id(first), first_name]
    return outputs


class PrefixPlan:
    """Decides which prompts run in full, and which continue a prefix that is cached or that another prompt runs first.

    Attributes:
        full: Prompts that run in full.
        continued: Prompts that continue a prefix. They run after those of `full`.
    """

    def __init__(self, prefix_cache: PrefixCache, prompts: Sequence[PromptOf]) -> None:
        self.full: list[PromptOf] = []
        self.continued: list[PromptOf] = []
        self._prefix_cache = prefix_cache
        self._keys: dict[tuple[int, str], PrefixKey] = {}
        self._states: dict[PrefixKey, KVState | None] = {}  # None: a prompt of `full` will run it
        for request, name in prompts:
            inputs = request.inputs[name]
            key = None
            if request.is_plain(name):
                key = prefix_cache.build_key(request.row_prompts[name], inputs, request.source.cache_salt)
            if key is None:
                self.full.append((request, name))
                continue
            self._keys[id(request), name] = key
            cached = prefix_cache.get(key, len(inputs))
            (self.full if cached is None and key not in self._states else self.continued).append((request, name))
            self._states[key] = self._states.get(key) or cached

    def store_prefix(self, prompt: PromptOf, output: PrefillOutput) -> None:
        """Store the prefix of a prompt that has run in full."""
        key = self._keys.get((id(prompt[0]), prompt[1]))
        if key is not None:
            self._states[key] = state = output.truncate(len(key))
            self._prefix_cache.put(key, state)

    def get_key(self, prompt: PromptOf) -> PrefixKey:
        """Return the key of the prefix that a prompt continues."""
        return self._keys[id(prompt[0]), prompt[1]]

    def get_state(self, key: PrefixKey) -> KVState:
        """Return a prefix that a prompt continues."""
        state = self._states[key]
        assert state is not None, "a prompt of `full` has stored it"
        return state


def group_by_prefix(prompts: Sequence[PromptOf], plan: PrefixPlan) -> Iterator[dict[PrefixKey, list[PromptOf]]]:
    """Group prompts that continue prefixes by pass and prefix. A pass stays within `PREFILL_TOKENS`."""
    by_prefix: dict[PrefixKey, list[PromptOf]] = {}
    row_tokens: dict[PrefixKey, int] = {}  # at most: tokens that continuations begin with run once
    for prompt in prompts:
        key = plan.get_key(prompt)
        tokens = row_tokens.get(key, 0) + len(prompt[0].inputs[prompt[1]]) - len(key)
        longest = max([tokens, *row_tokens.values()])
        if by_prefix and longest * len(by_prefix.keys() | {key}) > PREFILL_TOKENS:
            yield by_prefix
            by_prefix, row_tokens, tokens = {}, {}, len(prompt[0].inputs[prompt[1]]) - len(key)
        by_prefix.setdefault(key, []).append(prompt)
        row_tokens[key] = tokens
    yield by_prefix


def extend_prefixes(model: Model, by_prefix: Mapping[PrefixKey, list[PromptOf]], plan: PrefixPlan) -> PrefillOutputs:
    """Run prompts that continue prefixes, in one pass. Those with the same prefix share a row."""
    outputs = model.extend(
        [plan.get_state(key) for key in by_prefix],
        [
            [request.inputs[name].ids[len(key) :].tolist() for request, name in prompts]
            for key, prompts in by_prefix.items()
        ],
    )
    return {
        (id(request), name): output
        for prompts, of_prefix in zip(by_prefix.values(), outputs, strict=True)
        for (request, name), output in zip(prompts, of_prefix, strict=True)
    }


def is_pruned(prompt: PromptOf) -> bool:
    """Return whether the prompt loses tokens between layers. Such a prompt runs alone."""
    request, name = prompt
    return name in request.kept_tokens


def iter_groups(prompts: Sequence[PromptOf]) -> Iterator[list[PromptOf]]:
    for numbers in group_prompts([request.inputs[name] for request, name in prompts]):
        yield [prompts[number] for number in numbers]


def run_prefill(model: Model, group: Sequence[PromptOf]) -> list[PrefillOutput]:
    """Run prompts in one pass, with the hooks of their strategies."""
    prompts = [request.inputs[name] for request, name in group]
    request, name = group[0]
    if name in request.kept_tokens:
        return [prefill_pruned(model, prompts[0], request.kept_tokens[name])]
    scales = model.head_tap.expand_scales([get_head_scales(request, name) for request, name in group])
    with PassHookRunner(model, group).apply_to_prefill([len(prompt) for prompt in prompts]) as early_logits:
        outputs = model.prefill(prompts, scales)
    return [replace(output, early_logits=early_logits.get(row, {})) for row, output in enumerate(outputs)]


def prefill_pruned(model: Model, prompt: ModelInputs, kept: Tensor) -> PrefillOutput:
    """Run a prompt that loses tokens between layers.

    Args:
        model: The model.
        prompt: The prompt.
        kept: [layers, length] true where a layer sees a token.

    Returns:
        The output, with zeros at the keys and values of dropped tokens.
    """
    assert model.token_pruning_tap is not None, "the engine has the capability"
    with model.token_pruning_tap.prune(kept):
        (output,) = model.prefill([prompt])
    return replace(output, key_values=restore_columns(output.key_values, kept))


def get_head_scales(request: RequestState, name: str) -> Tensor | None:
    """Return the [layers, heads] scales of a prompt. Only the main prompt has some."""
    return request.head_scales if name == MAIN else None


def group_prompts(prompts: Sequence[ModelInputs]) -> list[list[int]]:
    """Group prompts that can share a pass, shortest first.

    Args:
        prompts: Encoded prompts.

    Returns:
        Groups of their numbers.
    """
    groups: list[list[int]] = []
    for number in sorted(range(len(prompts)), key=lambda number: len(prompts[number])):
        for group in groups:
            if can_share_pass(prompts[number], [prompts[other] for other in group]):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def can_share_pass(prompt: ModelInputs, group: Sequence[ModelInputs]) -> bool:
    """Return whether a prompt's pixels have the shape of the group's, and the pass stays within `PREFILL_TOKENS`."""
    shapes = [prompt.pixel_shape, *(other.pixel_shape for other in group)]
    longest = max(len(prompt), *(len(other) for other in group))
    return longest * len(shapes) <= PREFILL_TOKENS and len(set(shapes) - {None}) <= 1

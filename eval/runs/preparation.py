"""Preparation: from the options of a run to a plan that the server can execute."""

from __future__ import annotations

from pydantic import BaseModel

from eval.core.task import TaskOptions
from eval.errors import ServerError
from eval.runs.client import EvalClient
from eval.runs.matched_controls import build_controls
from eval.runs.plan import Arm, RunPlan, Shard
from eval.runs.request import SamplingSettings, StrategyVia
from eval.runs.stack_spec import PLAIN, StackSpec
from eval.runs.strategy_catalog import StrategyCatalog


class RunOptions(BaseModel):
    """The options of a run, as given on the command line."""

    task: str
    data: str = "embedded"
    model: str | None = None
    specs: list[StackSpec] = [PLAIN]
    controls: bool = True
    strategy_via: StrategyVia = "body"
    sampling: SamplingSettings
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None
    shard: Shard = Shard()
    options: TaskOptions = TaskOptions()
    check: bool = False
    yes_scores: bool = False


async def prepare_plan(client: EvalClient, options: RunOptions) -> tuple[RunPlan, StrategyVia]:
    """Build the plan from the options and from the models and strategies of the server.

    Args:
        client: An open client.
        options: The options of the run.

    Returns:
        The plan, and how requests select their strategy.

    Raises:
        ServerError: A server, model, strategy or parameter is missing, or the server cannot check claims.
    """
    models = await client.list_models()
    model = select_model(list(models), options.model)
    catalog = await client.fetch_catalog()
    if options.check and catalog is None:
        raise ServerError(f"--check needs a server with /v1/strategies, and {client.base_url} has none.")
    arms = _build_arms(options, catalog) if catalog else _build_plain_arms(options.specs, client.base_url)
    plan = RunPlan(
        task=options.task,
        data=options.data,
        model=model,
        weights=models.get(model),
        arms=tuple(arms),
        sampling=options.sampling,
        seeds=options.seeds,
        limit=options.limit,
        limit_selects="sample",
        shard=options.shard,
        options=options.options,
        check=options.check,
        yes_scores=options.yes_scores,
    )
    return plan, options.strategy_via if catalog else "none"


def select_model(models: list[str], requested: str | None) -> str:
    """Select the model of a run.

    Args:
        models: The models of the server, with strategy suffixes or without.
        requested: The value of --model.

    Returns:
        The requested model, or the only one.

    Raises:
        ServerError: The server does not have the requested model, or has several and none is requested.
    """
    base_models = [name for name in models if name.rpartition(":")[0] not in models]  # without strategy suffixes
    if requested is None:
        if len(base_models) != 1:
            raise ServerError(
                f"--model: choose one of {', '.join(base_models)}." if base_models else "--model: name a model."
            )
        return base_models[0]
    if models and requested not in models:
        raise ServerError(f"--model: the server has no '{requested}'. It has {', '.join(base_models)}.")
    return requested


def _build_plain_arms(specs: list[StackSpec], url: str) -> list[Arm]:
    if others := [each.label for each in specs if each != PLAIN]:
        raise ServerError(
            f"{url} has no /v1/strategies, so only plain decoding can be evaluated. Remove {', '.join(others)}."
        )
    return [Arm(spec=PLAIN, full_spec=PLAIN)]


def _build_arms(options: RunOptions, catalog: StrategyCatalog) -> list[Arm]:
    """Build the arms: plain decoding as the reference, the requested stacks, then the controls."""
    requested = list({spec.label: spec for spec in [PLAIN, *options.specs]}.values())
    for spec in requested:
        catalog.check(spec)
    controls: dict[str, list[StackSpec]] = {}
    for spec in requested:
        built: list[StackSpec] = []
        if options.controls:
            built = build_controls(catalog.with_defaults(spec), catalog, greedy=options.sampling.greedy)
        controls[spec.label] = [_reuse_requested(control, requested, catalog) for control in built]
    extra = {control.label: control for built in controls.values() for control in built}
    for spec in requested:
        extra.pop(spec.label, None)
    return [
        Arm(
            spec=spec,
            full_spec=catalog.with_defaults(spec),
            branches=sum(catalog.count_branches(name) for name in spec.stack),
            controls=tuple(control.label for control in controls.get(spec.label, [])),
            requested=spec.label in controls,
        )
        for spec in [*requested, *extra.values()]
    ]


def _reuse_requested(control: StackSpec, requested: list[StackSpec], catalog: StrategyCatalog) -> StackSpec:
    """Return the requested stack that equals a control, or the control without default parameters."""
    full_spec = catalog.with_defaults(control)
    equal = (each for each in requested if catalog.with_defaults(each) == full_spec)
    return next(equal, catalog.without_defaults(control))

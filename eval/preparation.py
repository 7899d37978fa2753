"""From what was wished for to a plan that the server can carry out."""

from __future__ import annotations

from pydantic import BaseModel

from eval.catalogue import Catalogue
from eval.client import Client
from eval.controls import controls
from eval.errors import ServerError
from eval.plan import Contender, Plan, Shard
from eval.recipe import PLAIN, Recipe
from eval.request import Sampling
from eval.tasks.options import Options


class Wishes(BaseModel):
    task: str
    data: str = "embedded"
    model: str | None = None
    recipes: list[Recipe] = [PLAIN]
    controls: bool = True
    door: str = "body"
    sampling: Sampling
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None
    shard: Shard = Shard()
    options: Options = Options()


async def prepare(client: Client, wishes: Wishes) -> tuple[Plan, str]:
    """The plan, and the door through which strategies are chosen.

    Raises: ServerError: there is no such server, model, strategy or parameter.
    """
    models = await client.models()
    model = chosen(list(models), wishes.model)
    catalogue = await client.catalogue()
    contenders = field(wishes, catalogue) if catalogue else plainly(wishes.recipes, client.base_url)
    if catalogue and wishes.door == "suffix":
        refuse_parameters(contenders)
    plan = Plan(
        task=wishes.task,
        data=wishes.data,
        model=model,
        weights=models.get(model),
        contenders=tuple(contenders),
        sampling=wishes.sampling,
        seeds=wishes.seeds,
        limit=wishes.limit,
        shard=wishes.shard,
        options=wishes.options,
    )
    return plan, wishes.door if catalogue else "none"


def chosen(models: list[str], wished: str | None) -> str:
    bare = [name for name in models if name.rpartition(":")[0] not in models]  # without ours by suffix
    if wished is None:
        if len(bare) != 1:
            raise ServerError(f"--model: choose one of {', '.join(bare)}." if bare else "--model: name one.")
        return bare[0]
    if models and wished not in models:
        raise ServerError(f"--model: the server has no '{wished}'. It has {', '.join(bare)}.")
    return wished


def plainly(recipes: list[Recipe], url: str) -> list[Contender]:
    if others := [each.label for each in recipes if each != PLAIN]:
        raise ServerError(
            f"{url} has no /v1/strategies, so it can only be asked plainly. Leave out {', '.join(others)}."
        )
    return [Contender(recipe=PLAIN, full=PLAIN)]


def field(wishes: Wishes, catalogue: Catalogue) -> list[Contender]:
    """Plain decoding first, which all are compared with; controls after the last that was asked for."""
    asked = list({each.label: each for each in [PLAIN, *wishes.recipes]}.values())
    for each in asked:
        catalogue.admit(each)
    matched: dict[str, list[Recipe]] = {}
    for each in asked:
        found = controls(catalogue.full(each), catalogue, greedy=wishes.sampling.greedy) if wishes.controls else []
        matched[each.label] = [as_asked(control, asked, catalogue) for control in found]
    extra = {control.label: control for found in matched.values() for control in found}
    for each in asked:
        extra.pop(each.label, None)
    return [
        Contender(
            recipe=each,
            full=catalogue.full(each),
            branches=sum(catalogue.branches(name) for name in each.stack),
            controls=tuple(control.label for control in matched.get(each.label, [])),
            asked_for=each.label in matched,
        )
        for each in [*asked, *extra.values()]
    ]


def as_asked(control: Recipe, asked: list[Recipe], catalogue: Catalogue) -> Recipe:
    """What was asked for anyway serves as the control, however it was spelt."""
    full = catalogue.full(control)
    return next((each for each in asked if catalogue.full(each) == full), catalogue.brief(control))


def refuse_parameters(contenders: list[Contender]) -> None:
    for each in contenders:
        if each.recipe.parameters:
            raise ServerError(f"--door suffix cannot carry parameters, and {each.label} has some. Use --door body.")

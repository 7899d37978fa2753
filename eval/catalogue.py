"""What a server says that it can decode with: GET /v1/strategies. A server without that route decodes plainly."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, JsonValue, ValidationError

from eval.errors import ServerError
from eval.recipe import Recipe


class Cost(BaseModel):
    branches: int = 0


class Runs(BaseModel):
    engine: str
    runs: bool
    reason: str | None = None


class Entry(BaseModel):
    name: str
    summary: str = ""
    parameters: dict[str, Any] = {}
    cost: Cost | None = None
    engines: list[Runs] = []

    @property
    def properties(self) -> dict[str, Any]:
        return dict(self.parameters.get("properties", {}))

    @property
    def defaults(self) -> dict[str, JsonValue]:
        return {name: field["default"] for name, field in self.properties.items() if "default" in field}


class Catalogue(BaseModel):
    data: list[Entry]

    def entry(self, name: str) -> Entry:
        """Raises: ServerError: there is none of that name."""
        for entry in self.data:
            if entry.name == name:
                return entry
        known = ", ".join(entry.name for entry in self.data)
        raise ServerError(f"The server has no strategy '{name}'. It has {known}.")

    def admit(self, recipe: Recipe) -> None:
        """Raises: ServerError: a strategy or parameter of the recipe is not known, or cannot run there."""
        for name in recipe.stack:
            entry = self.entry(name)
            for unknown in recipe.parameters.get(name, {}).keys() - entry.properties.keys():
                known = ", ".join(entry.properties) or "none"
                raise ServerError(f"Strategy '{name}' has no parameter '{unknown}'. It has {known}.")
            if entry.engines and not any(engine.runs for engine in entry.engines):
                raise ServerError(f"The server cannot run '{name}': {entry.engines[0].reason}.")

    def full(self, recipe: Recipe) -> Recipe:
        """With the defaults written out, so that the recipe says all that the answer depends on."""
        parameters = {name: {**self.entry(name).defaults, **recipe.parameters.get(name, {})} for name in recipe.stack}
        return Recipe(stack=recipe.stack, parameters=parameters)

    def brief(self, recipe: Recipe) -> Recipe:
        """Without what is the default anyway."""
        parameters = {
            name: {key: value for key, value in values.items() if self.entry(name).defaults.get(key) != value}
            for name, values in recipe.parameters.items()
        }
        return Recipe(stack=recipe.stack, parameters=parameters)

    def branches(self, name: str) -> int:
        cost = self.entry(name).cost
        return cost.branches if cost else 0


def catalogue(document: object) -> Catalogue:
    """Raises: ServerError: not a list of strategies."""
    try:
        return Catalogue.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ServerError(f'/v1/strategies cannot be read: field "{place}": {first["msg"]}.') from None

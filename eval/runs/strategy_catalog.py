"""The strategies of a server, from GET /v1/strategies. A server without that route supports plain decoding only."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, JsonValue, ValidationError

from eval.errors import ServerError
from eval.runs.stack_spec import StackSpec


class CatalogCost(BaseModel):
    """The cost of a strategy: the number of branches."""

    branches: int = 0


class EngineSupport(BaseModel):
    """Whether an engine of the server can run a strategy, and the reason if not."""

    engine: str
    runs: bool
    reason: str | None = None


class CatalogEntry(BaseModel):
    """One strategy of the server. `parameters` is a JSON schema."""

    name: str
    summary: str = ""
    parameters: dict[str, Any] = {}
    cost: CatalogCost | None = None
    engines: list[EngineSupport] = []

    @property
    def properties(self) -> dict[str, Any]:
        """The schema of each parameter."""
        return dict(self.parameters.get("properties", {}))

    @property
    def defaults(self) -> dict[str, JsonValue]:
        """The default of each parameter."""
        return {name: field["default"] for name, field in self.properties.items() if "default" in field}


class StrategyCatalog(BaseModel):
    """All strategies of a server."""

    data: list[CatalogEntry]

    def find(self, name: str) -> CatalogEntry:
        """Find a strategy by name.

        Args:
            name: The name.

        Returns:
            The entry.

        Raises:
            ServerError: The server has no such strategy.
        """
        for entry in self.data:
            if entry.name == name:
                return entry
        names = ", ".join(entry.name for entry in self.data)
        raise ServerError(f"The server has no strategy '{name}'. It has {names}.")

    def check(self, spec: StackSpec) -> None:
        """Check that the server can run a stack.

        Args:
            spec: The stack.

        Raises:
            ServerError: A strategy or a parameter is unknown, or the server cannot run a strategy.
        """
        for name in spec.stack:
            entry = self.find(name)
            for unknown in spec.parameters.get(name, {}).keys() - entry.properties.keys():
                names = ", ".join(entry.properties) or "none"
                raise ServerError(f"Strategy '{name}' has no parameter '{unknown}'. It has {names}.")
            if entry.engines and not any(engine.runs for engine in entry.engines):
                raise ServerError(f"The server cannot run '{name}': {entry.engines[0].reason}.")

    def with_defaults(self, spec: StackSpec) -> StackSpec:
        """Add the defaults of the server, so that the spec has all parameters that the answer depends on."""
        parameters = {name: {**self.find(name).defaults, **spec.parameters.get(name, {})} for name in spec.stack}
        return StackSpec(stack=spec.stack, parameters=parameters)

    def without_defaults(self, spec: StackSpec) -> StackSpec:
        """Remove the parameters that are equal to the defaults of the server."""
        parameters = {
            name: {key: value for key, value in values.items() if self.find(name).defaults.get(key) != value}
            for name, values in spec.parameters.items()
        }
        return StackSpec(stack=spec.stack, parameters=parameters)

    def count_branches(self, name: str) -> int:
        """Return the number of branches of a strategy."""
        cost = self.find(name).cost
        return cost.branches if cost else 0


def parse_catalog(document: object) -> StrategyCatalog:
    """Parse the response of /v1/strategies.

    Args:
        document: The JSON value.

    Returns:
        The catalog.

    Raises:
        ServerError: The document is not a list of strategies.
    """
    try:
        return StrategyCatalog.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ServerError(f'/v1/strategies cannot be read: field "{field}": {first["msg"]}.') from None

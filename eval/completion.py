"""What a server answers, read strictly: what is not certainly an answer is none."""

from __future__ import annotations

from pydantic import BaseModel, Field, JsonValue, ValidationError

from eval.errors import Nonsense
from eval.request import Request
from eval.store import Answer

ENDS = frozenset({None, "stop", "length"})


class Message(BaseModel):
    content: str


class Choice(BaseModel):
    message: Message
    finish_reason: str | None = None


class Usage(BaseModel):
    completion_tokens: int | None = None


class Receipt(BaseModel, extra="allow"):
    strategy: str
    parameters: dict[str, dict[str, JsonValue]] = {}


class Completion(BaseModel):
    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None
    onlyseen: Receipt | None = None


def answer_of(document: object, request: Request, door: str, seconds: float, attempts: int) -> Answer:
    """Raises: Nonsense: it says nothing, was cut off by the server, or was decoded in another way than asked."""
    try:
        completion = Completion.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Nonsense(f'the answer cannot be read: field "{place}": {first["msg"]}') from None
    choice = completion.choices[0]
    tokens = completion.usage.completion_tokens if completion.usage else None
    if choice.finish_reason not in ENDS:
        raise Nonsense(f"the server ended the answer with finish_reason {choice.finish_reason!r}")
    if not choice.message.content.strip() and not tokens:
        raise Nonsense("the answer is empty, and no token was generated for it")
    if door != "none":
        _check(completion.onlyseen, request)
    return Answer(
        key=request.key,
        question=request.question.id,
        strategy=request.recipe.label,
        seed=request.seed,
        text=choice.message.content,
        finish=choice.finish_reason,
        tokens=tokens,
        seconds=round(seconds, 6),
        attempts=attempts,
        receipt=completion.onlyseen.model_dump() if completion.onlyseen else None,
    )


def _check(receipt: Receipt | None, request: Request) -> None:
    if receipt is None:
        raise Nonsense("the answer has no receipt: nothing tells which strategy it was decoded with")
    if receipt.strategy != request.recipe.name:
        raise Nonsense(f"asked for {request.recipe.name}, decoded with {receipt.strategy}")
    for owner, values in request.full.parameters.items():
        for name, value in values.items():
            if (applied := receipt.parameters.get(owner, {}).get(name)) != value:
                raise Nonsense(f"asked for {owner}.{name} = {value}, decoded with {applied}")

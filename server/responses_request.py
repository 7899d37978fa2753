"""The body of POST /v1/responses. Nothing is stored: a conversation is sent whole with every request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from decoding.errors import BadRequest
from server.decoding_field import Decoding
from server.question import ImageAt, Question, Turn
from server.response_format import JsonObjectFormat, JsonSchema, JsonSchemaFormat, ResponseFormat, TextFormat
from server.sampled import SEEDS, sampling
from server.unsupported import RESPONSES, supported
from server.wire import STRING_OR_ARRAY, Wire, read, read_json

LOGPROBS = "message.output_text.logprobs"


class InputText(Wire):
    type: Literal["input_text"]
    text: str


class InputImage(Wire):
    type: Literal["input_image"]
    image_url: str = Field(description="A data URL, or http(s) at an allowed host.")
    detail: Literal["auto", "low", "high", "original"] | None = Field(default=None, description="Without effect.")


class OutputText(Wire):
    """A part of an earlier answer, as it came."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


AnyPart = Annotated[InputText | InputImage | OutputText, Field(discriminator="type")]
AnyParts = Annotated[list[AnyPart], Field(min_length=1)]


class InputMessage(Wire):
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[Annotated[str, Tag("string")] | Annotated[AnyParts, Tag("array")], STRING_OR_ARRAY]
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


InputMessages = Annotated[list[InputMessage], Field(min_length=1, max_length=1024)]


class FlatSchemaFormat(JsonSchema):
    type: Literal["json_schema"]


class TextConfig(Wire):
    format: Annotated[TextFormat | JsonObjectFormat | FlatSchemaFormat, Field(discriminator="type")] | None = None


class ResponsesRequest(Wire):
    """OpenAI's request for a response, with some of vLLM's sampling fields and `decoding`."""

    model: str = Field(max_length=512, description="As /v1/models lists it; a suffix chooses the strategy: name:agla")
    input: Annotated[Annotated[str, Tag("string")] | Annotated[InputMessages, Tag("array")], STRING_OR_ARRAY] = Field(
        description="Ends with the user's message."
    )
    instructions: str | None = Field(default=None, description="The system's message, before the input.")
    decoding: Decoding | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, description="Default: as many as the context holds.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="Default 1. 0 takes the likeliest token.")
    top_p: float | None = Field(default=None, ge=0, le=1, description="Default 1. 0 takes the likeliest token.")
    top_k: int | None = Field(default=None, ge=-1, le=1_000_000, description="Default 0. 0 and -1: off.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="Default 0.")
    seed: int | None = Field(default=None, ge=-SEEDS, lt=SEEDS)
    text: TextConfig | None = Field(default=None, description="The format of the answer.")
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=1)] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description=f"Needs {LOGPROBS} in include.")
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = Field(
        default=None, description="Said again in the response."
    )
    stream: bool | None = Field(default=None, description="Default false. OpenAI's events, as server-sent events.")
    user: str | None = Field(default=None, max_length=256, description="Written to the log.")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> ResponsesRequest:
        if not isinstance(self.input, str):
            if self.input[-1].role != "user":
                raise BadRequest("The last message must be the user's.", param="input")
            for at, message in enumerate(self.input):
                for place, part in enumerate(message.content if isinstance(message.content, list) else ()):
                    if message.role != "user" and isinstance(part, InputImage):
                        raise BadRequest("Images are taken from the user alone.", param=f"input[{at}].content[{place}]")
        if self.top_logprobs is not None and not self.wants_logprobs:
            raise BadRequest(f"top_logprobs needs {LOGPROBS} in include.", param="top_logprobs")
        return self

    @property
    def wants_logprobs(self) -> bool:
        told = self.decoding is not None and bool(self.decoding.grounding or self.decoding.trace)
        return told or bool(self.include)

    @property
    def question(self) -> Question:
        return Question(
            self.model,
            "input",
            sampling(
                {name: getattr(self, name) for name in ("temperature", "top_p", "min_p")},
                max_tokens=self.max_output_tokens,
                top_k=max(self.top_k or 0, 0),
                seed=None if self.seed is None else self.seed % SEEDS,
                top_logprobs=(self.top_logprobs or 0) if self.wants_logprobs else None,
            ),
            turns=self._turns(),
            decoding=self.decoding or Decoding(),
            format=self._format(),
            format_param="text.format",
            most_param="max_output_tokens",
            user=self.user,
        )

    def _turns(self) -> tuple[Turn, ...]:
        before = () if self.instructions is None else (Turn("system", (self.instructions,)),)
        if isinstance(self.input, str):
            return (*before, Turn("user", (self.input,)))
        return (*before, *(turn(message, f"input[{at}].content") for at, message in enumerate(self.input)))

    def _format(self) -> ResponseFormat | None:
        wanted = self.text.format if self.text else None
        if not isinstance(wanted, FlatSchemaFormat):
            return wanted
        return JsonSchemaFormat(type="json_schema", json_schema=wanted)


def turn(message: InputMessage, where: str) -> Turn:
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return Turn(role, (message.content,))
    return Turn(role, tuple(said(part, f"{where}[{place}]") for place, part in enumerate(message.content)))


def said(part: InputText | InputImage | OutputText, where: str) -> str | ImageAt:
    return ImageAt(part.image_url, f"{where}.image_url") if isinstance(part, InputImage) else part.text


def parse(body: bytes) -> ResponsesRequest:
    """Raises: BadRequest: the first thing that is wrong with it."""
    return read(ResponsesRequest, supported(read_json(body), RESPONSES))

"""The fields that the generating routes share, and the one form into which each route brings its request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, Tag, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from decoding.errors import BadRequest, OnlySeenError
from decoding.prompt import Role
from decoding.sampling_params import Grammar, SamplingParams
from decoding.text.grammar import build_choice_grammar, build_lark_grammar, build_regex_grammar
from server.media.image_ref import ImageRef
from server.schemas.base import MAX_TOKEN_BOUND, STRING_OR_ARRAY, StrictModel
from server.schemas.field_policy import IGNORED, EngineFields, Ignored
from server.schemas.prompt_logprobs import MAX_PROMPT_LOGPROBS
from server.schemas.structural_tags import StructuralTagFormat, StructuralTagText, parse_structural_tag

DEFAULT_SAMPLING = SamplingParams(temperature=1.0)  # OpenAI's defaults; an engine's temperature 0 is greedy
SEED_LIMIT = 1 << 63
MIN_TOP_P = 1e-9  # replaces 0, since an engine needs a positive top_p
MIN_TEMPERATURE = 1e-5  # a lower temperature counts as 0: scores divided by it overflow
SHARED_SAMPLING_FIELDS = (
    "min_tokens",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "ignore_eos",
)
StopString = Annotated[str, Field(min_length=1, max_length=1000)]
MAX_BIASED_TOKENS = 300
MAX_STOP_TOKENS = 128
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_BOUND)]
TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]  # JSON has no numbers as names of members
Bias = Annotated[float, Field(ge=-100, le=100)]
StopStrings = Annotated[list[StopString], Field(max_length=4, fail_fast=True)]


class Decoding(StrictModel):
    """How the server decodes this answer: `{"strategy": "agla+vhr", "agla": {"alpha": 2.0}}`."""

    model_config = ConfigDict(extra="allow")

    strategy: str | None = Field(default=None, max_length=256, description="Names joined by '+', outermost first.")
    grounding: bool | None = Field(
        default=None,
        description="Adds to each entry of logprobs.content: log p(token | image) - log p(token | no image). "
        "Switches logprobs on.",
    )
    trace: bool | None = Field(
        default=None,
        description="Adds to each entry of logprobs.content whether the strategy `changed` the likeliest token, and to "
        "the receipt the images that its branches saw. Switches logprobs on.",
    )
    check: bool | dict[str, Any] | None = Field(
        default=None,
        description="Puts a question to the model about each thing that the answer names, and adds the `claims` to the "
        "receipt. The answer is unchanged. An object sets the options views, debias, question and language, "
        'which are parameters of the strategy verify too: `{"views": 0}`.',
    )

    @property
    def parameters(self) -> dict[str, Any]:
        """Each strategy's parameters by its name, not yet validated."""
        return self.model_extra or {}

    @property
    def wants_check(self) -> bool:
        return self.check is not None and self.check is not False

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the parameters of each registered strategy as a field, and the options of `check`."""
        from decoding import registry
        from decoding.claims.claim_check import ClaimCheck

        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        known = registry.list_strategies()
        schema["additionalProperties"] = False
        for name, strategy in known.items():
            schema["properties"][name] = handler(strategy.__pydantic_core_schema__)
        options = handler(ClaimCheck.__pydantic_core_schema__)
        schema["properties"]["check"]["anyOf"] = [{"type": "boolean"}, options, {"type": "null"}]
        names = "|".join(known)
        schema["properties"]["strategy"]["anyOf"][0]["pattern"] = rf"^({names})(\+({names}))*$"
        return reference


class TextFormat(StrictModel):
    """Text without restrictions."""

    type: Literal["text"]


class JsonObjectFormat(StrictModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(StrictModel):
    """A JSON Schema with its name."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = Field(default=None, max_length=4096, description="A hint without effect.")
    schema_: dict[str, Any] = Field(
        alias="schema",
        description="Enforced token by token. A schema that cannot be enforced or is costly to compile is refused.",
    )
    strict: bool | None = Field(default=None, description="Without effect: the server always enforces schemas.")


class JsonSchemaFormat(StrictModel):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat, Field(discriminator="type")
]


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """The format that an answer must have.

    Attributes:
        value: JSON Schema of the answer, or a grammar that is no schema.
        param: Field of the request that has the format.
        value_param: The part of that field that has the value.
    """

    value: Mapping[str, Any] | Grammar
    param: str
    value_param: str


def to_output_format(response_format: ResponseFormat | None, param: str, value_param: str) -> OutputFormat | None:
    """Return the format of the answer; None for free text."""
    if response_format is None or isinstance(response_format, TextFormat):
        return None
    if isinstance(response_format, StructuralTagFormat):
        return OutputFormat(response_format.build_grammar(param), param, param)
    if isinstance(response_format, JsonObjectFormat):
        return OutputFormat({"type": "object"}, param, param)
    return OutputFormat(response_format.json_schema.schema_, param, value_param)


MAX_CHOICES = 1000
Choices = Annotated[list[StopString], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]


class StructuredOutputs(StrictModel):
    """vLLM's constraints on the answer. Exactly one is set."""

    json_: dict[str, Any] | None = Field(default=None, alias="json", description="A JSON Schema.")
    json_object: Literal[True] | None = Field(default=None, description="Any JSON object.")
    regex: str | None = Field(
        default=None, min_length=1, max_length=64_000, description="The whole answer matches it. Rust's syntax."
    )
    choice: Choices | None = Field(default=None, description="The answer is one of these texts.")
    grammar: str | None = Field(
        default=None, min_length=1, max_length=64_000, description="A grammar in the Lark syntax of llguidance."
    )
    structural_tag: StructuralTagText | None = Field(
        default=None, description="The JSON text of a response_format of type structural_tag."
    )
    disable_any_whitespace: Annotated[bool | None, IGNORED] = Ignored

    @model_validator(mode="after")
    def _has_one_constraint(self) -> StructuredOutputs:
        values = (self.json_, self.json_object, self.regex, self.choice, self.grammar, self.structural_tag)
        if sum(value is not None for value in values) != 1:
            message = "Send one of json, json_object, regex, choice, grammar and structural_tag."
            raise BadRequest(message, param="structured_outputs")
        return self

    def to_output_format(self) -> OutputFormat:
        """Return the format of the answer.

        Returns:
            The format. A grammar that is too long or not allowed raises `InvalidSchema`.
        """
        value: Mapping[str, Any] | Grammar
        param = "structured_outputs"
        if self.regex is not None:
            path = f"{param}.regex"
            value = build_regex_grammar(self.regex, path)
        elif self.choice is not None:
            path = f"{param}.choice"
            value = build_choice_grammar(self.choice, path)
        elif self.grammar is not None:
            path = f"{param}.grammar"
            value = build_lark_grammar(self.grammar, path)
        elif self.structural_tag is not None:
            path = f"{param}.structural_tag"
            value = parse_structural_tag(self.structural_tag, path).build_grammar(path)
        else:
            path = f"{param}.json"
            value = {"type": "object"} if self.json_ is None else self.json_
        return OutputFormat(value, param, path)


class StreamOptions(StrictModel):
    """The options of a stream."""

    include_usage: bool | None = Field(default=None, description="Adds a last chunk with the usage and no choices.")
    continuous_usage_stats: bool | None = Field(
        default=None, description="With include_usage: every chunk has the usage so far."
    )
    include_obfuscation: Annotated[bool | None, IGNORED] = Ignored


class SamplingFields(EngineFields):
    """The fields that chat completions and completions share: OpenAI's, and vLLM's extra sampling fields.

    A field that is null or absent has its default.
    """

    model: str = Field(
        max_length=512,
        description="A name from /v1/models. A suffix selects the strategy: name:agla or name:agla:alpha=1",
    )
    decoding: Decoding | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKEN_BOUND)
    min_tokens: int | None = Field(default=None, ge=0, le=100_000, description="Default 0. No end before this number.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="Default 1. 0 takes the likeliest token.")
    top_p: float | None = Field(default=None, ge=0, le=1, description="Default 1. 0 takes the likeliest token.")
    top_k: int | None = Field(default=None, ge=-1, le=1_000_000, description="Default 0. 0 and -1: off.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="Default 0.")
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=10, description="Default 1. Prompt included.")
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, description="Default 0.")
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, description="Default 0.")
    seed: int | None = Field(default=None, ge=-SEED_LIMIT, lt=SEED_LIMIT, description="Choice i uses seed + i.")
    stop: (
        Annotated[Annotated[StopString, Tag("string")] | Annotated[StopStrings, Tag("array")], STRING_OR_ARRAY] | None
    ) = Field(default=None, description="Up to 4 strings. The answer ends before the first.")
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=MAX_BIASED_TOKENS)] | None = Field(
        default=None,
        description="Token id -> number that is added to the score of the token, after the strategies and before the "
        "penalties. A token that a strategy or a format excludes stays excluded.",
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKENS, fail_fast=True)] | None = Field(
        default=None, description="Tokens that end the answer, also with ignore_eos. They are not part of the text."
    )
    ignore_eos: bool | None = Field(default=None, description="Default false. Generate up to max_tokens.")
    prompt_logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_PROMPT_LOGPROBS,
        description="The log-probability of each token of the prompt, without the strategies, and this number of "
        "likeliest tokens beside it. Not in a stream.",
    )
    n: int | None = Field(default=None, ge=1, le=8, description="Default 1. Answers to the same prompt.")
    structured_outputs: StructuredOutputs | None = Field(default=None, description="Default: free text.")
    stream: bool | None = Field(
        default=None, description="Default false. Server-sent events; `data: [DONE]` is the last."
    )
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=256, description="Written to the log.")

    def check_shared_fields(self, max_new_tokens: int | None) -> None:
        """Check the shared fields against one another.

        Args:
            max_new_tokens: The limit on the answer's tokens, under the route's own name for it.

        Raises:
            BadRequest: The fields do not fit together.
        """
        if max_new_tokens and self.min_tokens and self.min_tokens > max_new_tokens:
            raise BadRequest("min_tokens is larger than max_tokens.", param="min_tokens")
        if self.structured_outputs is not None and (self.min_tokens or self.ignore_eos or self.stop_token_ids):
            raise BadRequest("An answer with a format ends when it is complete.", param="structured_outputs")
        if self.prompt_logprobs is not None and self.stream:
            raise BadRequest("prompt_logprobs is not available in a stream.", param="prompt_logprobs")
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options needs stream to be true.", param="stream_options")

    @property
    def wants_grounding(self) -> bool:
        return self.decoding is not None and bool(self.decoding.grounding)

    @property
    def wants_trace(self) -> bool:
        return self.decoding is not None and bool(self.decoding.trace)

    @property
    def wants_check(self) -> bool:
        return self.decoding is not None and self.decoding.wants_check

    @property
    def wants_stream_usage(self) -> bool:
        """Whether a stream ends with the usage. A full response always has it."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def wants_continuous_usage(self) -> bool:
        """Whether every chunk of a stream has the usage so far."""
        return (
            self.stream_options is not None
            and self.wants_stream_usage
            and bool(self.stream_options.continuous_usage_stats)
        )

    def to_sampling_params(self, max_new_tokens: int | None, top_logprobs: int | None) -> SamplingParams:
        return build_sampling_params(
            {name: getattr(self, name) for name in SHARED_SAMPLING_FIELDS},
            max_tokens=max_new_tokens,
            top_k=max(self.top_k or 0, 0),
            seed=None if self.seed is None else self.seed % SEED_LIMIT,
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items() if bias),
            stop_token_ids=tuple(dict.fromkeys(self.stop_token_ids or ())),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            top_logprobs=top_logprobs,
        )


def build_sampling_params(given: Mapping[str, Any], **fields: Any) -> SamplingParams:
    """Build the engine's sampling parameters; a field of `given` that is None has OpenAI's default."""
    params = replace(DEFAULT_SAMPLING, **{name: value for name, value in given.items() if value is not None}, **fields)
    temperature = 0.0 if params.temperature < MIN_TEMPERATURE else params.temperature
    return replace(params, temperature=temperature, top_p=max(params.top_p, MIN_TOP_P))


@dataclass(frozen=True, slots=True)
class UnloadedMessage:
    """A message whose images are not loaded yet."""

    role: Role
    parts: tuple[str | ImageRef, ...]


@dataclass(frozen=True, slots=True)
class NormalizedRequest:
    """A request of any generating route: a conversation in `messages`, or `texts` to continue."""

    model: str
    prompt_param: str  # the field that holds the conversation or the texts
    sampling: SamplingParams
    messages: tuple[UnloadedMessage, ...] = ()
    texts: tuple[str, ...] = ()
    continued_text: str = ""  # the beginning of the answer, which follows the conversation
    decoding: Decoding = field(default_factory=Decoding)
    output_format: OutputFormat | None = None
    max_tokens_param: str = "max_completion_tokens"
    choices: int = 1  # of each prompt
    prompt_logprobs: int | None = None  # likeliest tokens beside each token of the prompts; None: no log-probabilities
    prompt_logprobs_param: str = "prompt_logprobs"
    user: str | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)  # field without effect -> path of its first occurrence
    cache_salt: str | None = None  # set by the server: no cache is shared with requests of another salt

    def count_characters(self) -> int:
        """Count the characters of the conversation and the beginning of its answer, or of the longest text."""
        conversation = len(self.continued_text) + sum(
            len(part) for message in self.messages for part in message.parts if isinstance(part, str)
        )
        return max([conversation, *map(len, self.texts)])

    def reject_ignored(self) -> None:
        """Raise `BadRequest` for the first field without effect. A strict server calls this."""
        for name, path in self.ignored.items():
            message = f"'{name}' is not supported: it has no effect, and this server is strict."
            raise BadRequest(message, param=path, code="unsupported_parameter")

    def without_prompt(self) -> NormalizedRequest:
        """Return a copy without the conversation or the texts."""
        return replace(self, messages=(), texts=(), continued_text="")

    @contextmanager
    def rename_error_params(self) -> Iterator[None]:
        """Rename the `param` of an error raised inside to the field that the client sent.

        Engines and strategies name the fields of a chat request.

        Yields:
            None.

        Raises:
            OnlySeenError: The renamed error.
        """
        names = {
            "messages": self.prompt_param,
            "max_completion_tokens": self.max_tokens_param,
            "prompt_logprobs": self.prompt_logprobs_param,
        }
        if self.output_format is not None:
            names["response_format"] = self.output_format.param
        if self.decoding.strategy is None and ":" in self.model:
            names["decoding.strategy"] = "model"
        try:
            yield
        except OnlySeenError as error:
            error.param = names.get(error.param or "", error.param)
            raise

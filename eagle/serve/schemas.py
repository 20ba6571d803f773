"""What the bodies of requests may say, as pydantic models; knows no engine.

Fields that OpenAI's or vLLM's interface has are spelt as there. What is not here is refused by
name, since a field that is silently dropped changes what a client believes it gets.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "Message",
    "Misfit",
    "ResponseFormat",
    "SamplingRequest",
    "StructuredOutputs",
    "TraceRequest",
]

_KEYS = 100  # of one mapping; pydantic makes an error of each that is unknown
_PROMPTS = 128
_TURNS = 4096


def _list(most: int | None = None, *, least: int = 0) -> Any:
    """Return what bounds a list; the first wrong item is told, since each error takes its space."""
    return Field(min_length=least, max_length=most, fail_fast=True)


def _small(most: int) -> BeforeValidator:
    """Return what refuses a larger mapping before its values are looked at."""

    def checked(given: Any) -> Any:
        if isinstance(given, dict) and len(given) > most:
            raise ValueError(f"has {len(given):,} keys, which is more than {most:,}")
        return given

    return BeforeValidator(checked)


_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Text = Annotated[str, Field(min_length=1, max_length=4096)]
_Tokens = Annotated[int, Field(ge=1, lt=2**31)]
_Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], _list(least=1)]
_Temperature = Annotated[float, Field(ge=0, le=2)]
_TopP = Annotated[float, Field(gt=0, le=1)]
_TopK = Annotated[int, Field(ge=-1, lt=2**31)]
_MinP = Annotated[float, Field(ge=0, le=1)]
_Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Misfit(ValueError):  # noqa: N818 - pydantic takes it for what is said of a field
    """A field that does not go with the others.

    Args:
        name: of the field.
        text: what is wrong.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class _Checked(BaseModel):
    @model_validator(mode="before")
    @classmethod
    def _is_small(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > _KEYS:
            raise ValueError(f"has {len(data):,} keys, which is more than {_KEYS}")
        return data


class _Body(_Checked):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """What a stream has besides its text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding, of which there is none on one's own machine


class JsonSchema(_Body):
    """A JSON Schema, by the name that a client gives it."""

    name: _Text
    description: str | None = None
    # The field's name in the interface is one of pydantic's own methods.
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Body):
    """The form that an answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _a_schema_goes_with_its_type(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            text = "json_schema should be given with type 'json_schema', and only then"
            raise Misfit("json_schema", text)
        return self


class StructuredOutputs(_Body):
    """The form that an answer must have, as vLLM spells it: exactly one of these."""

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    json_object: Literal[True] | None = None
    regex: _Text | None = None
    choice: Annotated[list[_Text], _list(1000, least=1)] | None = None
    grammar: Annotated[str, Field(min_length=1, max_length=1 << 18)] | None = None

    @model_validator(mode="after")
    def _there_is_one(self) -> StructuredOutputs:
        if sum(value is not None for value in self.__dict__.values()) != 1:
            names = "json, json_object, regex, choice, grammar"
            raise ValueError(f"exactly one should be given of {names}")
        return self


class SamplingRequest(_Body):
    """What chats and completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: _Tokens | None = None
    temperature: _Temperature | None = None
    top_p: _TopP | None = None
    top_k: _TopK | None = None
    min_p: _MinP | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    # Nearer to 0, it makes scores infinite, of which no token can be chosen.
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], _small(1024)] | None
    ) = None
    seed: _Seed | None = None
    stop: _Text | Annotated[list[_Text], _list(16)] | None = None
    ignore_eos: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    # What only labels a request changes nothing here, and clients send it unasked.
    user: str | None = None
    metadata: Annotated[dict[str, str], _small(_KEYS)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with what it used."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(_Body):
    """A part of a message; there are no pictures here."""

    type: Literal["text"]
    text: str


class Function(_Body):
    """A function that was called, its arguments being JSON."""

    name: str
    arguments: str


class ToolCall(_Body):
    """A call in a message of the assistant's."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Function
    index: int | None = None


class Message(_Checked):
    """A turn of a conversation."""

    # Clients send answers back as they got them, with fields that say that there is nothing.
    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], _list(_TURNS)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], _list(_TURNS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _what_is_unknown_is_empty(self) -> Message:
        for name, value in (self.model_extra or {}).items():
            if value not in (None, [], {}):
                text = f"has the field {name[:60]!r}, which this server does not know"
                raise Misfit(name, text)
        if self.content is None and not self.tool_calls:
            raise Misfit("content", "has no content")
        return self


class ChatRequest(SamplingRequest):
    """The body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], _list(_TURNS, least=1)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[dict[str, Any]], _list(_TURNS)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_pieces: bool | None = None

    @model_validator(mode="after")
    def _fields_that_need_each_other(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise Misfit("top_logprobs", "top_logprobs needs logprobs to be true")
        if self.response_format is not None and self.structured_outputs is not None:
            text = "response_format and structured_outputs exclude each other"
            raise Misfit("response_format", text)
        return self


class CompletionRequest(SamplingRequest):
    """The body of ``/v1/completions``."""

    prompt: (
        str
        | _Ids
        | Annotated[list[str], _list(_PROMPTS, least=1)]
        | Annotated[list[_Ids], _list(_PROMPTS, least=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None


class TraceRequest(_Body):
    """The body of ``/eagle/trace`` and ``/eagle/plain``: one conversation, looked on while decoded.

    `spec` is a shipped spec's name, whose tree and acceptance rule are taken; `tree` and
    `acceptance` replace these, each a strategy's name or a mapping with `name` and settings that
    are numbers.
    """

    messages: Annotated[list[Message], _list(_TURNS, least=1)]
    max_tokens: _Tokens | None = None
    temperature: _Temperature | None = None
    top_p: _TopP | None = None
    top_k: _TopK | None = None
    min_p: _MinP | None = None
    seed: _Seed | None = None
    stop: _Text | Annotated[list[_Text], _list(16)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    spec: str | None = None
    tree: str | dict[str, Any] | None = None
    acceptance: str | dict[str, Any] | None = None

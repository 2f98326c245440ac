"""What clients send: OpenAI's requests, a few of vLLM's extensions, and the project's own.

A field that is not here is refused by name, and so is one that this server does not support,
unless its value asks for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from cwm_jax.inference.requests import MAX_LOGPROBS, MAX_STOP_TOKENS
from cwm_jax.serve.tools import NAME_PATTERN

MAX_CHOICES = 128  # OpenAI's limit of n
MAX_STOP_STRINGS = 16  # assumed; OpenAI's limit is 4
# Of a constraint, assumed: it is looked through for every token.
MAX_ALLOWED_CHOICES = 4096
MAX_ALLOWED_TOKENS = 65_536


class _Strict(BaseModel):
    """Types are those of JSON, and every field is known."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _names_are_known(cls, data: Any) -> Any:
        """Names the first unknown field together with those there are."""
        unknown = [name for name in data if name not in cls.model_fields] if _is_dict(data) else []
        if unknown:
            raise ValidationError.from_exception_data(
                cls.__name__,
                [
                    InitErrorDetails(
                        type=PydanticCustomError(
                            "extra_forbidden", "unknown", {"known": [*cls.model_fields]}
                        ),
                        loc=(unknown[0],),
                        input=data[unknown[0]],
                    )
                ],
            )
        return data


def _is_dict(data: Any) -> bool:
    return isinstance(data, dict)


def _unsupported(*neutral: Any, instead: str = "leave it out") -> Any:
    """A field that may be left out, null, or ask for nothing with one of the ``neutral`` values."""

    def check(value: Any) -> Any:
        if value is not None and not any(_same(value, allowed) for allowed in neutral):
            raise PydanticCustomError("unsupported", "not supported: {instead}", {"instead": instead})
        return value

    return Annotated[
        Any, AfterValidator(check), WithJsonSchema({"enum": [None, *neutral]}), Field(default=None)
    ]


def _same(value: Any, allowed: Any) -> bool:
    """Equal, and not as True equals 1."""
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


def _one_of(expected: str, **kinds: tuple[Callable[[Any], bool], Any]) -> Any:
    """A union in which the value's own look decides which type it must have."""

    def kind_of(value: Any) -> str | None:
        return next((f"~{name}" for name, (fits, _) in kinds.items() if fits(value)), None)

    union: Any = None
    for name, (_, type_) in kinds.items():
        member = Annotated[type_, Tag(f"~{name}")]
        union = member if union is None else union | member
    return Annotated[
        union,
        Discriminator(kind_of, custom_error_type="kind", custom_error_message=f"expected {expected}"),
    ]


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _list_of(first: type) -> Callable[[Any], bool]:
    """Whether it is a list that begins with that type; what follows is checked by field."""
    return lambda value: isinstance(value, list) and bool(value) and type(value[0]) is first


# Messages ------------------------------------------------------------------------------------------


class TextPart(_Strict):
    """Of a message in parts; the model reads text only."""

    type: Literal["text"]
    text: str


def _no_other_parts(value: Any) -> Any:
    for part in value if _is_list(value) else []:
        kind = part.get("type") if _is_dict(part) else None
        if isinstance(kind, str) and kind != "text":
            raise PydanticCustomError(
                "unsupported",
                "has a part of the type {kind}; expected 'text' alone: the model reads text only",
                {"kind": repr(kind[:40])},
            )
    return value


Text = Annotated[
    _one_of("a string or a list of text parts", string=(_is_str, str), parts=(_is_list, list[TextPart])),
    BeforeValidator(_no_other_parts),
]


class FunctionCall(_Strict):
    """What an assistant called: a tool's exact name, and JSON in a string."""

    name: str = Field(pattern=NAME_PATTERN)
    arguments: str


class MessageToolCall(_Strict):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None  # clients that add up a stream leave it there


class SystemMessage(_Strict):
    role: Literal["system", "developer"]
    content: Text
    name: str | None = None


class UserMessage(_Strict):
    role: Literal["user"]
    content: Text
    name: str | None = None


class AssistantMessage(_Strict):
    """As the server answers it: with content, reasoning, calls, or several of them."""

    role: Literal["assistant"]
    content: Text | None = None
    reasoning_content: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    name: str | None = None
    refusal: _unsupported() = None  # type: ignore[valid-type]
    audio: _unsupported() = None  # type: ignore[valid-type]
    function_call: _unsupported() = None  # type: ignore[valid-type]
    annotations: _unsupported([]) = None  # type: ignore[valid-type]


class ToolMessage(_Strict):
    """What a tool gave; its name is that of the call with the id, or given here."""

    role: Literal["tool"]
    content: Text
    tool_call_id: str | None = None
    name: str | None = Field(None, pattern=NAME_PATTERN)


def _has_role(*roles: str) -> Callable[[Any], bool]:
    return lambda value: _is_dict(value) and value.get("role") in roles


ChatMessage = _one_of(
    "a message whose role is system, developer, user, assistant or tool",
    system=(_has_role("system", "developer"), SystemMessage),
    user=(_has_role("user"), UserMessage),
    assistant=(_has_role("assistant"), AssistantMessage),
    tool=(_has_role("tool"), ToolMessage),
)


# Tools and reasoning -------------------------------------------------------------------------------


class FunctionDefinition(_Strict):
    name: str = Field(pattern=NAME_PATTERN)
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: _unsupported(False) = None  # type: ignore[valid-type]


class ToolDefinition(_Strict):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(_Strict):
    name: str


class NamedTool(_Strict):
    type: Literal["function"]
    function: FunctionName


ToolChoice = _one_of(
    "'none', 'auto', 'required' or a function by name",
    mode=(_is_str, Literal["none", "auto", "required"]),
    named=(_is_dict, NamedTool),
)

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Reasoning(_Strict):
    enabled: bool | None = None
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None  # all of it is given in any case


class ChatTemplateKwargs(_Strict):
    """The options of the model's chat template."""

    enable_thinking: bool | None = None
    preserve_previous_think: bool | None = None


# Requests ------------------------------------------------------------------------------------------


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: _unsupported(False) = None  # type: ignore[valid-type]


class Allowed(_Strict):
    """After each token ``after`` one of the ``choices`` comes, then one of the tokens ``then``."""

    after: int = Field(ge=0)
    choices: list[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]] = Field(
        min_length=1, max_length=MAX_ALLOWED_CHOICES
    )
    then: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=MAX_STOP_TOKENS)


StopString = Annotated[str, Field(min_length=1)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)]
TokenIds = Annotated[list[int], Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]


def _finite(**limits: float) -> Any:
    return Annotated[float, Field(allow_inf_nan=False, **limits)]


class SamplingRequest(_Strict):
    """The fields that both kinds of request have."""

    model: str | None = Field(None, description="One that /v1/models lists; by default the first.")
    max_tokens: Positive | None = None
    temperature: _finite(ge=0, le=100) | None = None  # type: ignore[valid-type]
    top_p: _finite(gt=0, le=1) | None = None  # type: ignore[valid-type]
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1, description="-1 or 0: all (extension)")
    min_p: _finite(ge=0, le=1) | None = None  # type: ignore[valid-type]
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: _one_of("a string or a list of strings", one=(_is_str, StopString), several=(_is_list, StopStrings)) | None = None  # type: ignore[valid-type]
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = Field(None, max_length=MAX_STOP_TOKENS)
    ignore_eos: bool | None = Field(None, description="Go on after the model's own stop tokens.")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Known to clients, and without an effect on the answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    # Known to clients, and refused where they ask for something.
    logit_bias: _unsupported({}) = None  # type: ignore[valid-type]
    presence_penalty: _unsupported(0) = None  # type: ignore[valid-type]
    frequency_penalty: _unsupported(0) = None  # type: ignore[valid-type]
    repetition_penalty: _unsupported(1) = None  # type: ignore[valid-type]
    min_tokens: _unsupported(0) = None  # type: ignore[valid-type]
    best_of: _unsupported() = None  # type: ignore[valid-type]


class ChatRequest(SamplingRequest):
    """``/v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)  # type: ignore[valid-type]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: list[ToolDefinition] | None = Field(None, max_length=128)
    tool_choice: ToolChoice | None = None  # type: ignore[valid-type]
    reasoning: Reasoning | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    # Without an effect on the answer.
    store: _unsupported(False) = None  # type: ignore[valid-type]
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Refused where they ask for something.
    parallel_tool_calls: _unsupported(True) = None  # type: ignore[valid-type]
    response_format: _unsupported({"type": "text"}) = None  # type: ignore[valid-type]
    modalities: _unsupported(["text"]) = None  # type: ignore[valid-type]
    functions: _unsupported(instead="use tools") = None  # type: ignore[valid-type]
    function_call: _unsupported(instead="use tool_choice") = None  # type: ignore[valid-type]
    audio: _unsupported() = None  # type: ignore[valid-type]
    prediction: _unsupported() = None  # type: ignore[valid-type]
    verbosity: _unsupported() = None  # type: ignore[valid-type]
    web_search_options: _unsupported() = None  # type: ignore[valid-type]


Prompt = _one_of(
    "a string, a list of strings, a list of token ids or a list of such lists, not empty",
    text=(_is_str, str),
    texts=(_list_of(str), list[str]),
    ids=(_list_of(int), TokenIds),
    several=(_list_of(list), list[TokenIds]),
)


class CompletionRequest(SamplingRequest):
    """``/v1/completions``; a text gets ``<|begin_of_text|>`` before it, token ids do not."""

    prompt: Prompt  # type: ignore[valid-type]
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    allowed: Allowed | None = None
    # Refused where they ask for something.
    echo: _unsupported(False) = None  # type: ignore[valid-type]
    suffix: _unsupported("") = None  # type: ignore[valid-type]

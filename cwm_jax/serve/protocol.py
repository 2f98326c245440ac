"""What clients send: OpenAI's requests, a few of vLLM's extensions, and the project's own.

A field that is not here is refused by name, and so is one that this server does not support,
unless its value asks for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    Tag,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError, core_schema

from cwm_jax.inference.requests import MAX_LOGPROBS, MAX_STOP_TOKENS
from cwm_jax.serve.chat.tools import NAME_PATTERN

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


class Unsupported:
    """Of a field that may be left out, null, or ask for nothing with one of the neutral values."""

    def __init__(self, *neutral: Any, instead: str = "leave it out") -> None:
        self._neutral, self._instead = neutral, instead

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> Any:
        return {"enum": [None, *self._neutral]}

    def _check(self, value: Any) -> Any:
        if value is not None and not any(_same(value, neutral) for neutral in self._neutral):
            raise PydanticCustomError(
                "unsupported", "not supported: {instead}", {"instead": self._instead}
            )
        return value


def _same(value: Any, neutral: Any) -> bool:
    """Equal, and not as True equals 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _by_look(expected: str, **kinds: Callable[[Any], bool]) -> Discriminator:
    """Of a union whose members are tagged ``~NAME``: the value's look decides, not what fits."""

    def kind_of(value: Any) -> str | None:
        return next((f"~{name}" for name, fits in kinds.items() if fits(value)), None)

    return Discriminator(
        kind_of, custom_error_type="kind", custom_error_message=f"expected {expected}"
    )


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _list_of(first: type) -> Callable[[Any], bool]:
    """Whether it is a list that begins with that type; what follows is checked by field."""
    return lambda value: isinstance(value, list) and bool(value) and type(value[0]) is first


# Messages ---------------------------------------------------------------------------------------


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
    Annotated[str, Tag("~string")] | Annotated[list[TextPart], Tag("~parts")],
    _by_look("a string or a list of text parts", string=_is_str, parts=_is_list),
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
    refusal: Annotated[Any, Unsupported()] = None
    audio: Annotated[Any, Unsupported()] = None
    function_call: Annotated[Any, Unsupported()] = None
    annotations: Annotated[Any, Unsupported([])] = None


class ToolMessage(_Strict):
    """What a tool gave; its name is that of the call with the id, or given here."""

    role: Literal["tool"]
    content: Text
    tool_call_id: str | None = None
    name: str | None = Field(None, pattern=NAME_PATTERN)


def _has_role(*roles: str) -> Callable[[Any], bool]:
    return lambda value: _is_dict(value) and value.get("role") in roles


ChatMessage = Annotated[
    Annotated[SystemMessage, Tag("~system")]
    | Annotated[UserMessage, Tag("~user")]
    | Annotated[AssistantMessage, Tag("~assistant")]
    | Annotated[ToolMessage, Tag("~tool")],
    _by_look(
        "a message whose role is system, developer, user, assistant or tool",
        system=_has_role("system", "developer"),
        user=_has_role("user"),
        assistant=_has_role("assistant"),
        tool=_has_role("tool"),
    ),
]


# Tools and reasoning ----------------------------------------------------------------------------


class FunctionDefinition(_Strict):
    name: str = Field(pattern=NAME_PATTERN)
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: Annotated[Any, Unsupported(False)] = None


class ToolDefinition(_Strict):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(_Strict):
    name: str


class NamedTool(_Strict):
    type: Literal["function"]
    function: FunctionName


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("~mode")]
    | Annotated[NamedTool, Tag("~named")],
    _by_look("'none', 'auto', 'required' or a function by name", mode=_is_str, named=_is_dict),
]

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Reasoning(_Strict):
    enabled: bool | None = None
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None  # all of it is given in any case


class ChatTemplateKwargs(_Strict):
    """The options of the model's chat template."""

    enable_thinking: bool | None = None
    preserve_previous_think: bool | None = None


# Requests ---------------------------------------------------------------------------------------


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, Unsupported(False)] = None


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


Stop = Annotated[
    Annotated[StopString, Tag("~one")] | Annotated[StopStrings, Tag("~several")],
    _by_look("a string or a list of strings", one=_is_str, several=_is_list),
]


class SamplingRequest(_Strict):
    """The fields that both kinds of request have."""

    model: str | None = Field(None, description="One that /v1/models lists; by default the first.")
    max_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1, description="-1 or 0: all (extension)")
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: Stop | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, max_length=MAX_STOP_TOKENS
    )
    ignore_eos: bool | None = Field(None, description="Go on after the model's own stop tokens.")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Known to clients, and without an effect on the answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    return_token_ids: bool | None = None
    # Known to clients, and refused where they ask for something.
    skip_special_tokens: Annotated[Any, Unsupported(False)] = None
    include_stop_str_in_output: Annotated[Any, Unsupported(False)] = None
    logit_bias: Annotated[Any, Unsupported({})] = None
    presence_penalty: Annotated[Any, Unsupported(0)] = None
    frequency_penalty: Annotated[Any, Unsupported(0)] = None
    repetition_penalty: Annotated[Any, Unsupported(1)] = None
    min_tokens: Annotated[Any, Unsupported(0)] = None
    best_of: Annotated[Any, Unsupported()] = None


class ChatRequest(SamplingRequest):
    """``/v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: list[ToolDefinition] | None = Field(None, max_length=128)
    tool_choice: ToolChoice | None = None
    reasoning: Reasoning | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    # Without an effect on the answer.
    store: Annotated[Any, Unsupported(False)] = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Refused where they ask for something.
    parallel_tool_calls: Annotated[Any, Unsupported(True)] = None
    response_format: Annotated[Any, Unsupported({"type": "text"})] = None
    modalities: Annotated[Any, Unsupported(["text"])] = None
    functions: Annotated[Any, Unsupported(instead="use tools")] = None
    function_call: Annotated[Any, Unsupported(instead="use tool_choice")] = None
    audio: Annotated[Any, Unsupported()] = None
    prediction: Annotated[Any, Unsupported()] = None
    verbosity: Annotated[Any, Unsupported()] = None
    web_search_options: Annotated[Any, Unsupported()] = None


Prompt = Annotated[
    Annotated[str, Tag("~text")]
    | Annotated[list[str], Tag("~texts")]
    | Annotated[TokenIds, Tag("~ids")]
    | Annotated[list[TokenIds], Tag("~several")],
    _by_look(
        "a string, a list of strings, a list of token ids or a list of such lists, not empty",
        text=_is_str,
        texts=_list_of(str),
        ids=_list_of(int),
        several=_list_of(list),
    ),
]


class CompletionRequest(SamplingRequest):
    """``/v1/completions``; a text gets ``<|begin_of_text|>`` before it, token ids do not."""

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    allowed: Allowed | None = None
    # Refused where they ask for something.
    echo: Annotated[Any, Unsupported(False)] = None
    suffix: Annotated[Any, Unsupported("")] = None

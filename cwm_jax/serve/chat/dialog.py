"""From a chat request to the dialog that the model reads; without the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from cwm_jax.data.chat import (
    THINK_CLOSING,
    Message,
    encode_dialog,
    with_reasoning_prompt,
    without_previous_reasoning,
)
from cwm_jax.serve.chat.tools import Tool, ToolCall, describe_tools, render_call
from cwm_jax.serve.errors import ApiError
from cwm_jax.serve.protocol import AssistantMessage, ChatRequest, NamedTool, ToolMessage
from cwm_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Dialog:
    """What is asked of the model.

    Attributes:
        prompt: token ids.
        is_reasoning: the answer begins inside the reasoning.
        tools: that the answer may call.
        must_call: names of those of which the answer must call one; empty: it is free.
    """

    prompt: list[int]
    is_reasoning: bool
    tools: tuple[Tool, ...]
    must_call: tuple[str, ...]


def dialog_of(request: ChatRequest, tokenizer: Tokenizer, *, reasons_by_default: bool) -> Dialog:
    """Encodes the request's messages.

    Raises:
        ApiError: fields that contradict each other, and messages that make no dialog.
    """
    defined = _defined(request)
    tools, must_call = _offered(request, defined)
    messages = _messages(request.messages, {tool.name: tool for tool in defined})
    is_begun = messages[-1].is_assistant
    reasons = _reasons(request, reasons_by_default=reasons_by_default, is_begun=is_begun)
    if reasons:
        messages = with_reasoning_prompt(messages)
    options = request.chat_template_kwargs
    if options is not None and options.preserve_previous_think is False:
        messages = without_previous_reasoning(messages)
    if tools:
        _insert_after_system(messages, Message("system", describe_tools(tools)))
    prompt = encode_dialog(tokenizer, messages, think=reasons and not is_begun)
    begun = messages[-1].text if is_begun else ""
    opened = begun.lstrip().startswith("<think>") and THINK_CLOSING not in begun
    return Dialog(prompt, opened or (reasons and not is_begun), tools, must_call)


def _messages(given: Sequence, tools: Mapping[str, Tool]) -> list[Message]:
    """Tool results get the name of the call that they answer."""
    names: dict[str, str] = {}
    messages = []
    for index, message in enumerate(given):
        if isinstance(message, AssistantMessage):
            messages.append(_assistant(message, index, tools))
            names |= {call.id: call.function.name for call in message.tool_calls or []}
        elif isinstance(message, ToolMessage):
            messages.append(Message(f"tool: {_tool_name(message, names, index)}", _text(message)))
        else:
            role = "system" if message.role == "developer" else message.role
            messages.append(Message(role, _text(message)))
    return messages


def _assistant(message: AssistantMessage, index: int, tools: Mapping[str, Tool]) -> Message:
    if message.content is None and not (message.tool_calls or message.reasoning_content):
        raise _wrong(
            f"messages.{index}.content",
            "null; expected text, unless there are tool_calls or reasoning_content",
        )
    calls = [
        render_call(
            ToolCall(call.function.name, call.function.arguments), tools.get(call.function.name)
        )
        for call in message.tool_calls or []
    ]
    text = _text(message)
    return Message(
        "assistant", "\n".join([*([text] if text else []), *calls]), message.reasoning_content
    )


def _tool_name(message: ToolMessage, names: dict[str, str], index: int) -> str:
    called = names.get(message.tool_call_id or "")
    if called is None and message.name is None:
        raise _wrong(
            f"messages.{index}.tool_call_id",
            f"{message.tool_call_id!r}; expected the id of a call in an assistant message before "
            "it, or a name",
        )
    if None not in (called, message.name) and called != message.name:
        raise _wrong(f"messages.{index}.name", f"{message.name!r}, but the call was of {called!r}")
    return called or message.name or ""


def _text(message) -> str:
    content = message.content
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


def _defined(request: ChatRequest) -> tuple[Tool, ...]:
    """The request's tools, whether or not the answer may call them."""
    functions = [definition.function for definition in request.tools or []]
    names = [function.name for function in functions]
    twice = next((i for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise _wrong(f"tools.{twice}.function.name", f"{names[twice]!r} is there twice")
    return tuple(
        Tool(function.name, function.description or "", function.parameters or {})
        for function in functions
    )


def _offered(
    request: ChatRequest, tools: tuple[Tool, ...]
) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The tools that the answer may call, and the names of those of which it must call one."""
    names, choice = [tool.name for tool in tools], request.tool_choice
    if choice == "none":
        return (), ()
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise _wrong(
            "tool_choice.function.name",
            f"{choice.function.name!r}; expected one of the tools: {', '.join(names) or 'none'}",
        )
    if choice == "required" and not names:
        raise _wrong("tool_choice", "'required', but there are no tools")
    if isinstance(choice, NamedTool):
        return tools, (choice.function.name,)
    return tools, tuple(names) if choice == "required" else ()


def _reasons(request: ChatRequest, *, reasons_by_default: bool, is_begun: bool) -> bool:
    """Whether the answer reasons first; the ways to say so must agree."""
    said = {name: value for name, value in _reasoning_fields(request) if value is not None}
    if len({*said.values()}) > 1:
        raise _wrong(" and ".join(said), "contradict each other: reasoning is on or off")
    if not said:
        return reasons_by_default
    field, on = next(iter(said.items()))
    if on and is_begun:
        raise _wrong(
            field,
            "reasoning is on, but the last message is from the assistant: the answer has begun; "
            "let that message begin with '<think>\\n' instead",
        )
    return on


def _reasoning_fields(request: ChatRequest):
    reasoning, options = request.reasoning, request.chat_template_kwargs
    yield "reasoning_effort", _is_effort(request.reasoning_effort)
    if reasoning is not None:
        yield "reasoning.enabled", reasoning.enabled
        yield "reasoning.effort", _is_effort(reasoning.effort)
    if options is not None:
        yield "chat_template_kwargs.enable_thinking", options.enable_thinking


def _is_effort(effort: str | None) -> bool | None:
    """The model knows no degrees of it."""
    return None if effort is None else effort != "none"


def _insert_after_system(messages: list[Message], message: Message) -> None:
    """After the last system message, as Meta's server does."""
    places = [i for i, m in enumerate(messages) if m.role == "system"]
    messages.insert(places[-1] + 1 if places else 0, message)


def _wrong(param: str, problem: str) -> ApiError:
    return ApiError(400, f"{param}: {problem}", param=param, code="invalid_value")

"""``/chat/completions``: what becomes of an answer's deltas."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Iterable, Iterator

from starlette.requests import Request
from starlette.responses import Response

from cwm_jax.data.chat import ReasoningSplitter
from cwm_jax.inference import requests as engine
from cwm_jax.inference.requests import Delta
from cwm_jax.serve.chat.dialog import Dialog, dialog_of
from cwm_jax.serve.chat.forced_call import ForcedCall
from cwm_jax.serve.chat.tools import ToolCall, ToolCallParser
from cwm_jax.serve.errors import ApiError
from cwm_jax.serve.generation import Generation, Job
from cwm_jax.serve.protocol import ChatRequest
from cwm_jax.serve.replies import (
    Alternative,
    CalledFunction,
    ChatAnswer,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    FinishReason,
    FunctionDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallReply,
    now_s,
    reply_id,
)
from cwm_jax.serve.sampling import finite_logprob, sampling_params, token_bytes, token_name
from cwm_jax.serve.server import Server
from cwm_jax.serve.streaming import respond
from cwm_jax.tokenizer import Tokenizer

_FIELDS = {"prompt": "messages", "num_logprobs": "top_logprobs"}


async def chat(server: Server, body: ChatRequest, request: Request) -> Response:
    """Answers one chat request."""
    model = server.model_name(body.model)
    _check(body)
    # Long texts take a while to encode.
    dialog = await asyncio.to_thread(
        dialog_of, body, server.tokenizer, reasons_by_default=server.options.reasoning
    )
    generation = server.generate(_job(server, body, dialog))
    wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    answer = _Answer(
        generation,
        model=model,
        choices=[
            _Choice(server.tokenizer, dialog, with_logprobs=bool(body.logprobs))
            for _ in range(body.n or 1)
        ],
        with_usage=wants_usage,
    )
    return await respond(
        request,
        generation,
        answer,
        stream=bool(body.stream),
        timeout_s=server.options.request_timeout_s,
    )


def _check(body: ChatRequest) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(
            400,
            f"top_logprobs is {body.top_logprobs}, but logprobs is not set; expected both",
            param="top_logprobs",
            code="invalid_value",
        )
    limits = {limit for limit in (body.max_tokens, body.max_completion_tokens) if limit is not None}
    if len(limits) > 1:
        raise ApiError(
            400,
            f"max_tokens is {body.max_tokens} and max_completion_tokens is "
            f"{body.max_completion_tokens}; expected one of them",
            param="max_completion_tokens",
            code="invalid_value",
        )


def _job(server: Server, body: ChatRequest, dialog: Dialog) -> Job:
    def forced_call() -> ForcedCall:
        return ForcedCall(server.tokenizer, dialog.must_call, is_reasoning=dialog.is_reasoning)

    sampling = sampling_params(
        body,
        server,
        max_tokens=body.max_completion_tokens or body.max_tokens or server.service.max_length,
        num_logprobs=body.top_logprobs or 0,
    )
    return Job(
        endpoint="chat",
        prompts=[dialog.prompt],
        n=body.n or 1,
        sampling=sampling,
        fields=_FIELDS,
        make_constraint=forced_call if dialog.must_call else None,
    )


@dataclasses.dataclass
class _Gain:
    """What a choice gained by a delta."""

    reasoning: str
    content: str
    calls: list[ToolCall]
    logprobs: list[TokenLogprob]


class _Choice:
    """One answer, as far as it has come."""

    def __init__(self, tokenizer: Tokenizer, dialog: Dialog, *, with_logprobs: bool) -> None:
        self._tokenizer, self._with_logprobs = tokenizer, with_logprobs
        self._splitter = ReasoningSplitter(is_reasoning=dialog.is_reasoning)
        self._parser = ToolCallParser(dialog.tools)
        self.has_reasoning = dialog.is_reasoning
        self.reasoning: list[str] = []
        self.content: list[str] = []
        self.calls: list[ToolCallReply] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason = "stop"

    def add(self, delta: Delta) -> _Gain:
        reasoning, answer = self._splitter.feed(delta.text)
        content, calls = self._parser.feed(answer)
        if delta.finish_reason is not None:
            rest_reasoning, _ = self._splitter.finish()
            reasoning += rest_reasoning
            content += self._parser.finish()
        shown = delta.logprobs if self._with_logprobs else []
        logprobs = [_token_logprob(self._tokenizer, token) for token in shown]
        gain = _Gain(reasoning, content, calls, logprobs)
        self.reasoning.append(reasoning)
        self.content.append(content)
        self.calls += [_call_reply(call) for call in calls]
        self.logprobs += logprobs
        if delta.finish_reason == "length":
            self.finish_reason = "length"
        elif delta.finish_reason == "stop" and self.calls:
            self.finish_reason = "tool_calls"
        return gain

    def answer(self) -> ChatAnswer:
        """The whole message; content is null where there is none but something else."""
        content, reasoning = "".join(self.content), "".join(self.reasoning)
        values: dict = {"role": "assistant", "content": content, "refusal": None}
        if not content and (self.calls or reasoning):
            values["content"] = None
        if self.has_reasoning:
            values["reasoning_content"] = reasoning
        if self.calls:
            values["tool_calls"] = self.calls
        return ChatAnswer(**values)

    def shown_logprobs(self, logprobs: list[TokenLogprob]) -> ChatLogprobs | None:
        return ChatLogprobs(content=logprobs, refusal=None) if self._with_logprobs else None


class _Answer:
    """All choices of a request, as a reply and as chunks."""

    def __init__(
        self, generation: Generation, *, model: str, choices: list[_Choice], with_usage: bool
    ) -> None:
        self._generation, self._choices, self._with_usage = generation, choices, with_usage
        self._names = {"id": reply_id("chatcmpl"), "created": now_s(), "model": model}

    def opening(self) -> Iterable[ChatCompletionChunk]:
        for index in range(len(self._choices)):
            yield self._chunk(index, ChatDelta(role="assistant", content=""), None, None)

    def add(self, choice: int, delta: Delta) -> Iterable[ChatCompletionChunk]:
        state = self._choices[choice]
        num_calls = len(state.calls)
        gain = state.add(delta)
        return self._chunks(choice, gain, num_calls, is_last=delta.finish_reason is not None)

    def closing(self) -> Iterable[ChatCompletionChunk]:
        if self._with_usage:
            yield ChatCompletionChunk(
                **self._names,
                object="chat.completion.chunk",
                choices=[],
                usage=self._generation.usage,
            )

    def reply(self) -> ChatCompletion:
        choices = [
            ChatChoice(
                index=index,
                message=choice.answer(),
                logprobs=choice.shown_logprobs(choice.logprobs),
                finish_reason=choice.finish_reason,
            )
            for index, choice in enumerate(self._choices)
        ]
        return ChatCompletion(
            **self._names, object="chat.completion", choices=choices, usage=self._generation.usage
        )

    def _chunks(
        self, choice: int, gain: _Gain, num_calls: int, *, is_last: bool
    ) -> Iterator[ChatCompletionChunk]:
        """A chunk for each kind of gain; the log-probabilities are in the first."""
        state = self._choices[choice]
        deltas = []
        if gain.reasoning:
            deltas.append(ChatDelta(reasoning_content=gain.reasoning))
        if gain.content:
            deltas.append(ChatDelta(content=gain.content))
        for index in range(num_calls, len(state.calls)):
            deltas += _call_deltas(index, state.calls[index])
        if gain.logprobs and not deltas:
            deltas.append(ChatDelta())
        for number, delta in enumerate(deltas):
            shown = state.shown_logprobs(gain.logprobs) if number == 0 else None
            yield self._chunk(choice, delta, shown, None)
        if is_last:
            yield self._chunk(choice, ChatDelta(), None, state.finish_reason)

    def _chunk(
        self,
        index: int,
        delta: ChatDelta,
        logprobs: ChatLogprobs | None,
        finish_reason: FinishReason | None,
    ) -> ChatCompletionChunk:
        choice = ChatChunkChoice(
            index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason
        )
        chunk = ChatCompletionChunk(**self._names, object="chat.completion.chunk", choices=[choice])
        if self._with_usage:
            chunk.usage = None  # set, and so sent
        return chunk


def _call_reply(call: ToolCall) -> ToolCallReply:
    return ToolCallReply(
        id=f"call_{uuid.uuid4().hex}",
        type="function",
        function=CalledFunction(name=call.name, arguments=call.arguments),
    )


def _call_deltas(index: int, call: ToolCallReply) -> list[ChatDelta]:
    """Name, then arguments, as clients add them up."""
    name, arguments = call.function.name, call.function.arguments
    first = ToolCallDelta(
        index=index,
        id=call.id,
        type="function",
        function=FunctionDelta(name=name, arguments=""),
    )
    second = ToolCallDelta(index=index, function=FunctionDelta(arguments=arguments))
    return [ChatDelta(tool_calls=[first]), ChatDelta(tool_calls=[second])]


def _token_logprob(tokenizer: Tokenizer, token: engine.TokenLogprob) -> TokenLogprob:
    top = [_alternative(tokenizer, token_id, logprob) for token_id, logprob in token.top]
    own = _alternative(tokenizer, token.token_id, token.logprob)
    return TokenLogprob(**own.model_dump(), top_logprobs=top)


def _alternative(tokenizer: Tokenizer, token_id: int, logprob: float) -> Alternative:
    return Alternative(
        token=token_name(token_id, tokenizer),
        logprob=finite_logprob(logprob),
        bytes=list(token_bytes(token_id, tokenizer)),
    )

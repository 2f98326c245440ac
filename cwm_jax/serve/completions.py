"""``/completions``: continues texts or token ids, and gives both."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator

from starlette.requests import Request
from starlette.responses import Response

from cwm_jax.inference.requests import Delta, TokenLogprob
from cwm_jax.serve.generation import Generation, Job
from cwm_jax.serve.protocol import CompletionRequest
from cwm_jax.serve.replies import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    FinishReason,
    now_s,
    reply_id,
)
from cwm_jax.serve.sampling import (
    choices_after,
    finite_logprob,
    sampling_params,
    token_bytes,
    token_name,
)
from cwm_jax.serve.server import Server
from cwm_jax.serve.streaming import respond
from cwm_jax.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16  # OpenAI's
_FIELDS = {"num_logprobs": "logprobs"}


async def complete(server: Server, body: CompletionRequest, request: Request) -> Response:
    """Answers one completion request."""
    model = server.model_name(body.model)
    tokenizer = server.tokenizer
    # Long texts take a while to encode.
    prompts = await asyncio.to_thread(_prompts, body.prompt, tokenizer)
    sampling = sampling_params(
        body,
        server,
        max_tokens=body.max_tokens or DEFAULT_MAX_TOKENS,
        num_logprobs=body.logprobs or 0,
    )
    constraint = choices_after(body.allowed, server) if body.allowed else None
    job = Job(
        endpoint="completions",
        prompts=prompts,
        n=body.n or 1,
        sampling=sampling,
        fields=_FIELDS,
        make_constraint=(lambda: constraint) if constraint else None,
    )
    generation = server.generate(job)
    wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    answer = _Answer(
        generation,
        tokenizer,
        model=model,
        with_logprobs=body.logprobs is not None,
        with_usage=wants_usage,
    )
    return await respond(
        request,
        generation,
        answer,
        stream=bool(body.stream),
        timeout_s=server.options.request_timeout_s,
    )


def _prompts(prompt: str | list, tokenizer: Tokenizer) -> list[list[int]]:
    if isinstance(prompt, str):
        prompt = [prompt]
    if isinstance(prompt[0], str):
        return [[tokenizer.bos_id, *tokenizer.encode(text)] for text in prompt]
    return [prompt] if isinstance(prompt[0], int) else prompt


class _Choice:
    """One continuation, as far as it has come."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.num_characters = 0  # of its tokens: where the next one begins
        self.finish_reason: FinishReason = "stop"


class _Answer:
    """All choices of a request, as a reply and as chunks."""

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        *,
        model: str,
        with_logprobs: bool,
        with_usage: bool,
    ) -> None:
        self._generation, self._tokenizer = generation, tokenizer
        self._with_logprobs, self._with_usage = with_logprobs, with_usage
        job = generation.job
        self._choices = [_Choice() for _ in range(len(job.prompts) * job.n)]
        self._names = {"id": reply_id("cmpl"), "created": now_s(), "model": model}

    def opening(self) -> Iterable[Completion]:
        return ()

    def add(self, choice: int, delta: Delta) -> Iterable[Completion]:
        state = self._choices[choice]
        state.texts.append(delta.text)
        state.token_ids += delta.token_ids
        state.logprobs += delta.logprobs
        if delta.finish_reason == "length":
            state.finish_reason = "length"
        reason = None if delta.finish_reason is None else state.finish_reason
        start, state.num_characters = state.num_characters, self._end(state.num_characters, delta)
        return self._chunks(choice, delta, reason, start)

    def closing(self) -> Iterable[Completion]:
        return [self._reply([], usage=self._generation.usage)] if self._with_usage else ()

    def reply(self) -> Completion:
        choices = []
        for index, state in enumerate(self._choices):
            whole = Delta(
                token_ids=state.token_ids, text="".join(state.texts), logprobs=state.logprobs
            )
            choices.append(self._shown(index, whole, state.finish_reason, 0))
        return self._reply(choices, usage=self._generation.usage)

    def _chunks(
        self, choice: int, delta: Delta, reason: FinishReason | None, start: int
    ) -> Iterator[Completion]:
        usage = {"usage": None} if self._with_usage else {}
        if delta.text or delta.token_ids or reason:
            yield self._reply([self._shown(choice, delta, reason, start)], **usage)

    def _reply(self, choices: list[CompletionChoice], **usage) -> Completion:
        return Completion(**self._names, object="text_completion", choices=choices, **usage)

    def _shown(
        self, index: int, delta: Delta, reason: FinishReason | None, start: int
    ) -> CompletionChoice:
        logprobs = self._logprobs(delta, start) if self._with_logprobs else None
        return CompletionChoice(
            index=index,
            text=delta.text,
            tokens=delta.token_ids,
            token_ids=delta.token_ids,
            logprobs=logprobs,
            finish_reason=reason,
        )

    def _logprobs(self, delta: Delta, start: int) -> CompletionLogprobs:
        ids = [token.token_id for token in delta.logprobs]
        lengths = [self._length(i) for i in ids]
        return CompletionLogprobs(
            tokens=[token_name(i, self._tokenizer) for i in ids],
            token_logprobs=[finite_logprob(token.logprob) for token in delta.logprobs],
            top_logprobs=[
                {
                    token_name(i, self._tokenizer): finite_logprob(logprob)
                    for i, logprob in token.top
                }
                for token in delta.logprobs
            ],
            text_offset=[start + n for n in itertools.accumulate(lengths, initial=0)][:-1],
        )

    def _end(self, start: int, delta: Delta) -> int:
        """Where the text of a delta's tokens ends; only told with log-probabilities."""
        return start + sum(map(self._length, delta.token_ids)) if self._with_logprobs else start

    def _length(self, token_id: int) -> int:
        return len(token_bytes(token_id, self._tokenizer).decode("utf-8", "replace"))

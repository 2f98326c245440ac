"""A service whose answers are written in advance: for time-outs, failures, and exact texts."""

import asyncio
import types
from collections.abc import AsyncIterator

from cwm_jax.config import ModelConfig
from cwm_jax.inference.requests import Delta, QueueFullError, TokenLogprob
from cwm_jax.tokenizer import Tokenizer


class FakeStream:
    def __init__(self, service: "FakeService") -> None:
        self._service = service
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    async def __aiter__(self) -> AsyncIterator[Delta]:
        service = self._service
        ids = service.tokenizer.encode(service.answer)
        for token in ids:
            if self.is_cancelled:
                yield Delta(token_ids=[], text="", logprobs=[], finish_reason="cancelled")
                return
            await asyncio.sleep(service.token_s)
            logprob = TokenLogprob(token, -1.5, [(token, -1.5), (0, float("-inf"))])
            text = service.tokenizer.decode([token])
            yield Delta(token_ids=[token], text=text, logprobs=[logprob], num_cached_tokens=3)
        yield Delta(token_ids=[], text="", logprobs=[], finish_reason=service.finish_reason)


class FakeService:
    """Every request is answered with ``answer``, one token in ``token_s`` seconds."""

    def __init__(self, tokenizer: Tokenizer, model_config: ModelConfig, max_length: int) -> None:
        self.tokenizer, self.model_config, self.max_length = tokenizer, model_config, max_length
        self.answer, self.finish_reason, self.token_s = "yes", "stop", 0.0
        self.healthy, self.failure = True, None
        self.max_streams = 1000
        self.streams: list[FakeStream] = []
        self.asked: list = []

    def submit(self, prompt, sampling) -> FakeStream:
        if len(self.streams) >= self.max_streams:
            raise QueueFullError("8 requests wait, as many as may")
        self.asked.append((list(prompt), sampling))
        self.streams.append(FakeStream(self))
        return self.streams[-1]

    def stats(self):
        names = ("num_running", "num_waiting", "num_pages", "num_free_pages", "num_cached_pages")
        counts = ("prompt_tokens", "cached_prompt_tokens", "generated_tokens", "preemptions")
        return types.SimpleNamespace(**dict.fromkeys([*names, *counts], 0))

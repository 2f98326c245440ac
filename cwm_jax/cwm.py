"""A model in a few lines of Python: text, chat, predicted execution, scores.

>>> from cwm_jax import CWM
>>> with CWM.from_pretrained("runs/quickstart/export") as model:
...     trace = model.predict_trace("def f(x):\n    return x + 1\n", "f(2)")
...     [frame.source_line.strip() for frame in trace.frames]  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cwm_jax.config import ExecutionConfig, ModelConfig
from cwm_jax.data.chat import (
    Message,
    ReasoningSplitter,
    encode_dialog,
    with_reasoning_prompt,
)
from cwm_jax.debugger.entry import program_of_source
from cwm_jax.debugger.frame_model import DebugOptions
from cwm_jax.debugger.in_process import EnginePredictor
from cwm_jax.debugger.prediction import PredictionError
from cwm_jax.debugger.session import Session, Stop, Why
from cwm_jax.inference.engine import Engine, EngineOptions, check_ids
from cwm_jax.inference.pretrained import load_pretrained
from cwm_jax.inference.requests import Delta, FinishReason, SamplingParams, TokenLogprob
from cwm_jax.inference.scoring import score
from cwm_jax.inference.service import EngineService, Stream
from cwm_jax.model.transformer import Params
from cwm_jax.tokenizer import Tokenizer
from cwm_jax.trace.frames import TraceFrame, returned_value

Prompt = str | Sequence[int]
_LEAST_SCORED = 128  # assumed: rows that are scored are padded to it, and doublings of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """What follows a prompt.

    Attributes:
        text: without a stop string or token.
        token_ids: with them.
        logprobs: of each token.
        finish_reason: ``stop`` or ``length``.
        reasoning: what stands before the text in an answer that reasons; else empty.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: FinishReason
    reasoning: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracePrediction:
    """An execution as the model predicts it.

    Attributes:
        frames: from the entry's call on, as far as they could be read.
        finished: whether the entry's scope was left.
        problems: why it is not finished, in words.
    """

    frames: list[TraceFrame]
    finished: bool
    problems: tuple[str, ...]

    @property
    def returned(self) -> str | None:
        """``repr`` of what the entry returns, if it does."""
        return returned_value(self.frames) if self.finished else None


class CWM:
    """A model with its tokenizer and an engine; make it with ``from_pretrained``."""

    def __init__(
        self,
        params: Params,
        model_config: ModelConfig,
        tokenizer: Tokenizer,
        options: EngineOptions,
        *,
        execution: ExecutionConfig | None = None,
    ):
        """Starts the engine; arguments as for ``Engine``."""
        execution = execution or ExecutionConfig()
        engine = Engine(params, model_config, tokenizer, options, execution=execution)
        self.params, self.model_config, self.tokenizer = params, model_config, tokenizer
        self.service = EngineService(engine)
        self._score = jax.jit(
            functools.partial(score, model_config=model_config, execution=execution)
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        max_length: int | None = None,
        max_rows: int = 8,
        kv_dtype: str | None = None,
        scan_layers: bool = False,
    ) -> CWM:
        """Loads a folder: a run's export, ``convert``'s output, Hugging Face's.

        Args:
            path: the folder.
            dtype: of the weights; None keeps the stored one.
            max_length: of a prompt and what follows it, in tokens; None is what the model is meant
                for, at most 8192.
            max_rows: prompts at once.
            kv_dtype: ``int8`` halves the cache and more; None is the weights' dtype.
            scan_layers: as for ``load_pretrained``.

        Raises:
            ValueError: as ``load_pretrained`` and ``Engine``.
        """
        model = load_pretrained(path, dtype=dtype, scan_layers=scan_layers)
        longest = model.model_config.max_position_embeddings
        options = EngineOptions(
            max_length=max_length or min(longest, 8192), max_rows=max_rows, kv_dtype=kv_dtype
        )
        return cls(model.params, model.model_config, model.tokenizer, options)

    def close(self) -> None:
        """Ends the engine's thread; what still runs is cancelled."""
        self.service.close(drain=False)

    def __enter__(self) -> CWM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ text

    def generate(
        self, prompts: Prompt | Sequence[Prompt], *, max_tokens: int = 256, **sampling: Any
    ) -> Any:
        """Continues a prompt, or some at once.

        Args:
            prompts: text (encoded behind a begin-of-text token) or token ids; or a list of prompts.
            max_tokens: of each continuation.
            sampling: more of ``SamplingParams``: temperature (1.0), top_p, top_k, min_p, seed,
                stop, stop_token_ids (besides the end of text), num_logprobs, constraint.

        Returns:
            A ``Completion``, or a list of them.

        Raises:
            RequestError: as ``Engine.submit``; QueueFullError: more prompts than may wait (256).
                None of the prompts is continued then.
        """
        one = _is_one(prompts)
        given: Any = [prompts] if one else prompts
        streams: list[Stream] = []
        try:
            for prompt in given:
                streams.append(self._submit(prompt, max_tokens, sampling))
            made = [_completion(stream) for stream in streams]
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return made[0] if one else made

    def stream(self, prompt: Prompt, *, max_tokens: int = 256, **sampling: Any) -> Iterator[Delta]:
        """What ``generate`` gives, as it comes; a reader that stops reading cancels it."""
        stream = self._submit(prompt, max_tokens, sampling)
        try:
            yield from stream
        finally:
            stream.cancel()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        reasoning: bool = True,
        max_tokens: int | None = None,
        **sampling: Any,
    ) -> Completion:
        """The assistant's answer.

        Args:
            messages: ``role`` (system, user, assistant, ``tool: NAME``), ``content`` and, of an
                assistant, ``reasoning``.
            reasoning: lets it reason first, under the system prompt that it was trained with unless
                there is another.
            max_tokens: of reasoning and answer; None is as many as there is room for.
            sampling: as for ``generate``; every end of a turn stops it.

        Raises:
            ValueError: an unknown role; RequestError, a ValueError too, as ``Engine.submit``.
        """
        dialog = [Message(**message) for message in messages]
        if reasoning:
            dialog = with_reasoning_prompt(dialog)
        ids = encode_dialog(self.tokenizer, dialog, think=reasoning)
        room = max(1, self.service.max_length - len(ids))
        stops = {*sampling.pop("stop_token_ids", ()), *self.tokenizer.stop_ids}
        sampling["stop_token_ids"] = tuple(sorted(stops))
        made = _completion(self._submit(ids, max_tokens or room, sampling))
        splitter = ReasoningSplitter(is_reasoning=reasoning)
        parts = [splitter.feed(made.text), splitter.finish()]
        thought, text = ("".join(part) for part in zip(*parts, strict=True))
        return dataclasses.replace(made, text=text, reasoning=thought)

    def _submit(self, prompt: Prompt, max_tokens: int, sampling: dict[str, Any]) -> Stream:
        if isinstance(prompt, str):
            prompt = [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
        stops = {*sampling.get("stop_token_ids", ()), self.tokenizer.eos_id}
        settings = {**sampling, "stop_token_ids": tuple(sorted(stops))}
        return self.service.submit(prompt, SamplingParams(max_tokens=max_tokens, **settings))

    # ------------------------------------------------------------ execution

    def predict_trace(
        self, source: str, call: str | None = None, *, max_frames: int = 1000, **options: Any
    ) -> TracePrediction:
        """What a program would do, frame by frame; it is not run.

        Args:
            source: of the program.
            call: of one of its functions, such as ``f(1, x=2)``; None takes the line that carries
                the start marker, else ``main``, else the whole script.
            max_frames: at most so many.
            options: more of ``DebugOptions``: temperature (0: greedy), top_p, seed, constrain
                (True: every action is a line of the program), max_frame_tokens.

        Raises:
            ValueError: no such call, a source that does not parse or spells special tokens.
            PredictionError: the program outgrows the engine's length.
        """
        session = Session(
            program_of_source(source, call),
            EnginePredictor(self.service),
            self.tokenizer,
            options=DebugOptions(max_command_frames=max_frames, **options),
        )
        session.reset()
        try:
            stop = session.resume()
        except PredictionError as error:  # the frames before it are worth having
            stop = Stop(why=Why.PROBLEM, notes=(str(error),))
        problems = () if stop.why is Why.END else (*session.current.problems, *stop.notes)
        return TracePrediction(
            frames=[step.frame for step in session.steps],
            finished=stop.why is Why.END,
            problems=problems,
        )

    # ------------------------------------------------------------ scores

    def score(self, prompt: Prompt, continuation: Prompt = ()) -> list[float]:
        """Log-probabilities of given tokens under the model, in nats.

        Args:
            prompt: as for ``generate``.
            continuation: text or token ids; without it the prompt's own tokens after its first are
                scored.

        Returns:
            One for each token of the continuation, or of the prompt but its first.
        """
        before = self._ids(prompt, bos=True)
        after = self._ids(continuation, bos=False)
        row = [*before, *after]
        if len(row) < 2 or not before:
            raise ValueError(
                f"score got {len(before)} tokens and {len(after)} after them; expected one or more "
                "and two together: begin the prompt with bos"
            )
        check_ids("prompt", row, self.model_config.vocab_size)
        T = max(_LEAST_SCORED, 1 << (len(row) - 2).bit_length())
        padded = np.zeros((1, T + 1), np.int32)
        padded[0, : len(row)] = row
        scores = self._score(
            self.params, tokens=jnp.asarray(padded[:, :-1]), targets=jnp.asarray(padded[:, 1:])
        )
        start = len(before) - 1 if after else 0
        return np.asarray(scores.logprobs)[0, start : len(row) - 1].tolist()

    def _ids(self, prompt: Prompt, *, bos: bool) -> list[int]:
        if not isinstance(prompt, str):
            return [*prompt]
        return [self.tokenizer.bos_id] * bos + self.tokenizer.encode(prompt)


def _is_one(prompts: Any) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))


def _completion(stream: Stream) -> Completion:
    text, tokens, logprobs, reason = "", [], [], None
    try:
        for delta in stream:
            text, reason = text + delta.text, delta.finish_reason
            tokens += delta.token_ids
            logprobs += delta.logprobs
    except BaseException:
        stream.cancel()
        raise
    if reason == "error":
        raise RuntimeError("the engine failed on this request; its log says why")
    assert reason is not None
    return Completion(text=text, token_ids=tokens, logprobs=logprobs, finish_reason=reason)

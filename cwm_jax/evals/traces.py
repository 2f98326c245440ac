"""What a model knows of execution: its predicted traces against those of CPython.

Teacher forcing asks for each frame after the true ones before it; free running starts from the
entry's call and lives with its own frames. A program's output is predicted three ways: at the end
of the whole trace, in one step (``return`` forced after the call), and directly, as the right side
of an ``assert`` without any trace.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from cwm_jax.config import ExecutionConfig, ModelConfig
from cwm_jax.evals.trace_metrics import (
    FrameScore,
    ScoredFrame,
    score_frame,
    score_trace,
    summarise,
)
from cwm_jax.inference.decoder import Decoder
from cwm_jax.inference.scoring import score
from cwm_jax.model.transformer import DEFAULT_EXECUTION, Params
from cwm_jax.tokenizer import END_OF_TEXT, FRAME_SEP, RETURN_SEP, Tokenizer
from cwm_jax.trace.episodes import Episode, direct_prompt
from cwm_jax.trace.format import parse_frame, parse_frames, render_each, scope_locals
from cwm_jax.trace.frames import TraceEvent, TraceFrame

MODES = ("teacher_forced", "free_running", "single_step", "direct")
_SHORTEST_ROW = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictedTrace:
    """One trace as the model continued it from the entry's call.

    Attributes:
        episode: the true one.
        text: what the model wrote.
        valid: well-formed from end to end, ``<|end_of_text|>`` included.
        divergence: place of the first frame, after the entry's call, that differs; None if none.
        output: value of the last return, if that is the last frame.
    """

    episode: Episode
    text: str
    valid: bool
    divergence: int | None
    output: str | None
    scores: tuple[FrameScore, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceEvaluation:
    """Results of `evaluate_traces`; what was not asked for is None.

    Attributes:
        teacher_forced: metrics by group, see `summarise`.
        free_running: likewise, of frames at their places in the true trace.
        predictions: the free-running traces, in the order of the episodes.
        single_step, direct: predicted outputs in the order of the episodes.
        outputs: the true ones.
    """

    episodes: tuple[Episode, ...]
    outputs: tuple[str | None, ...]
    teacher_forced: dict[str, dict[str, float]] | None = None
    free_running: dict[str, dict[str, float]] | None = None
    predictions: tuple[PredictedTrace, ...] | None = None
    single_step: tuple[str | None, ...] | None = None
    direct: tuple[str | None, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but the texts, fit for JSON."""
        result: dict[str, Any] = {"traces": len(self.episodes)}
        if self.teacher_forced is not None:
            result["teacher_forced"] = self.teacher_forced
        if self.free_running is not None and self.predictions is not None:
            result["free_running"] = self.free_running
            result["traces_free_running"] = _trace_summary(self.predictions)
        result["output_pass@1"] = self.output_accuracies()
        return result

    def output_accuracies(self) -> dict[str, float]:
        """Share of episodes whose output is predicted, by way of predicting it."""
        traced = self.predictions
        ways: dict[str, Sequence[str | None] | None] = {
            "full_trace": None if traced is None else [p.output for p in traced],
            "single_step": self.single_step,
            "direct": self.direct,
        }
        return {
            way: _mean(ours == true for ours, true in zip(outputs, self.outputs, strict=True))
            for way, outputs in ways.items()
            if outputs is not None
        }


def evaluate_traces(
    params: Params,
    model_config: ModelConfig,
    tokenizer: Tokenizer,
    episodes: Iterable[Episode],
    *,
    max_length: int,
    batch_size: int = 32,
    modes: Sequence[str] = MODES,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> TraceEvaluation:
    """Evaluates a model on finished episodes.

    Args:
        params: as from ``init``.
        model_config: the architecture.
        tokenizer: the model's.
        episodes: held-out ones; those of more than ``max_length`` tokens are refused.
        max_length: tokens of a prompt and what follows it.
        batch_size: rows at a time.
        modes: which of `MODES`; ``direct`` needs contexts that end in a ``main()``.
        execution: speed and rounding.

    Raises:
        ValueError: an unknown mode, no episode, one that is cut or too long.
    """
    unknown = sorted({*modes} - {*MODES})
    if unknown:
        raise ValueError(f"modes has {unknown}; expected some of {MODES}")
    traces = [_Tokens.of(episode, tokenizer) for episode in episodes]
    _check_traces(traces, max_length)
    run = _Runner(params, model_config, tokenizer, max_length, batch_size, execution)
    results: dict[str, Any] = {}
    if "teacher_forced" in modes:
        results["teacher_forced"] = run.teacher_forced(traces)
    if "free_running" in modes:
        predictions = run.free_running(traces)
        results["predictions"] = tuple(predictions)
        results["free_running"] = summarise(_scored_frames(predictions))
    for mode in ("single_step", "direct"):
        if mode in modes:
            results[mode] = tuple(getattr(run, mode)(traces))
    return TraceEvaluation(
        episodes=tuple(trace.episode for trace in traces),
        outputs=tuple(_output(trace.frames) for trace in traces),
        **results,
    )


def take_episodes(
    episodes: Iterable[Episode], tokenizer: Tokenizer, *, count: int, max_length: int
) -> tuple[list[Episode], int]:
    """The first ``count`` finished ones of at most ``max_length`` tokens; how many were too long.

    Raises:
        ValueError: there is none.
    """
    taken, too_long = [], 0
    for episode in episodes:
        if len(taken) == count:
            break
        if not episode.finished:
            continue
        if _Tokens.of(episode, tokenizer).num_tokens > max_length:
            too_long += 1
        else:
            taken.append(episode)
    if not taken:
        raise ValueError(
            f"no held-out episode has at most {max_length} tokens ({too_long} are longer); raise "
            "max_length, or heldout_fraction for a small corpus"
        )
    return taken, too_long


def shown_prediction(predictions: Sequence[PredictedTrace]) -> PredictedTrace:
    """One for people to look at: that of the median number of frames before the first wrong one."""

    def rank(prediction: PredictedTrace) -> int:
        right = prediction.divergence
        return len(prediction.scores) if right is None else right

    return sorted(predictions, key=rank)[len(predictions) // 2]


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """An episode in tokens: the prompt with the entry's call, then each frame, then the end."""

    episode: Episode
    frames: list[TraceFrame]
    prompt: list[int]
    given: list[int]  # the entry's call, which no model can know
    rest: list[list[int]]

    @classmethod
    def of(cls, episode: Episode, tokenizer: Tokenizer) -> _Tokens:
        frames = parse_frames(episode.frames)
        first, *rest = [tokenizer.encode_with_special_tokens(t) for t in render_each(frames)]
        prompt = tokenizer.encode_with_special_tokens(episode.prompt)
        return cls(episode, frames, prompt, first, rest)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.given) + sum(map(len, self.rest)) + 1


class _Runner:
    """The model with its sizes; each method is one mode."""

    def __init__(self, params, model_config, tokenizer, max_length, batch_size, execution):
        self._params, self._model_config = params, model_config
        self._tokenizer: Tokenizer = tokenizer
        self._max_length, self._batch_size = max_length, batch_size
        self._score = jax.jit(
            functools.partial(score, model_config=model_config, execution=execution)
        )
        self._decoder = Decoder(
            params,
            model_config,
            max_length=max_length,
            batch_size=batch_size,
            execution=execution,
        )

    def teacher_forced(self, traces: Sequence[_Tokens]) -> dict[str, dict[str, float]]:
        scored: list[ScoredFrame] = []
        by_length = sorted(range(len(traces)), key=lambda i: traces[i].num_tokens)
        for start in range(0, len(traces), self._batch_size):
            chosen = [traces[i] for i in by_length[start : start + self._batch_size]]
            for trace, predicted in zip(chosen, self._predictions(chosen), strict=True):
                scored += self._score_frames(trace, predicted)
        return summarise(scored)

    def _predictions(self, traces: Sequence[_Tokens]) -> list[np.ndarray]:
        """The most likely token at each place, of each trace after its first token."""
        eos = [self._tokenizer.eos_id]
        rows = [[*itertools.chain(t.prompt, t.given, *t.rest, eos)] for t in traces]
        T = max(_SHORTEST_ROW, 1 << (max(map(len, rows)) - 2).bit_length())
        tokens = np.full((self._batch_size, T + 1), self._tokenizer.pad_id, np.int32)
        segment_ids = np.zeros((self._batch_size, T), np.int32)
        for row, values in enumerate(rows):
            tokens[row, : len(values)] = values
            segment_ids[row, : len(values) - 1] = 1
        scores = self._score(
            self._params,
            tokens=tokens[:, :-1],
            targets=tokens[:, 1:],
            segment_ids=segment_ids,
        )
        predicted = np.asarray(scores.predictions)
        return [predicted[row, : len(values) - 1] for row, values in enumerate(rows)]

    def _score_frames(self, trace: _Tokens, predicted: np.ndarray) -> Iterable[ScoredFrame]:
        at = len(trace.prompt) + len(trace.given) - 1
        previous = scope_locals(trace.frames[0], None)
        for frame, tokens in zip(trace.frames[1:], trace.rest, strict=True):
            text = self._tokenizer.decode(predicted[at : at + len(tokens)])
            ours, problems = parse_frame(text, previous)
            score = score_frame(frame, ours, valid=not problems)
            yield ScoredFrame(
                event=frame.event.value, difficulty=trace.episode.difficulty, score=score
            )
            at += len(tokens)
            previous = scope_locals(frame, previous)

    def free_running(self, traces: Sequence[_Tokens]) -> list[PredictedTrace]:
        prompts = [[*trace.prompt, *trace.given] for trace in traces]
        texts = self._generate(prompts, END_OF_TEXT)
        return [_predicted_trace(t, text) for t, text in zip(traces, texts, strict=True)]

    def single_step(self, traces: Sequence[_Tokens]) -> list[str | None]:
        """The entry's ``return`` forced right after its call."""
        forced = self._tokenizer.special_tokens[RETURN_SEP]
        prompts = [[*trace.prompt, *trace.given, forced] for trace in traces]
        texts = self._generate(prompts, FRAME_SEP)
        frames = [parse_frame(RETURN_SEP + text, None)[0] for text in texts]
        return [None if frame is None else frame.arg for frame in frames]

    def direct(self, traces: Sequence[_Tokens]) -> list[str | None]:
        bos = self._tokenizer.bos_id
        texts = [direct_prompt(trace.episode.context) for trace in traces]
        prompts = [[bos, *self._tokenizer.encode(text)] for text in texts]
        answers = self._generate(prompts, END_OF_TEXT)
        return [answer.removesuffix(END_OF_TEXT).split("\n")[0] for answer in answers]

    def _generate(self, prompts: Sequence[Sequence[int]], stop: str) -> list[str]:
        """Greedy continuations as text, up to and including the stop token."""
        stop_ids = {self._tokenizer.special_tokens[stop], self._tokenizer.eos_id}
        generations = self._decoder.generate(
            prompts, max_new_tokens=self._max_length, stop_ids=stop_ids
        )
        return [self._tokenizer.decode(generation.tokens) for generation in generations]


def _predicted_trace(trace: _Tokens, text: str) -> PredictedTrace:
    frames, malformed = _read(text, trace.frames[0])
    scores, divergence = score_trace(trace.frames[1:], frames, malformed=malformed)
    finished = text.endswith(END_OF_TEXT)
    return PredictedTrace(
        episode=trace.episode,
        text=text,
        valid=finished and not malformed,
        divergence=divergence,
        output=_output(frames) if finished else None,
        scores=tuple(scores),
    )


def _read(text: str, entry: TraceFrame) -> tuple[list[TraceFrame | None], frozenset[int]]:
    """Frames at their places, None where there is no readable event, and places with problems."""
    parts = text.removesuffix(END_OF_TEXT).split(FRAME_SEP)
    closed = [part + FRAME_SEP for part in parts[:-1]]
    frames, malformed = [], set()
    previous = scope_locals(entry, None)
    for place, part in enumerate(closed + parts[-1:] if parts[-1] else closed):
        frame, problems = parse_frame(part, previous)
        frames.append(frame)
        if problems:
            malformed.add(place)
        if frame is not None:
            previous = scope_locals(frame, previous)
    return frames, frozenset(malformed)


def _output(frames: Sequence[TraceFrame | None]) -> str | None:
    last = frames[-1] if frames else None
    return last.arg if last is not None and last.event is TraceEvent.RETURN else None


def _scored_frames(predictions: Iterable[PredictedTrace]) -> list[ScoredFrame]:
    return [
        ScoredFrame(event=frame.event.value, difficulty=prediction.episode.difficulty, score=score)
        for prediction in predictions
        for frame, score in zip(
            parse_frames(prediction.episode.frames)[1:], prediction.scores, strict=True
        )
    ]


def _trace_summary(predictions: Sequence[PredictedTrace]) -> dict[str, Any]:
    """Of whole traces: shares, and where they first go wrong."""
    diverged = [p.divergence for p in predictions if p.divergence is not None]
    return {
        "valid_format": _mean(p.valid for p in predictions),
        "exact": _mean(p.valid and p.divergence is None for p in predictions),
        "first_divergence_median": statistics.median(diverged) if diverged else None,
        "first_divergence": sorted(diverged),
    }


def _mean(values: Iterable[bool]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _check_traces(traces: Sequence[_Tokens], max_length: int) -> None:
    if not traces:
        raise ValueError("no episode to evaluate; give at least one")
    for trace in traces:
        name = trace.episode.name
        if not trace.episode.finished:
            raise ValueError(f"episode {name} is cut ({trace.episode.status}); expected whole ones")
        if trace.num_tokens > max_length:
            raise ValueError(
                f"episode {name} has {trace.num_tokens} tokens; expected at most {max_length}: "
                "leave it out or raise max_length"
            )

"""What a model knows of execution: its predicted traces against those of CPython.

Decoding is greedy. Teacher forcing asks for each frame after the true ones before it; free running
starts from the entry's call and lives with its own frames. A program's output is predicted three
ways: at the end of the whole trace, in one step (``return`` forced after the call), and directly,
as the right side of an ``assert`` without any trace.
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
from cwm_jax.evals.traces.episodes import EpisodeTokens
from cwm_jax.evals.traces.metrics import ScoredFrame, group_order, score_frame, summarise
from cwm_jax.evals.traces.predicted import (
    PredictedTrace,
    direct_output,
    predicted_trace,
    single_step_output,
)
from cwm_jax.inference.decoder import Decoder
from cwm_jax.inference.scoring import score
from cwm_jax.model.transformer import DEFAULT_EXECUTION, Params
from cwm_jax.tokenizer import END_OF_TEXT, FRAME_SEP, RETURN_SEP, Tokenizer
from cwm_jax.trace.episodes import Episode, direct_prompt
from cwm_jax.trace.format import parse_frame, parse_frames, scope_locals

MODES = ("teacher_forced", "free_running", "single_step", "direct")
_SHORTEST_ROW = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceEvaluation:
    """Results of `evaluate_traces`; what was not asked for is None.

    Attributes:
        episodes: the true ones.
        outputs: what they return; None of one that an exception ends.
        teacher_forced: metrics of frames by group, see `summarise`.
        token_accuracy: share of the frames' tokens that are the most likely after the true ones.
        free_running: metrics of frames at their places in the true trace.
        predictions: the free-running traces, in the order of the episodes.
        single_step, direct: predicted outputs in the order of the episodes.
    """

    episodes: tuple[Episode, ...]
    outputs: tuple[str | None, ...]
    teacher_forced: dict[str, dict[str, float]] | None = None
    token_accuracy: float | None = None
    free_running: dict[str, dict[str, float]] | None = None
    predictions: tuple[PredictedTrace, ...] | None = None
    single_step: tuple[str | None, ...] | None = None
    direct: tuple[str | None, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but the texts, fit for JSON."""
        frames = {"teacher_forced": self.teacher_forced, "free_running": self.free_running}
        return {
            "num_programs": len(self.episodes),
            **{mode: groups for mode, groups in frames.items() if groups is not None},
            **({} if self.token_accuracy is None else {"token_accuracy": self.token_accuracy}),
            "programs": self.programs(),
            "outcomes": self.outcomes(),
        }

    def outcomes(self) -> dict[str, dict[str, bool]]:
        """Of each program, by its name, what `programs` counts: what two models are compared by."""
        found: dict[str, dict[str, bool]] = {episode.name: {} for episode in self.episodes}
        ways = self._predicted_outputs()
        for number, (episode, true) in enumerate(zip(self.episodes, self.outputs, strict=True)):
            of_program = found[episode.name]
            if self.predictions is not None:
                traced = self.predictions[number]
                of_program["valid_format"] = traced.valid
                of_program["exact"] = traced.valid and traced.divergence is None
            if true is not None:
                of_program |= {f"output_{way}": ours[number] == true for way, ours in ways.items()}
        return found

    def programs(self) -> dict[str, dict[str, Any]]:
        """Of whole programs, all and of each difficulty: shares, and where traces first go wrong.

        Returns:
            By group: ``programs``, their number; of free running ``valid_format``, ``exact``,
            ``first_divergence`` (places, one for each trace that goes wrong) and its median; the
            share of right outputs by way of predicting them, among programs that return one.
        """
        groups: dict[str, list[int]] = {"overall": [*range(len(self.episodes))]}
        for number, episode in enumerate(self.episodes):
            if episode.difficulty is not None:
                groups.setdefault(f"difficulty={episode.difficulty}", []).append(number)
        return {name: self._program_means(groups[name]) for name in sorted(groups, key=group_order)}

    def _program_means(self, numbers: Sequence[int]) -> dict[str, Any]:
        means: dict[str, Any] = {"programs": len(numbers)}
        if self.predictions is not None:
            chosen = [self.predictions[n] for n in numbers]
            diverged = sorted(p.divergence for p in chosen if p.divergence is not None)
            means["valid_format"] = _mean(p.valid for p in chosen)
            means["exact"] = _mean(p.valid and p.divergence is None for p in chosen)
            means["first_divergence"] = diverged
            means["first_divergence_median"] = statistics.median(diverged) if diverged else None
        with_output = [n for n in numbers if self.outputs[n] is not None]
        for way, outputs in self._predicted_outputs().items():
            if with_output:
                means[f"output_{way}"] = _mean(outputs[n] == self.outputs[n] for n in with_output)
        return means

    def _predicted_outputs(self) -> dict[str, Sequence[str | None]]:
        traced = self.predictions
        ways: dict[str, Sequence[str | None] | None] = {
            "full_trace": None if traced is None else [p.output for p in traced],
            "single_step": self.single_step,
            "direct": self.direct,
        }
        return {way: outputs for way, outputs in ways.items() if outputs is not None}


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
        modes: which of `MODES`; ``direct`` needs contexts with a ``main()`` to assert about.
        execution: speed and rounding.

    Raises:
        ValueError: an unknown mode, no episode, one that is cut or too long.
    """
    unknown = sorted({*modes} - {*MODES})
    if unknown or not modes:
        raise ValueError(f"modes has {unknown or 'nothing'}; expected some of {MODES}")
    traces = [EpisodeTokens.of(episode, tokenizer) for episode in episodes]
    _check_traces(traces, max_length, modes)
    run = _Runner(params, model_config, tokenizer, max_length, batch_size, execution)
    results: dict[str, Any] = {}
    if "teacher_forced" in modes:
        results["teacher_forced"] = run.teacher_forced(traces)
        results["token_accuracy"] = run.token_accuracy(traces)
    if "free_running" in modes:
        predictions = run.free_running(traces)
        results["predictions"] = tuple(predictions)
        results["free_running"] = summarise(_scored_frames(predictions))
    for mode in ("single_step", "direct"):
        if mode in modes:
            results[mode] = tuple(getattr(run, mode)(traces))
    return TraceEvaluation(
        episodes=tuple(trace.episode for trace in traces),
        outputs=tuple(trace.episode.output for trace in traces),
        **results,
    )


def shown_prediction(predictions: Sequence[PredictedTrace]) -> PredictedTrace:
    """One for people to look at: that of the median number of frames before the first wrong one."""

    def rank(prediction: PredictedTrace) -> int:
        right = prediction.divergence
        return len(prediction.scores) if right is None else right

    return sorted(predictions, key=rank)[len(predictions) // 2]


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

    def teacher_forced(self, traces: Sequence[EpisodeTokens]) -> dict[str, dict[str, float]]:
        scored: list[ScoredFrame] = []
        for start in range(0, len(traces), self._batch_size):  # bounds the prompts in memory
            scored += self._forced_frames(traces[start : start + self._batch_size])
        return summarise(scored)

    def _forced_frames(self, traces: Sequence[EpisodeTokens]) -> Iterable[ScoredFrame]:
        prompts, asked = [], []
        for trace in traces:
            prompt, previous = [*trace.prompt, *trace.given], scope_locals(trace.frames[0], None)
            for frame, tokens in zip(trace.frames[1:], trace.rest, strict=True):
                prompts.append(prompt)
                asked.append((trace.episode.difficulty, frame, previous))
                prompt, previous = prompt + tokens, scope_locals(frame, previous)
        longest = max((len(tokens) for trace in traces for tokens in trace.rest), default=1)
        texts = self._generate(prompts, FRAME_SEP, max_new_tokens=2 * longest)
        for text, (difficulty, frame, previous) in zip(texts, asked, strict=True):
            ours, problems = parse_frame(text, previous)
            score = score_frame(frame, ours, valid=not problems)
            yield ScoredFrame(event=frame.event.value, difficulty=difficulty, score=score)

    def token_accuracy(self, traces: Sequence[EpisodeTokens]) -> float:
        """Of the tokens after the entry's call, the final ``<|end_of_text|>`` included."""
        right, total = 0, 0
        by_length = sorted(traces, key=lambda trace: trace.num_tokens)
        for start in range(0, len(traces), self._batch_size):
            chosen = by_length[start : start + self._batch_size]
            for trace, hits in zip(chosen, self._hits(chosen), strict=True):
                counted = hits[len(trace.prompt) + len(trace.given) - 1 :]
                right, total = right + int(counted.sum()), total + len(counted)
        return right / total

    def _hits(self, traces: Sequence[EpisodeTokens]) -> list[np.ndarray]:
        """Whether each token of a trace after its first is the most likely one there."""
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
        hits = np.asarray(scores.predictions) == tokens[:, 1:]
        return [hits[row, : len(values) - 1] for row, values in enumerate(rows)]

    def free_running(self, traces: Sequence[EpisodeTokens]) -> list[PredictedTrace]:
        prompts = [[*trace.prompt, *trace.given] for trace in traces]
        texts = self._generate(prompts, END_OF_TEXT)
        return [
            predicted_trace(t.episode, t.frames, text)
            for t, text in zip(traces, texts, strict=True)
        ]

    def single_step(self, traces: Sequence[EpisodeTokens]) -> list[str | None]:
        """The entry's ``return`` forced right after its call."""
        forced = self._tokenizer.special_tokens[RETURN_SEP]
        prompts = [[*trace.prompt, *trace.given, forced] for trace in traces]
        texts = self._generate(prompts, FRAME_SEP)
        return [single_step_output(text) for text in texts]

    def direct(self, traces: Sequence[EpisodeTokens]) -> list[str | None]:
        texts = [direct_prompt(trace.episode.context) for trace in traces]
        prompts = [self._tokenizer.encode_with_special_tokens(text) for text in texts if text]
        return [direct_output(text) for text in self._generate(prompts, END_OF_TEXT)]

    def _generate(
        self, prompts: Sequence[Sequence[int]], stop: str, *, max_new_tokens: int | None = None
    ) -> list[str]:
        """Greedy continuations as text, up to and including the stop token."""
        generations = self._decoder.generate(
            prompts,
            max_new_tokens=max_new_tokens or self._max_length,
            stop_ids={self._tokenizer.special_tokens[stop], self._tokenizer.eos_id},
        )
        return [self._tokenizer.decode(generation.tokens) for generation in generations]


def _scored_frames(predictions: Iterable[PredictedTrace]) -> list[ScoredFrame]:
    return [
        ScoredFrame(event=frame.event.value, difficulty=prediction.episode.difficulty, score=score)
        for prediction in predictions
        for frame, score in zip(
            parse_frames(prediction.episode.frames)[1:], prediction.scores, strict=True
        )
    ]


def _mean(values: Iterable[bool]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _check_traces(traces: Sequence[EpisodeTokens], max_length: int, modes: Sequence[str]) -> None:
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
        if "direct" in modes and direct_prompt(trace.episode.context) is None:
            raise ValueError(
                f"episode {name} is no trace of a main() to assert about; expected one for mode "
                "'direct': leave out the mode or the episode"
            )

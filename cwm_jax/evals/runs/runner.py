"""Plays the samples of a set's problems on threads, and records each as it is finished."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TextIO

from cwm_jax.evals.models import Model, ModelFailure, PromptTooLongError
from cwm_jax.evals.problem import Answer, Attempt, Forced, Problem, Verdict
from cwm_jax.evals.runs.records import Record, RecordFile, Turn
from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.sandbox import SandboxError

_END_WAIT_S = 10.0  # assumed: for attempts to be closed, once the run is to stop
_LINE_PERIOD_S = 10.0  # between lines of progress where nobody watches


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the answers are a function of, besides the set and the model.

    Attributes:
        samples: of each problem.
        temperature, top_p: of the answers.
        seed: each attempt's is derived from it, the problem's name and the sample's number.
        limit: only so many problems, the first.
        shard: (i, n): of these every n-th, from the i-th on, counted from 0.
    """

    samples: int
    temperature: float
    top_p: float
    seed: int = 0
    limit: int | None = None
    shard: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        if not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature is {self.temperature} and top_p {self.top_p}; expected 0 or more, "
                "and above 0 up to 1"
            )
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise ValueError(f"shard is {self.shard}; expected i/n with i from 0 to n - 1")

    def chosen(self, problems: Sequence[Problem]) -> list[Problem]:
        """Those of the problems that are asked."""
        first, step = self.shard or (0, 1)
        return list(problems[: self.limit])[first::step]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunLimits:
    """How a run goes about it; its results are no function of these.

    Attributes:
        parallel: attempts at once.
        retries: of an attempt whose environment fails, before it is void.
        retry_wait_s: before each.
    """

    parallel: int = 16
    retries: int = 2
    retry_wait_s: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        num_left: samples without a record; 0: it is through.
        num_void: samples whose environment failed in all tries.
        signal: that stopped it.
        failure: of the model, in words.
    """

    num_left: int
    num_void: int
    signal: signal.Signals | None = None
    failure: str = ""


def run(
    problems: Sequence[Problem],
    model: Model,
    file: RecordFile,
    settings: RunSettings,
    limits: RunLimits,
    *,
    progress: TextIO | None = sys.stderr,
) -> Outcome:
    """Plays what the file has no record of, until it is done, a signal comes, or the model fails.

    Void samples of earlier starts are tried again.

    Raises:
        Exception: what a problem raises beyond its contract; everything before it is recorded.
    """
    chosen = settings.chosen(problems)
    wanted = [(problem, sample) for problem in chosen for sample in range(settings.samples)]
    done = {key for key, record in file.records.items() if not record.is_void}
    left = [(problem, sample) for problem, sample in wanted if (problem.name, sample) not in done]
    shown = _Progress(len(wanted), len(left), file, progress)
    workers = _Workers(left, model, settings, limits)
    with _stop_signals(workers) as caught:
        try:
            failure = _collect(workers, file, shown)
        finally:
            workers.stop()
            if caught or workers.failed:
                model.close()
            workers.join()
            for record in workers.finished():  # between the signal and the end
                file.add(record)
    shown.end()
    records = [file.records.get((problem.name, sample)) for problem, sample in wanted]
    return Outcome(
        num_left=sum(record is None for record in records),
        num_void=sum(record is not None and record.is_void for record in records),
        signal=caught[0] if caught else None,
        failure=failure,
    )


def attempt_seed(seed: int, problem: str, sample: int) -> int:
    """31 bits, which every server takes; no function of the order of problems."""
    text = f"{seed}\0{problem}\0{sample}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4]) >> 1


@dataclasses.dataclass
class _Failed:
    """What ended a worker."""

    error: BaseException


class _Workers:
    """Threads that take attempts and put records."""

    def __init__(
        self,
        left: Sequence[tuple[Problem, int]],
        model: Model,
        settings: RunSettings,
        limits: RunLimits,
    ) -> None:
        self._left = iter(left)
        self._model, self._settings, self._limits = model, settings, limits
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # SimpleQueue: a signal's handler puts into it, too
        self.results: queue.SimpleQueue[Record | _Failed | None] = queue.SimpleQueue()
        self.failed = False
        count = min(limits.parallel, len(left))
        # Daemons: one that hangs in a request does not keep the process.
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        self.num_left = len(left)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No new attempts; those that run are given up after their answer."""
        self._stopping.set()

    def join(self) -> None:
        """Waits a while for those that are closing what they hold."""
        end_s = time.monotonic() + _END_WAIT_S
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))

    def finished(self) -> Iterator[Record]:
        """Records that nobody has taken."""
        while not self.results.empty():
            result = self.results.get()
            if isinstance(result, Record):
                yield result

    def _work(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                item = next(self._left, None)
            if item is None:
                return
            try:
                record = self._patiently(*item)
            except BaseException as error:
                if not self._stopping.is_set():  # else it is what stopping does
                    error.add_note(f"in sample {item[1]} of problem {item[0].name!r}")
                    self.results.put(_Failed(error))
                return
            if record is not None:
                self.results.put(record)

    def _patiently(self, problem: Problem, sample: int) -> Record | None:
        """None where the run is being stopped."""
        for tried in range(self._limits.retries + 1):
            began_s = time.monotonic()
            try:
                record = self._play(problem, sample)
            except (EnvironmentFailure, SandboxError) as failure:
                reason = f"{type(failure).__name__}: {failure}"
                if tried < self._limits.retries and self._stopping.wait(self._limits.retry_wait_s):
                    return None
            else:
                seconds = time.monotonic() - began_s
                return record and dataclasses.replace(record, seconds=round(seconds, 3))
        return self._record(problem, sample, status="void", reason=reason)

    def _play(self, problem: Problem, sample: int) -> Record | None:
        turns: list[Turn] = []
        with contextlib.closing(problem.attempt()) as attempt:
            try:
                verdict = self._answers(attempt, turns, problem, sample)
            except PromptTooLongError as error:
                reason = f"prompt too long: {error}"
                return self._record(
                    problem, sample, status="too_long", turns=tuple(turns), reason=reason
                )
        if verdict is None:
            return None
        return self._record(
            problem,
            sample,
            status="graded",
            turns=tuple(turns),
            passed=bool(verdict.passed),
            answer=verdict.answer,
            reason=verdict.reason,
            scores={name: float(value) for name, value in verdict.scores.items()},
            info=verdict.info,
        )

    def _answers(
        self, attempt: Attempt, turns: list[Turn], problem: Problem, sample: int
    ) -> Verdict | None:
        """The verdict; None where the run is being stopped."""
        seed = attempt_seed(self._settings.seed, problem.name, sample)
        asked = attempt.start()
        while not isinstance(asked, Verdict):
            if self._stopping.is_set():
                return None
            if isinstance(asked, Forced):
                asked = asked.then(self._model.likelihood(asked))
                continue
            answer = self._model.answer(
                asked,
                temperature=self._settings.temperature,
                top_p=self._settings.top_p,
                seed=(seed + len(turns)) % 2**31,
            )
            turns.append(_turn(answer))
            asked = attempt.step(answer)
        return asked

    def _record(self, problem: Problem, sample: int, **values) -> Record:
        return Record(
            problem=problem.name,
            sample=sample,
            seed=attempt_seed(self._settings.seed, problem.name, sample),
            labels=dict(problem.labels),
            **values,
        )


def _collect(workers: _Workers, file: RecordFile, shown: _Progress) -> str:
    """Records what comes until all is there, or a signal or failure comes; the model's in words."""
    for _ in range(workers.num_left):
        result = workers.results.get()
        if result is None:
            return ""
        if isinstance(result, _Failed):
            workers.failed = True
            if isinstance(result.error, ModelFailure):
                return str(result.error)
            raise result.error
        file.add(result)
        shown.add(result)
    return ""


@contextlib.contextmanager
def _stop_signals(workers: _Workers) -> Iterator[list[signal.Signals]]:
    """While entered a first SIGINT or SIGTERM stops the workers, a second one interrupts."""
    caught: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))
        text = f"\n{caught[0].name}: recording what is finished; a second one ends at once\n"
        os.write(2, text.encode())  # print is not safe inside a handler
        workers.stop()
        workers.results.put(None)

    if threading.current_thread() is not threading.main_thread():  # handlers live there alone
        yield caught
        return
    previous = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Progress:
    """A line that says how far it is; on a terminal it is written over."""

    def __init__(self, total: int, left: int, file: RecordFile, out: TextIO | None) -> None:
        self._total, self._left, self._file, self._out = total, left, file, out
        self._began_s = self._said_s = time.monotonic()
        self._num_new = self._num_tokens = 0
        records = [r for r in file.records.values() if not r.is_void]
        self._num_graded, self._num_passed = len(records), sum(r.passed for r in records)
        self._num_void = 0
        self._period_s = 0.5 if out is not None and out.isatty() else _LINE_PERIOD_S
        self._end = "\r" if out is not None and out.isatty() else "\n"
        if left < total:
            self._say(f"{total - left:,} of {total:,} samples are done already", "\n")

    def add(self, record: Record) -> None:
        self._num_new += 1
        self._num_tokens += record.num_tokens or 0
        self._num_void += record.is_void
        self._num_graded += not record.is_void
        self._num_passed += record.passed
        if time.monotonic() - self._said_s >= self._period_s:
            self._said_s = time.monotonic()
            self._say(self._line(), self._end)

    def end(self) -> None:
        self._say(self._line(), "\n")

    def _line(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._began_s)
        rate = self._num_new / seconds
        left = self._left - self._num_new
        score = 100 * self._num_passed / max(1, self._num_graded)
        void = f", {self._num_void} void" if self._num_void else ""
        wait = f", {left / rate / 60:.0f} min left" if left and self._num_new else ""
        return (
            f"{self._total - left:,} of {self._total:,} samples, {rate:.2g}/s, "
            f"{self._num_tokens / seconds:,.0f} tokens/s, {score:.1f} % right{void}{wait}"
        )

    def _say(self, text: str, end: str) -> None:
        if self._out is not None:
            print(text.ljust(90) if end == "\r" else text, end=end, file=self._out, flush=True)


def _turn(answer: Answer) -> Turn:
    return Turn(
        text=answer.text,
        reasoning=answer.reasoning,
        finish_reason=answer.finish_reason,
        num_prompt_tokens=answer.num_prompt_tokens,
        num_tokens=answer.num_tokens,
    )

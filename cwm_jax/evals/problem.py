"""What an evaluation set is to the rest: problems that ask, are answered, and judge; without JAX.

A set's loader makes `Problem`s of its official file. A problem makes one `Attempt` for each sample;
a model answers its prompts until it gives a `Verdict`. Most sets ask once: `one_answer`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from cwm_jax.data.chat import Message
from cwm_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a model is to continue; exactly one of ``messages``, ``text``, ``tokens``.

    Attributes:
        messages: a dialog, whose next turn is the assistant's. Any chat server can answer it.
        text: with special tokens by their spelling, ``<|begin_of_text|>`` included where it is
            wanted; for models that were trained on traces, and base models.
        tokens: ids of the model's own tokenizer.
        max_tokens: of the answer.
        think: of a dialog: the model reasons first.
        stop: strings that end the answer, special tokens among them; not part of its text. The
            model's end of turn and of text always end it.
    """

    messages: Sequence[Message] | None = None
    text: str | None = None
    tokens: Sequence[int] | None = None
    max_tokens: int
    think: bool = False
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [n for n in ("messages", "text", "tokens") if getattr(self, n) is not None]
        assert len(given) == 1, given


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """How a model continued a prompt.

    Attributes:
        text: what follows the reasoning, if there is any; special tokens by their spelling where
            the prompt was ``text`` or ``tokens``, the one that stopped it left out.
        finish_reason: ``stop``: it ended by itself or at a stop string; ``length``: it was cut.
        reasoning: between ``<think>`` and ``</think>``; empty without.
        token_ids: generated, the stop token included; None where the server does not tell.
        num_prompt_tokens, num_tokens: None where the server does not tell.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    reasoning: str = ""
    token_ids: Sequence[int] | None = None
    num_prompt_tokens: int | None = None
    num_tokens: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood:
    """What a model thinks of a continuation that it was given, token by token.

    Attributes:
        logprobs: of each token after the true ones before it, in nats.
        likeliest: whether no other token was more likely there.
    """

    logprobs: Sequence[float]
    likeliest: Sequence[bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forced:
    """A continuation that is given: how likely it is, is asked; not every model can tell.

    Attributes:
        tokens: of the prompt, ids of the model's own tokenizer; one at least.
        given: of the continuation; one at least.
        then: what comes after the model's reply, as of `Attempt.step`.
    """

    tokens: Sequence[int]
    given: Sequence[int]
    then: Callable[[Likelihood], Prompt | Verdict]

    def __post_init__(self) -> None:
        assert len(self.tokens) and len(self.given), (len(self.tokens), len(self.given))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an attempt came to.

    Attributes:
        passed: whether it counts as right.
        answer: in a form in which equal answers are equal, for majorities; None: there is none.
        reason: of a failure, in words.
        scores: further numbers by name, such as shares of right frames; each is averaged.
        info: anything else that JSON can hold, for people.
    """

    passed: bool
    answer: str | None = None
    reason: str = ""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Attempt(Protocol):
    """One sample of one problem; one thread calls its methods, one after another."""

    def start(self) -> Prompt | Forced:
        """The first prompt.

        Raises:
            EnvironmentFailure: (of `cwm_jax.rl.environment`) a sandbox, container or host failed.
            PromptTooLongError: (of `cwm_jax.evals.models`) what is asked does not fit the model.
        """
        ...

    def step(self, answer: Answer) -> Prompt | Forced | Verdict:
        """What comes after an answer; raises as ``start``."""
        ...

    def close(self) -> None:
        """Ends what the attempt holds; again, it does nothing."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One item of a set.

    Attributes:
        name: unique in its set, and stable: what is done is known by it. As in the official file.
        attempt: makes a new attempt; called from any thread.
        text: what is looked for in training data, by the contamination check: the problem as the
            set's authors wrote it.
        labels: for break-downs, such as ``{"difficulty": "hard"}``.
    """

    name: str
    attempt: Callable[[], Attempt]
    text: str
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSet:
    """The problems of a set in one mode, and how they are usually asked.

    Attributes:
        name: of the set and its mode, as ``cruxeval_o/full_trace``.
        problems: in the order of the file.
        samples: of each problem (official or published setting).
        temperature, top_p: of the answers, likewise.
        metrics: the aggregates that are reported first, named as in `cwm_jax.evals.runs.metrics`:
            ``mean``, ``@5``, ``majority@20``, ``short3@10``; of a score ``NAME:mean``,
            ``NAME:best@5``. Those that want more samples than there are are left out.
        about: where file, prompt and grader come from, and where they differ from the original.
        published: model -> score in percent, for the report's table.
        settings: what else the problems were made with, such as the length that they were cut to;
            a run that is resumed must find it again.
        needs_likelihood: its attempts ask for `Forced`.
        close: ends what the problems share, such as sandboxes.
    """

    name: str
    problems: Sequence[Problem]
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    metrics: tuple[str, ...] = ("mean",)
    about: str = ""
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs_likelihood: bool = False
    close: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def opened(self) -> Iterator[Sequence[Problem]]:
        """The problems, as long as they are used."""
        try:
            yield self.problems
        finally:
            self.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetOptions:
    """What a loader is told besides the file.

    Attributes:
        mode: how problems are asked; one of the set's.
        max_tokens: of an answer; None is the set's own.
        tokenizer: the model's; only for sets that measure or write prompts in its tokens.
        max_length: tokens of a prompt and its answer that the model takes; None: not known.
        unsafe: without bubblewrap.
        values: settings of this set alone, by name, as ``--option name=value`` gave them.
    """

    mode: str
    max_tokens: int | None = None
    tokenizer: Tokenizer | None = None
    max_length: int | None = None
    unsafe: bool = False
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetEntry:
    """A set as the command line knows it; each module of ``evals/sets`` has some by name.

    Attributes:
        load: of the official file (None for sets that are generated); raises ValueError for one
            that it cannot use, with file and line.
        modes: the first is the usual one.
        summary: one line for ``--help``.
        needs_path: whether there is a file.
        url: of the official file, for ``--download``; None where it is not one public file.
        options: names that ``SetOptions.values`` may have, each with a line of help.
    """

    load: Callable[[Path | None, SetOptions], EvalSet]
    modes: tuple[str, ...]
    summary: str
    needs_path: bool = True
    url: str | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


class _OneAnswer:
    """An attempt of one prompt."""

    def __init__(self, prompt: Prompt, judge: Callable[[Answer], Verdict]):
        self._prompt, self._judge = prompt, judge

    def start(self) -> Prompt:
        return self._prompt

    def step(self, answer: Answer) -> Verdict:
        return self._judge(answer)

    def close(self) -> None:
        pass


def one_answer(prompt: Prompt, judge: Callable[[Answer], Verdict]) -> Callable[[], Attempt]:
    """``Problem.attempt`` of a problem that asks once; ``judge`` is called from any thread."""
    return lambda: _OneAnswer(prompt, judge)

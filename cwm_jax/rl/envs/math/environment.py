r"""Solve a problem; the answer stands in one ``\boxed{}``. With or without Python as a tool.

A task's data: ``problem``; ``answer``, LaTeX without a box; perhaps ``ordered``, false where a list
without brackets may come in any order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cwm_jax.data.chat import Message
from cwm_jax.rl.environment import Observation, Step, Task
from cwm_jax.rl.envs.answers import (
    NoAnswerError,
    ToolCall,
    answer_text,
    encode_cut,
    only_boxed,
    tool_calls,
)
from cwm_jax.rl.envs.fields import fields, short, task_of, text
from cwm_jax.rl.envs.math.gold import complaint_of_gold
from cwm_jax.rl.envs.math.python_tool import PythonTool
from cwm_jax.rl.envs.math.verifying import MathVerifier
from cwm_jax.rl.envs.prompts import encode_opening, encode_problem
from cwm_jax.tokenizer import END_OF_TURN, Tokenizer

BOX = r"Put your final answer, and nothing else, into \boxed{}."
_TOOL = (
    "You can run Python programs before you answer, at most {calls} of them, each for up to "
    "{seconds:g} seconds. A program that you write as\n\n<tool: python>\nprint(1 + 1)\n</tool>\n\n"
    "is run when your turn ends, and what it prints comes back. Each program starts anew: nothing "
    "is left of those before.{packages}"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MathProfile:
    """Limits and form of an episode.

    Attributes:
        max_action_tokens: of the answer; with the tool, of everything after the prompt.
        max_prompt_tokens: of the problem's message; a longer one loses its beginning.
        think: every turn reasons first.
        system_prompt: the dialog begins with the one that asks for reasoning.
        math_verify: asked about what our comparer does not know; it has to be installed.
        verify_s: processor time that it has for an answer.
        calls: programs in an episode; more are answered with an error.
        call_s: time of a program.
        max_result_tokens: of what a program prints, header and end included.
        packages: distributions that programs can import.
    """

    max_action_tokens: int
    max_prompt_tokens: int
    think: bool = True
    system_prompt: bool = True
    math_verify: bool = True
    verify_s: float = 5.0  # assumed: 0.04 s are usual (measured)
    calls: int = 4  # released
    call_s: float = 10.0  # released
    max_result_tokens: int = 2_048  # assumed
    packages: tuple[str, ...] = ()


PROFILES = {
    "64k": MathProfile(
        max_action_tokens=65_536,  # released
        max_prompt_tokens=2_048,  # released
        packages=("sympy", "mpmath"),  # not published which there are
    ),
    "small": MathProfile(
        max_action_tokens=512,
        max_prompt_tokens=512,
        system_prompt=False,
        math_verify=False,
        calls=2,
        call_s=2.0,
        max_result_tokens=64,
    ),
}
PROFILES["direct"] = dataclasses.replace(PROFILES["small"], think=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MathData:
    """What a task's data say."""

    problem: str
    answer: str
    ordered: bool


def read_data(task: Task) -> MathData:
    """What a task's data say.

    Raises:
        ValueError: a key is missing or unknown, a type is another, or nothing that a policy may
            write would be compared with the gold answer as it is meant.
    """
    return task_of("math", task, _read)


class Math:
    """One answer; +1 if it is the gold answer, else -1."""

    def __init__(
        self, task: Task, tokenizer: Tokenizer, profile: MathProfile, verifier: MathVerifier
    ):
        """``verifier``: shared by episodes.

        Raises:
            ValueError: as of `read_data`.
        """
        self._data, self._tokenizer, self._profile = read_data(task), tokenizer, profile
        self._verifier = verifier

    def start(self) -> Observation:
        profile = self._profile
        tokens = encode_problem(
            self._tokenizer,
            "\n\n".join(self._question()),
            max_tokens=profile.max_prompt_tokens,
            think=profile.think,
            system_prompt=profile.system_prompt,
        )
        return Observation(tokens=tokens, max_action_tokens=profile.max_action_tokens)

    def step(self, action: Sequence[int]) -> Step:
        try:
            text = answer_text(action, self._tokenizer, think=self._profile.think)
        except NoAnswerError as error:
            return self._failed(str(error))
        return self._judged(text)

    def close(self) -> None:
        pass

    def _question(self) -> list[str]:
        return [self._data.problem.strip(), BOX]

    def _judged(self, text: str) -> Step:
        try:
            answer = only_boxed(text)
        except NoAnswerError as error:
            return self._failed(str(error))
        data = self._data
        verdict = self._verifier.verdict(data.answer, answer, ordered=data.ordered)
        reason = "" if verdict.passed else "another answer"
        if verdict.reason:
            reason = f"{reason} ({verdict.reason})".strip()
        info = {"answer": answer, "reason": reason, **verdict.info()}
        return Step(observation=None, reward=1.0 if verdict.passed else -1.0, info=info)

    def _failed(self, reason: str) -> Step:
        info = {"pass": False, "answer": None, "reason": reason}
        return Step(observation=None, reward=-1.0, info=info)


class MathPython(Math):
    """Turns with programs, whose output comes back, up to one without, which answers.

    Only the last turn is judged: what stands beside a call is no answer.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        profile: MathProfile,
        verifier: MathVerifier,
        *,
        tool: PythonTool,
    ):
        """``tool``: shared by episodes, as is ``verifier``."""
        super().__init__(task, tokenizer, profile, verifier)
        self._tool, self._num_calls = tool, 0
        self._left_tokens = profile.max_action_tokens

    def step(self, action: Sequence[int]) -> Step:
        self._left_tokens -= len(action)
        try:
            text = answer_text(action, self._tokenizer, think=self._profile.think)
        except NoAnswerError as error:
            return self._with_calls(self._failed(str(error)))
        calls = tool_calls(text)
        if not calls:
            return self._with_calls(self._judged(text))
        tokens = self._results(action, calls)
        self._left_tokens -= len(tokens)
        if self._left_tokens < 1:
            return self._with_calls(self._failed("no tokens are left"))
        observation = Observation(tokens=tokens, max_action_tokens=self._left_tokens)
        return Step(observation=observation, reward=0.0, info={"calls": self._num_calls})

    def _question(self) -> list[str]:
        problem, box = super()._question()
        profile = self._profile
        packages = f" They can import {' and '.join(profile.packages)}." if profile.packages else ""
        tool = _TOOL.format(calls=profile.calls, seconds=profile.call_s, packages=packages)
        return [problem, tool, box]

    def _results(self, action: Sequence[int], calls: Sequence[ToolCall]) -> list[int]:
        """Messages of the tools, and the beginning of the next turn."""
        end = self._tokenizer.special_tokens[END_OF_TURN]
        tokens = [] if action[-1] == end else [end]  # another stop token ended the turn
        for call in calls:
            message = Message(f"tool: {call.name}", self._result(call))
            tokens += encode_cut(self._tokenizer, message, self._profile.max_result_tokens)
        return tokens + encode_opening(self._tokenizer, think=self._profile.think)

    def _result(self, call: ToolCall) -> str:
        if call.name != "python":
            return "error: No such tool"
        if self._num_calls >= self._profile.calls:
            return f"error: maximum execution count ({self._profile.calls}) reached"
        self._num_calls += 1
        return self._tool.run(call.content)

    def _with_calls(self, step: Step) -> Step:
        return dataclasses.replace(step, info={**step.info, "calls": self._num_calls})


def _read(data: Mapping[str, Any]) -> MathData:
    fields(data, "data", ("problem", "answer"), ("ordered",))
    ordered = data.get("ordered", True)
    if not isinstance(ordered, bool):
        raise ValueError(f"ordered is {short(ordered)}; expected true or false")
    answer = text(data["answer"], "answer")
    if complaint := complaint_of_gold(answer):
        raise ValueError(f"answer is {short(answer)}, {complaint}")
    return MathData(problem=text(data["problem"], "problem"), answer=answer, ordered=ordered)

"""An episode on a repository: read, change, submit, report.

What a task's data say: see `data`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cwm_jax.data.chat import Message, encode_message
from cwm_jax.rl.environment import Observation, Step, Task
from cwm_jax.rl.envs.answers import encode_cut
from cwm_jax.rl.envs.prompts import encode_opening
from cwm_jax.rl.envs.swe.actions import (
    CUT_TURN,
    EMPTY_ANSWER,
    Answer,
    Call,
    FormatError,
    parse_answer,
)
from cwm_jax.rl.envs.swe.budget import with_budget
from cwm_jax.rl.envs.swe.data import read_data
from cwm_jax.rl.envs.swe.grading import Verdict, grade
from cwm_jax.rl.envs.swe.profiles import SWEProfile
from cwm_jax.rl.envs.swe.prompts import opening
from cwm_jax.rl.envs.swe.tools import ToolReply, use_tool
from cwm_jax.rl.envs.swe.workspaces.checkout import bare_repository, image_root
from cwm_jax.rl.envs.swe.workspaces.container import ContainerWorkspace
from cwm_jax.rl.envs.swe.workspaces.local import LocalWorkspace
from cwm_jax.rl.envs.swe.workspaces.protocol import Workspace
from cwm_jax.tokenizer import END_OF_TURN, Tokenizer

_LEAST_ACTION_TOKENS = 16  # assumed: with fewer left nothing can be said
_REPORT_MARK = "##"  # of markdown, which a final answer needs. Source: Meta's, where it is strict
_MOST_REASON = 2_000  # assumed: characters; the candidate may have written some
_LOCAL_ROOT = "/tmp/testbed"  # of a `LocalWorkspace`, which starts with the first call


class _Ended(Exception):  # noqa: N818
    """The episode is over without a verdict of tests; the text is the reason."""


@dataclasses.dataclass(kw_only=True)
class _Episode:
    turns: int = 0
    tokens: int = 0  # of the whole context so far
    tools_s: float = 0.0
    submission: str | None = None
    errors: int = 0  # answers out of format


class SoftwareEngineering:
    """Turns of tools on a repository until a final answer; the last submitted patch is judged.

    +1 if the hidden tests pass; 0 if they fail and the patch is like the gold one; else -1.
    An episode that breaks the format, or runs out of turns, tokens or time, gets -1 unjudged.

    Decided here: a turn without any mark of a tool is the final answer, once there is a patch.
    Anything else that is no call is an error of format, after a submission as before it; in Meta's
    environment any malformed call after one ends the episode as if it were final. The last of the
    turns can still be a final answer, which it cannot be there.

    Args:
        task: its data are described in `data`.
        tokenizer: of the policy.
        profile: limits and form.
        unsafe: without bubblewrap.

    Raises:
        ValueError: as of `read_data`.
    """

    _asked_for = "patch"  # what is submitted

    def __init__(
        self, task: Task, tokenizer: Tokenizer, profile: SWEProfile, *, unsafe: bool = False
    ) -> None:
        self._data, self._tokenizer, self._profile = read_data(task), tokenizer, profile
        self._unsafe = unsafe
        self._make_workspace = workspace_maker(self._data.repository, profile, unsafe=unsafe)
        self._workspace: Workspace | None = None
        self._episode = _Episode()

    def start(self) -> Observation:
        profile = self._profile
        root = self._data.repository.get("root", _LOCAL_ROOT)
        if self._unsafe and "image" not in self._data.repository:
            root = self._working().root
        system, user = self._opening(root)
        tokens = [
            self._tokenizer.bos_id,
            *encode_message(self._tokenizer, system),
            *encode_cut(self._tokenizer, user, profile.prompt_tokens, keep="end"),
            *encode_opening(self._tokenizer, think=profile.think),
        ]
        self._episode.tokens = len(tokens)
        room = profile.context_tokens - len(tokens)
        if room < _LEAST_ACTION_TOKENS:
            raise ValueError(
                f"the prompt takes {len(tokens)} of {profile.context_tokens} tokens; expected room "
                "for an answer: raise context_tokens, or lower prompt_tokens"
            )
        return Observation(tokens=tokens, max_action_tokens=min(profile.action_tokens, room))

    def step(self, action: Sequence[int]) -> Step:
        episode = self._episode
        episode.turns += 1
        episode.tokens += len(action)
        last, end_of_turn = (
            action[-1] if action else None,
            self._tokenizer.special_tokens[END_OF_TURN],
        )
        is_whole = last in self._tokenizer.stop_ids
        opening = [] if last == end_of_turn else [end_of_turn]  # after other stop tokens, too
        try:
            message = self._answered(action, is_whole=is_whole)
            if message is None:
                return self._judged()
            return self._observed(opening, message)
        except _Ended as end:
            return self._ended(str(end))

    def close(self) -> None:
        if self._workspace is not None:
            self._workspace.close()
        self._workspace = None

    @property
    def submission(self) -> str | None:
        """What was submitted last."""
        return self._episode.submission

    def _opening(self, root: str) -> list[Message]:
        return opening(self._data.issue, root, self._profile)

    def _use(self, call: Call, workspace: Workspace, timeout_s: float) -> ToolReply:
        return use_tool(call, workspace, timeout_s=timeout_s)

    def _grade(self, submission: str) -> Verdict:
        return grade(
            self._data,
            submission,
            timeout_s=self._profile.test_timeout_s,
            make_workspace=self._make_workspace,
            unsafe=self._unsafe,
        )

    def _answered(self, action: Sequence[int], *, is_whole: bool) -> tuple[str, str] | None:
        """What is said to an action, as (role, text); None for a final answer.

        An error of format goes to the policy as the user's; under a strict format it is the end.
        """
        try:
            if not is_whole:
                raise FormatError(CUT_TURN)
            text = self._tokenizer.decode(action[:-1])
            answer = parse_answer(text, think=self._profile.think, tools=self._profile.tools)
            if answer.call is None:
                self._check_final(answer)
                return None
            reply = self._used(answer)
        except FormatError as error:
            self._episode.errors += 1
            if self._profile.strict_format:
                raise _Ended(f"format: {error}") from None
            return "user", str(error)
        if reply.submission is not None:
            self._episode.submission = reply.submission
        return f"tool: {answer.call.tool}", reply.text

    def _check_final(self, answer: Answer) -> None:
        if self._episode.submission is None:
            raise FormatError(
                f"Your answer calls no tool, and no {self._asked_for} is submitted. Call a tool; "
                f"submit a {self._asked_for} before your final answer."
            )
        if not answer.text:
            raise FormatError(EMPTY_ANSWER)
        if self._profile.strict_format and _REPORT_MARK not in answer.text:
            raise FormatError(
                f"Your final answer is no report in markdown: it has no heading ({_REPORT_MARK})."
            )

    def _used(self, answer: Answer) -> ToolReply:
        """Makes the call, within what time is left to all of them."""
        assert answer.call is not None
        profile, episode = self._profile, self._episode
        left_s = profile.sandbox_s - episode.tools_s
        workspace = self._working()
        began = time.monotonic()
        timeout_s = min(profile.session_timeout_s, left_s)
        reply = self._use(answer.call, workspace, timeout_s)
        episode.tools_s += time.monotonic() - began
        if episode.tools_s >= profile.sandbox_s:
            raise _Ended(f"out of time: the tools took {profile.sandbox_s:g} s")
        return reply

    def _observed(self, opening: list[int], message: tuple[str, str]) -> Step:
        """What was said, and the budget; the end where that leaves no turn or no room."""
        profile, episode = self._profile, self._episode
        turns = profile.max_turns - episode.turns
        if not turns:
            raise _Ended(f"out of turns: none of {profile.max_turns} was a final answer")
        role, text = message
        room = profile.context_tokens - episode.tokens - len(opening)
        after = encode_opening(self._tokenizer, think=profile.think)
        said, left = with_budget(
            self._tokenizer,
            role,
            text,
            turns=turns,
            room=room - len(after),
            max_tokens=min(profile.tool_message_tokens, room - len(after) - _LEAST_ACTION_TOKENS),
        )
        if left < _LEAST_ACTION_TOKENS:
            raise _Ended(f"out of tokens: all of {profile.context_tokens} are used")
        tokens = [*opening, *said, *after]
        episode.tokens += len(tokens)
        observation = Observation(tokens=tokens, max_action_tokens=min(profile.action_tokens, left))
        return Step(observation=observation, reward=0.0, info=self._info())

    def _judged(self) -> Step:
        self.close()
        assert self._episode.submission is not None
        return self._last(self._grade(self._episode.submission))

    def _ended(self, reason: str) -> Step:
        self.close()
        return self._last(Verdict(passed=False, reason=reason, similarity=0.0))

    def _last(self, verdict: Verdict) -> Step:
        info = {
            **self._info(),
            "pass": verdict.passed,
            "reason": verdict.reason[:_MOST_REASON],
            "similarity": verdict.similarity,
        }
        return Step(observation=None, reward=reward_of(verdict, self._profile), info=info)

    def _info(self) -> dict[str, Any]:
        episode = self._episode
        return {
            "turns": episode.turns,
            "submitted": episode.submission is not None,
            "format_errors": episode.errors,
        }

    def _working(self) -> Workspace:
        self._workspace = self._workspace or self._make_workspace()
        return self._workspace


def reward_of(verdict: Verdict, profile: SWEProfile) -> float:
    """+1, 0 or -1 at the report's settings. Source: Meta's "similarities" with a scale."""
    scale, threshold = profile.reward_scale, profile.similarity_threshold
    if verdict.passed:
        return -1.0 + scale
    if threshold is not None and verdict.similarity >= threshold:
        return -1.0 + threshold * scale
    return -1.0


def workspace_maker(
    repository: Mapping[str, Any], profile: SWEProfile, *, unsafe: bool = False
) -> Callable[[], Workspace]:
    """A function that makes a new workspace of a task's repository."""
    if "image" in repository:
        return lambda: ContainerWorkspace(
            repository["image"], repository["root"], memory_bytes=profile.limits.memory_bytes
        )
    return lambda: LocalWorkspace(
        bare_repository(repository),
        base=image_root(repository),
        limits=profile.limits,
        unsafe=unsafe,
    )

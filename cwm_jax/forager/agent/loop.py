"""An episode: a policy's turns in a workspace, then the verdict on what it left there.

The patch is what ``git diff`` says at the end, whatever the policy believes; a final answer, a turn
without a call, is its own claim to be done. Episodes that fail are results as others are. Where a
sandbox or the host fails nothing can be judged, and the result says that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import time
from collections.abc import Sequence
from typing import Protocol

from cwm_jax.data.chat import THINK_CLOSING, Message
from cwm_jax.data.trajectories import ENVIRONMENT, Trajectory
from cwm_jax.forager.agent.normalise import normalised
from cwm_jax.forager.agent.view import view
from cwm_jax.rl.environment import EnvironmentFailure, Task
from cwm_jax.rl.envs.swe.actions import (
    CUT_TURN,
    EMPTY_ANSWER,
    Call,
    FormatError,
    parse_answer,
)
from cwm_jax.rl.envs.swe.data import SWEData, read_data
from cwm_jax.rl.envs.swe.environment import workspace_maker
from cwm_jax.rl.envs.swe.grading import grade
from cwm_jax.rl.envs.swe.patches import ENCODING
from cwm_jax.rl.envs.swe.profiles import PROFILES
from cwm_jax.rl.envs.swe.tools import use_tool
from cwm_jax.rl.envs.swe.workspaces.protocol import Workspace
from cwm_jax.sandbox import SandboxError, ShellLimits

TOOLS = ("bash", "create", "edit", "view")  # report
EMPTY_TURN = "(empty)"  # stands for a turn that says nothing, which no dialog may have
_MIB = 1 << 20
_WORKSPACE = ShellLimits(memory_bytes=2_048 * _MIB, scratch_bytes=512 * _MIB, processes=128)
_PATCH_BYTES = 1 << 20  # assumed
_GIT_S = 60.0  # assumed
_DIFF_FILE = "/tmp/.changes.diff"
_SYSTEM = """You are a helpful AI assistant.

You work on a git repository at {root}. Each turn makes one call of one tool, in this form:

<tool: NAME>
content
</tool>

* bash: the content is run by a bash that lasts from call to call.
* create: makes a new file. The content is its path, then its lines.
* edit: replaces lines of a file. The content is the path, then a block:
<<<<<<< SEARCH
whole lines that are in the file exactly once
=======
the lines to put in their place
>>>>>>> REPLACE
* view: shows a file with line numbers, or a folder. The content is its path, or the path and the \
numbers of the first and the last line.

A turn without a tool is the final answer. What the files are then is judged by hidden tests."""
_USER = """Solve this issue of the repository at {root}:

<issue>
{issue}
</issue>"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeLimits:
    """When an episode ends without a final answer; all assumed.

    Attributes:
        turns: of the policy.
        characters: of all messages.
        seconds: of the turns and tools together.
        command_s: of one call.
        observation_characters: a longer one loses its middle.
        test_s: of the hidden tests.
        workspace: of the agent's sandbox, and of the one that a suite of hidden tests runs in.
    """

    turns: int = 128
    characters: int = 400_000
    seconds: float = 1_800.0
    command_s: float = 60.0
    observation_characters: int = 16_000
    test_s: float = 300.0
    workspace: ShellLimits = _WORKSPACE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """What a policy says.

    Attributes:
        message: the assistant's.
        is_whole: false where it was cut, which the policy is told.
    """

    message: Message
    is_whole: bool = True


class NoRoomError(Exception):
    """The policy cannot read so long a dialog; the episode ends with the word ``context``."""


class Policy(Protocol):
    """Of one episode."""

    def turn(self, messages: Sequence[Message]) -> Turn:
        """What comes after all these messages.

        Raises:
            NoRoomError: they are too long for it.
        """
        ...


def play(
    name: str,
    task: Task,
    policy: Policy,
    *,
    policy_name: str,
    limits: EpisodeLimits,
    unsafe: bool = False,
) -> Trajectory:
    """Plays and judges one episode; where a sandbox or the host fails, its outcome says so.

    Raises:
        ValueError: the task's data cannot be used.
    """
    data, messages = read_data(task), list[Message]()
    try:
        outcome, solved, reason = _played(data, policy, messages, limits, unsafe=unsafe)
    except (EnvironmentFailure, SandboxError) as error:
        outcome, solved, reason = ENVIRONMENT, None, str(error)
    last = max((n for n, message in enumerate(messages) if message.is_assistant), default=-1)
    return Trajectory(
        name=name,
        task=task.name,
        kind=_kind(task),
        repository=repository_name(data),
        policy=policy_name,
        outcome=outcome,
        solved=solved,
        reason=normalised(reason),
        messages=messages[: last + 1],
    )


def not_played(name: str, task: Task, reason: str, *, policy_name: str) -> Trajectory:
    """The result of an episode that took its process with it."""
    return Trajectory(
        name=name,
        task=task.name,
        kind=_kind(task),
        repository=repository_name(read_data(task)),
        policy=policy_name,
        outcome=ENVIRONMENT,
        solved=None,
        reason=normalised(reason),
        messages=[],
    )


def opening(issue: str, root: str) -> list[Message]:
    """The dialog before the first turn."""
    user = _USER.format(root=root, issue=issue.strip())
    return [Message("system", _SYSTEM.format(root=root)), Message("user", user)]


def repository_name(data: SWEData) -> str:
    """The same for all tasks of a project, as far as their data tell."""
    repository = data.repository
    if "built" in repository:  # an image's folder is named NAME-VERSION-DIGEST
        return str(repository["built"]).rstrip("/").rpartition("/")[2].rsplit("-", 2)[0]
    for form in ("git", "image"):
        if form in repository:
            return str(repository[form]).rstrip("/").rpartition("/")[2]
    paths = json.dumps(sorted(repository["files"]))
    return "files-" + hashlib.sha256(paths.encode()).hexdigest()[:12]


def _kind(task: Task) -> str:
    return "mutate-fix" if "fault" in task.data else "issue-fix"


def _played(
    data: SWEData,
    policy: Policy,
    messages: list[Message],
    limits: EpisodeLimits,
    *,
    unsafe: bool,
) -> tuple[str, bool, str]:
    """(outcome, whether it is solved, why not); the messages are added to."""
    profile = dataclasses.replace(PROFILES["small"], limits=limits.workspace)
    make = workspace_maker(data.repository, profile, unsafe=unsafe)
    workspace = make()
    try:
        base = _git(workspace, "rev-parse HEAD")
        messages += opening(data.issue, workspace.root)
        outcome = _turns(messages, policy, workspace, limits)
        patch = _patch(workspace, base.strip())
    finally:
        workspace.close()
    if not patch.strip():
        return outcome, False, "the patch changes no file"
    verdict = grade(data, patch, timeout_s=limits.test_s, make_workspace=make, unsafe=unsafe)
    return outcome, verdict.passed, verdict.reason


def _turns(
    messages: list[Message], policy: Policy, workspace: Workspace, limits: EpisodeLimits
) -> str:
    """How it ended; the messages are added to."""
    began = time.monotonic()
    for _ in range(limits.turns):
        try:
            turn = policy.turn(messages)
        except NoRoomError:
            return "context"
        says_nothing = not turn.message.text.strip()
        messages.append(Message("assistant", EMPTY_TURN) if says_nothing else turn.message)
        observed = _observed(turn, workspace, limits)
        if observed is None:
            return "finished"
        size = sum(len(m.text) for m in [*messages, observed])
        if size > limits.characters:
            return "characters"
        if time.monotonic() - began > limits.seconds:
            return "seconds"
        messages.append(observed)
    return "turns"


def _observed(turn: Turn, workspace: Workspace, limits: EpisodeLimits) -> Message | None:
    """What is said to a turn; None for a final answer."""
    try:
        call = _call(turn)
    except FormatError as error:
        return Message("user", str(error))
    if call is None:
        return None
    found = normalised(_used(call, workspace, limits.command_s))
    longest = limits.observation_characters
    if len(found) > longest:
        half, left_out = longest // 2, len(found) - 2 * (longest // 2)
        found = f"{found[:half]}\n... {left_out} characters ...\n{found[-half:]}"
    return Message(f"tool: {call.tool}", found)


def _call(turn: Turn) -> Call | None:
    """As the environment of RL reads a turn, but that nothing has to be submitted."""
    if not turn.is_whole:
        raise FormatError(CUT_TURN)
    text, reasoning = turn.message.content or "", turn.message.reasoning
    if reasoning:
        text = f"{reasoning}{THINK_CLOSING}{text}"
    answer = parse_answer(text, think=bool(reasoning), tools=TOOLS)
    if not answer.text:
        raise FormatError(EMPTY_ANSWER)
    return answer.call


def _used(call: Call, workspace: Workspace, timeout_s: float) -> str:
    if call.tool == "view":
        return view(call.content, workspace).text
    return use_tool(call, workspace, timeout_s=timeout_s).text


def _patch(workspace: Workspace, base: str) -> str:
    """All that differs from the first commit, new files included."""
    _git(workspace, "add -A")
    _git(workspace, f"diff --cached --no-color --no-ext-diff --no-textconv {base} > {_DIFF_FILE}")
    try:
        return workspace.read(_DIFF_FILE, _PATCH_BYTES).decode(**ENCODING)
    except OSError:
        return ""  # too long to be a patch, or the agent has broken its machine


def _git(workspace: Workspace, arguments: str) -> str:
    root = shlex.quote(workspace.root)
    reply = workspace.run(f"command git -C {root} {arguments}", _GIT_S)
    return reply.output

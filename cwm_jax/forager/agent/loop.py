"""An episode: a policy's turns in a workspace, then the verdict on what it left there.

The patch is what ``git diff`` says at the end, whatever the policy believes; a final answer, a turn
without a call, is its own claim to be done. Episodes that fail are results as others are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import time
from collections.abc import Sequence
from typing import Protocol

from cwm_jax.data.chat import Message
from cwm_jax.data.trajectories import Trajectory
from cwm_jax.forager.agent.normalise import normalised
from cwm_jax.forager.agent.view import view
from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.swe.actions import Call, FormatError, parse_answer
from cwm_jax.rl.envs.swe.data import SWEData, read_data
from cwm_jax.rl.envs.swe.environment import workspace_maker
from cwm_jax.rl.envs.swe.grading import grade
from cwm_jax.rl.envs.swe.patches import ENCODING
from cwm_jax.rl.envs.swe.profiles import PROFILES
from cwm_jax.rl.envs.swe.tools import use_tool
from cwm_jax.rl.envs.swe.workspaces.protocol import Workspace

TOOLS = ("bash", "create", "edit", "view")  # report
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
    """

    turns: int = 128
    characters: int = 400_000
    seconds: float = 1_800.0
    command_s: float = 60.0
    observation_characters: int = 16_000
    test_s: float = 300.0


class Policy(Protocol):
    """Of one episode."""

    def turn(self, messages: Sequence[Message]) -> Message:
        """The assistant's next message, given all before it."""
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
    """Plays and judges one episode.

    Raises:
        EnvironmentFailure: the sandbox or the host failed.
        ValueError: the task's data cannot be used.
    """
    data = read_data(task)
    make = workspace_maker(data.repository, PROFILES["small"], unsafe=unsafe)
    workspace = make()
    try:
        base = _git(workspace, "rev-parse HEAD")
        messages = opening(data.issue, workspace.root)
        outcome = _turns(messages, policy, workspace, limits)
        patch = _patch(workspace, base.strip())
    finally:
        workspace.close()
    solved, reason = False, "the patch changes no file"
    if patch.strip():
        verdict = grade(data, patch, timeout_s=limits.test_s, make_workspace=make, unsafe=unsafe)
        solved, reason = verdict.passed, verdict.reason
    return Trajectory(
        name=name,
        task=task.name,
        kind="mutate-fix" if "fault" in task.data else "issue-fix",
        repository=repository_name(data),
        policy=policy_name,
        outcome=outcome,
        solved=solved,
        reason=normalised(reason),
        messages=messages,
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


def _turns(
    messages: list[Message], policy: Policy, workspace: Workspace, limits: EpisodeLimits
) -> str:
    """How it ended; the messages are added to, and end with the assistant's."""
    began = time.monotonic()
    for left in range(limits.turns - 1, -1, -1):
        message = policy.turn(messages)
        messages.append(message)
        observed = _observed(message.content or "", workspace, limits)
        if observed is None:
            return "finished"
        if not left:
            return "turns"
        size = sum(len(m.text) for m in [*messages, observed])
        if size > limits.characters:
            return "characters"
        if time.monotonic() - began > limits.seconds:
            return "seconds"
        messages.append(observed)
    return "turns"


def _observed(text: str, workspace: Workspace, limits: EpisodeLimits) -> Message | None:
    """What is said to a turn; None for a final answer."""
    try:
        call = parse_answer(text, think=False, tools=TOOLS).call
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

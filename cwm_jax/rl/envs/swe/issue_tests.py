"""Tests that show an issue: written in an episode of tools, and run on repositories with patches.

A test is a program that prints one of three phrases. Its text is the policy's: it runs inside
alone, and nothing here parses it. A file that is no Python prints no phrase.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Sequence
from typing import Literal

from cwm_jax.data.chat import Message
from cwm_jax.rl.envs.swe.actions import Call
from cwm_jax.rl.envs.swe.edit import ToolError
from cwm_jax.rl.envs.swe.environment import SoftwareEngineering
from cwm_jax.rl.envs.swe.grading import Verdict, apply_inside
from cwm_jax.rl.envs.swe.patches import ENCODING, FilePatch
from cwm_jax.rl.envs.swe.prompts import OTHER, REPRODUCED, RESOLVED, opening_of_test
from cwm_jax.rl.envs.swe.tools import ToolReply, read_submitted, use_tool
from cwm_jax.rl.envs.swe.workspaces.protocol import Workspace
from cwm_jax.sandbox import ShellReply

TEST_PATH = "test_issue.py"  # Source: Meta's, in the repository's root
TEST_S = 120.0  # of a run, at most. Source: Meta's evaluation of tests
_SHOWN = 500  # assumed: characters of a run's output that a reason has
# Images of SWE-bench have the repository's packages in this environment of conda's; others, and the
# local sandbox, have none. Source: SWE-bench's evaluation scripts.
_COMMAND = (
    "if [ -f /opt/miniconda3/bin/activate ]; then . /opt/miniconda3/bin/activate testbed; fi; "
    f"python {TEST_PATH}"
)

Status = Literal["reproduced", "resolved", "unclear"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestRun:
    """What a test says of a repository; ``detail`` says why it is unclear."""

    __test__ = False  # pytest collects what is named so

    status: Status
    detail: str = ""


class IssueTest(SoftwareEngineering):
    """An episode as of `SoftwareEngineering` whose answer is a test of the issue.

    It passes if the last submitted test has the phrases of both outcomes in it and, run on the
    original repository, prints the one for a reproduced issue and no other. Whether it tells right
    patches from wrong ones is not looked at. Source: Meta's environment.
    """

    _asked_for = "test"

    def _opening(self, root: str) -> list[Message]:
        return opening_of_test(self._data.issue, root, self._profile)

    def _use(self, call: Call, workspace: Workspace, timeout_s: float) -> ToolReply:
        if call.tool != "submit":
            return use_tool(call, workspace, timeout_s=timeout_s)
        try:
            return _submitted(call.content, workspace)
        except ToolError as error:
            return ToolReply(text=str(error), worked=False)

    def _grade(self, submission: str) -> Verdict:
        reason = complaint_of_source(submission)
        if not reason:
            timeout_s = self._profile.test_timeout_s
            workspace = self._make_workspace()
            try:
                run = run_test(workspace, submission, timeout_s=timeout_s)
            finally:
                workspace.close()
            if run.status != "reproduced":
                reason = run.detail or f"it prints {RESOLVED!r} on the original repository"
        return Verdict(passed=not reason, reason=reason, similarity=0.0)


def complaint_of_source(source: str) -> str:
    """What a test's text lacks; empty if nothing."""
    missing = [phrase for phrase in (REPRODUCED, RESOLVED) if phrase not in source]
    return f"the test does not have {missing[0]!r} in it" if missing else ""


def run_test(
    workspace: Workspace, source: str, *, timeout_s: float, patch: Sequence[FilePatch] = ()
) -> TestRun:
    """Runs a test in a workspace, which is spent afterwards.

    Args:
        workspace: new.
        source: of the test.
        timeout_s: of the test.
        patch: applied first.

    Raises:
        ValueError: the patch does not apply.
        EnvironmentFailure: the workspace failed.
    """
    apply_inside(patch, workspace)
    place = posixpath.join(workspace.root, TEST_PATH)
    try:
        workspace.write(place, source.encode(**ENCODING))
    except OSError as error:
        return TestRun(status="unclear", detail=f"{TEST_PATH} cannot be written: {error.strerror}")
    return read_run(workspace.run(_COMMAND, timeout_s))


def read_run(reply: ShellReply) -> TestRun:
    """What the output says, wherever its phrases are. Source: Meta's environment."""
    if reply.outcome != "ok":
        return TestRun(status="unclear", detail=f"the test did not end: {reply.detail}")
    printed = [phrase for phrase in (REPRODUCED, RESOLVED, OTHER) if phrase in reply.output]
    if printed == [REPRODUCED]:
        return TestRun(status="reproduced")
    if printed == [RESOLVED]:
        return TestRun(status="resolved")
    said = " and ".join(map(repr, printed)) or "none of the phrases"
    return TestRun(status="unclear", detail=f"it prints {said}: {reply.output[-_SHOWN:].strip()}")


def _submitted(content: str, workspace: Workspace) -> ToolReply:
    name, found = read_submitted(content, workspace)
    source = found.decode(**ENCODING)
    if not source.strip():
        raise ToolError(f"{name} is empty. Write your test to it.")
    text = (
        f"This test is submitted:\n\n{found.decode(errors='replace').rstrip()}\n\nReview it. If "
        "something is wrong, mend it and submit again; the last test counts. If it is right, give "
        "your final answer, without a tool."
    )
    return ToolReply(text=text, worked=True, submission=source)

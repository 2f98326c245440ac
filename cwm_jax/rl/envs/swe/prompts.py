"""What the policy reads besides the output of its tools; in the project's own words."""

from __future__ import annotations

from collections.abc import Mapping

from cwm_jax.data.chat import REASONING_SYSTEM_PROMPT, Message
from cwm_jax.rl.envs.swe.profiles import SWEProfile

_PLAIN_SYSTEM_PROMPT = "You are a helpful AI assistant."  # Source: Meta's, without reasoning
_ENVIRONMENT = """

# Environment

You work on a git repository that is checked out at {root}, in a Linux machine of its own without \
network, as its only user. You have {max_turns} turns and {context_tokens} tokens in all; after \
each call you are told what is left.

Each turn makes one call of one tool, at the end, in this form:

<tool: NAME>
content
</tool>

{tools}

Submit before you give your final answer, which is a turn without a tool. {judged}"""
_PATCH_JUDGED = (
    "The last patch that you submitted is judged, by tests that you cannot see. What it does to "
    "existing tests does not count."
)
_TEST_JUDGED = "The last test that you submitted is judged, by running it on the project as it was."

_TOOLS = {
    "bash": "the content is run by a bash that lasts from call to call, so that folders and "
    "variables stay. A command that takes longer than {session_timeout_s:g} s is stopped, and a "
    "fresh bash started.",
    "edit": "replaces lines of a file. The content is the path, then a block:\n"
    "<<<<<<< SEARCH\nwhole lines that are in the file exactly once\n=======\n"
    "the lines to put in their place\n>>>>>>> REPLACE",
    "create": "makes a new file. The content is the path, then the lines of the file.",
    "submit": "the content is the path of a file with your changes as a git diff.",
}

_TASK = """Solve this issue of the repository at {root}:

<issue>
{issue}
</issue>

Find the cause, mend it, and check what you did. Then write your changes with \
`git diff > /tmp/changes.diff`, call submit with that path, and end with a final answer that \
reports in markdown:

## Cause
## Change
## Checks"""

_SUBMIT_TEST = "the content is the path of the file with your test."

# What a test prints. Source: Meta's environment of tests, which has them from Agentless.
REPRODUCED, RESOLVED, OTHER = "Issue reproduced", "Issue resolved", "Other issues"
_TEST_TASK = f"""Write a test for this issue of the repository at {{root}}:

<issue>
{{issue}}
</issue>

Do not mend the issue. Write one program, test_issue.py in that folder, that shows whether it is \
there. It is run by `python test_issue.py`, ends by itself and soon, uses no test framework, and \
imports of the repository what it needs. It checks what the issue says, and neighbouring cases \
that a wrong or half fix would miss. At the end it prints just one of these lines, and never one \
of the others:

* {REPRODUCED}
  where the behaviour is the faulty one that the issue tells of,
* {RESOLVED}
  where all of the behaviour is right,
* {OTHER}
  where anything else is in the way.

Run it: as the project is now it has to print the first of them. Then call submit with its path, \
and end with a final answer that reports in markdown:

## Test
## Checks"""


def opening_of_test(issue: str, root: str, profile: SWEProfile) -> list[Message]:
    """The dialog before the first turn, where a test is to be written."""
    system = _system(root, profile, {**_TOOLS, "submit": _SUBMIT_TEST}, _TEST_JUDGED)
    user = _TEST_TASK.format(root=root, issue=issue.strip())
    return [Message("system", system), Message("user", user)]


def opening(issue: str, root: str, profile: SWEProfile) -> list[Message]:
    """The dialog before the first turn."""
    system = _system(root, profile, _TOOLS, _PATCH_JUDGED)
    user = _TASK.format(root=root, issue=issue.strip())
    return [Message("system", system), Message("user", user)]


def output_blocks() -> tuple[str, str]:
    """What stands around a tool's output. Format: Meta's, and the budget's."""
    return "<output>\n", "\n</output>"


def budget_block(turns: int, tokens: int) -> str:
    return f"\n\n<budget>\n* Remaining turns: {turns}\n* Remaining tokens: {tokens}\n</budget>"


def _system(root: str, profile: SWEProfile, tools: Mapping[str, str], judged: str) -> str:
    limit = {"session_timeout_s": profile.session_timeout_s}
    lines = [f"* {name}: {tools[name].format(**limit)}" for name in profile.tools]
    return (
        REASONING_SYSTEM_PROMPT if profile.think else _PLAIN_SYSTEM_PROMPT
    ) + _ENVIRONMENT.format(
        root=root,
        max_turns=profile.max_turns,
        context_tokens=profile.context_tokens,
        tools="\n".join(lines),
        judged=judged,
    )

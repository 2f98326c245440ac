"""What the policy reads besides the output of its tools; in the project's own words."""

from __future__ import annotations

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

Submit before you give your final answer, which is a turn without a tool. The last patch that you \
submitted is judged, by tests that you cannot see. What it does to existing tests does not count."""

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


def opening(issue: str, root: str, profile: SWEProfile) -> list[Message]:
    """The dialog before the first turn."""
    system = REASONING_SYSTEM_PROMPT if profile.think else _PLAIN_SYSTEM_PROMPT
    limit = {"session_timeout_s": profile.session_timeout_s}
    system += _ENVIRONMENT.format(
        root=root,
        max_turns=profile.max_turns,
        context_tokens=profile.context_tokens,
        tools="\n".join(f"* {name}: {_TOOLS[name].format(**limit)}" for name in profile.tools),
    )
    user = _TASK.format(root=root, issue=issue.strip())
    return [Message("system", system), Message("user", user)]


def output_blocks() -> tuple[str, str]:
    """What stands around a tool's output. Format: Meta's, and the budget's."""
    return "<output>\n", "\n</output>"


def budget_block(turns: int, tokens: int) -> str:
    return f"\n\n<budget>\n* Remaining turns: {turns}\n* Remaining tokens: {tokens}\n</budget>"

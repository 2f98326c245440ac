"""Policies that are programs: the oracle, which knows the patch, and the seeded explorer."""

from __future__ import annotations

import random
import shlex
from collections.abc import Generator, Sequence

from cwm_jax.data.chat import Message
from cwm_jax.forager.agent.loop import Turn
from cwm_jax.rl.envs.swe.data import SWEData
from cwm_jax.rl.envs.swe.patches import Hunk

Script = Generator[str, str, str]
_COMMANDS = (
    "git log --oneline -n 5",
    "git status --short",
    "git ls-files | head -n 50",
    "git ls-files | xargs wc -l",
    "grep -rn 'def ' --include='*.py' . | sort | head -n 40",
    "grep -rn '^import\\|^from' --include='*.py' . | sort | head -n 40",
)
_MOST_STEPS = 6  # assumed: of the explorer


class Scripted:
    """A policy that a generator plays.

    It yields turns, is sent what they led to, and returns the final answer.
    """

    def __init__(self, script: Script) -> None:
        self._script, self._begun = script, False

    def turn(self, messages: Sequence[Message]) -> Turn:
        try:
            seen = messages[-1].content or ""
            text = self._script.send(seen) if self._begun else next(self._script)
        except StopIteration as end:
            text = end.value
        self._begun = True
        return Turn(message=Message("assistant", text))


def call(tool: str, content: str, *, words: str = "") -> str:
    """A turn that calls a tool."""
    return f"{words}\n\n<tool: {tool}>\n{content}\n</tool>".strip()


def oracle(data: SWEData) -> Script:
    """Applies the gold patch: edit for each hunk, create for new files, git where those cannot."""
    for patch in data.gold:
        if patch.old is None:
            text = "".join(line for hunk in patch.hunks for line in hunk.new)
            yield call("create", f"{patch.path}\n{text.removesuffix(chr(10))}")
            continue
        if patch.new is None:
            yield call("bash", f"git rm -q -- {shlex.quote(patch.path)}")
            continue
        for hunk in patch.hunks:
            seen = yield call("edit", _edit(patch.path, hunk))
            if not seen.startswith("Edited"):
                yield call("bash", _by_git(patch.path, hunk))
    return "The issue is solved by the change above."


def _edit(path: str, hunk: Hunk) -> str:
    old, new = ("".join(lines).removesuffix("\n") for lines in (hunk.old, hunk.new))
    return f"{path}\n<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE"


def _by_git(path: str, hunk: Hunk) -> str:
    patch = f"--- a/{path}\n+++ b/{path}\n{hunk.text}"
    return f"git apply --unidiff-zero - <<'END_OF_PATCH'\n{patch.rstrip(chr(10))}\nEND_OF_PATCH"


def explorer(seed: str) -> Script:
    """Looks around, as drawn, changes nothing, and says so."""
    rng = random.Random(seed)
    listed = yield call("bash", "git ls-files", words="I look at what there is.")
    files = [line for line in listed.splitlines() if line.endswith((".py", ".md"))]
    for _ in range(rng.randint(1, _MOST_STEPS)):
        if files and rng.random() < 0.5:
            yield call("view", rng.choice(files))
        else:
            yield call("bash", rng.choice(_COMMANDS))
    return "I have read parts of the repository and changed nothing."

"""Plays a shipped software engineering task with a scripted policy, and writes down what happens.

The policy knows the gold patch and works as an agent would: it looks, sees the fault, makes each
change with the edit tool, checks, submits and reports. docs/swe-episode.md is written by

    python -m benchmarks.swe_episode --output docs/swe-episode.md
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.swe.environment import SoftwareEngineering
from cwm_jax.rl.envs.swe.patches import parse_patch
from cwm_jax.rl.envs.swe.profiles import PROFILES
from cwm_jax.rl.envs.swe.prompts import opening
from cwm_jax.rl.envs.swe.shipped.tasks import repository_files, shipped_tasks
from cwm_jax.storage import write_whole
from cwm_jax.tokenizer import END_OF_TURN, Tokenizer, train_tokenizer

_HEAD = """\
# An episode of software engineering

Written by `python -m benchmarks.swe_episode --output docs/swe-episode.md`: the real environment
with its sandbox and tools, profile `small`, task `{name}`,
played by a policy that is a script. The tokens are those of a small tokenizer, trained on the
repository. Each text below is what the policy was shown, or wrote; its turns begin after the
`<think>` that the prompt ends with.
"""
_REPORT = """\
## Cause
{place} was broken: one change of kind "{kind}".
## Change
The lines of the patch above.
## Checks
The call of the issue, and the tests of the repository."""


def turns(task: Task) -> Iterator[str]:
    """What the policy writes, turn by turn."""
    fault = task.data["fault"]
    patches = parse_patch(task.data["patch"])
    path = patches[0].path
    yield _call("I look at the project first.", "bash", "git log --oneline; ls; cat README.md")
    seen = _reproduction(task)
    first = patches[0].hunks[0].start
    look = f"{seen}\nsed -n '{first},{first + 24}p' {path}"
    yield _call("I make the call of the issue, and read what it leads to.", "bash", look)
    for patch in patches:
        for hunk in patch.hunks:
            block = "<<<<<<< SEARCH\n{}=======\n{}>>>>>>> REPLACE"
            content = f"{patch.path}\n{block.format(''.join(hunk.old), ''.join(hunk.new))}"
            yield _call(f"This should be otherwise, in {fault['place']}.", "edit", content)
    check = f"{seen}\npython -m unittest 2>&1 | tail -n 1\ngit diff > /tmp/changes.diff"
    yield _call("I check the call and the tests, and keep my changes.", "bash", check)
    yield _call("It works; I submit.", "submit", "/tmp/changes.diff")
    report = _REPORT.format(place=fault["place"], kind=fault["kind"])
    yield f"The patch is as I meant it.\n</think>\n{report}"


def play(task: Task, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """(who, text) of an episode, and at its end ("outcome", reward and info)."""
    environment = SoftwareEngineering(task, tokenizer, PROFILES["small"])
    try:
        yield "prompt", tokenizer.decode(environment.start().tokens)
        for text in turns(task):
            yield "policy", text
            tokens = [*tokenizer.encode(text), tokenizer.special_tokens[END_OF_TURN]]
            step = environment.step(tokens)
            if step.observation is None:
                yield "outcome", f"reward {step.reward:+g}, {dict(step.info)}"
                return
            yield "environment", tokenizer.decode(step.observation.tokens)
    finally:
        environment.close()


def transcript(task: Task, tokenizer: Tokenizer) -> str:
    """The episode as Markdown."""
    parts, turn = [_HEAD.format(name=task.name)], 0
    for who, text in play(task, tokenizer):
        turn += who == "policy"
        title = {"prompt": "Prompt", "policy": f"Turn {turn}", "outcome": "Outcome"}.get(who, "")
        head = f"## {title}\n\n" if title else ""
        parts.append(f"{head}````text\n{text.strip()}\n````\n")
    return "\n".join(parts)


def small_tokenizer() -> Tokenizer:
    """Of the repository's texts and the prompt."""
    prompt = [message.text for message in opening("", "/tmp/testbed", PROFILES["small"])]
    return train_tokenizer([*repository_files().values(), *prompt], 1536)


def _call(thought: str, tool: str, content: str) -> str:
    return f"{thought}\n</think>\n<tool: {tool}>\n{content}\n</tool>"


def _reproduction(task: Task) -> str:
    """A command that makes the call of the issue."""
    found = re.search(r"In the names of `(.+)`,\n\n    (.+)\n", task.data["issue"])
    assert found, task.data["issue"]
    program = f"from {found[1]} import *; print({found[2]})"
    return f"python -c {shlex.quote(program)} 2>&1 | tail -n 1"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.swe_episode", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--task", help="its name; the first one whose fault is an operator if none")
    parser.add_argument("--output", type=Path, help="a file; standard output if none")
    options = parser.parse_args()
    tasks = {task.name: task for task in shipped_tasks()}
    default = next(name for name in tasks if name.startswith("operators/"))
    name = options.task or default
    if name not in tasks:
        parser.error(f"--task {name}: no such task; there are {', '.join(tasks)}")
    text = transcript(tasks[name], small_tokenizer())
    if options.output is None:
        print(text)
    else:
        write_whole(options.output, text.encode())


if __name__ == "__main__":
    main()

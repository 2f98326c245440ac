"""A heuristic that reads the issue's call, tries changes of what it comes to, and keeps what works.

It sees what a model would: the messages. Issues without a call in the form of the shipped tasks it
gives up at once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from cwm_jax.forager.agent.policies.repairs import reachable, repairs
from cwm_jax.forager.agent.policies.scripted import Script, call

_ISSUE = re.compile(
    r"In the names of `([\w.]+)`,\n\n    (.*)\n\n(.*)\. It should (give|raise) (.*)\.\n", re.DOTALL
)
_CHECK = """import importlib
names = vars(importlib.import_module({module!r}))
try:
    found = repr(eval({call!r}, dict(names)))
except Exception as error:
    found = type(error).__name__
print(found)
raise SystemExit(found != {expected!r})
"""
_MOST_TRIES = 60  # assumed: two turns each


def fixer(issue: str) -> Script:
    """Tries changes in turn, each by an edit and a run of the call and the project's own tests."""
    read = _ISSUE.search(issue)
    if read is None:
        return "I find no failing call in the issue, and have changed nothing."
    module, expression, trouble, _, expected = read.groups()
    path = module.replace(".", "/") + ".py"
    source = yield call("bash", f"cat {path}", words="I read the module of the issue.")
    program = _CHECK.format(module=module, call=expression, expected=expected)
    yield call("create", f"/tmp/check.py\n{program}", words="I write down the failing call.")
    source = source if source.endswith("\n") else source + "\n"
    functions = reachable(source, expression)
    for changed in itertools.islice(repairs(source, functions, trouble), _MOST_TRIES):
        yield call("edit", _edit(path, source, changed))
        seen = yield call("bash", _checked(path))
        if seen.rstrip().endswith("KEPT"):
            return f"The change of {path} gives what the issue asks for, and the tests pass."
    return "None of the changes that I tried mends the issue; the files are as they were."


def _checked(path: str) -> str:
    return (
        "{ PYTHONPATH=. timeout 10 python /tmp/check.py && timeout 30 python -m unittest -q; } "
        '2>&1 | tail -n 5; if [ "${PIPESTATUS[0]}" = 0 ]; then echo KEPT; '
        f"else git checkout -q -- {path}; echo REVERTED; fi"
    )


def _edit(path: str, before: str, after: str) -> str:
    """The lines that differ, with as many around them as make them unique."""
    old, new = before.split("\n")[:-1], after.split("\n")[:-1]
    first = next(n for n in itertools.count() if old[n : n + 1] != new[n : n + 1])
    most = min(len(old), len(new)) - first
    last = next((n for n in range(most) if old[-1 - n] != new[-1 - n]), most)
    while True:
        wanted = old[first : len(old) - last]
        if any(line.strip() for line in wanted) and _count(old, wanted) == 1:
            break
        first, last = max(0, first - 1), max(0, last - 1)
    search, replace = "\n".join(wanted), "\n".join(new[first : len(new) - last])
    return f"{path}\n<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE"


def _count(lines: Sequence[str], wanted: Sequence[str]) -> int:
    size = len(wanted)
    return sum(lines[n : n + size] == wanted for n in range(len(lines) - size + 1))

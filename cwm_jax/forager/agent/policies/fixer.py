"""A heuristic that reads the issue's call, tries changes of what it comes to, and keeps what works.

It sees what a model would: the messages. Issues without a call in the form of the shipped tasks are
a session of `debugging`.
"""

from __future__ import annotations

import itertools
import re

from cwm_jax.forager.agent.policies.debugging import debugging
from cwm_jax.forager.agent.policies.edits import edit_of
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
        return (yield from debugging(issue))
    module, expression, trouble, _, expected = read.groups()
    path = module.replace(".", "/") + ".py"
    source = yield call("bash", f"cat {path}", words="I read the module of the issue.")
    program = _CHECK.format(module=module, call=expression, expected=expected)
    yield call("create", f"/tmp/check.py\n{program}", words="I write down the failing call.")
    source = source if source.endswith("\n") else source + "\n"
    functions = reachable(source, expression)
    for changed in itertools.islice(repairs(source, functions, trouble), _MOST_TRIES):
        yield call("edit", edit_of(path, source, changed))
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

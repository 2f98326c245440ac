"""A heuristic that reads the issue's call, tries changes of what it comes to, and keeps what works.

It sees what a model would: the messages. Issues without a call in the form of the shipped tasks are
a session of `debugging`.
"""

from __future__ import annotations

import ast
import re

from cwm_jax.forager.agent.policies.debugging import debugging
from cwm_jax.forager.agent.policies.edits import edit_of
from cwm_jax.forager.agent.policies.inverses.ranking import Evidence, ranked
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
    module, expression, trouble, verb, expected = read.groups()
    path = module.replace(".", "/") + ".py"
    source = yield call("bash", f"cat {path}", words="I read the module of the issue.")
    program = _CHECK.format(module=module, call=expression, expected=expected)
    yield call("create", f"/tmp/check.py\n{program}", words="I write down the failing call.")
    source = source if source.endswith("\n") else source + "\n"
    evidence = Evidence(
        error=_as_error(trouble, verb, expected),
        places=(),
        run=[(path, name) for name in _reachable(source, expression)],
        test=expression,
    )
    for change in ranked({path: source}, evidence)[:_MOST_TRIES]:
        edit = edit_of(path, source, change.draft.source)
        yield call("edit", edit, words=change.draft.why)
        seen = yield call("bash", _checked(path))
        if seen.rstrip().endswith("KEPT"):
            return f"The change of {path} gives what the issue asks for, and the tests pass."
    return "None of the changes that I tried mends the issue; the files are as they were."


def _as_error(trouble: str, verb: str, expected: str) -> str:
    """What a test of the call would say: ``trouble`` is what it gives or raises."""
    kind, _, found = trouble.strip().partition(" ")
    if kind == "raises":
        return found
    return f"{expected} not raised" if verb == "raise" else f"AssertionError: {found} != {expected}"


def _checked(path: str) -> str:
    return (
        "{ PYTHONPATH=. timeout 10 python /tmp/check.py && timeout 30 python -m unittest -q; } "
        '2>&1 | tail -n 5; if [ "${PIPESTATUS[0]}" = 0 ]; then echo KEPT; '
        f"else git checkout -q -- {path}; echo REVERTED; fi"
    )


def _reachable(source: str, expression: str) -> list[str]:
    """Names of the module's functions that a call comes to, the nearest first."""
    tree = ast.parse(source)
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    found: list[str] = []
    queue: list[ast.AST] = [ast.parse(expression.strip(), mode="eval")]
    while queue:
        for node in ast.walk(queue.pop(0)):
            if isinstance(node, ast.Name) and node.id in functions and node.id not in found:
                found.append(node.id)
                queue.append(functions[node.id])
    return found

"""Which change is tried first: by what a failing test showed, and by what is odd in a function."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence

from cwm_jax.forager.agent.policies.inverses import exchanged, missing_names, missing_statements
from cwm_jax.forager.agent.policies.inverses.scope import Draft, Scope, scopes
from cwm_jax.rl.envs.mutations.text import Text

_UNDEFINED = re.compile(r"(?:name|variable) '(\w+)'")
_NOT_GIVEN = re.compile(r"(\w+)\(\) missing .* arguments?: '(\w+)'")
_TOO_FEW = re.compile(
    r"(\w+) expected (?:at least )?\d+ arguments?, got|(\w+)\(\) takes .* given\)"
)
_NO_ATTRIBUTE = re.compile(r"'(\w+)' object has no attribute '(\w+)'")
_UNEXPECTED = re.compile(r"(\w+)\(\) got an unexpected keyword argument '(\w+)'")
_TOO_MANY = re.compile(r"(\w+)\(\) takes .* positional arguments? but \d+ (?:was|were) given")
_NOT_RAISED = re.compile(r"(\w+) not raised|DID NOT RAISE .*?(\w+)'?>")
# Assumed: what it adds to a change's cost that its function is not where the error was raised.
_ELSEWHERE = {"raised": 0.0, "in traceback": 0.4, "named in test": 0.3, "run": 0.9, "read": 2.5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What running a failing test showed.

    Attributes:
        error: the last line of the traceback.
        places: (path, line) of the traceback outside of tests, the newest call last.
        run: (path, function) of what the test runs; empty where that is not known.
        test: source of the test.
        is_endless: the test did not end by itself.
    """

    error: str
    places: Sequence[tuple[str, int]]
    run: Sequence[tuple[str, str]]
    test: str
    is_endless: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """A draft of one file; ``before`` is the file's text without it."""

    path: str
    before: str
    draft: Draft


def ranked(files: Mapping[str, str], evidence: Evidence) -> list[Change]:
    """Changes of the files that compile, each once, the likeliest first."""
    texts = {path: Text(source) for path, source in files.items()}
    found: list[Change] = []
    for path, text in texts.items():
        own = [(_module(p), name) for p in texts if p != path for name in _defined(texts[p])]
        for draft in _drafts(path, text, evidence, own):
            found.append(Change(path=path, before=files[path], draft=draft))
    seen: set[tuple[str, str]] = set()
    kept = []
    for change in sorted(found, key=lambda change: change.draft.cost):
        key = (change.path, change.draft.source)
        if key not in seen and change.draft.source != change.before and _compiles(key[1]):
            kept.append(change)
        seen.add(key)
    return kept


def _drafts(
    path: str, text: Text, evidence: Evidence, own: Sequence[tuple[str, str]]
) -> Iterator[Draft]:
    undefined = _UNDEFINED.search(evidence.error)
    is_raised = not evidence.error.startswith("AssertionError")
    for scope in scopes(text):
        where = _where(path, scope, evidence)
        if where is None:
            continue
        raised = [line for place, line in evidence.places[-1:] if place == path]
        for draft in _of_function(scope, evidence):
            line = _first_difference(text.content.decode(), draft.source)
            nearer = (1.0 if is_raised else 0.4) if line in raised else 0.0
            cost = draft.cost + _ELSEWHERE[where] - nearer
            yield dataclasses.replace(draft, cost=cost)
        for name in scope.undefined:
            for draft in missing_names.imports(text, name, own):
                yield dataclasses.replace(draft, cost=draft.cost + _ELSEWHERE[where])
    if undefined and any(place == path for place, _ in evidence.places):
        yield from missing_names.imports(text, undefined[1], own)


def _of_function(scope: Scope, evidence: Evidence) -> Iterator[Draft]:
    error, last = evidence.error, scope.name.rpartition(".")[2]
    not_given, not_raised = _NOT_GIVEN.search(error), _NOT_RAISED.search(error)
    yield from exchanged.operators(scope)
    yield from exchanged.arguments(scope)
    yield from exchanged.variables(scope)
    yield from missing_names.parameters(scope)
    for pattern in (_UNEXPECTED, _TOO_MANY):
        if (found := pattern.search(error)) and found[1] in (last, _owner(scope)):
            yield from missing_names.further_parameters(scope, [*found.groups()][1:])
    too_few = _TOO_FEW.search(error)
    lacking = (too_few[1] or too_few[2]) if too_few else not_given[1] if not_given else ""
    yield from missing_names.arguments(scope, lacking, not_given[2] if not_given else "")
    yield from missing_statements.returns(scope, _wanted_type(error))
    yield from missing_statements.emptied(scope)
    yield from missing_statements.statements(scope, is_endless=evidence.is_endless)
    if (lost := _NO_ATTRIBUTE.search(error)) and last == "__init__" and _owner(scope) == lost[1]:
        yield from missing_names.attributes(scope, lost[2])
    if not_raised:
        yield from missing_statements.raises(scope, not_raised[1] or not_raised[2])


def _where(path: str, scope: Scope, evidence: Evidence) -> str | None:
    """What the test has to do with a function; None where nothing."""
    first, end = scope.node.lineno, scope.node.end_lineno or 0
    lines = [line for place, line in evidence.places if place == path and first <= line <= end]
    last = scope.name.rpartition(".")[2]
    if lines:
        newest = evidence.places[-1]
        return "raised" if newest[0] == path and newest[1] in lines else "in traceback"
    lost = _NO_ATTRIBUTE.search(evidence.error)
    if lost and last == "__init__" and _owner(scope) == lost[1]:
        return "raised"
    if re.search(rf"\b{re.escape(last)}\(\)", evidence.error):
        return "raised"  # it is called wrongly, or takes too little
    names = {name.rpartition(".")[2] for place, name in evidence.run if place == path}
    if evidence.run and last not in names:
        return None
    owner = _owner(scope)
    if re.search(rf"\b{re.escape(last)}\b", evidence.test) or (
        last == "__init__" and owner in evidence.test
    ):
        return "named in test"
    return "run" if evidence.run else "read"


def _wanted_type(error: str) -> str:
    """Of what a test wants in place of None: ``str``, ``list`` and so on; empty if unknown."""
    found = re.search(r"\bNone (?:!=|==) (.)", error)
    if found is None:
        return ""
    first = found[1]
    names = {"'": "str", '"': "str", "[": "list", "(": "tuple", "T": "bool", "F": "bool"}
    if first == "{":
        return "dict"
    return names.get(first, "number" if first in "-0123456789" else "")


def _owner(scope: Scope) -> str:
    """The class of a method, else nothing."""
    before = scope.name.rpartition(".")[0]
    return before.rpartition(".")[2] if not before.endswith("<locals>") else ""


def _defined(text: Text) -> list[str]:
    body = getattr(text.tree, "body", [])
    named = [node.name for node in body if hasattr(node, "name")]
    targets = [t for node in body for t in getattr(node, "targets", [])]
    return [*named, *(t.id for t in targets if hasattr(t, "id"))]


def _module(path: str) -> str:
    name = path.removesuffix(".py").removesuffix("/__init__").removeprefix("src/")
    return name.replace("/", ".")


def _first_difference(before: str, after: str) -> int:
    """The number of the first line that differs."""
    pairs = zip(before.split("\n"), after.split("\n"), strict=False)
    return next((number for number, (a, b) in enumerate(pairs, 1) if a != b), 0)


def _compiles(source: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(source, "repaired", "exec")
        except (SyntaxError, ValueError):
            return False
    return True

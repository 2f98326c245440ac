"""Inverses of what leaves statements out: returns, raises, assignments, steps, jumps."""

from __future__ import annotations

import ast
import collections
import itertools
from collections.abc import Iterator, Sequence

from cwm_jax.forager.agent.policies.inverses.scope import FIRST_VALUES, MOST_NAMES, Draft, Scope
from cwm_jax.rl.envs.mutations.functions import own_nodes

_BY_USE = {"append": "[]", "extend": "[]", "add": "set()", "get": "{}", "items": "{}", "pop": "[]"}
_MOST_CHANGES = 12  # assumed: of one name
_JOINTS = ("'\\n'", "''", "' '", "', '")


def returns(scope: Scope, wanted: str = "") -> Iterator[Draft]:
    """A return of a name, or of a value as others are, behind the last statements.

    Args:
        scope: of the function.
        wanted: the type that a test wants where it gets None; else empty.
    """
    found = [n for n in own_nodes(scope.node) if isinstance(n, ast.Return)]
    given = [n.value for n in found if n.value is not None]
    yields = any(isinstance(n, ast.Yield | ast.YieldFrom) for n in own_nodes(scope.node))
    is_init = scope.name.rpartition(".")[2] == "__init__"
    if (found and len(given) < len(found)) or not scope.body or yields or is_init:
        return
    values = _values_of(scope, wanted)
    texts = {scope.text.of(value) for value in given}
    values += ["False"] * ("True" in texts) + ["True"] * ("False" in texts)
    if texts and not values:
        values += ["None"]
    falls = _falls_through(scope.body)
    statements = [s for s in scope.statements() if not isinstance(s, ast.Return | ast.Pass)]
    last = scope.body[-1]
    statements.sort(key=lambda s: (s is not last, -(s.end_lineno or 0), s.col_offset))
    for place, statement in enumerate(statements[:8]):
        for rank, value in enumerate(values):
            cost = (0.5 if falls else 2.5) + 0.5 * place + 0.15 * rank
            cost -= 0.3 * (value in scope.unread)
            why = f"`{scope.name}` may have lost a return: a path through it gives nothing back."
            source = scope.after(statement, f"return {value}")
            yield Draft(cost=cost, why=why, source=source)


def emptied(scope: Scope) -> Iterator[Draft]:
    """Something in the place of a ``pass``."""
    passes = [s for s in scope.statements() if isinstance(s, ast.Pass)]
    for statement in passes:
        span = (scope.text.start(statement), scope.text.end(statement))
        for cost, line in _simple_statements(scope, statement):
            why = (
                f"Line {statement.lineno} of `{scope.name}` does nothing: a statement may be lost."
            )
            yield Draft(cost=cost, why=why, source=scope.text.replaced([(*span, line)]))


def statements(scope: Scope, *, is_endless: bool) -> Iterator[Draft]:
    """Assignments, steps and jumps that a function may have lost."""
    yield from _first_values(scope)
    yield from _updates(scope)
    for loop in own_nodes(scope.node):
        if isinstance(loop, ast.For | ast.While):
            yield from _steps(scope, loop, is_endless=is_endless)


def raises(scope: Scope, error: str) -> Iterator[Draft]:
    """A raise of an error that a test waits for, where a condition leads to nothing."""
    for statement in scope.statements():
        if isinstance(statement, ast.If) and isinstance(statement.body[0], ast.Pass):
            span = (scope.text.start(statement.body[0]), scope.text.end(statement.body[0]))
            why = f"`{scope.name}` finds `{scope.text.of(statement.test)}` and raises nothing."
            source = scope.text.replaced([(*span, f"raise {error}")])
            yield Draft(cost=0.0, why=why, source=source)


def _values_of(scope: Scope, wanted: str) -> list[str]:
    """What may be given back, by what is wanted."""
    names = [*scope.local[:MOST_NAMES]]
    newest = names[:2]
    made = {
        "str": [f"{text}.join({name})" for name in newest for text in _JOINTS],
        "list": [f"{make}({name})" for name in newest for make in ("list", "sorted")],
        "tuple": [f"({a}, {b})" for a in names[:3] for b in names[:3] if a != b],
        "dict": [f"dict({name})" for name in newest],
        "number": [f"len({name})" for name in newest],
        "bool": ["True", "False"],
    }.get(wanted, [])
    if wanted in ("bool", "tuple"):
        return [*made, *names]
    return [*names[:3], *made, *names[3:]]


def _falls_through(block: Sequence[ast.stmt]) -> bool:
    """Whether a block may come to its end."""
    last = block[-1]
    if isinstance(last, ast.Return | ast.Raise | ast.Continue | ast.Break):
        return False
    if isinstance(last, ast.If):
        return not last.orelse or _falls_through(last.body) or _falls_through(last.orelse)
    if isinstance(last, ast.With):
        return _falls_through(last.body)
    if isinstance(last, ast.Try):
        parts = [last.body, *(h.body for h in last.handlers)]
        return any(map(_falls_through, parts))
    if isinstance(last, ast.While):
        return not (isinstance(last.test, ast.Constant) and last.test.value)
    return True


def _simple_statements(scope: Scope, statement: ast.stmt) -> Iterator[tuple[float, str]]:
    names = list(scope.local)[:MOST_NAMES]
    is_in_loop = any(
        isinstance(n, ast.For | ast.While) and n.lineno < statement.lineno <= (n.end_lineno or 0)
        for n in ast.walk(scope.node)
    )
    returned = [n.value for n in ast.walk(scope.node) if isinstance(n, ast.Return) and n.value]
    for value in returned:
        if isinstance(value, ast.Constant) and isinstance(value.value, bool):
            yield 0.2, f"return {not value.value}"
    for rank, name in enumerate(names):
        yield 0.4 + 0.1 * rank, f"return {name}"
    if is_in_loop:
        yield 0.4, "continue"
        yield 0.4, "break"
    for rank, name in enumerate(names):
        yield 0.7 + 0.1 * rank, f"{name} += 1"
        for other in names:
            if other != name:
                yield 0.9 + 0.1 * rank, f"{name} = {other}"
                yield 1.1 + 0.1 * rank, f"{name} += {other}"
                yield 1.2 + 0.1 * rank, f"{name}.append({other})"
    attributes = sorted(
        {scope.text.of(n) for n in ast.walk(scope.node) if isinstance(n, ast.Attribute)
         and isinstance(n.value, ast.Name) and n.value.id == "self"}
    )  # fmt: skip
    for attribute in attributes[:MOST_NAMES]:
        for name in names:
            yield 0.9, f"{attribute} = {name}"
            for other in names:
                if other != name:
                    yield 1.0, f"{attribute}[{name}] = {other}"
    for value in ("None", "[]", "0", "{}", "''", "1"):
        yield 0.9, f"return {value}"


def _first_values(scope: Scope) -> Iterator[Draft]:
    """Of names that are read without one; what is done with them says what they are."""
    only_added = _only_added(scope)
    for name in dict.fromkeys([*scope.undefined, *only_added]):
        uses = [
            n.attr
            for n in ast.walk(scope.node)
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == name
        ]
        likely = [_BY_USE[use] for use in uses if use in _BY_USE]
        stored = (n for n in ast.walk(scope.node) if isinstance(n, ast.Subscript))
        likely += ["{}"] * any(
            isinstance(n.value, ast.Name) and n.value.id == name and isinstance(n.ctx, ast.Store)
            for n in stored
        )
        values = dict.fromkeys([*likely, *FIRST_VALUES, *scope.parameters])
        why = f"`{scope.name}` reads `{name}` before it has a value."
        for rank, value in enumerate(v for v in values if v not in ("self", name)):
            source = scope.before(scope.body[0], f"{name} = {value}")
            yield Draft(cost=0.4 + 0.15 * rank, why=why, source=source)


def _only_added(scope: Scope) -> list[str]:
    """Names whose first place in the function changes them, which needs a value."""
    found = []
    for name in scope.stored:
        if name in scope.parameters:
            continue
        nodes = [n for n in ast.walk(scope.node) if isinstance(n, ast.Assign | ast.For | ast.With
                 | ast.AnnAssign | ast.comprehension | ast.NamedExpr | ast.Import)]  # fmt: skip
        targets = {
            inner.id
            for node in nodes
            for inner in ast.walk(node)
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
        }
        if name not in targets:
            found.append(name)
    return found


def _updates(scope: Scope) -> Iterator[Draft]:
    """Of a name that begins empty, is given back, and is never changed in between."""
    first: dict[str, ast.expr] = {}
    count = collections.Counter[str]()
    for statement in scope.statements():
        for target, value in _assigned(statement):
            root = target
            while isinstance(root, ast.Subscript | ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name):
                count[root.id] += 1
                if value is not None and root is target:
                    first.setdefault(root.id, value)
    called = {
        n.func.value.id
        for n in ast.walk(scope.node)
        if isinstance(n, ast.Call)
        and isinstance(n.func, ast.Attribute)
        and isinstance(n.func.value, ast.Name)
    }
    loops = [n for n in own_nodes(scope.node) if isinstance(n, ast.For | ast.While)]
    for name, value in first.items():
        if count[name] == 1 and name not in called and _is_empty(value):
            changes = (draft for loop in loops for draft in _changes(scope, name, value, loop))
            yield from itertools.islice(changes, _MOST_CHANGES)


def _assigned(statement: ast.stmt) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Each target with its value, where it is one of its own."""
    if isinstance(statement, ast.AugAssign):
        yield statement.target, None
    if not isinstance(statement, ast.Assign):
        return
    value = statement.value
    for target in statement.targets:
        if not isinstance(target, ast.Tuple | ast.List):
            yield target, value
        elif isinstance(value, ast.Tuple | ast.List):
            yield from zip(target.elts, value.elts, strict=False)
        else:
            yield from ((part, None) for part in target.elts)


def _is_empty(value: ast.expr) -> bool:
    """Whether something is begun with it."""
    if isinstance(value, ast.Constant):
        return not value.value or value.value == 1
    if isinstance(value, ast.List | ast.Tuple):
        return not value.elts
    return (isinstance(value, ast.Dict) and not value.keys) or (
        isinstance(value, ast.Call) and not value.args and not value.keywords
    )


def _changes(
    scope: Scope, name: str, value: ast.expr, loop: ast.For | ast.While
) -> Iterator[Draft]:
    inside = [
        n.id
        for part in (loop.target if isinstance(loop, ast.For) else loop.test, *loop.body)
        for n in ast.walk(part)
        if isinstance(n, ast.Name) and (isinstance(n.ctx, ast.Store) or isinstance(loop, ast.While))
    ]
    names = [n for n in dict.fromkeys(inside) if n != name][:MOST_NAMES]
    lines = [f"{name} += 1", *(f"{name} += {n}" for n in names), *(f"{name} = {n}" for n in names)]
    if isinstance(value, ast.List | ast.ListComp):
        lines = [f"{name}.append({n})" for n in names]
    elif isinstance(value, ast.Call) and scope.text.of(value).startswith("set("):
        lines = [f"{name}.add({n})" for n in names]
    elif isinstance(value, ast.Dict):
        lines = [f"{name}[{a}] = {b}" for a in names for b in names if a != b]
    why = f"`{name}` of `{scope.name}` is made and never changed: a loop may have lost that."
    for rank, line in enumerate(lines):
        for place in (loop.body[-1], loop.body[0]):
            first = place is loop.body[0]
            source = scope.before(place, line) if first else scope.after(place, line)
            yield Draft(cost=0.6 + 0.1 * rank + 0.2 * first, why=why, source=source)


def _steps(scope: Scope, loop: ast.For | ast.While, *, is_endless: bool) -> Iterator[Draft]:
    """A counter's step at a loop's end; a jump at the end of its branches."""
    cost = 0.2 if is_endless else 2.4
    if isinstance(loop, ast.While):
        names = [n.id for n in ast.walk(loop.test) if isinstance(n, ast.Name)]
        for name in dict.fromkeys(names):
            for step in ("+= 1", "-= 1"):
                why = f"The loop of line {loop.lineno} may have lost the step of `{name}`."
                source = scope.after(loop.body[-1], f"{name} {step}")
                yield Draft(cost=cost, why=why, source=source)
    for statement in (s for s in loop.body if isinstance(s, ast.If)):
        for word in ("continue", "break"):
            if not isinstance(
                statement.body[-1], ast.Return | ast.Raise | ast.Break | ast.Continue
            ):
                why = f"The branch of line {statement.lineno} may have to end with {word}."
                source = scope.after(statement.body[-1], word)
                yield Draft(cost=cost + 0.2, why=why, source=source)

"""Inverses of what exchanges: operators, arguments, variables."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator

from cwm_jax.forager.agent.policies.inverses.scope import Draft, Scope
from cwm_jax.rl.envs.mutations import rules
from cwm_jax.rl.envs.mutations.functions import own_nodes

# What may have stood where an operator is now: the table of mutations, read backwards, the
# commonest first. The patterns find the operator between its operands.
_BEFORE: dict[type[ast.AST], tuple[str, tuple[str, ...]]] = {
    ast.Add: (r"\+", ("-", "*")),
    ast.Sub: ("-", ("+",)),
    ast.Mult: (r"\*", ("/", "**", "@", "+")),
    ast.Div: ("/", ("//", "*")),
    ast.FloorDiv: ("//", ("%", "/")),
    ast.Mod: ("%", ("//",)),
    ast.BitAnd: ("&", ("|", "^")),
    ast.BitOr: (r"\|", ("&",)),
    ast.LShift: ("<<", (">>",)),
    ast.RShift: (">>", ("<<",)),
    ast.Lt: ("<", ("<=",)),
    ast.LtE: ("<=", ("<",)),
    ast.Gt: (">", (">=",)),
    ast.GtE: (">=", (">",)),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.In: (r"\bin\b", ("not in",)),
    ast.NotIn: (r"\bnot\s+in\b", ("in",)),
    ast.Is: (r"\bis\b", ("is not",)),
    ast.IsNot: (r"\bis\s+not\b", ("is",)),
    ast.And: (r"\band\b", ("or",)),
    ast.Or: (r"\bor\b", ("and",)),
}
_WITH_OPPOSITES = (ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Is, ast.IsNot)
_EXCHANGES = ("arguments exchanged", "arguments reversed", "keywords exchanged")
_MOST_PAIRS = 30  # assumed: of variables


def operators(scope: Scope) -> Iterator[Draft]:
    """Another operator between two operands; a ``not`` or a minus that is missing."""
    for node in own_nodes(scope.node):
        for left, op, right in _operations(node):
            yield from _other(scope, left, op, right)
    yield from _negations(scope)
    yield from _minuses(scope)


def arguments(scope: Scope) -> Iterator[Draft]:
    """Arguments of a call in another order."""
    for rule, what, changed in rules.other_arguments(scope.node, scope.text):
        if rule in _EXCHANGES and changed is not None:
            place = what.split(" of the ")[-1].removesuffix(" exchanged").removesuffix(" reversed")
            why = f"The arguments of the {place} may be in the wrong order."
            yield Draft(cost=1.5 + (rule == "arguments reversed") * 0.2, why=why, source=changed)


def variables(scope: Scope) -> Iterator[Draft]:
    """Two names exchanged in the body; those first that lack something."""
    every = [n for s in scope.body for n in ast.walk(s) if isinstance(n, ast.Name)]
    known = {*scope.parameters, *scope.stored}
    names = sorted((known | {*scope.undefined}) & {n.id for n in every} | {*scope.parameters})
    pairs = [(a, b) for a, b in itertools.combinations(names, 2) if known & {a, b}]
    drafts = [_exchanged(scope, every, pair) for pair in pairs]
    yield from sorted(drafts, key=lambda draft: draft.cost)[:_MOST_PAIRS]


def _exchanged(scope: Scope, every: list[ast.Name], pair: tuple[str, str]) -> Draft:
    a, b = pair
    other = {a: b, b: a}
    spans = [(scope.text.start(n), scope.text.end(n), other[n.id]) for n in every if n.id in other]
    odd = {*scope.undefined, *scope.unread} & {a, b}
    why = f"In `{scope.name}`, `{a}` and `{b}` may have been taken for each other."
    if odd:
        why = f"In `{scope.name}` something is odd about `{min(odd)}`. {why}"
    cost = {0: 2.0, 1: 0.6, 2: 0.2}[len(odd)]
    return Draft(cost=cost, why=why, source=scope.text.replaced(spans))


def _operations(node: ast.AST) -> Iterator[tuple[ast.expr, ast.AST, ast.expr]]:
    if isinstance(node, ast.BinOp):
        yield node.left, node.op, node.right
    elif isinstance(node, ast.AugAssign):
        yield node.target, node.op, node.value
    elif isinstance(node, ast.Compare):
        pairs = itertools.pairwise([node.left, *node.comparators])
        for (left, right), op in zip(pairs, node.ops, strict=True):
            yield left, op, right
    elif isinstance(node, ast.BoolOp):
        for left, right in itertools.pairwise(node.values):
            yield left, node.op, right


def _other(scope: Scope, left: ast.expr, op: ast.AST, right: ast.expr) -> Iterator[Draft]:
    pattern, others = _BEFORE.get(type(op), ("", ()))
    start, end = scope.text.end(left), scope.text.start(right)
    between = scope.text.content[start:end].decode()
    found = list(re.finditer(pattern, between)) if pattern else []
    if len(found) != 1 or "#" in between:
        return
    (match,) = found
    for number, other in enumerate(others):
        changed = between[: match.start()] + other + between[match.end() :]
        why = (
            f"Line {left.end_lineno}, in `{scope.name}`, may want `{other}` where it has "
            f"`{match[0]}`."
        )
        source = scope.text.replaced([(start, end, changed)])
        yield Draft(cost=1.0 + 0.3 * number, why=why, source=source)


def _negations(scope: Scope) -> Iterator[Draft]:
    """Before conditions and what they are made of."""
    for node in own_nodes(scope.node):
        parts: list[ast.expr] = []
        if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
            parts = [node.test]
        elif isinstance(node, ast.comprehension):
            parts = node.ifs
        elif isinstance(node, ast.BoolOp):
            parts = node.values
        elif isinstance(node, ast.Return | ast.Assign) and _may_be_negated(node):
            parts = [node.value] if node.value is not None else []
        for part in parts:
            if isinstance(part, ast.Compare) and isinstance(part.ops[0], _WITH_OPPOSITES):
                continue
            span = (scope.text.start(part), scope.text.end(part))
            inner = scope.text.of(part)
            whole = f"not ({inner})" if isinstance(part, ast.BoolOp) else f"not {inner}"
            cost = {ast.Return: 2.4, ast.Assign: 0.1}.get(type(node), 1.2)
            why = f"`{_short(inner)}` of `{scope.name}` may be the wrong way round."
            yield Draft(cost=cost, why=why, source=scope.text.replaced([(*span, whole)]))


def _minuses(scope: Scope) -> Iterator[Draft]:
    """Before numbers in subscripts, and before what is given back or passed on."""
    for node in own_nodes(scope.node):
        parts: list[tuple[float, ast.expr]] = []
        if isinstance(node, ast.Subscript):
            inside = node.slice
            bounds = [inside] if not isinstance(inside, ast.Slice) else [
                bound for bound in (inside.lower, inside.upper, inside.step) if bound
            ]  # fmt: skip
            parts = [(1.3, bound) for bound in bounds if _is_number(bound)]
        elif isinstance(node, ast.Return | ast.Assign) and node.value is not None:
            parts = [(2.2, node.value)]
        elif isinstance(node, ast.Call):
            parts = [(1.6 if _is_number(part) else 2.6, part) for part in node.args]
        elif isinstance(node, ast.IfExp):
            parts = [(1.4, part) for part in (node.body, node.orelse)]
        elif isinstance(node, ast.Tuple | ast.Lambda):
            own = node.elts if isinstance(node, ast.Tuple) else [node.body]
            parts = [(1.6 if _is_number(part) else 2.6, part) for part in own]
        elif isinstance(node, ast.Compare):
            parts = [(2.6, part) for part in node.comparators if _is_number(part)]
        for cost, part in parts:
            if isinstance(part, ast.Name | ast.Call | ast.Subscript | ast.Attribute) or (
                _is_number(part)
            ):
                at = scope.text.start(part)
                why = f"`{_short(scope.text.of(part))}` of `{scope.name}` may lack a minus."
                yield Draft(cost=cost, why=why, source=scope.text.replaced([(at, at, "-")]))


def _may_be_negated(node: ast.Return | ast.Assign) -> bool:
    """A name or a call that is given back; a name that gets its own value."""
    if isinstance(node, ast.Return):
        return isinstance(node.value, ast.Call | ast.Name)
    target, value = node.targets[0], node.value
    return isinstance(target, ast.Name) and isinstance(value, ast.Name) and target.id == value.id


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value != 0


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else line[:37] + "..."

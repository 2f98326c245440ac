"""The rules: how a function is broken, of the report's five kinds."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator

from cwm_jax.rl.envs.mutations.functions import FunctionNode, own_nodes, own_statements
from cwm_jax.rl.envs.mutations.text import Text

Draft = tuple[str, str, str | None]  # the rule, what was done, the source afterwards
_COMPOUND = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar, ast.With, ast.AsyncWith,
    ast.Match,
)  # fmt: skip
_IMPORTS = (ast.Import, ast.ImportFrom)
_SIMPLE = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Raise, ast.Assert, ast.Delete, ast.Expr,
           ast.Break, ast.Continue)  # fmt: skip
# (spelling in the source, what takes its place)
_OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Add: (r"\+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: (r"\*", "+"),
    ast.MatMult: ("@", "*"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "//"),
    ast.Pow: (r"\*\*", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: (r"\|", "&"),
    ast.BitXor: (r"\^", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: (r"\bin\b", "not in"),
    ast.NotIn: (r"\bnot\s+in\b", "in"),
    ast.Is: (r"\bis\b", "is not"),
    ast.IsNot: (r"\bis\s+not\b", "is"),
    ast.And: (r"\band\b", "or"),
    ast.Or: (r"\bor\b", "and"),
}


def less_of_function(node: FunctionNode, block: list[ast.stmt], text: Text) -> Iterator[Draft]:
    """The function removed, its body, half of it, or a compound statement."""
    yield "function removed", "removed", text.without_statements([node], block)
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if len(body) > 1:  # one alone is a statement to drop
        yield "body removed", "body removed", text.without_statements(body, body)
    half = len(body) // 2
    for part in (body[:half], body[half:]) if half else ():
        lines = f"lines {part[0].lineno} to {part[-1].end_lineno} removed"
        yield "part of body removed", lines, text.without_statements(part, node.body)
    for inner, around in own_statements(node):
        if isinstance(inner, _COMPOUND):
            what = f"the {type(inner).__name__.lower()} of line {inner.lineno} removed"
            yield "compound removed", what, text.without_statements([inner], around)


def other_arguments(node: FunctionNode, text: Text) -> Iterator[Draft]:
    """A parameter removed; arguments of calls dropped, exchanged, reversed."""
    yield from _fewer_parameters(node.args, text)
    for call in own_nodes(node):
        if isinstance(call, ast.Call):
            yield from _other_call(call, text)


def _fewer_parameters(arguments: ast.arguments, text: Text) -> Iterator[Draft]:
    plain = [*arguments.posonlyargs, *arguments.args]
    missing = len(plain) - len(arguments.defaults)
    defaults = [*[None] * missing, *arguments.defaults, *arguments.kw_defaults]
    for argument, default in zip([*plain, *arguments.kwonlyargs], defaults, strict=True):
        start, end = text.start(argument), text.end(default or argument)
        changed = text.without_element(start, end)
        if changed is None and len(defaults) == 1:
            changed = text.replaced([(start, end, "")])
        yield "parameter removed", f"the parameter {argument.arg} removed", changed


def _other_call(call: ast.Call, text: Text) -> Iterator[Draft]:
    where = f"of the call in line {call.lineno}"
    for node in [*call.args, *call.keywords]:
        changed = text.without_element(text.start(node), text.end(node))
        opening = text.content[text.end(call.func) : text.start(node)].strip()
        if changed is None and len(call.args) + len(call.keywords) == 1 and opening == b"(":
            changed = text.replaced([(text.start(node), text.end(node), "")])
        yield "argument dropped", f"an argument {where} dropped", changed
    if not any(isinstance(a, ast.Starred) for a in call.args):
        for pair in itertools.pairwise(call.args):
            changed = text.permuted(pair, pair[::-1])
            yield "arguments exchanged", f"two arguments {where} exchanged", changed
        if len(call.args) > 2:
            changed = text.permuted(call.args, call.args[::-1])
            yield "arguments reversed", f"the arguments {where} reversed", changed
    named = [k.value for k in call.keywords if k.arg is not None]
    for pair in itertools.pairwise(named):
        changed = text.permuted(pair, pair[::-1])
        yield "keywords exchanged", f"two keyword arguments {where} exchanged", changed


def swapped_variables(node: FunctionNode, text: Text) -> Iterator[Draft]:
    """Two variables exchanged everywhere in the body; none that an f-string reads."""
    every = [n for s in node.body for n in ast.walk(s) if isinstance(n, ast.Name)]
    strings = [n for s in node.body for n in ast.walk(s) if isinstance(n, ast.JoinedStr)]
    hidden = {n.id for s in strings for n in ast.walk(s) if isinstance(n, ast.Name)}
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    stored = {a.arg for a in arguments} | {n.id for n in every if isinstance(n.ctx, ast.Store)}
    for a, b in itertools.combinations(sorted(stored & {n.id for n in every} - hidden), 2):
        other = {a: b, b: a}
        spans = [(text.start(n), text.end(n), other[n.id]) for n in every if n.id in other]
        yield "variables swapped", f"{a} and {b} exchanged", text.replaced(spans)


def fewer_statements(node: ast.AST, text: Text) -> Iterator[Draft]:
    """An import, a return or another simple statement dropped."""
    for inner, block in own_statements(node):
        where = f"of line {inner.lineno} dropped"
        if isinstance(inner, _IMPORTS):
            changed = text.without_statements([inner], block)
            yield "import dropped", f"the import {where}", changed
        elif isinstance(inner, ast.Return):
            changed = text.without_statements([inner], block)
            yield "return dropped", f"the return {where}", changed
        elif isinstance(inner, _SIMPLE) and not _is_text(inner):
            changed = text.without_statements([inner], block)
            yield "statement dropped", f"the statement {where}", changed


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def other_operators(node: FunctionNode, text: Text) -> Iterator[Draft]:
    """A unary operator dropped; a binary, boolean or comparison operator replaced."""
    for inner in own_nodes(node):
        if isinstance(inner, ast.UnaryOp):
            what = f"an operator of line {inner.lineno} dropped"
            yield "unary operator", what, _without_unary(inner, text)
        for rule, left, op, right in _operations(inner):
            what = f"an operator of line {left.lineno} replaced"
            yield rule, what, _with_operator(left, op, right, text)


def _without_unary(node: ast.UnaryOp, text: Text) -> str:
    start = text.start(node)
    found = re.match(rb"(not\b|[-+~])[ \t]*", text.content[start:])
    assert found is not None
    apart = " " if text.content[start - 1 : start].isalnum() else ""
    return text.replaced([(start, start + found.end(), apart)])


def _operations(node: ast.AST) -> Iterator[tuple[str, ast.expr, ast.AST, ast.expr]]:
    if isinstance(node, ast.BinOp):
        yield "binary operator", node.left, node.op, node.right
    elif isinstance(node, ast.AugAssign):
        yield "binary operator", node.target, node.op, node.value
    elif isinstance(node, ast.Compare):
        pairs = itertools.pairwise([node.left, *node.comparators])
        for (left, right), op in zip(pairs, node.ops, strict=True):
            yield "comparison operator", left, op, right
    elif isinstance(node, ast.BoolOp):
        for left, right in itertools.pairwise(node.values):
            yield "boolean operator", left, node.op, right


def _with_operator(left: ast.expr, op: ast.AST, right: ast.expr, text: Text) -> str | None:
    pattern, other = _OPERATORS[type(op)]
    start, end = text.end(left), text.start(right)
    between = text.content[start:end].decode()
    found = list(re.finditer(pattern, between))
    if len(found) != 1 or "#" in between:
        return None
    changed = between[: found[0].start()] + other + between[found[0].end() :]
    return text.replaced([(start, end, changed)])

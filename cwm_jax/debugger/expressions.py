"""Small expressions on predicted values, evaluated without running anything of the program."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

MAX_CHARACTERS = 200  # assumed: of an expression; bounds its depth, too
MAX_REPR_CHARACTERS = 100_000
_MAX_INTEGER = 1 << 128

_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_FUNCTIONS = {"len": len, "abs": abs, "min": min, "max": max, "sum": sum}


class ExpressionError(ValueError):
    """An expression that cannot be read, or has no value."""


def check_expression(text: str) -> ast.expr:
    """The parsed expression.

    Raises:
        ExpressionError: no expression, or one with more than names, literals, comparisons,
            arithmetic, subscripts and the functions of `_FUNCTIONS`.
    """
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(
            f"the expression has {len(text)} characters; expected at most {MAX_CHARACTERS}"
        )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{text!r} is no expression: {error}") from None
    for node in ast.walk(tree):
        _check_node(node)
    return tree


def evaluate(text: str, local_vars: Mapping[str, str]) -> Any:
    """The value of an expression whose names are predicted locals, read as literals.

    Raises:
        ExpressionError: as `check_expression`; a name that is not there or no literal; an
            operation that raises.
    """
    tree = check_expression(text)
    try:
        return _value(tree, local_vars)
    except ExpressionError:
        raise
    except Exception as error:  # whatever an operator makes of values it does not fit
        raise ExpressionError(f"{text!r}: {type(error).__name__}: {error}") from None


def _check_node(node: ast.AST) -> None:
    if isinstance(node, ast.Call):
        fits = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
    elif isinstance(node, ast.BinOp):
        fits = type(node.op) in _ARITHMETIC
    else:
        fits = isinstance(node, _ALLOWED)
    if not fits:
        raise ExpressionError(
            f"{type(node).__name__} is not evaluated; expected names, literals, comparisons, "
            f"and/or/not, + - * / // %, subscripts and {', '.join(_FUNCTIONS)}"
        )


_ALLOWED = (
    ast.Compare,
    ast.BoolOp,
    ast.UnaryOp,
    ast.Constant,
    ast.Name,
    ast.Subscript,
    ast.Tuple,
    ast.List,
    ast.expr_context,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)


def _value(node: ast.expr, local_vars: Mapping[str, str]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return _local(node.id, local_vars)
        case ast.Tuple() | ast.List():
            values = [_value(element, local_vars) for element in node.elts]
            return tuple(values) if isinstance(node, ast.Tuple) else values
        case ast.Subscript():
            return _value(node.value, local_vars)[_value(node.slice, local_vars)]
        case ast.UnaryOp():
            return _unary(node, _value(node.operand, local_vars))
        case ast.BoolOp():
            return _boolean(node, local_vars)
        case ast.Compare():
            return _comparison(node, local_vars)
        case ast.BinOp():
            left, right = _value(node.left, local_vars), _value(node.right, local_vars)
            return _arithmetic(node.op, left, right)
        case ast.Call():
            assert isinstance(node.func, ast.Name)
            return _FUNCTIONS[node.func.id](*(_value(a, local_vars) for a in node.args))
    raise ExpressionError(f"{type(node).__name__} is not evaluated")


def _local(name: str, local_vars: Mapping[str, str]) -> Any:
    if name not in local_vars:
        raise ExpressionError(f"{name!r} is no local here; there are: {', '.join(local_vars)}")
    text = local_vars[name]
    if len(text) > MAX_REPR_CHARACTERS:
        raise ExpressionError(f"{name!r} is too long to be evaluated: {len(text)} characters")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise ExpressionError(f"{name!r} is {shown}, which is no literal") from None


def _unary(node: ast.UnaryOp, value: Any) -> Any:
    if isinstance(node.op, ast.Not):
        return not value
    return {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert}[
        type(node.op)
    ](value)


def _boolean(node: ast.BoolOp, local_vars: Mapping[str, str]) -> Any:
    ends = isinstance(node.op, ast.Or)
    value: Any = None
    for operand in node.values:
        value = _value(operand, local_vars)
        if bool(value) is ends:
            break
    return value


def _comparison(node: ast.Compare, local_vars: Mapping[str, str]) -> bool:
    left = _value(node.left, local_vars)
    for op, operand in zip(node.ops, node.comparators, strict=True):
        right = _value(operand, local_vars)
        if not _COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True


def _arithmetic(op: ast.operator, left: Any, right: Any) -> Any:
    """Of numbers; sequences are only added: their products, and ``%`` of a text, may be huge."""
    numbers = all(isinstance(value, int | float) for value in (left, right))
    if not numbers and not isinstance(op, ast.Add):
        raise ExpressionError(f"{type(op).__name__} is evaluated for numbers only")
    if any(isinstance(value, int) and abs(value) > _MAX_INTEGER for value in (left, right)):
        raise ExpressionError("an integer is too large to be evaluated")
    return _ARITHMETIC[type(op)](left, right)

"""New variables of generated programs: their names, their first values."""

from __future__ import annotations

import re

from cwm_jax.trace.programs.expressions import expression
from cwm_jax.trace.programs.scope import Scope, Unfit
from cwm_jax.trace.programs.values import Bounds, Expression, Variable

NAMES = {
    "int": ("total", "count", "x", "y", "value", "result", "n", "k", "score", "size", "limit", "a",
            "b", "step", "offset", "best", "diff", "level", "rest", "width", "start", "gap"),
    "bool": ("found", "flag", "ok", "valid", "same", "ready", "seen_all"),
    "str": ("text", "word", "s", "name", "line", "label", "out", "message", "prefix", "code", "key",
            "phrase", "new_text", "title", "tag"),
    "list[int]": ("nums", "values", "numbers", "arr", "data", "items", "scores", "output", "seq",
                  "kept", "sizes", "points", "marks"),
    "list[str]": ("words", "names", "parts", "tokens", "lines", "keys", "pieces", "tags", "labels"),
    "dict[str, int]": ("counts", "table", "ages", "stock", "prices", "d", "freq", "totals"),
    "set[int]": ("seen", "unique", "known", "ids", "primes", "found_ids"),
    "tuple[int]": ("pair", "point", "triple", "coords", "t", "record", "limits"),
    "list[list[int]]": ("rows", "grid", "matrix", "groups", "table_rows"),
    "list[tuple[str, int]]": ("pairs", "entries", "records", "sales", "orders"),
}  # fmt: skip


EMPTY = {"int": "0", "str": "''", "list[int]": "[]", "list[str]": "[]", "dict[str, int]": "{}"}
EMPTY_SET = "set()"


def define(scope: Scope, type_name: str) -> Variable:
    """``name = expression``, of some substance."""
    value = expression(scope, type_name)
    names = set(re.findall(r"[A-Za-z_]\w*", value.text))
    if value.text in scope.variables or (
        not names & set(scope.variables) and scope.rng.random() < 0.9
    ):
        raise Unfit
    return bind(scope, value)


def bind(scope: Scope, value: Expression) -> Variable:
    """``name = value`` with a new name."""
    name = scope.fresh_name(NAMES[value.bounds.type])
    scope.emit(f"{name} = {value.text}")
    return scope.declare(name, value.bounds)


def accumulator(scope: Scope, type_name: str) -> Variable:
    """A new variable at its start value, with room for changes in the blocks that follow."""
    start = EMPTY.get(type_name, EMPTY_SET)
    low = 0
    if type_name == "int" and scope.rng.random() < 0.3:
        low = scope.rng.choice((1, 1, -1, 10, 100))
        start = str(low)
    name = scope.fresh_name(NAMES[type_name])
    scope.emit(f"{name} = {start}")
    variable = scope.declare(name, Bounds(type_name, low, low))
    variable.empty = type_name != "int"
    scope.widen(variable)
    return variable

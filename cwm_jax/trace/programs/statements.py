"""Straight-line statements of generated programs, by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cwm_jax.trace.programs.bindings import NAMES, define
from cwm_jax.trace.programs.changes import change, item_bounds
from cwm_jax.trace.programs.expressions import expression, some_int, word_value
from cwm_jax.trace.programs.scope import Scope, Unfit
from cwm_jax.trace.programs.values import Bounds, Expression


def _divmod(scope: Scope) -> None:
    value, divisor = some_int(scope, 1), scope.rng.randint(2, 12)
    names = scope.rng.choice((("q", "r"), ("quotient", "rest"), ("tens", "ones"), ("high", "low")))
    first, second = (scope.fresh_name((name,)) for name in names)
    scope.emit(f"{first}, {second} = divmod({value.text}, {divisor})")
    b = value.bounds
    scope.declare(first, Bounds("int", b.low // divisor, b.high // divisor))
    scope.declare(second, Bounds("int", 0, divisor - 1))


def _simultaneous(scope: Scope) -> None:
    """``a, b = b, a % k``: both are read before either is assigned."""
    a, b = scope.changeable("int"), scope.changeable("int")
    if a.name == b.name or a.block != scope.block or b.block != scope.block:
        raise Unfit
    left, right = Expression(b.name, b.bounds), Expression(a.name, a.bounds)
    if scope.rng.random() < 0.6:
        other = scope.rng.randint(2, 9)
        if scope.rng.random() < 0.5:
            bounds = Bounds("int", 0, other - 1)
            right = Expression(f"{a.name} % {other}", bounds)
        else:
            x, y = a.bounds, b.bounds
            bounds = Bounds("int", x.low + y.low, x.high + y.high)
            right = Expression(f"{a.name} + {b.name}", bounds)
    scope.emit(f"{a.name}, {b.name} = {left.text}, {right.text}")
    scope.assign(a, left.bounds)
    scope.assign(b, right.bounds)


def _new_int(scope: Scope) -> None:
    define(scope, "int")


def _new_bool(scope: Scope) -> None:
    define(scope, "bool")


def _change_int(scope: Scope) -> None:
    change(scope, scope.changeable("int"))


def _new_str(scope: Scope) -> None:
    define(scope, "str")


def _change_str(scope: Scope) -> None:
    change(scope, scope.changeable("str"))


def _alias(scope: Scope) -> None:
    """Two names of one list; what is appended to one is seen through the other."""
    variable = scope.changeable("list[int]")
    if variable.block != scope.block:
        raise Unfit
    value = expression(scope, "int", 1)
    other = scope.fresh_name(("alias", "other", "ref", "same", "backup"))
    scope.emit(f"{other} = {variable.name}")
    scope.change(variable, grow=1, item=item_bounds(variable, value.bounds))
    scope.emit(f"{scope.rng.choice((other, variable.name))}.append({value.text})")
    scope.declare(other, variable.bounds)
    scope.locked |= {other, variable.name}


def _new_ints(scope: Scope) -> None:
    define(scope, "list[int]")


def _new_words(scope: Scope) -> None:
    define(scope, "list[str]")


def _change_ints(scope: Scope) -> None:
    change(scope, scope.changeable("list[int]"))


def _change_words(scope: Scope) -> None:
    change(scope, scope.changeable("list[str]"))


def _new_table(scope: Scope) -> None:
    define(scope, "dict[str, int]")


def _change_table(scope: Scope) -> None:
    change(scope, scope.changeable("dict[str, int]"))


def _unpack(scope: Scope) -> None:
    """``a, b = pair`` or ``first, *rest = nums``."""
    rng = scope.rng
    value = scope.read(rng.choice(("tuple[int]", "list[int]", "tuple[int]")), nonempty=True)
    b, item = value.bounds, Bounds("int", value.bounds.low, value.bounds.high)
    if b.min_size == b.max_size and b.max_size in (2, 3) and rng.random() < 0.7:
        names = _fresh_names(scope, (("a",), ("b",), ("c",)) if rng.random() < 0.5 else
                             (("x",), ("y",), ("z",)))[: b.max_size]  # fmt: skip
        scope.emit(f"{', '.join(names)} = {value.text}")
        for name in names:
            scope.declare(name, item)
        return
    first, rest = _fresh_names(scope, (("first", "head", "last"), ("rest", "tail", "others")))
    target = f"*{rest}, {first}" if rng.random() < 0.3 else f"{first}, *{rest}"
    scope.emit(f"{target} = {value.text}")
    scope.declare(first, item)
    sizes = {"min_size": b.min_size - 1, "max_size": b.max_size - 1}
    scope.declare(rest, replace(b, type="list[int]", **sizes))


def _fresh_names(scope: Scope, choices: Sequence[Sequence[str]]) -> list[str]:
    return [scope.fresh_name(names) for names in choices]


def _new_set(scope: Scope) -> None:
    define(scope, "set[int]")


def _new_tuple(scope: Scope) -> None:
    define(scope, "tuple[int]")


def _change_set(scope: Scope) -> None:
    change(scope, scope.changeable("set[int]"))


def _word_label(scope: Scope) -> None:
    """A tuple of a word and a number, unpacked at once."""
    label, value = word_value(scope), some_int(scope, 1)
    text, size = scope.fresh_name(NAMES["str"]), scope.fresh_name(NAMES["int"])
    if text == size:
        raise Unfit
    scope.emit(f"{text}, {size} = {label!r}, {value.text}")
    scope.declare(text, Bounds("str", 0, 0, len(label), len(label)))
    scope.declare(size, value.bounds)


# Statements by kind and how often each is tried.
STATEMENTS = {
    "arithmetic": {_new_int: 7, _change_int: 4, _divmod: 2, _simultaneous: 2, _new_bool: 1},
    "strings": {_new_str: 7, _change_str: 3, _new_int: 2, _new_words: 2},
    "lists": {_new_ints: 4, _new_words: 3, _change_ints: 5, _change_words: 4, _alias: 1,
              _new_int: 3},
    "dicts": {_new_table: 4, _change_table: 6, _new_int: 4, _new_words: 1},
    "tuples_sets": {
        _new_set: 3, _new_tuple: 3, _change_set: 3, _unpack: 4, _new_ints: 1, _word_label: 1,
        _new_int: 2,
    },
}  # fmt: skip

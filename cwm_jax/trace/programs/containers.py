"""Expressions of generated programs that give a list, a dictionary, a set or a tuple."""

from __future__ import annotations

from dataclasses import replace

from cwm_jax.trace.programs.conditions import BOOLS, condition
from cwm_jax.trace.programs.expressions import (
    called,
    expression,
    iterated,
    leaf,
    literal,
    need,
    slice_of,
)
from cwm_jax.trace.programs.integers import INTS
from cwm_jax.trace.programs.scope import Maker, Scope, Unfit
from cwm_jax.trace.programs.strings import STRINGS
from cwm_jax.trace.programs.values import BITS, SUM, Bounds, Expression

SEPARATORS = ("' '", "','", "'-'", "'_'", "'a'", "'e'", "'o'", "", "")


# -- list[int] -------------------------------------------------------------------------------------


def _ordered(scope: Scope, depth: int, type_name: str) -> Expression:
    value, rng = scope.read(type_name), scope.rng
    end = ", reverse=True" if rng.random() < 0.3 else ""
    if type_name == "list[str]" and rng.random() < 0.3:
        end = ", key=len" + end
    elif type_name == "list[int]" and value.bounds.low < 0 and rng.random() < 0.2:
        end = ", key=abs" + end
    elif "calls" in scope.kinds and type_name != "dict[str, int]" and rng.random() < 0.3:
        scope.charge(3 * value.bounds.max_size + 2)
        keys = ("x % 5", "-x", "(x % 3, x)", "x * x")
        if type_name == "list[str]":
            keys = ("x[::-1]", "(len(x), x)", "x.lower()", "x[-1:]")
        end = f", key=lambda x: {rng.choice(keys)}" + end
    return Expression(f"sorted({value.text}{end})", value.bounds)


def _ordered_ints(scope: Scope, depth: int) -> Expression:
    return _ordered(scope, depth, "list[int]")


def _listed(scope: Scope, depth: int) -> Expression:
    name = scope.rng.choice(("set[int]", "tuple[int]", "dict[str, int]", "list[int]"))
    value = scope.read(name)
    b = replace(value.bounds, type="list[int]", width=0)
    if name == "set[int]":
        return Expression(f"sorted({value.text})", b)
    if name == "tuple[int]":
        return Expression(f"{scope.rng.choice(('list', 'sorted'))}({value.text})", b)
    if name == "dict[str, int]":
        outer = scope.rng.choice(("list", "sorted"))
        return Expression(f"{outer}({value.text}.values())", b)
    b = replace(b, min_size=min(b.min_size, 1))
    return Expression(f"sorted(set({value.text}))", b)


def _sliced(scope: Scope, depth: int, type_name: str) -> Expression:
    value = scope.read(type_name)
    text, bounds = slice_of(scope, value.bounds)
    return Expression(f"{value.text}{text}", bounds)


def _sliced_ints(scope: Scope, depth: int) -> Expression:
    return _sliced(scope, depth, "list[int]")


def _extended(scope: Scope, depth: int, type_name: str, item: str) -> Expression:
    left = scope.read(type_name)
    if scope.rng.random() < 0.4:
        right = leaf(scope, type_name)
        b = left.bounds.hull(right.bounds)
        size = left.bounds.min_size + right.bounds.min_size
        most = left.bounds.max_size + right.bounds.max_size
    else:
        value = expression(scope, item, min(depth, 1))
        right = Expression(f"[{value.text}]", value.bounds)
        ints = value.bounds if item == "int" else Bounds("int")
        width = value.bounds.max_size if item == "str" else 0
        b = left.bounds.hull(Bounds(type_name, ints.low, ints.high, 0, 0, width))
        size, most = left.bounds.min_size + 1, left.bounds.max_size + 1
    b = replace(b, min_size=size, max_size=most)
    if scope.rng.random() < 0.3:
        left, right = right, left
    return Expression(f"{left.text} + {right.text}", b, SUM)


def _extended_ints(scope: Scope, depth: int) -> Expression:
    return _extended(scope, depth, "list[int]", "int")


def _listed_range(scope: Scope, depth: int) -> Expression:
    rng, most = scope.rng, scope.level.items
    start, step = rng.randint(0, 9), rng.choice((1, 1, 2, 3, 5))
    stop = start + rng.randint(2, most) * step
    values = range(start, stop, step)
    text = f"range({start}, {stop}, {step})" if step > 1 else f"range({start}, {stop})"
    text = f"range({stop})" if start == 0 and step == 1 else text
    bounds = Bounds("list[int]", values[0], values[-1], len(values), len(values))
    return Expression(f"list({text})", bounds)


def _of_values(scope: Scope, depth: int) -> Expression:
    values = [expression(scope, "int", min(depth, 1)) for _ in range(scope.rng.randint(2, 3))]
    texts = [v.text for v in values]
    if all(text.lstrip("-").isdigit() for text in texts) or len(set(texts)) < len(texts):
        raise Unfit
    low, high = min(v.bounds.low for v in values), max(v.bounds.high for v in values)
    size = len(values)
    return Expression(f"[{', '.join(texts)}]", Bounds("list[int]", low, high, size, size))


def _mapped_ints(scope: Scope, depth: int) -> Expression:
    need(scope, "comprehensions")
    source, item = iterated(scope)
    size = source.bounds.max_size
    with scope.repeated(size, size + 4):
        scope.declare(item.text, item.bounds, fixed=True)
        value, test = expression(scope, "int", min(depth, 1)), ""
        if scope.rng.random() < 0.5:
            test = f" if {condition(scope, item).text}"
        if item.text not in value.text and not test:
            raise Unfit
    b, least = value.bounds, 0 if test else source.bounds.min_size
    text = f"[{value.text} for {item.text} in {source.text}{test}]"
    return Expression(text, Bounds("list[int]", b.low, b.high, least, size))


def _lengths(scope: Scope, depth: int) -> Expression:
    b = (words := scope.read("list[str]")).bounds
    bounds = Bounds("list[int]", 0, b.width, b.min_size, b.max_size)
    return Expression(f"list(map(len, {words.text}))", bounds)


def _called_ints(scope: Scope, depth: int) -> Expression:
    return called(scope, "list[int]")


# -- list[str] -------------------------------------------------------------------------------------


def _split(scope: Scope, depth: int) -> Expression:
    text, rng = scope.read("str"), scope.rng
    separator, most = rng.choice(SEPARATORS), text.bounds.max_size
    if separator and rng.random() < 0.15:
        bounds = Bounds("list[str]", 0, 0, 3, 3, most)
        return Expression(f"list({text.text}.partition({separator}))", bounds)
    least = 1 if separator else 0
    bounds = Bounds("list[str]", 0, 0, least, min(most + 1, 3 * scope.level.items), most)
    if most + 1 > bounds.max_size:  # a string may have more parts than a list of this level
        parts = 3
        bounds = replace(bounds, max_size=parts)
        arguments = f"{separator}, {parts - 1}" if separator else f"None, {parts - 1}"
        return Expression(f"{text.text}.split({arguments})", bounds)
    return Expression(f"{text.text}.split({separator})", bounds)


def _ordered_words(scope: Scope, depth: int) -> Expression:
    return _ordered(scope, depth, "list[str]")


def _sliced_words(scope: Scope, depth: int) -> Expression:
    return _sliced(scope, depth, "list[str]")


def _extended_words(scope: Scope, depth: int) -> Expression:
    return _extended(scope, depth, "list[str]", "str")


def _characters(scope: Scope, depth: int) -> Expression:
    b = (text := scope.read("str")).bounds
    form = scope.rng.choice(("list({})", "sorted({})", "sorted(set({}))", "list(reversed({}))"))
    least = min(b.min_size, 1) if "set" in form else b.min_size
    return Expression(form.format(text.text), Bounds("list[str]", 0, 0, least, b.max_size, 1))


def _keys(scope: Scope, depth: int) -> Expression:
    b = (table := scope.read("dict[str, int]")).bounds
    form = scope.rng.choice(("list({})", "sorted({})", "list({}.keys())"))
    bounds = Bounds("list[str]", 0, 0, b.min_size, b.max_size, b.width)
    return Expression(form.format(table.text), bounds)


def _mapped_words(scope: Scope, depth: int) -> Expression:
    need(scope, "comprehensions")
    source, item = iterated(scope)
    size = source.bounds.max_size
    with scope.repeated(size, size + 4):
        scope.declare(item.text, item.bounds, fixed=True)
        value, test = expression(scope, "str", min(depth, 1)), ""
        if scope.rng.random() < 0.5:
            test = f" if {condition(scope, item).text}"
        if item.text not in value.text:
            raise Unfit
    b, least = value.bounds, 0 if test else source.bounds.min_size
    text = f"[{value.text} for {item.text} in {source.text}{test}]"
    return Expression(text, Bounds("list[str]", 0, 0, least, size, b.max_size))


# -- dict[str, int] --------------------------------------------------------------------------------


def _copied_table(scope: Scope, depth: int) -> Expression:
    table = scope.read("dict[str, int]")
    return Expression(
        f"{scope.rng.choice(('{}.copy()', 'dict({})')).format(table.text)}", table.bounds
    )


def _merged(scope: Scope, depth: int) -> Expression:
    left, right = scope.read("dict[str, int]"), leaf(scope, "dict[str, int]")
    if left.text == right.text:
        raise Unfit
    most = left.bounds.max_size + right.bounds.max_size
    bounds = replace(left.bounds.hull(right.bounds), max_size=most)
    if scope.rng.random() < 0.5:
        return Expression(f"{left.text} | {right.at(BITS)}", bounds, BITS)
    return Expression(f"{{**{left.text}, **{right.text}}}", bounds)


def _zipped_table(scope: Scope, depth: int) -> Expression:
    words, nums = scope.read("list[str]"), scope.read("list[int]")
    a, b = words.bounds, nums.bounds
    least, most = min(a.min_size, b.min_size, 1), min(a.max_size, b.max_size)
    bounds = Bounds("dict[str, int]", b.low, b.high, least, most, a.width)
    return Expression(f"dict(zip({words.text}, {nums.text}))", bounds)


def _from_keys(scope: Scope, depth: int) -> Expression:
    words = scope.read(scope.rng.choice(("list[str]", "str")))
    a, value = words.bounds, expression(scope, "int", min(depth, 1))
    width = a.width if a.type == "list[str]" else 1
    bounds = Bounds(
        "dict[str, int]", value.bounds.low, value.bounds.high, min(a.min_size, 1), a.max_size, width
    )
    return Expression(f"dict.fromkeys({words.text}, {value.text})", bounds)


def _mapped_table(scope: Scope, depth: int) -> Expression:
    need(scope, "comprehensions")
    table, key = scope.read("dict[str, int]"), scope.fresh_name(("k", "key", "name"))
    size, width = table.bounds.max_size, table.bounds.width
    with scope.repeated(size, size + 4):
        scope.declare(key, Bounds("str", 0, 0, 0, width), fixed=True)
        value = scope.fresh_name(("v", "val", "n"))
        item = Expression(value, Bounds("int", table.bounds.low, table.bounds.high))
        scope.declare(value, item.bounds, fixed=True)
        result, test = expression(scope, "int", min(depth, 1)), ""
        if value not in result.text or scope.rng.random() < 0.4:
            test = f" if {condition(scope, item).text}"
    b, least = result.bounds, 0 if test else table.bounds.min_size
    text = f"{{{key}: {result.text} for {key}, {value} in {table.text}.items(){test}}}"
    return Expression(text, Bounds("dict[str, int]", b.low, b.high, least, size, width))


# -- set[int], tuple[int] --------------------------------------------------------------------------


def _set_of(scope: Scope, depth: int) -> Expression:
    value = scope.read(scope.rng.choice(("list[int]", "tuple[int]")))
    if value.bounds.low < 0:  # where a negative number falls in a set, a reader cannot see
        raise Unfit
    bounds = replace(value.bounds, type="set[int]", min_size=min(value.bounds.min_size, 1))
    return Expression(f"set({value.text})", bounds)


def _set_operation(scope: Scope, depth: int) -> Expression:
    left, right = scope.read("set[int]"), leaf(scope, "set[int]")
    if left.text == right.text:
        raise Unfit
    operator = scope.rng.choice("|&-^")
    a, b = left.bounds, right.bounds
    most = a.max_size + (b.max_size if operator in "|^" else 0)
    bounds = replace(a.hull(b), min_size=a.min_size if operator == "|" else 0, max_size=most)
    return Expression(f"{left.at(BITS)} {operator} {right.text}", bounds, BITS)


def _tuple_of(scope: Scope, depth: int) -> Expression:
    value = _of_values(scope, depth)
    return Expression(f"({value.text[1:-1]})", replace(value.bounds, type="tuple[int]"))


def _joined_tuple(scope: Scope, depth: int) -> Expression:
    left, right = scope.read("tuple[int]"), _tuple_of(scope, 0)
    most = left.bounds.max_size + right.bounds.max_size
    bounds = replace(left.bounds.hull(right.bounds), max_size=most)
    bounds = replace(bounds, min_size=left.bounds.min_size + right.bounds.min_size)
    return Expression(f"{left.text} + {right.text}", bounds, SUM)


def _sliced_tuple(scope: Scope, depth: int) -> Expression:
    return _sliced(scope, depth, "tuple[int]")


def _tuple_from_list(scope: Scope, depth: int) -> Expression:
    nums = scope.read("list[int]")
    form = scope.rng.choice(("tuple({})", "tuple(sorted({}))"))
    return Expression(form.format(nums.text), replace(nums.bounds, type="tuple[int]"))


def _literal_rows(scope: Scope, depth: int) -> Expression:
    return literal(scope, "list[list[int]]")


def _literal_pairs(scope: Scope, depth: int) -> Expression:
    return literal(scope, "list[tuple[str, int]]")


LISTS_OF_INTS = {
    _ordered_ints: 4, _listed: 4, _sliced_ints: 4, _extended_ints: 3, _listed_range: 2,
    _of_values: 3, _mapped_ints: 9, _lengths: 2, _called_ints: 5,
}  # fmt: skip
LISTS_OF_WORDS = {
    _split: 5, _ordered_words: 3, _sliced_words: 3, _extended_words: 3, _characters: 3, _keys: 4,
    _mapped_words: 9,
}  # fmt: skip
TABLES = {_copied_table: 2, _merged: 2, _zipped_table: 3, _from_keys: 3, _mapped_table: 6}
SETS = {_set_of: 4, _set_operation: 3}
TUPLES = {_tuple_of: 4, _joined_tuple: 2, _sliced_tuple: 2, _tuple_from_list: 2}
EXPRESSIONS: dict[str, tuple[list[Maker], list[int]]] = {
    name: (list(table), list(table.values()))
    for name, table in {
        "int": INTS,
        "bool": BOOLS,
        "str": STRINGS,
        "list[int]": LISTS_OF_INTS,
        "list[str]": LISTS_OF_WORDS,
        "dict[str, int]": TABLES,
        "set[int]": SETS,
        "tuple[int]": TUPLES,
        "list[list[int]]": {_literal_rows: 1},
        "list[tuple[str, int]]": {_literal_pairs: 1},
    }.items()
}

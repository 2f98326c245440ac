"""Expressions of generated programs that give an int."""

from __future__ import annotations

from cwm_jax.trace.programs.conditions import condition
from cwm_jax.trace.programs.expressions import (
    any_sized,
    called,
    character,
    either,
    expression,
    indexed,
    iterated,
    key_of,
    leaf,
    need,
    number,
    reduced,
    some_int,
    two_ints,
)
from cwm_jax.trace.programs.scope import Scope, Unfit
from cwm_jax.trace.programs.values import ATOM, BITS, PRODUCT, SUM, Bounds, Expression

# -- int -------------------------------------------------------------------------------------------


def _sum(scope: Scope, depth: int) -> Expression:
    left, right = two_ints(scope, depth)
    a, b = left.bounds, right.bounds
    if scope.rng.random() < 0.6:
        value = Expression(
            f"{left.at(SUM)} + {right.at(PRODUCT)}",
            Bounds("int", a.low + b.low, a.high + b.high),
            SUM,
        )
    else:
        value = Expression(
            f"{left.at(SUM)} - {right.at(PRODUCT)}",
            Bounds("int", a.low - b.high, a.high - b.low),
            SUM,
        )
    return reduced(scope, value)


def _product(scope: Scope, depth: int) -> Expression:
    left, right = two_ints(scope, depth)
    a, b = left.bounds, right.bounds
    ends = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    if max(map(abs, ends)) > 10_000_000:
        raise Unfit
    text = f"{left.at(PRODUCT)} * {right.at(ATOM)}"
    return reduced(scope, Expression(text, Bounds("int", min(ends), max(ends)), PRODUCT))


def _modulo(scope: Scope, depth: int) -> Expression:
    value = some_int(scope, depth)
    divisors = [v for v in scope.candidates("int") if v.bounds.low > 0 and v.name not in value.text]
    if divisors and scope.rng.random() < 0.4:
        divisor = scope.rng.choice(divisors)
        divisor.used = True
        bounds = Bounds("int", 0, divisor.bounds.high - 1)
        return Expression(f"{value.at(PRODUCT)} % {divisor.name}", bounds, PRODUCT)
    divisor = scope.rng.randint(2, 12)
    return Expression(f"{value.at(PRODUCT)} % {divisor}", Bounds("int", 0, divisor - 1), PRODUCT)


def _quotient(scope: Scope, depth: int) -> Expression:
    value = some_int(scope, depth)
    divisor = scope.rng.randint(2, 9)
    bounds = Bounds("int", value.bounds.low // divisor, value.bounds.high // divisor)
    return Expression(f"{value.at(PRODUCT)} // {divisor}", bounds, PRODUCT)


def _square(scope: Scope, depth: int) -> Expression:
    value = scope.read("int")
    power = scope.rng.choice((2, 2, 2, 3))
    most = max(-value.bounds.low, value.bounds.high) ** power
    if most > 10_000_000:
        raise Unfit
    bounds = Bounds("int", -most if power == 3 else 0, most)
    return reduced(scope, Expression(f"{value.text} ** {power}", bounds, PRODUCT))


def _absolute(scope: Scope, depth: int) -> Expression:
    left, right = two_ints(scope, depth)
    a, b = left.bounds, right.bounds
    most = max(a.high - b.low, b.high - a.low)
    return Expression(f"abs({left.at(SUM)} - {right.at(PRODUCT)})", Bounds("int", 0, max(most, 0)))


def _negated(scope: Scope, depth: int) -> Expression:
    value = scope.read("int")
    bounds = Bounds("int", -value.bounds.high, -value.bounds.low)
    if scope.rng.random() < 0.2:
        bounds = Bounds("int", bounds.low - 1, bounds.high - 1)
        return Expression(f"~{value.text}", bounds, PRODUCT)
    return Expression(f"-{value.text}", bounds, PRODUCT)


def _extreme(scope: Scope, depth: int) -> Expression:
    left, right = two_ints(scope, depth)
    a, b = left.bounds, right.bounds
    if scope.rng.random() < 0.5:
        bounds = Bounds("int", min(a.low, b.low), min(a.high, b.high))
        return Expression(f"min({left.text}, {right.text})", bounds)
    bounds = Bounds("int", max(a.low, b.low), max(a.high, b.high))
    return Expression(f"max({left.text}, {right.text})", bounds)


def _bitwise(scope: Scope, depth: int) -> Expression:
    left, right = two_ints(scope, 0)
    if left.bounds.low < 0 or right.bounds.low < 0:
        raise Unfit
    high = (1 << max(left.bounds.high, right.bounds.high).bit_length()) - 1
    operator = scope.rng.choice("&|^")
    return Expression(f"{left.at(ATOM)} {operator} {right.at(ATOM)}", Bounds("int", 0, high), BITS)


def _shift(scope: Scope, depth: int) -> Expression:
    value, by = scope.read("int"), scope.rng.randint(1, 3)
    b = value.bounds
    if scope.rng.random() < 0.5:
        return Expression(f"{value.text} >> {by}", Bounds("int", b.low >> by, b.high >> by), BITS)
    return Expression(f"{value.text} << {by}", Bounds("int", b.low << by, b.high << by), BITS)


def _length(scope: Scope, depth: int) -> Expression:
    value = any_sized(scope)
    return Expression(
        f"len({value.text})", Bounds("int", value.bounds.min_size, value.bounds.max_size)
    )


def _character_count(scope: Scope, depth: int) -> Expression:
    text = scope.read("str")
    most = text.bounds.max_size
    choice = scope.rng.randrange(3)
    if choice == 0:
        return Expression(f"{text.text}.count({character(scope).text})", Bounds("int", 0, most))
    if choice == 1:
        method = scope.rng.choice(("find", "find", "rfind"))
        return Expression(f"{text.text}.{method}({character(scope).text})", Bounds("int", -1, most))
    text = scope.read("str", nonempty=True)
    end = scope.rng.choice(("0", "-1"))
    return Expression(f"ord({text.text}[{end}])", Bounds("int", 0, 127))


def _total(scope: Scope, depth: int) -> Expression:
    name = scope.rng.choice(("list[int]", "tuple[int]", "set[int]", "dict[str, int]"))
    value = scope.read(name)
    text = f"{value.text}.values()" if name.startswith("dict") else value.text
    b = value.bounds
    bounds = Bounds("int", min(b.low * b.max_size, 0), max(b.high * b.max_size, 0))
    return reduced(scope, Expression(f"sum({text})", bounds))


def _chosen_item(scope: Scope, depth: int) -> Expression:
    rng = scope.rng
    value = scope.read(rng.choice(("list[int]", "tuple[int]")), nonempty=True)
    bounds = Bounds("int", value.bounds.low, value.bounds.high)
    choice = rng.randrange(3)
    if choice == 0:
        return Expression(f"{rng.choice(('min', 'max'))}({value.text})", bounds)
    if choice == 1 and scope.candidates("int"):
        index = expression(scope, "int", min(depth, 1))
        return Expression(f"{value.text}[{index.at(PRODUCT)} % len({value.text})]", bounds)
    least = value.bounds.min_size
    return Expression(f"{value.text}[{rng.randint(-least, least - 1)}]", bounds)


def _indexed_int(scope: Scope, depth: int) -> Expression:
    return indexed(scope, "int")


def _items_counted(scope: Scope, depth: int) -> Expression:
    value = scope.read(scope.rng.choice(("list[int]", "tuple[int]")))
    wanted = leaf(scope, "int")
    return Expression(f"{value.text}.count({wanted.text})", Bounds("int", 0, value.bounds.max_size))


def _looked_up(scope: Scope, depth: int) -> Expression:
    table, default = scope.read("dict[str, int]"), scope.rng.choice((0, 0, 1, -1))
    b = table.bounds
    bounds = Bounds("int", min(b.low, default), max(b.high, default))
    if scope.rng.random() < 0.2:
        return Expression(f"max({table.text}.values(), default={default})", bounds)
    return Expression(f"{table.text}.get({key_of(scope).text}, {default})", bounds)


def _counted_by(scope: Scope, depth: int) -> Expression:
    """``sum(1 for ...)`` and ``sum(... for ...)``."""
    need(scope, "comprehensions")
    source, item = iterated(scope)
    with scope.repeated(source.bounds.max_size, 3 * source.bounds.max_size + 6):
        scope.declare(item.text, item.bounds, fixed=True)
        if item.bounds.type == "int" and scope.rng.random() < 0.6:
            value = expression(scope, "int", min(depth, 1))
            test = ""
        else:
            value, test = number(1), f" if {condition(scope, item).text}"
    b, n = value.bounds, source.bounds.max_size
    bounds = Bounds("int", min(b.low * n, 0), max(b.high * n, 0))
    return reduced(
        scope, Expression(f"sum({value.text} for {item.text} in {source.text}{test})", bounds)
    )


def _called_int(scope: Scope, depth: int) -> Expression:
    return called(scope, "int")


def _either_int(scope: Scope, depth: int) -> Expression:
    return either(scope, "int", depth)


# Constructs and how often each is tried.
INTS = {
    _sum: 8, _product: 5, _modulo: 5, _quotient: 3, _square: 2, _absolute: 2, _negated: 1,
    _extreme: 3, _bitwise: 2, _shift: 1, _length: 5, _character_count: 4, _total: 4,
    _chosen_item: 5, _items_counted: 2, _looked_up: 5, _counted_by: 3, _called_int: 7,
    _either_int: 2, _indexed_int: 14,
}  # fmt: skip

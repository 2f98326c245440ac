"""Expressions of generated programs that give a bool."""

from __future__ import annotations

from cwm_jax.trace.programs.expressions import (
    BOOL,
    LETTERS,
    character,
    comparison,
    expression,
    iterated,
    key_of,
    need,
)
from cwm_jax.trace.programs.scope import Scope, Unfit
from cwm_jax.trace.programs.values import AND, ATOM, BITS, COMPARE, NOT, OR, PRODUCT, Expression

# -- bool ------------------------------------------------------------------------------------------


def condition(scope: Scope, about: Expression) -> Expression:
    """A condition about the one value, an int or a string."""
    rng = scope.rng
    if about.bounds.type == "int":
        low, high = about.bounds.low, about.bounds.high
        if rng.random() < 0.4 or low == high:
            divisor = rng.choice((2, 2, 2, 3, 3, 4, 5))
            rest = rng.randrange(min(divisor, 3))
            return Expression(f"{about.at(PRODUCT)} % {divisor} == {rest}", BOOL, COMPARE)
        border = max(-99, min(rng.randint(low + 1, high), 99))
        return Expression(f"{about.at(BITS)} {rng.choice('<>')} {border}", BOOL, COMPARE)
    if about.bounds.max_size <= 1:
        return rng.choice((_in_letters, _of_class, _of_class, _after_letter))(scope, about)
    return rng.choice((_contains, _starts, _of_class, _longer))(scope, about)


def _in_letters(scope: Scope, about: Expression) -> Expression:
    letters = "".join(scope.rng.sample(LETTERS, 4))
    letters = scope.rng.choice(("aeiou", "aeiou", "abc", "0123456789", " -_", letters))
    word = scope.rng.choice(("in", "in", "not in"))
    return Expression(f"{about.text} {word} {letters!r}", BOOL, COMPARE)


def _of_class(scope: Scope, about: Expression) -> Expression:
    name = scope.rng.choice(("isalpha", "isdigit", "isupper", "islower", "isalnum"))
    negated = scope.rng.random() < 0.2
    return Expression(f"{'not ' * negated}{about.text}.{name}()", BOOL, NOT if negated else ATOM)


def _after_letter(scope: Scope, about: Expression) -> Expression:
    return Expression(
        f"{about.text} {scope.rng.choice('<>')} {scope.rng.choice('fhmp')!r}", BOOL, 4
    )


def _contains(scope: Scope, about: Expression) -> Expression:
    word = scope.rng.choice(("in", "in", "not in"))
    return Expression(f"{character(scope).text} {word} {about.text}", BOOL, COMPARE)


def _starts(scope: Scope, about: Expression) -> Expression:
    method = scope.rng.choice(("startswith", "endswith"))
    return Expression(f"{about.text}.{method}({character(scope).text})", BOOL)


def _longer(scope: Scope, about: Expression) -> Expression:
    border = scope.rng.randint(about.bounds.min_size, max(about.bounds.max_size, 1))
    border = min(border, 8)
    return Expression(f"len({about.text}) {scope.rng.choice('<>')} {border}", BOOL, COMPARE)


def _about(scope: Scope, depth: int) -> Expression:
    return condition(scope, scope.read(scope.rng.choice(("int", "str"))))


def _both(scope: Scope, depth: int) -> Expression:
    left, right = expression(scope, "bool", min(depth, 1)), expression(scope, "bool", min(depth, 1))
    if left.text == right.text:
        raise Unfit
    if scope.rng.random() < 0.5:
        return Expression(f"{left.at(AND)} and {right.at(NOT)}", BOOL, AND)
    return Expression(f"{left.at(OR)} or {right.at(AND)}", BOOL, OR)


def _negation(scope: Scope, depth: int) -> Expression:
    inner = expression(scope, "bool", min(depth, 1))
    if inner.text.startswith("not "):
        raise Unfit
    return Expression(f"not {inner.at(ATOM)}", BOOL, NOT)


def _member(scope: Scope, depth: int) -> Expression:
    container = scope.rng.choice(("list[int]", "set[int]", "tuple[int]", "dict[str, int]"))
    value = scope.read(container)
    item = (
        key_of(scope) if container.startswith("dict") else expression(scope, "int", min(depth, 1))
    )
    word = scope.rng.choice(("in", "not in"))
    return Expression(f"{item.at(BITS)} {word} {value.text}", BOOL, COMPARE)


def _quantified(scope: Scope, depth: int) -> Expression:
    need(scope, "comprehensions")
    source, item = iterated(scope)
    with scope.repeated(source.bounds.max_size, 3 * source.bounds.max_size + 6):
        scope.declare(item.text, item.bounds, fixed=True)
        test = condition(scope, item)
    name = scope.rng.choice(("any", "all"))
    return Expression(f"{name}({test.text} for {item.text} in {source.text})", BOOL)


BOOLS = {comparison: 6, _about: 6, _both: 3, _negation: 1, _member: 3, _quantified: 3}

"""Expressions of generated programs that give a string."""

from __future__ import annotations

from dataclasses import replace

from cwm_jax.trace.programs.expressions import (
    LETTERS,
    called,
    character,
    either,
    expression,
    indexed,
    leaf,
    slice_of,
)
from cwm_jax.trace.programs.scope import Scope, Unfit
from cwm_jax.trace.programs.values import PRODUCT, SUM, Bounds, Expression

# -- str -------------------------------------------------------------------------------------------


def _method(scope: Scope, depth: int) -> Expression:
    value = scope.read("str")
    name = scope.rng.choice(
        ("upper", "lower", "title", "capitalize", "swapcase", "strip", "lstrip", "rstrip")
    )
    least = 0 if "strip" in name else value.bounds.min_size
    argument = ""
    if "strip" in name and scope.rng.random() < 0.5:
        argument = repr("".join(scope.rng.sample(LETTERS, 3)))
    return Expression(f"{value.text}.{name}({argument})", replace(value.bounds, min_size=least))


def _replaced(scope: Scope, depth: int) -> Expression:
    value, rng = scope.read("str"), scope.rng
    old, new = character(scope), rng.choice(("'*'", "''", "'-'", character(scope).text, "'#'"))
    if old.text == new:
        raise Unfit
    count = rng.choice(("", "", "", ", 1", ", 2"))
    bounds = replace(value.bounds, min_size=0 if new == "''" else value.bounds.min_size)
    return Expression(f"{value.text}.replace({old.text}, {new}{count})", bounds)


def _sliced(scope: Scope, depth: int) -> Expression:
    value = scope.read("str")
    text, bounds = slice_of(scope, value.bounds)
    return Expression(f"{value.text}{text}", bounds)


def _concatenated(scope: Scope, depth: int) -> Expression:
    left, right = expression(scope, "str", min(depth, 1)), leaf(scope, "str")
    if left.text.startswith("'") and right.text.startswith("'"):
        raise Unfit
    a, b = left.bounds, right.bounds
    bounds = Bounds("str", 0, 0, a.min_size + b.min_size, a.max_size + b.max_size)
    return Expression(f"{left.at(SUM)} + {right.at(PRODUCT)}", bounds, SUM)


def _multiplied(scope: Scope, depth: int) -> Expression:
    value = scope.read("str")
    by = scope.rng.randint(2, 3)
    b = value.bounds
    bounds = Bounds("str", 0, 0, b.min_size * by, b.max_size * by)
    return Expression(f"{value.text} * {by}", bounds, PRODUCT)


def _padded(scope: Scope, depth: int) -> Expression:
    value, rng = scope.read("str"), scope.rng
    width = min(value.bounds.min_size + rng.randint(1, 5), 6 * scope.level.string)
    name = rng.choice(("center", "ljust", "rjust", "zfill"))
    fill = "" if name == "zfill" else f", {rng.choice('*-.0_')!r}"
    b = value.bounds
    bounds = Bounds("str", 0, 0, max(b.min_size, width), max(b.max_size, width))
    return Expression(f"{value.text}.{name}({width}{fill})", bounds)


def _trimmed(scope: Scope, depth: int) -> Expression:
    value = scope.read("str")
    name = scope.rng.choice(("removeprefix", "removesuffix"))
    end = scope.read("str") if scope.rng.random() < 0.3 else character(scope)
    return Expression(f"{value.text}.{name}({end.text})", replace(value.bounds, min_size=0))


def _joined(scope: Scope, depth: int) -> Expression:
    parts = expression(scope, "list[str]", min(depth, 1))
    if parts.text.startswith("["):
        raise Unfit
    b = parts.bounds
    separator = scope.rng.choice(("", "-", " ", ", ", "_", "+", "/"))
    most = b.max_size * b.width + max(b.max_size - 1, 0) * len(separator)
    least = max(b.min_size - 1, 0) * len(separator)
    return Expression(f"{separator!r}.join({parts.text})", Bounds("str", 0, 0, least, most))


def _formatted(scope: Scope, depth: int) -> Expression:
    rng = scope.rng
    parts, least, most = [], 0, 0
    for number_of_part in range(rng.randint(1, 2)):
        if number_of_part:
            separator = rng.choice(("-", ": ", "/", " ", "=", ", "))
            parts.append(separator)
            least, most = least + len(separator), most + len(separator)
        value = scope.read(rng.choice(("int", "str")))
        digits = len(str(max(-value.bounds.low, value.bounds.high))) + (value.bounds.low < 0)
        form = rng.choice(("", "", "", "", ":>4", ":<5", ":04d", ":b", ":x"))
        if form == ":b":
            digits = 2 + max(-value.bounds.low, value.bounds.high).bit_length()
        if value.bounds.type == "str":
            form = rng.choice(("", "", "!r"))
            digits, low = value.bounds.max_size + 2 * bool(form), value.bounds.min_size
            digits = digits if not form else 2 * digits
        else:
            digits, low = max(digits, 5), 1
        parts.append(f"{{{value.text}{form}}}")
        least, most = least + low, most + digits
    if len(parts) == 1:
        word = rng.choice(("#", "<", "no. ", "id=", "(", "total "))
        parts, least, most = [word, *parts], least + len(word), most + len(word)
    return Expression('f"' + "".join(parts) + '"', Bounds("str", 0, 0, least, most))


def _as_text(scope: Scope, depth: int) -> Expression:
    value = scope.read("int")
    digits = len(str(max(-value.bounds.low, value.bounds.high))) + 1
    return Expression(f"str({value.text})", Bounds("str", 0, 0, 1, digits))


def _coded(scope: Scope, depth: int) -> Expression:
    value = expression(scope, "int", min(depth, 1))
    if value.text.lstrip("-").isdigit():
        raise Unfit
    start = scope.rng.choice((97, 97, 65))
    return Expression(f"chr({start} + {value.at(PRODUCT)} % 26)", Bounds("str", 0, 0, 1, 1))


def _chosen_word(scope: Scope, depth: int) -> Expression:
    words, rng = scope.read("list[str]", nonempty=True), scope.rng
    bounds = Bounds("str", 0, 0, 0, words.bounds.width)
    if rng.random() < 0.4:
        key = rng.choice(("", "", ", key=len"))
        return Expression(f"{rng.choice(('min', 'max'))}({words.text}{key})", bounds)
    least = words.bounds.min_size
    return Expression(f"{words.text}[{rng.randint(-least, least - 1)}]", bounds)


def _best_key(scope: Scope, depth: int) -> Expression:
    table = scope.read("dict[str, int]", nonempty=True)
    bounds = Bounds("str", 0, 0, 0, table.bounds.width)
    key = scope.rng.choice(("", f", key={table.text}.get"))
    return Expression(f"{scope.rng.choice(('min', 'max'))}({table.text}{key})", bounds)


def _indexed_str(scope: Scope, depth: int) -> Expression:
    return indexed(scope, "str")


def _called_str(scope: Scope, depth: int) -> Expression:
    return called(scope, "str")


def _either_str(scope: Scope, depth: int) -> Expression:
    return either(scope, "str", depth)


STRINGS = {
    _method: 6, _replaced: 4, _sliced: 4, _concatenated: 4, _multiplied: 1, _padded: 2, _trimmed: 2,
    _joined: 3, _formatted: 4, _as_text: 1, _coded: 1, _chosen_word: 4, _best_key: 3,
    _called_str: 7, _either_str: 2, _indexed_str: 14,
}  # fmt: skip

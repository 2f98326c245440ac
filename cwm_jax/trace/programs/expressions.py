"""Expressions of generated programs by type: the choice among constructs, literals, calls.

No expression can raise when it runs: indexes are in range, divisors positive, sizes bounded. A
construct that does not fit raises ``Unfit`` while the program is written.
"""

from __future__ import annotations

from dataclasses import replace

from cwm_jax.trace.programs.scope import Scope, Unfit
from cwm_jax.trace.programs.values import (
    ATOM,
    BITS,
    COMPARE,
    OR,
    PRODUCT,
    TERNARY,
    Bounds,
    Expression,
    HelperFunction,
)

TRIES = 6


BOOL = Bounds("bool")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = (
    "apple", "pear", "plum", "river", "stone", "cloud", "table", "chair", "green", "silver",
    "north", "south", "paper", "ink", "lemon", "mango", "tiger", "panda", "otter", "robin",
    "maple", "cedar", "coral", "amber", "ocean", "delta", "sigma", "omega", "music", "dance",
    "hello", "world", "data", "code", "test", "case", "main", "node", "path", "root", "leaf",
    "edge", "red", "blue", "gold", "pink", "cat", "dog", "fox", "owl", "bee", "ant", "yes",
    "no", "ok", "up", "down", "left", "right", "open", "shut", "east", "west", "moon", "star",
    "sun", "rain", "snow", "wind", "fire", "Anna", "Bob", "Carl", "Dora", "Emil", "Finn",
    "Oslo", "Rome", "Lima", "Cairo",
)  # fmt: skip
ITEM_NAMES = {"int": ("x", "n", "v", "num", "item"), "str": ("w", "s", "word", "part", "token")}
CHAR_NAMES = ("c", "ch", "char", "letter")
MODULI = (5, 7, 9, 10, 11, 13, 16, 17, 19, 23, 25, 31, 37, 50, 64, 97, 100)


def expression(scope: Scope, type_name: str, depth: int | None = None) -> Expression:
    """An expression of the type, of so many operators inside operators at most."""
    depth = scope.level.depth if depth is None else depth
    if depth > 0:
        makers, weights = scope.makers[type_name]
        for _ in range(TRIES):
            left, flags = scope.left, [(v, v.used) for v in scope.variables.values()]
            try:
                found = scope.rng.choices(makers, weights)[0](scope, depth - 1)
                scope.check(found.bounds)
                return found
            except Unfit:  # an expression changes nothing but these
                scope.left = left
                for variable, used in flags:
                    variable.used = used
    return leaf(scope, type_name)


def leaf(scope: Scope, type_name: str) -> Expression:
    """A variable of the type if there is one, else a literal."""
    if type_name == "bool":
        return comparison(scope, 0)
    if scope.candidates(type_name) and scope.rng.random() < 0.85:
        return scope.read(type_name)
    return literal(scope, type_name)


def literal(scope: Scope, type_name: str) -> Expression:
    """A literal of the type, of a size that an argument of this level has."""
    rng, level = scope.rng, scope.level
    if type_name == "int":
        return number(_signed(scope) if rng.random() < 0.5 else rng.randint(0, level.literal))
    if type_name == "bool":
        return Expression(rng.choice(("True", "False")), BOOL)
    if type_name == "str":
        text = string_value(scope)
        return Expression(repr(text), Bounds("str", 0, 0, len(text), len(text)))
    size = rng.randint(min(3, level.items), level.items)
    if type_name in ("list[str]", "dict[str, int]"):
        words = list(dict.fromkeys(word_value(scope) for _ in range(size)))
        width = max(map(len, words))
        if type_name == "list[str]":
            if rng.random() < 0.4 and len(words) < level.items:
                words.append(rng.choice(words))
            return Expression(repr(words), Bounds(type_name, 0, 0, len(words), len(words), width))
        table = {word: rng.randint(0, level.literal) for word in words}
        span = (min(table.values()), max(table.values()))
        return Expression(repr(table), Bounds(type_name, *span, len(table), len(table), width))
    low = rng.choice((0, 1, -level.literal))
    high = rng.choice((9, level.literal)) if low >= 0 else level.literal
    if type_name == "list[list[int]]":
        rows = [[rng.randint(low, high) for _ in range(rng.randint(1, 3))] for _ in range(size)]
        flat = [n for row in rows for n in row]
        width = max(map(len, rows))
        return Expression(repr(rows), Bounds(type_name, min(flat), max(flat), size, size, width))
    if type_name == "list[tuple[str, int]]":
        pairs = [(word_value(scope), rng.randint(low, high)) for _ in range(size)]
        numbers = [n for _, n in pairs]
        width = max(len(word) for word, _ in pairs)
        span = (min(numbers), max(numbers))
        return Expression(repr(pairs), Bounds(type_name, *span, size, size, width))
    numbers = [rng.randint(low, high) for _ in range(size)]
    if rng.random() < 0.3:
        numbers[-1] = numbers[0]
    if type_name == "set[int]":
        numbers = list(dict.fromkeys(abs(n) for n in numbers))
        text = "{" + ", ".join(map(str, numbers)) + "}"
        size = len(numbers)
    elif type_name == "tuple[int]":
        text = repr(tuple(numbers))
    else:
        text = repr(numbers)
    return Expression(text, Bounds(type_name, min(numbers), max(numbers), size, size))


def number(value: int) -> Expression:
    """The int, as a literal."""
    return Expression(str(value), Bounds("int", value, value), PRODUCT if value < 0 else ATOM)


def word_value(scope: Scope) -> str:
    """A word, mostly a real one."""
    rng = scope.rng
    if rng.random() < 0.7:
        word = rng.choice(WORDS)
        return word if rng.random() < 0.85 else rng.choice((word.upper(), word.title()))
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 5)))


def string_value(scope: Scope) -> str:
    """A string of one of the usual looks: words, letters, digits, a list with separators."""
    rng, most = scope.rng, scope.level.string
    look = rng.randrange(6)
    if look == 0:
        text = word_value(scope)
    elif look == 1:
        text = rng.choice((" ", " ", "-", ",", "_", ", ")).join(word_value(scope) for _ in "ab")
    elif look == 2:
        text = "".join(rng.choice("abcABC123") for _ in range(rng.randint(3, most)))
    elif look == 3:
        text = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, most // 2)))
    elif look == 4:
        text = " ".join(word_value(scope) for _ in range(rng.randint(2, 4)))
    else:
        text = "".join(rng.choice(LETTERS[:8] + " !") for _ in range(rng.randint(3, most)))
    return text[:most]


def character(scope: Scope) -> Expression:
    """A literal string of one character."""
    return Expression(repr(scope.rng.choice(LETTERS[:8] + "osnr-_ ")), Bounds("str", 0, 0, 1, 1))


def reduced(scope: Scope, value: Expression) -> Expression:
    """The value, modulo a number if it could exceed what this level allows."""
    bounds = value.bounds
    if max(-bounds.low, bounds.high) <= scope.level.magnitude:
        return value
    return modulo(scope, value)


def modulo(scope: Scope, value: Expression) -> Expression:
    divisor = scope.rng.choice(MODULI)
    return Expression(f"{value.at(PRODUCT)} % {divisor}", Bounds("int", 0, divisor - 1), PRODUCT)


def key_of(scope: Scope) -> Expression:
    """A string that may be a key of a dictionary."""
    if scope.rng.random() < 0.6:
        found = [v for v in scope.candidates("str") if v.bounds.max_size <= 2 * scope.level.string]
        if found:
            variable = scope.rng.choice(found)
            variable.used = True
            return Expression(variable.name, variable.bounds)
    word = word_value(scope)
    return Expression(repr(word), Bounds("str", 0, 0, len(word), len(word)))


def call(scope: Scope, helper: HelperFunction) -> Expression:
    """A call of the helper with arguments that keep its bounds."""
    arguments = []
    for wanted in helper.parameters:
        value = expression(scope, wanted.type, 1 if wanted.type == "int" else 0)
        if not value.bounds.within(wanted):
            value = _cut_to_size(scope, value, wanted)
        arguments.append(value.text)
    scope.charge(helper.events)
    return Expression(f"{helper.name}({', '.join(arguments)})", helper.result)


def comparison(scope: Scope, depth: int) -> Expression:
    """A comparison of ints that can come out either way as far as the bounds tell."""
    rng = scope.rng
    left = expression(scope, "int", min(depth, 1))
    if left.text.lstrip("-").isdigit():
        left = scope.read("int")
    low, high = left.bounds.low, left.bounds.high
    operator = rng.choice(("<", ">", "<=", ">=", "==", "!=", ">", "<"))
    others = [v for v in scope.candidates("int") if v.name not in left.text]
    if others and rng.random() < 0.4:
        other = rng.choice(others)
        other.used = True
        return Expression(f"{left.at(BITS)} {operator} {other.name}", BOOL, COMPARE)
    if low == high:
        low, high = low - 3, high + 3
    border = max(-scope.level.literal * 2, min(rng.randint(low, high), scope.level.literal * 2))
    return Expression(f"{left.at(BITS)} {operator} {border}", BOOL, COMPARE)


def _signed(scope: Scope) -> int:
    return scope.rng.randint(-scope.level.literal // 2, scope.level.literal)


def _cut_to_size(scope: Scope, value: Expression, wanted: Bounds) -> Expression:
    """The value cut to size; a number modulo, a sequence by a slice."""
    if wanted.type == "int" and wanted.low <= 0 < wanted.high:
        most = scope.rng.randint(max(1, wanted.high - 3), wanted.high) + 1
        return Expression(f"{value.at(PRODUCT)} % {most}", Bounds("int", 0, most - 1), PRODUCT)
    if wanted.type in ("str", "list[int]", "list[str]"):
        size = wanted.max_size
        least = min(value.bounds.min_size, size)
        cut = replace(value.bounds, max_size=size, min_size=least)
        if cut.within(wanted):
            return Expression(f"{value.text}[:{size}]", cut)
    raise Unfit


# -- what several types share ----------------------------------------------------------------------


def some_int(scope: Scope, depth: int) -> Expression:
    """An int that is no literal if any variable can give one."""
    value = expression(scope, "int", depth)
    return scope.read("int") if value.text.lstrip("-").isdigit() else value


def two_ints(scope: Scope, depth: int) -> tuple[Expression, Expression]:
    """Two different ints; the second may be a literal."""
    left, right = some_int(scope, depth), expression(scope, "int", depth)
    if right.text == left.text or right.bounds == Bounds("int"):
        right = number(scope.rng.randint(1, scope.level.literal))
    if right.bounds.low < 0 and right.binding == PRODUCT and right.text.startswith("-"):
        right = number(1 - right.bounds.low) if right.text[1:].isdigit() else right
    return left, right


def any_sized(scope: Scope) -> Expression:
    """Some variable that has a length."""
    names = [
        v.bounds.type for v in scope.variables.values() if v.bounds.type not in ("int", "bool")
    ]
    if not names:
        raise Unfit
    return scope.read(scope.rng.choice(names))


def iterated(scope: Scope) -> tuple[Expression, Expression]:
    """What a comprehension runs over, and its variable (not declared yet)."""
    kinds = ("list[int]", "list[str]", "str", "range", "tuple[int]", "dict[str, int]", "set[int]")
    kind = scope.rng.choice(kinds)
    if kind == "range":
        size = scope.rng.randint(3, scope.level.items)
        source = Expression(f"range({size})", Bounds("range", 0, size - 1, size, size))
        return source, Expression(scope.fresh_name(("i", "j", "k")), Bounds("int", 0, size - 1))
    source = scope.read(kind)
    b = source.bounds
    if kind == "set[int]":
        source = Expression(f"sorted({source.text})", b)
    if kind in ("list[int]", "tuple[int]", "set[int]"):
        return source, Expression(scope.fresh_name(ITEM_NAMES["int"]), Bounds("int", b.low, b.high))
    if kind == "str":
        return source, Expression(scope.fresh_name(CHAR_NAMES), Bounds("str", 0, 0, 1, 1))
    names = ITEM_NAMES["str"] if kind == "list[str]" else ("key", "k", "name")
    return source, Expression(scope.fresh_name(names), Bounds("str", 0, 0, 0, b.width))


def slice_of(scope: Scope, bounds: Bounds) -> tuple[str, Bounds]:
    """A slice, ``[a:b]`` as text, and the bounds of what it leaves."""
    start = scope.rng.randint(1, 3)
    least = max(bounds.min_size - start, 0)
    choice = scope.rng.randrange(5)
    if choice == 0:
        return "[::-1]", bounds
    if choice == 1:
        most = max(bounds.max_size - start, 0)
        text = scope.rng.choice((f"[{start}:]", f"[:-{start}]"))
        return text, replace(bounds, min_size=least, max_size=most)
    if choice == 2:
        sizes = (min(start, bounds.min_size), min(start, bounds.max_size))
        text = scope.rng.choice((f"[:{start}]", f"[-{start}:]"))
        return text, replace(bounds, min_size=sizes[0], max_size=sizes[1])
    if choice == 3:
        sizes = (bounds.min_size // 2, (bounds.max_size + 1) // 2)
        text = scope.rng.choice(("[::2]", "[1::2]"))
        return text, replace(bounds, min_size=sizes[0], max_size=sizes[1])
    end = start + scope.rng.randint(1, 3)
    return f"[{start}:{end}]", replace(
        bounds, min_size=min(least, end - start), max_size=min(bounds.max_size, end - start)
    )


def need(scope: Scope, kind: str) -> None:
    """Raise Unfit if the kind was not asked for."""
    if kind not in scope.kinds:
        raise Unfit


def called(scope: Scope, type_name: str) -> Expression:
    """A call of one of the helpers that return the type."""
    found = [h for h in scope.helpers if h.result.type == type_name and h.kind != "exceptions"]
    if not found:
        raise Unfit
    return call(scope, scope.rng.choice(found))


def either(scope: Scope, type_name: str, depth: int) -> Expression:
    """A conditional expression; of no mutable type, for it would give a value a second name."""
    need(scope, "branches")
    left, right = expression(scope, type_name, min(depth, 1)), leaf(scope, type_name)
    if left.text == right.text:
        raise Unfit
    test = expression(scope, "bool", min(depth, 1))
    text = f"{left.at(OR)} if {test.at(OR)} else {right.at(OR)}"
    return Expression(text, left.bounds.hull(right.bounds), TERNARY)


def indexed(scope: Scope, type_name: str) -> Expression:
    """An item at an index that a loop provides."""
    found = [v for v in scope.variables.values() if v.indexes]
    if not found:
        raise Unfit
    index = scope.rng.choice(found)
    source = scope.variables[index.indexes]
    b, offset = source.bounds, scope.rng.random() < 0.2
    item = Bounds("int", b.low, b.high) if "int" in b.type else Bounds("str", 0, 0, 0, b.width)
    if b.type == "str":
        item = Bounds("str", 0, 0, 1, 1)
    if item.type != type_name:
        raise Unfit
    index.used = source.used = True
    text = f"-1 - {index.name}" if offset else index.name
    return Expression(f"{source.name}[{text}]", item)

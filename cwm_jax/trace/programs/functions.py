"""The helper functions of generated programs: small bodies, and recursion of bounded depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random

from cwm_jax.trace.programs.bindings import NAMES, define
from cwm_jax.trace.programs.control import attempted, control
from cwm_jax.trace.programs.expressions import expression
from cwm_jax.trace.programs.scope import Maker, Scope, Unfit
from cwm_jax.trace.programs.statements import STATEMENTS
from cwm_jax.trace.programs.values import Bounds, HelperFunction, Level

HELPER_NAMES = (
    "adjust", "combine", "scale", "score", "measure", "shift", "weigh", "convert", "compute",
    "helper", "apply", "mix", "rate", "clean", "pick", "build", "refine", "transform", "process",
)  # fmt: skip


RECURSIVE_NAMES = ("walk", "descend", "solve", "fold", "rec", "go", "reduce_to", "unwind", "visit")
EVENTS_OF_A_CALL = 2  # its call and its return
TRIES = 12


def helper_function(
    rng: Random,
    level: Level,
    *,
    kinds: frozenset[str],
    makers: Mapping[str, tuple[Sequence[Maker], Sequence[int]]],
    helpers: Sequence[HelperFunction],
) -> tuple[HelperFunction, list[str]]:
    """A function of one or two parameters with up to three statements, and its lines.

    Raises:
        Unfit: no body came out within its share of the events.
    """
    limit = level.events // 12
    names = {h.name for h in helpers} | {"f", "main"}
    small = replace(level, nesting=1, items=min(level.items, 5), depth=2)
    scope = Scope(rng, small, kinds - {"exceptions"}, limit, makers, helpers, reserved=names)
    name = scope.fresh_name(HELPER_NAMES)
    scope.reserved = names | {name}
    parameters = _parameters(scope)
    for _ in range(rng.randint(0, 2)):
        if rng.random() < 0.25 and kinds & {"branches", "loops"}:
            attempted(scope, lambda: control(scope))
        else:
            kind = rng.choice([k for k in STATEMENTS if k in kinds] or ["arithmetic"])
            attempted(scope, lambda kind=kind: define(scope, RESULTS[kind]))
    results = [t for t in ("int", "int", "str", "list[int]") if t in _types(scope)]
    for _ in range(TRIES):
        value = expression(scope, rng.choice(results or ["int"]), 2)
        unread = [v.name for v in scope.variables.values() if not v.used]
        if not unread and value.text not in scope.variables:
            scope.emit(f"return {value.text}")
            head = f"def {name}({', '.join(parameters)}):"
            events = limit - scope.left + EVENTS_OF_A_CALL
            bounds = tuple(parameters.values())
            helper = HelperFunction(name, bounds, value.bounds, events, "calls")
            return helper, [head, *scope.lines]
    raise Unfit


def recursive_function(rng: Random, level: Level) -> tuple[HelperFunction, list[str]]:
    """A function that calls itself on something smaller: the function and its lines."""
    name = rng.choice(RECURSIVE_NAMES)
    parameters, result, events, body = rng.choice(RECURSIONS)(rng, name)
    names, bounds = [p for p, _ in parameters], tuple(b for _, b in parameters)
    lines = [f"def {name}({', '.join(names)}):", *("    " + line for line in body)]
    return HelperFunction(name, bounds, result, events, "recursion"), lines


RESULTS = {
    "arithmetic": "int",
    "strings": "str",
    "lists": "list[int]",
    "dicts": "int",
    "tuples_sets": "int",
}


def _types(scope: Scope) -> set[str]:
    return {v.bounds.type for v in scope.variables.values()} | {"int"}


def _parameters(scope: Scope) -> dict[str, Bounds]:
    rng, level = scope.rng, scope.level
    bounds = {
        "int": Bounds("int", -level.literal, level.literal),
        "str": Bounds("str", 0, 0, 0, 8),
        "list[int]": Bounds("list[int]", -level.literal, level.literal, 0, 5),
    }
    by_kind = {"arithmetic": "int", "strings": "str", "lists": "list[int]"}
    types = [t for kind, t in by_kind.items() if kind in scope.kinds] or ["int"]
    made = {}
    for _ in range(rng.choice((1, 1, 2))):
        type_name = rng.choice(types)
        name = scope.fresh_name(NAMES[type_name])
        scope.declare(name, bounds[type_name])
        made[name] = bounds[type_name]
        if type_name == "list[int]":  # the caller's list must stay as the caller knows it
            scope.locked |= {name}
    return made


# -- recursion: parameters, bounds of the result, events at most, lines ---------------------------

Recursion = tuple[list[tuple[str, Bounds]], Bounds, int, list[str]]


def _down_to_zero(rng: Random, name: str) -> Recursion:
    n, most, step = rng.choice(("n", "k", "depth")), rng.randint(5, 8), rng.choice((1, 1, 2))
    base, modulus = rng.randint(0, 5), rng.choice((10, 17, 50, 97, 100))
    inner = f"{name}({n} - {step})"
    forms = (
        f"({n} * {inner} + {rng.randint(1, 9)}) % {modulus}",
        f"({inner} + {n} * {n}) % {modulus}",
        f"({rng.randint(2, 5)} * {inner} + {n}) % {modulus}",
        f"({n} * {n} - {inner}) % {modulus}",
    )
    body = [f"if {n} <= 0:", f"    return {base}", f"return {rng.choice(forms)}"]
    events = 4 * (-(-most // step) + 1)
    return [(n, Bounds("int", -9, most))], Bounds("int", 0, max(modulus - 1, base)), events, body


def _digits(rng: Random, name: str) -> Recursion:
    n, base = rng.choice(("n", "num", "value")), rng.choice((10, 10, 8, 5))
    digit = rng.choice((f"{n} % {base}", f"({n} % {base}) ** 2", f"max({n} % {base} - 1, 0)"))
    combined = rng.choice((f"{digit} + {name}({n} // {base})", f"{name}({n} // {base}) + {digit}"))
    if rng.random() < 0.3:
        combined = f"max({n} % {base}, {name}({n} // {base}))"
    body = [f"if {n} < {base}:", f"    return {n}", f"return {combined}"]
    levels = 5 if base == 5 else 4
    return [(n, Bounds("int", 0, 999))], Bounds("int", 0, 450), 4 * levels + 4, body


def _euclid(rng: Random, name: str) -> Recursion:
    a, b = rng.choice((("a", "b"), ("x", "y"), ("m", "n")))
    last = rng.choice((a, a, f"{a} * {rng.randint(2, 5)}"))
    body = [f"if {b} == 0:", f"    return {last}", f"return {name}({b}, {a} % {b})"]
    number = Bounds("int", 0, 60)  # fewer than 11 levels: 55 and 34 take the most
    return [(a, number), (b, number)], Bounds("int", 0, 300), 4 * 12, body


def _string(rng: Random, name: str) -> Recursion:
    s, most = rng.choice(("s", "text", "word")), rng.randint(4, 7)
    rest = f"{name}({s}[1:])"
    forms = (f"{rest} + {s}[0]", f"{s}[0].upper() + {rest}", f"{s}[0] + '-' + {rest}",
             f"{s}[-1] + {name}({s}[:-1])")  # fmt: skip
    body = [f"if not {s}:", f"    return {rng.choice(('', '', '.', '!'))!r}"]
    if rng.random() < 0.5:
        letters = "".join(rng.sample("abcdeiorstu", 3))
        other = rng.choice((rest, f"'*' + {rest}"))
        body += [f"if {s}[0] in {letters!r}:", f"    return {other}"]
    body.append(f"return {rng.choice(forms)}")
    return (
        [(s, Bounds("str", 0, 0, 0, most))],
        Bounds("str", 0, 0, 0, 2 * most + 1),
        5 * (most + 1),
        body,
    )


def _list(rng: Random, name: str) -> Recursion:
    nums, most = rng.choice(("nums", "items", "values")), rng.randint(4, 6)
    limit, by = rng.randint(1, 20), rng.randint(2, 4)
    rest = f"{name}({nums}[1:])"
    forms = (f"{nums}[0] + {rest}", f"{nums}[0] - {rest}", f"max({nums}[0], {rest})",
             f"({nums}[0] > {limit}) + {rest}", f"{nums}[0] % {by} + {rest}")  # fmt: skip
    body = [f"if not {nums}:", f"    return {rng.randint(0, 3)}"]
    if rng.random() < 0.3:
        body += [f"if {nums}[0] % {by} == 0:", f"    return {rest}"]
    body.append(f"return {rng.choice(forms)}")
    result = Bounds("int", -200 * most - 4, 200 * most + 4)
    return [(nums, Bounds("list[int]", -200, 200, 0, most))], result, 5 * (most + 1), body


def _two_calls(rng: Random, name: str) -> Recursion:
    n, (a, b) = rng.choice(("n", "k")), rng.choice(((1, 2), (1, 3), (2, 3)))
    plus = rng.choice(("", "", f" + {rng.randint(1, 5)}", f" + {n}"))
    base = rng.choice((n, "1", "2"))
    body = [f"if {n} < {b}:", f"    return {base}"]
    body.append(f"return {name}({n} - {a}) + {name}({n} - {b}){plus}")
    calls, most = dict.fromkeys(range(-9, b), 1), 5
    for k in range(b, most + 1):
        calls[k] = 1 + calls[k - a] + calls[k - b]
    result = Bounds("int", -9, 9 * calls[most])
    return [(n, Bounds("int", -3, most))], result, 4 * calls[most], body


def _counted_list(rng: Random, name: str) -> Recursion:
    n, step = rng.choice(("n", "k", "top")), rng.choice((1, 2, 3))
    item = rng.choice((n, f"{n} * {n}", f"{n} % 3", f"{n} * {rng.randint(2, 5)}"))
    inner = f"{name}({n} - {step})"
    body = [f"if {n} <= 0:", "    return []"]
    body.append(f"return {rng.choice((f'[{item}] + {inner}', f'{inner} + [{item}]'))}")
    size = -(-7 // step)
    return [(n, Bounds("int", -9, 7))], Bounds("list[int]", 0, 49, 0, size), 4 * (size + 1), body


def _base_text(rng: Random, name: str) -> Recursion:
    n, base = rng.choice(("n", "num")), rng.choice((2, 2, 3, 4, 8))
    sep = rng.choice(("", "", " + '.'"))
    body = [f"if {n} < {base}:", f"    return str({n})"]
    body.append(f"return {name}({n} // {base}){sep} + str({n} % {base})")
    return [(n, Bounds("int", 0, 99))], Bounds("str", 0, 0, 1, 14), 4 * 8, body


RECURSIONS: tuple[Callable[[Random, str], Recursion], ...] = (
    _down_to_zero, _down_to_zero, _digits, _euclid, _string, _string, _list, _list, _two_calls,
    _counted_list, _base_text,
)  # fmt: skip

"""Statements of generated programs that raise on purpose: caught ones, and one that escapes.

Messages that CPython words differently from version to version are not read by the programs.
"""

from __future__ import annotations

from random import Random

from cwm_jax.trace.programs.bindings import NAMES
from cwm_jax.trace.programs.changes import change
from cwm_jax.trace.programs.control import attempted
from cwm_jax.trace.programs.expressions import expression, key_of, some_int, word_value
from cwm_jax.trace.programs.scope import Scope, Unfit
from cwm_jax.trace.programs.values import ATOM, PRODUCT, Bounds, Expression, HelperFunction, Level

ERROR_NAMES = ("error", "e", "err", "exc")


CHECK_NAMES = ("check", "validate", "ensure", "require", "parse_size", "safe_value")
PROBLEMS = ("too large", "bad value", "out of range", "invalid", "not allowed", "limit", "no match")
EVENTS_OF_A_CATCH = 5  # try, the raising line's exception, except, a finally's line, one to spare


def checking_function(rng: Random, level: Level) -> tuple[HelperFunction, list[str]]:
    """A function that raises ValueError for some of its arguments, and its lines."""
    name, x = rng.choice(CHECK_NAMES), rng.choice(("x", "n", "value", "size"))
    limit, factor = rng.randint(3, level.literal // 2), rng.randint(2, 5)
    problem = rng.choice(PROBLEMS)
    test = rng.choice((f"{x} > {limit}", f"{x} < {limit // 2}", f"{x} % {factor} == 0"))
    message = rng.choice((f'f"{problem}: {{{x}}}"', f'"{problem}"'))
    result = rng.choice((x, f"{x} * {factor}", f"{x} + {limit}", f"{limit} - {x}"))
    most = level.literal
    bounds = Bounds("int", -6 * most, 6 * most)
    lines = [f"def {name}({x}):", f"    if {test}:", f"        raise ValueError({message})"]
    helper = HelperFunction(name, (Bounds("int", -most, most),), bounds, 6, "exceptions")
    return helper, [*lines, f"    return {result}"]


def guarded(scope: Scope) -> None:
    """``try`` something that may raise, and catch it."""
    rng = scope.rng
    if scope.block or scope.level.nesting < 1:
        raise Unfit
    checks = [h for h in scope.helpers if h.kind == "exceptions"]
    maker = rng.choice(RAISING)
    if checks and rng.random() < 0.6:
        text, bounds, error = _checked(scope, checks[0])
    else:
        text, bounds, error = maker(scope)
    result = scope.fresh_name(NAMES[bounds.type])
    scope.charge(EVENTS_OF_A_CATCH)
    scope.emit("try:", events=0)
    with scope.indented():
        scope.emit(f"{result} = {text}")
    caught = error if rng.random() < 0.8 else f"({error}, TypeError)"
    default, handled = _handler(scope, bounds)
    scope.emit(f"except {caught}:", events=0)
    with scope.indented():
        scope.emit(f"{result} = {default}")
    changeable = [v for v in scope.variables.values() if v.bounds.type == "int" and not v.fixed]
    extra = rng.random()
    if extra < 0.2 and changeable:
        attempted(scope, lambda: _block(scope, "else:"))
    elif extra < 0.4 and changeable:
        attempted(scope, lambda: _block(scope, "finally:"))
    scope.declare(result, bounds.hull(handled))


def raising_loop(scope: Scope) -> None:
    """A loop inside ``try`` that raises at the first item that a condition names."""
    rng = scope.rng
    if scope.block or scope.level.nesting < 3:
        raise Unfit
    source = scope.read(rng.choice(("list[int]", "tuple[int]")))
    b = source.bounds
    item, total = scope.fresh_name(("x", "n", "item")), scope.fresh_name(("total", "done", "acc"))
    message, error = scope.fresh_name(("message", "status", "reason")), rng.choice(ERROR_NAMES)
    kind, problem = rng.choice(("ValueError", "RuntimeError")), rng.choice(PROBLEMS)
    border = rng.randint(b.low, max(b.high, b.low))
    most = max(-b.low, b.high) * b.max_size
    bounds = scope.check(Bounds("int", -most, most))
    scope.charge(EVENTS_OF_A_CATCH)
    scope.emit(f"{total} = 0")
    scope.emit("try:", events=0)
    scope.emit(f"    for {item} in {source.text}:", events=b.max_size + 1)
    scope.emit(f"        if {item} {rng.choice(('>', '<', '=='))} {border}:", events=b.max_size)
    scope.emit(f'            raise {kind}(f"{problem}: {{{item}}}")')
    scope.emit(f"        {total} += {item}", events=b.max_size)
    scope.emit(f"    {message} = 'ok'")
    scope.emit(f"except {kind} as {error}:", events=0)
    scope.emit(f"    {message} = str({error})")
    scope.declare(total, bounds)
    scope.declare(message, Bounds("str", 0, 0, 2, 24))


def escape(scope: Scope) -> None:
    """Something that raises for certain and that nothing catches."""
    rng = scope.rng
    rng.choice((_failing_guard, _failing_guard, _missing_item, _missing_key, _failing_chain))(scope)


def idle_guard(scope: Scope) -> None:
    """A guard like the one that escapes, for a value that passes it."""
    _guard(scope, passes=True)


def _block(scope: Scope, head: str) -> None:
    scope.emit(head, events=0)
    found = [v for v in scope.variables.values() if v.bounds.type == "int" and not v.fixed]
    variable = scope.rng.choice(found)
    scope.widen(variable)
    with scope.indented():
        change(scope, variable)


def _handler(scope: Scope, bounds: Bounds) -> tuple[str, Bounds]:
    """What the result is when the error was caught."""
    rng = scope.rng
    if bounds.type == "str":
        word = word_value(scope)
        return repr(word), Bounds("str", 0, 0, len(word), len(word))
    if rng.random() < 0.4:
        value = expression(scope, "int", 1)
        return value.text, value.bounds
    default = rng.choice((-1, 0, 0, 1, -1, 99))
    return str(default), Bounds("int", default, default)


# -- what may raise: its text, the bounds of its value, the error ---------------------------------


def _checked(scope: Scope, helper: HelperFunction) -> tuple[str, Bounds, str]:
    value = some_int(scope, 1)
    if not value.bounds.within(helper.parameters[0]):
        value = Expression(f"{value.at(PRODUCT)} % 23", Bounds("int", 0, 22), PRODUCT)
    if not value.bounds.within(helper.parameters[0]):
        raise Unfit
    scope.charge(helper.events)
    return f"{helper.name}({value.text})", helper.result, "ValueError"


def _parsed(scope: Scope) -> tuple[str, Bounds, str]:
    text = expression(scope, "str", 1)
    if text.text.startswith("'"):
        raise Unfit
    size = scope.rng.randint(1, 3)
    return f"int({text.at(ATOM)}[:{size}])", Bounds("int", -99, 999), "ValueError"


def _at_index(scope: Scope) -> tuple[str, Bounds, str]:
    values = scope.read(scope.rng.choice(("list[int]", "tuple[int]", "list[str]")))
    index, b = expression(scope, "int", 1), values.bounds
    bounds = Bounds("str", 0, 0, 0, b.width) if "str" in b.type else Bounds("int", b.low, b.high)
    return f"{values.text}[{index.text}]", bounds, "IndexError"


def _at_key(scope: Scope) -> tuple[str, Bounds, str]:
    table = scope.read("dict[str, int]")
    bounds = Bounds("int", table.bounds.low, table.bounds.high)
    return f"{table.text}[{key_of(scope).text}]", bounds, "KeyError"


def _divided(scope: Scope) -> tuple[str, Bounds, str]:
    value, divisor = some_int(scope, 1), some_int(scope, 1)
    most = max(-value.bounds.low, value.bounds.high)
    if value.text == divisor.text:
        raise Unfit
    text = f"{value.at(PRODUCT)} // {divisor.at(ATOM)}"
    return text, Bounds("int", -most, most), "ZeroDivisionError"


def _found_in(scope: Scope) -> tuple[str, Bounds, str]:
    values, wanted = scope.read("list[int]"), expression(scope, "int", 1)
    bounds = Bounds("int", 0, max(values.bounds.max_size - 1, 0))
    return f"{values.text}.index({wanted.text})", bounds, "ValueError"


# -- what escapes ----------------------------------------------------------------------------------


def _guard(scope: Scope, *, passes: bool) -> None:
    rng = scope.rng
    value = some_int(scope, 0)
    b, problem, kind = (
        value.bounds,
        rng.choice(PROBLEMS),
        rng.choice(("ValueError", "RuntimeError")),
    )
    over = b.high + rng.randint(1, 9)
    if rng.random() < 0.5:
        test, held = f"{value.text} < {over}", f"{value.text} >= {over}"
    else:
        under = b.low - rng.randint(1, 9)
        test, held = f"{value.text} > {under}", f"{value.text} <= {under}"
    if passes:
        test, held = held, test
    if rng.random() < 0.3:
        scope.emit(f"assert {held}, {problem!r}")
        return
    scope.emit(f"if {test}:")
    with scope.indented():
        scope.emit(f'raise {kind}(f"{problem}: {{{value.text}}}")')


def _failing_guard(scope: Scope) -> None:
    _guard(scope, passes=False)


def _missing_item(scope: Scope) -> None:
    values = scope.read(scope.rng.choice(("list[int]", "list[str]", "tuple[int]")))
    index = values.bounds.max_size + scope.rng.randint(0, 3)
    name = scope.fresh_name(("item", "last", "extra", "entry"))
    scope.emit(f"{name} = {values.text}[{index}]")


def _missing_key(scope: Scope) -> None:
    table = scope.read("dict[str, int]")
    key = scope.rng.choice(("missing", "unknown", "default", "nothing", "absent"))
    key += "_" * max(0, table.bounds.width + 1 - len(key))  # longer than any key that is there
    name = scope.fresh_name(("entry", "found", "extra"))
    scope.emit(f"{name} = {table.text}[{key!r}]")


def _failing_chain(scope: Scope) -> None:
    """One error is caught and another raised from it."""
    values = scope.read(scope.rng.choice(("list[int]", "list[str]")))
    index = values.bounds.max_size + scope.rng.randint(0, 3)
    name, error = scope.fresh_name(("item", "extra", "entry")), scope.rng.choice(ERROR_NAMES)
    kind = scope.rng.choice(("ValueError", "RuntimeError", "KeyError"))
    scope.charge(EVENTS_OF_A_CATCH)
    scope.emit("try:", events=0)
    scope.emit(f"    {name} = {values.text}[{index}]")
    scope.emit(f"except IndexError as {error}:", events=0)
    scope.emit(f"    raise {kind}({scope.rng.choice(PROBLEMS)!r}) from {error}")


RAISING = (_parsed, _parsed, _at_index, _at_index, _at_key, _at_key, _divided, _found_in)

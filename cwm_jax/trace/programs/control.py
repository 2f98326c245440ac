"""Blocks of generated programs: branches, loops and what stands in them."""

from __future__ import annotations

from collections.abc import Callable

from cwm_jax.trace.programs.bindings import NAMES, accumulator, define
from cwm_jax.trace.programs.changes import CHANGES, change
from cwm_jax.trace.programs.conditions import condition
from cwm_jax.trace.programs.expressions import expression, need
from cwm_jax.trace.programs.iterations import ITERATIONS, item_variable
from cwm_jax.trace.programs.scope import Scope, Unfit
from cwm_jax.trace.programs.values import Bounds, Expression, Variable

TRIES = 8


# Types that blocks may accumulate into, by the kind that brings them.
ACCUMULATED = {
    "arithmetic": ("int",),
    "strings": ("str", "int", "list[str]"),
    "lists": ("list[int]", "int", "list[str]"),
    "dicts": ("dict[str, int]", "int"),
    "tuples_sets": ("set[int]", "list[int]", "int"),
}


def targets(scope: Scope) -> list[Variable]:
    """One or two variables that a block will change, with room for it."""
    rng = scope.rng
    old = [
        v
        for v in scope.variables.values()
        if v.bounds.type in CHANGES and not v.fixed and v.name not in scope.locked
    ]
    found = []
    if scope.block and old and rng.random() < 0.8:
        found = [v for v in old if v.block != scope.block] or old
        found = rng.sample(found, min(len(found), rng.randint(1, 2)))
    elif old and rng.random() < 0.3:
        found = [rng.choice(old)]
    else:
        found = [accumulator(scope, rng.choice(_types(scope)))]
        if rng.random() < 0.3:
            found.append(accumulator(scope, rng.choice(_types(scope))))
    for variable in found:
        if variable.slack_high == variable.slack_grow == 0:
            scope.widen(variable)
    return found


def attempted(scope: Scope, *makers: Callable[[], object]) -> bool:
    """Whether one of the makers, tried in this order, wrote something."""
    for maker in makers:
        saved = scope.save()
        try:
            maker()
            return True
        except Unfit:
            scope.restore(saved)
    return False


def fill(scope: Scope, goals: list[Variable], *, size: int = 2) -> None:
    """The statements of a block: a local variable, a branch or a loop, changes of the goals."""
    rng, written = scope.rng, 0
    if rng.random() < 0.3:
        attempted(scope, lambda: define(scope, rng.choice(("int", "int", "str"))))
    for _ in range(rng.randint(1, size)):
        for _ in range(TRIES):
            goal = rng.choice(goals)
            inner = rng.random() < 0.45 and scope.nesting < scope.level.nesting
            if inner and attempted(scope, lambda: control(scope, goals)):
                written += 1
                break
            if attempted(scope, lambda goal=goal: change(scope, goal)):
                written += 1
                break
    own = [v for v in scope.variables.values() if v.block == scope.block and not v.used]
    for _ in range(TRIES):  # a block mostly does something with what is its own
        if written and (not own or all(v.used for v in own)):
            return
        written += attempted(scope, lambda: change(scope, rng.choice(goals)))
    if not written or (any(not v.used for v in own) and rng.random() < 0.8):
        raise Unfit


def control(scope: Scope, goals: list[Variable] | None = None, kind: str | None = None) -> None:
    """A branch or a loop, as the kinds allow."""
    kinds = sorted(scope.kinds & {"branches", "loops"})
    if not kinds:
        raise Unfit
    weights = [1 if name == "loops" and scope.block else 3 for name in kinds]
    kind = kind or scope.rng.choices(kinds, weights)[0]
    makers, chances = CONTROL[kind]
    scope.rng.choices(makers, chances)[0](scope, goals)


def test(scope: Scope) -> Expression:
    """The condition of a branch; in a loop sooner about what the loop runs over."""
    own = [
        v
        for v in scope.variables.values()
        if v.fixed and v.block and v.bounds.type in ("int", "str")
    ]
    if own and scope.rng.random() < 0.7:
        variable = scope.rng.choice(own[-2:])
        variable.used = True
        return condition(scope, Expression(variable.name, variable.bounds))
    return expression(scope, "bool", 2)


# -- branches --------------------------------------------------------------------------------------


def _if(scope: Scope, goals: list[Variable] | None) -> None:
    need(scope, "branches")
    rng = scope.rng
    goals = goals or targets(scope)
    scope.emit(f"if {test(scope).text}:")
    with scope.indented():
        fill(scope, goals)
    if rng.random() < 0.25:
        scope.emit(f"elif {test(scope).text}:")
        with scope.indented():
            fill(scope, goals, size=1)
    if rng.random() < 0.5:
        scope.emit("else:", events=0)
        with scope.indented():
            fill(scope, goals, size=1)


def _choose(scope: Scope, goals: list[Variable] | None) -> None:
    """Every branch binds the same new variable."""
    need(scope, "branches")
    rng = scope.rng
    type_name = rng.choice(("int", "int", "str"))
    name, bounds = scope.fresh_name(NAMES[type_name]), None
    heads = ["if", "elif", "else"] if rng.random() < 0.4 else ["if", "else"]
    texts = set()
    for head in heads:
        last = head == "else"
        scope.emit("else:" if last else f"{head} {test(scope).text}:", events=0 if last else 1)
        with scope.indented():
            value = expression(scope, type_name, 1)
            scope.emit(f"{name} = {value.text}")
        texts.add(value.text)
        bounds = value.bounds if bounds is None else bounds.hull(value.bounds)
    if len(texts) < len(heads) or bounds is None:
        raise Unfit
    scope.declare(name, bounds)


def _early_return(scope: Scope, goals: list[Variable] | None) -> None:
    need(scope, "branches")
    if not scope.returns_early:
        raise Unfit
    scope.emit(f"if {test(scope).text}:")
    with scope.indented():
        kinds = [v.bounds.type for v in scope.variables.values() if v.bounds.type != "bool"]
        if not kinds:
            raise Unfit
        value = expression(scope, scope.rng.choice(kinds), 1)
        scope.emit(f"return {value.text}")


# -- loops -----------------------------------------------------------------------------------------


def _for(scope: Scope, goals: list[Variable] | None) -> None:
    need(scope, "loops")
    rng = scope.rng
    goals = goals or targets(scope)
    head = rng.choice(ITERATIONS)(scope)
    if head.locked in {v.name for v in goals}:
        raise Unfit
    scope.emit(f"for {head.head}:", events=head.times + 1)
    before, scope.locked = scope.locked, scope.locked | {head.locked}
    with scope.indented(times=head.times, loop="for"):
        for number_of_name, (name, bounds) in enumerate(head.variables):
            indexes = head.locked if head.index and number_of_name == 0 else ""
            scope.declare(name, bounds, fixed=True, indexes=indexes)
        skip = rng.random() < 0.2
        if skip:
            attempted(scope, lambda: _leave(scope))
        fill(scope, goals)
        if not skip and rng.random() < 0.12:
            attempted(scope, lambda: _leave(scope))
    scope.locked = before


def _leave(scope: Scope) -> None:
    """``if ...: continue`` or ``break``."""
    need(scope, "branches")
    scope.emit(f"if {test(scope).text}:")
    with scope.indented():
        scope.emit(scope.rng.choice(("continue", "continue", "break")))


def _nested_rows(scope: Scope, goals: list[Variable] | None) -> None:
    """Two loops, over the rows of a list of lists and over the items of a row."""
    need(scope, "loops")
    goals = goals or targets(scope)
    rows = scope.read("list[list[int]]")
    b = rows.bounds
    row, item = scope.fresh_name(("row", "group", "line")), scope.fresh_name(("x", "v", "cell"))
    scope.emit(f"for {row} in {rows.text}:", events=b.max_size + 1)
    with scope.indented(times=b.max_size):
        bounds = Bounds("list[int]", b.low, b.high, 0, b.width)
        variable = scope.declare(row, bounds, fixed=True)
        if scope.rng.random() < 0.4:
            fill(scope, goals)
        scope.emit(f"for {item} in {row}:", events=b.width + 1)
        before, scope.locked = scope.locked, scope.locked | {row}
        variable.used = True
        with scope.indented(times=b.width, loop="for"):
            scope.declare(item, Bounds("int", b.low, b.high), fixed=True)
            fill(scope, goals)
        scope.locked = before


def _while_counting(scope: Scope, goals: list[Variable] | None) -> None:
    """``i = 0``, ``while i < ...``, ``i += 1``."""
    need(scope, "loops")
    rng = scope.rng
    goals = goals or targets(scope)
    name, step = scope.fresh_name(("i", "pos", "step", "idx")), rng.choice((1, 1, 2, 3))
    before, indexes = scope.locked, ""
    if rng.random() < 0.6:
        source = scope.read(rng.choice(("str", "list[int]", "list[str]")))
        most, limit = source.bounds.max_size, f"len({source.text})"
        indexes = source.text
        scope.locked |= {indexes}  # the loop counts on its length
    else:
        most = rng.randint(2, scope.level.items) * step
        limit = str(most)
    times = -(-most // step)
    if times < 1 or name in {v.name for v in goals}:
        raise Unfit
    scope.emit(f"{name} = 0")
    scope.emit(f"while {name} < {limit}:", events=times + 1)
    with scope.indented(times=times, loop="while"):
        scope.declare(name, Bounds("int", 0, max(most - 1, 0)), fixed=True, indexes=indexes)
        fill(scope, goals)
        scope.emit(f"{name} += {step}")
    scope.locked = before


def _while_digits(scope: Scope, goals: list[Variable] | None) -> None:
    """``while n > 0: digit = n % base; ...; n //= base``."""
    need(scope, "loops")
    goals = goals or targets(scope)
    variable = scope.changeable("int")
    b = variable.bounds
    if variable in goals or variable.block != scope.block or b.high < 2:
        raise Unfit
    base, times, rest = scope.rng.choice((2, 3, 5, 10, 10)), 0, b.high
    while rest > 0:
        times, rest = times + 1, rest // base
    name = scope.fresh_name(("digit", "rest", "d", "bit"))
    scope.emit(f"while {variable.name} > 0:", events=times + 1)
    scope.locked |= {variable.name}
    with scope.indented(times=times, loop="while"):
        scope.emit(f"{name} = {variable.name} % {base}")
        scope.declare(name, Bounds("int", 0, base - 1), fixed=True)
        fill(scope, goals)
        scope.emit(f"{variable.name} //= {base}")
    scope.locked -= {variable.name}
    scope.assign(variable, Bounds("int", min(b.low, 0), 0))
    variable.used = True


def _while_taking(scope: Scope, goals: list[Variable] | None) -> None:
    """``while nums: x = nums.pop()``."""
    need(scope, "loops")
    goals = goals or targets(scope)
    variable = scope.changeable(scope.rng.choice(("list[int]", "list[str]")))
    b = variable.bounds
    if variable in goals or variable.block != scope.block or b.max_size < 1:
        raise Unfit
    keep = scope.rng.choice((0, 0, 1))
    test_text = variable.name if keep == 0 else f"len({variable.name}) > {keep}"
    name, item = item_variable(scope, b)
    scope.emit(f"while {test_text}:", events=b.max_size + 1)
    scope.locked |= {variable.name}
    variable.bounds = Bounds(b.type, b.low, b.high, 0, b.max_size, b.width)
    with scope.indented(times=b.max_size, loop="while"):
        scope.emit(f"{name} = {variable.name}.pop({scope.rng.choice(('', '', '0'))})")
        scope.declare(name, item, fixed=True)
        fill(scope, goals)
    scope.locked -= {variable.name}
    scope.assign(variable, Bounds(b.type, b.low, b.high, 0, keep, b.width))
    variable.used = keep == 0


def _while_bounded(scope: Scope, goals: list[Variable] | None) -> None:
    """A number goes up until it passes a limit, by a factor or by a step."""
    need(scope, "loops")
    goals = goals or targets(scope)
    rng = scope.rng
    name = scope.fresh_name(("power", "current", "size", "pos", "n"))
    start, limit = rng.randint(1, 5), rng.randint(10, scope.level.literal)
    growth = rng.choice(("*= 2", "*= 3", "+= 3", "+= 5", "+= 7"))
    value, times, top = start, 0, start
    while value < limit:
        top, times = value, times + 1
        by = int(growth[3:])
        value = value * by if growth[0] == "*" else value + by
    scope.emit(f"{name} = {start}")
    scope.emit(f"while {name} < {limit}:", events=times + 1)
    with scope.indented(times=times, loop="while"):
        scope.declare(name, Bounds("int", start, top), fixed=True)
        fill(scope, goals)
        scope.emit(f"{name} {growth}")


def _types(scope: Scope) -> list[str]:
    found = [t for kind, types in ACCUMULATED.items() if kind in scope.kinds for t in types]
    return found or ["int"]


CONTROL = {
    "branches": ((_if, _choose, _early_return), (6, 3, 1)),
    "loops": (
        (_for, _while_counting, _while_digits, _while_taking, _while_bounded, _nested_rows),
        (10, 2, 2, 2, 1, 3),
    ),
}

"""The families of programs of which some end: each makes one pair from a random generator.

Nothing is run; where the course of a loop decides, it is computed here on plain numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from collections.abc import Callable
from random import Random

_COUNTERS = ("x", "n", "value", "pos", "level", "score", "k", "size")
_BOUNDS = ("limit", "goal", "target", "end", "bound", "stop")
_MOST_PASSES = 30  # of a loop in a program that ends


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two programs and why the first ends and the second does not."""

    ends: str
    runs: str
    why_ends: str
    why_runs: str


def _step_sign(rng: Random) -> Pair:
    """A counter that goes to its bound, or away from it."""
    x, limit = rng.choice(_COUNTERS), rng.choice(_BOUNDS)
    start, step, rising = rng.randint(-20, 40), rng.randint(1, 6), rng.random() < 0.5
    bound = start + (1 if rising else -1) * rng.randint(step + 1, step * (_MOST_PASSES - 1))
    test, to, away = ("<", "+=", "-=") if rising else (">", "-=", "+=")
    extra = _Counted(rng)

    def code(sign: str) -> str:
        return _module(
            f"""
            def f({x}, {limit}):{extra.before(16)}
                while {x} {test} {limit}:
                    {x} {sign} {step}{extra.inside(20)}
                return {extra.result(x)}
            """,
            f"f({start}, {bound})",
        )

    return Pair(
        ends=code(to),
        runs=code(away),
        why_ends=f"{x} comes {step} nearer to {bound} with each pass and passes it",
        why_runs=f"{x} {test} {limit} holds at first, and each pass takes {x} further from {bound}",
    )


def _missed_target(rng: Random) -> Pair:
    """A counter that meets the one value at which it stops, or steps over it."""
    x, target = rng.choice(_COUNTERS), rng.choice(_BOUNDS)
    start, step, sign = rng.randint(-15, 40), rng.randint(2, 7), rng.choice((1, -1))
    goal = start + sign * step * rng.randint(3, _MOST_PASSES)
    missed = goal + sign * rng.randint(1, step - 1)
    extra = _Counted(rng)

    def code(goal: int) -> str:
        return _module(
            f"""
            def f({x}, {target}):{extra.before(16)}
                while {x} != {target}:
                    {x} {"+=" if sign > 0 else "-="} {step}{extra.inside(20)}
                return {extra.result(x)}
            """,
            f"f({start}, {goal})",
        )

    return Pair(
        ends=code(goal),
        runs=code(missed),
        why_ends=f"{goal} is {abs(goal - start) // step} steps of {step} from {start}",
        why_runs=f"{x} stays {start} plus a multiple of {step}, and {missed} is none",
    )


def _modular_orbit(rng: Random) -> Pair:
    """A remainder that comes upon a value, or never does."""
    x, goal = rng.choice(_COUNTERS), rng.choice(_BOUNDS)
    while True:
        m = rng.randint(8, 40)
        a, c, start = rng.randint(2, 9), rng.randint(1, 12), rng.randrange(m)
        orbit = _orbit(start, lambda v, a=a, c=c, m=m: (a * v + c) % m)
        others = sorted({*range(m)} - {*orbit})
        if 4 <= len(orbit) <= _MOST_PASSES and others:
            break
    hit, missed = rng.choice(orbit[3:]), rng.choice(others)

    def code(value: int) -> str:
        return _module(
            f"""
            def f({x}, {goal}):
                while {x} != {goal}:
                    {x} = ({a} * {x} + {c}) % {m}
                return {x}
            """,
            f"f({start}, {value})",
        )

    return Pair(
        ends=code(hit),
        runs=code(missed),
        why_ends=f"{x} is {hit} after {orbit.index(hit)} passes",
        why_runs=f"{x} takes the values {sorted(orbit)} again and again, and never {missed}",
    )


def _collatz(rng: Random) -> Pair:
    """Halved if even, else multiplied and moved by one: some such rules come to 1, some never."""
    rules, starts = ((3, 1), (3, -1), (5, 1)), range(2, 120)
    courses = {(rule, n): _course(rule, n) for rule in rules for n in starts}
    ends = [key for key, course in courses.items() if course and course[-1] == 1]
    runs = [key for key, course in courses.items() if course and course[-1] != 1]
    end = rng.choice([e for e in ends if any(_share_one(e, r) for r in runs)])
    run = rng.choice([r for r in runs if _share_one(end, r)])
    name = rng.choice(_COUNTERS)

    def code(rule: tuple[int, int], start: int) -> str:
        factor, add = rule
        return _module(
            f"""
            def f({name}):
                while {name} != 1:
                    if {name} % 2 == 0:
                        {name} //= 2
                    else:
                        {name} = {factor} * {name} {"+" if add > 0 else "-"} 1
                return {name}
            """,
            f"f({start})",
        )

    course = courses[run]
    cycle = course[course.index(course[-1]) : -1]
    return Pair(
        ends=code(*end),
        runs=code(*run),
        why_ends=f"{name} is 1 after {len(courses[end]) - 1} passes",
        why_runs=f"{name} comes into the cycle {cycle}, in which 1 is not",
    )


def _mutual_calls(rng: Random) -> Pair:
    """Two functions that hand a number to each other, from a loop so that no stack fills."""
    take = rng.randint(4, 9)
    give, too_much = rng.randint(1, take - 2), rng.randint(take, take + 4)
    start = rng.randint(2, (take - give) * 8)
    first, second = rng.sample(("ping", "pong", "left", "right", "odd", "even"), 2)

    def code(amount: int) -> str:
        return _module(
            f"""
            def {first}(n):
                if n <= 0:
                    return "done", n
                return "{second}", n - {take}


            def {second}(n):
                return "{first}", n + {amount}


            def f(n):
                turn = "{first}"
                while turn != "done":
                    if turn == "{first}":
                        turn, n = {first}(n)
                    else:
                        turn, n = {second}(n)
                return n
            """,
            f"f({start})",
        )

    return Pair(
        ends=code(give),
        runs=code(too_much),
        why_ends=f"n falls by {take - give} from one call of {first} to the next",
        why_runs=f"n is {start} > 0 at the first call of {first} and no less at each later one: "
        f"{too_much} >= {take}",
    )


def _refuelled(rng: Random) -> Pair:
    """A loop that spends what a bounded recursion partly, or wholly, gives back."""
    depth, gain = rng.randint(1, 3), rng.randint(1, 5)
    back = depth * gain
    cost, too_low = back + rng.randint(2, 6), rng.randint(max(1, back - 3), back)
    fuel = rng.randint(cost - back, (cost - back) * 8)
    name = rng.choice(("gather", "collect", "refill", "harvest"))

    def code(cost: int) -> str:
        return _module(
            f"""
            def {name}(depth):
                if depth == 0:
                    return 0
                return {gain} + {name}(depth - 1)


            def f(fuel):
                while fuel > 0:
                    fuel = fuel - {cost} + {name}({depth})
                return fuel
            """,
            f"f({fuel})",
        )

    return Pair(
        ends=code(cost),
        runs=code(too_low),
        why_ends=f"{name}({depth}) is {back}, so fuel falls by {cost - back} with each pass",
        why_runs=f"{name}({depth}) is {back} >= {too_low}, so fuel, {fuel} at first, never falls",
    )


def _work_list(rng: Random) -> Pair:
    """Items that go back into a queue, reduced, until they are 0."""
    step = rng.randint(2, 5)
    items = [step * rng.randint(0, 4) for _ in range(rng.randint(2, 4))]
    place = rng.randrange(len(items))
    odd = rng.choice((items[place] + rng.randint(1, step - 1), -step * rng.randint(1, 3)))
    changed = [*items[:place], odd, *items[place + 1 :]]
    extra = _Counted(rng)

    def code(items: list[int]) -> str:
        return _module(
            f"""
            def f(queue):{extra.before(16)}
                while queue:
                    item = queue.pop(0){extra.inside(20)}
                    if item != 0:
                        queue.append(item - {step})
                return {extra.result("queue")}
            """,
            f"f({items})",
        )

    why = "is below 0" if odd < 0 else f"is no multiple of {step}"
    return Pair(
        ends=code(items),
        runs=code(changed),
        why_ends=f"every item is a multiple of {step} and not below 0: reduced by {step}, it is 0 "
        "at some time and leaves the queue",
        why_runs=f"{odd} {why}: reduced by {step} it is never 0, and goes back each time",
    )


def _growing_list(rng: Random) -> Pair:
    """A list that grows while it is iterated over."""
    factor, limit = rng.choice((2, 3)), rng.randint(30, 200)
    items = [rng.randint(1, 20) for _ in range(rng.randint(2, 4))]
    place = rng.randrange(len(items))
    fixed = rng.choice((0, -rng.randint(1, 9)))
    changed = [*items[:place], fixed, *items[place + 1 :]]
    name = rng.choice(("items", "numbers", "values"))

    def code(items: list[int]) -> str:
        return _module(
            f"""
            def f({name}):
                for number in {name}:
                    if number < {limit}:
                        {name}.append(number * {factor})
                return len({name})
            """,
            f"f({items})",
        )

    return Pair(
        ends=code(items),
        runs=code(changed),
        why_ends=f"all are above 0, so what is appended grows by {factor} times and comes to "
        f"{limit}, after which nothing is appended for it",
        why_runs=f"{fixed} times {factor} is never above {fixed}, which is below {limit}: for "
        "every such item another one is appended",
    )


def _break_condition(rng: Random) -> Pair:
    """``while True`` with a break at a remainder of squares, which some numbers are."""
    m = rng.randint(5, 24)
    squares = sorted({v * v % m for v in range(m)})
    others = sorted({*range(m)} - {*squares})
    start = rng.randint(0, 30)
    hit = rng.choice(squares)
    missed = rng.choice(others)
    passes = next(k for k in range(1, m + 1) if (start + k) ** 2 % m == hit)
    x = rng.choice(_COUNTERS)

    def code(remainder: int) -> str:
        return _module(
            f"""
            def f({x}):
                while True:
                    {x} += 1
                    if {x} * {x} % {m} == {remainder}:
                        break
                return {x}
            """,
            f"f({start})",
        )

    return Pair(
        ends=code(hit),
        runs=code(missed),
        why_ends=f"{start + passes} squared leaves {hit} by {m}",
        why_runs=f"squares leave one of {squares} by {m}, never {missed}",
    )


def _inner_loop(rng: Random) -> Pair:
    """A counter that an inner loop takes back, partly or wholly."""
    times, back = rng.randint(2, 3), rng.randint(1, 4)
    lost = times * back
    ahead, too_little = lost + rng.randint(1, 4), rng.randint(max(1, lost - 2), lost)
    n = rng.randint(ahead - lost + 1, (ahead - lost) * 8 + 1)
    i, j = rng.sample(("i", "j", "a", "b", "row", "col"), 2)

    def code(ahead: int) -> str:
        return _module(
            f"""
            def f(n):
                {i} = 0
                while {i} < n:
                    {i} += {ahead}
                    for {j} in range({times}):
                        {i} -= {back}
                return {i}
            """,
            f"f({n})",
        )

    return Pair(
        ends=code(ahead),
        runs=code(too_little),
        why_ends=f"{i} is {ahead - lost} higher after each pass",
        why_runs=f"{i} is 0 < {n} at first and never higher after a pass: {too_little} <= {lost}",
    )


def _skipped_step(rng: Random) -> Pair:
    """``continue`` before the counter's step, at a remainder that occurs or does not."""
    n, k = rng.randint(8, _MOST_PASSES), rng.randint(3, 7)
    start = rng.randint(0, 3)
    reached = rng.randrange(k)
    stuck = next(v for v in range(start, start + k) if v % k == reached)
    never = rng.randint(k, k + 4)
    i, total = rng.choice(_COUNTERS), rng.choice(("total", "acc", "result"))
    by_order = rng.random() < 0.5

    def code(remainder: int, steps_first: bool) -> str:
        step, skip = f"{i} += 1", f"if {i} % {k} == {remainder}:"
        first = f"{step}\n{' ' * 20}{skip}" if steps_first else skip
        last = f"{total} += {i}" if steps_first else f"{total} += {i}\n{' ' * 20}{step}"
        return _module(
            f"""
            def f({i}, limit):
                {total} = 0
                while {i} < limit:
                    {first}
                        continue
                    {last}
                return {total}
            """,
            f"f({start}, {max(n, stuck + 2)})",
        )

    why_ends = (
        f"{i} grows by 1 in every pass"
        if by_order
        else f"no remainder by {k} is {never}, so {i} grows by 1 in every pass"
    )
    return Pair(
        ends=code(reached, True) if by_order else code(never, False),
        runs=code(reached, False),
        why_ends=why_ends,
        why_runs=f"{i} comes to {stuck}, which leaves {reached} by {k}; nothing changes after that",
    )


def _subtraction(rng: Random) -> Pair:
    """Euclid by subtraction, which needs both numbers above 0."""
    while True:
        a, b = rng.randint(2, 60), rng.randint(2, 60)
        if a != b and _num_subtractions(a, b) <= _MOST_PASSES // 2:
            break
    bad = rng.choice((0, -rng.randint(1, 12)))
    x, y = rng.sample(("a", "b", "m", "n", "p", "q"), 2)
    second = rng.random() < 0.5

    def code(left: int, right: int) -> str:
        return _module(
            f"""
            def f({x}, {y}):
                while {x} != {y}:
                    if {x} > {y}:
                        {x} -= {y}
                    else:
                        {y} -= {x}
                return {x}
            """,
            f"f({left}, {right})",
        )

    kept = a if second else b
    return Pair(
        ends=code(a, b),
        runs=code(a, bad) if second else code(bad, b),
        why_ends="both stay above 0 and their sum falls with each pass until they are equal",
        why_runs=f"{kept} is above the other, {bad}, and grows by {-bad} with each pass: they are "
        "never equal",
    )


def _linked_nodes(rng: Random) -> Pair:
    """A walk from node to node, of which one link leads back or not."""
    count = rng.randint(5, 12)
    path = rng.sample(range(1, 40), count)
    links = dict(itertools.pairwise(path))
    broken = rng.randrange(2, count - 1)
    entry = rng.randrange(broken)
    changed = links | {path[broken]: path[entry]}
    order = rng.sample(path[:-1], count - 1)
    node = rng.choice(("node", "at", "here", "current"))

    def code(links: dict[int, int]) -> str:
        return _module(
            f"""
            def f(links, {node}):
                while {node} in links:
                    {node} = links[{node}]
                return {node}
            """,
            f"f({ {k: links[k] for k in order} }, {path[0]})",
        )

    return Pair(
        ends=code(links),
        runs=code(changed),
        why_ends=f"the walk is {path}, and {path[-1]} has no link",
        why_runs=f"the walk comes into the cycle {path[entry : broken + 1]} and has a link at each",
    )


def _bisection(rng: Random) -> Pair:
    """A search between two bounds that come together, or stay one apart."""
    high = rng.randint(12, 60)
    n = rng.randint(2, (high - 2) ** 2)
    low, mid = rng.choice((("lo", "mid"), ("low", "middle"), ("left", "m")))
    by_test = rng.random() < 0.5
    root = next(v for v in range(high + 1) if v * v >= n)

    def code(test: str, move: str) -> str:
        return _module(
            f"""
            def f(n, {low}, hi):
                while hi - {low} > {test}:
                    {mid} = ({low} + hi) // 2
                    if {mid} * {mid} < n:
                        {low} = {mid}{move}
                    else:
                        hi = {mid}
                return hi
            """,
            f"f({n}, 0, {high})",
        )

    return Pair(
        ends=code("1", "") if by_test else code("0", " + 1"),
        runs=code("0", ""),
        why_ends=f"hi - {low} falls with each pass",
        why_runs=f"{low} * {low} < {n} <= hi * hi always holds, so {low} < hi; at {root - 1} and "
        f"{root} the middle is {low} itself, and nothing changes",
    )


def _float_target(rng: Random) -> Pair:
    """A sum of decimal fractions that is exactly the target at some time, or just misses it."""
    goals, steps = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0), [k / 20 for k in range(1, 16)]
    keys = [(goal, step, start) for goal in goals for step in steps for start in (0.0, -0.5, -1.0)]
    meets = {k: _last_below(*k) for k in keys if (k[0] - k[2]) / k[1] <= _MOST_PASSES}
    ends = [k for k, below in meets.items() if below + k[1] == k[0]]
    # Only those that would meet it if they were exact: else a look at the numbers is enough.
    runs = [
        k
        for k, below in meets.items()
        if below + k[1] != k[0] and round((k[0] - k[2]) * 20) % round(k[1] * 20) == 0
    ]
    run = rng.choice([r for r in runs if any(r[0] == e[0] and r[2] == e[2] for e in ends)])
    end = rng.choice([e for e in ends if e[0] == run[0] and e[2] == run[2]])
    x, goal = rng.choice(_COUNTERS), rng.choice(_BOUNDS)

    def code(target: float, step: float, start: float) -> str:
        return _module(
            f"""
            def f({x}, {goal}):
                while {x} != {goal}:
                    {x} += {step}
                return {x}
            """,
            f"f({start}, {target})",
        )

    below = meets[run]
    return Pair(
        ends=code(*end),
        runs=code(*run),
        why_ends=f"the sum in floating point is exactly {end[0]} at last",
        why_runs=f"{x} is {below!r}, then {below + run[1]!r}, above {run[0]}; it never falls",
    )


FAMILIES: dict[str, Callable[[Random], Pair]] = {
    "step_sign": _step_sign,
    "missed_target": _missed_target,
    "modular_orbit": _modular_orbit,
    "collatz": _collatz,
    "mutual_calls": _mutual_calls,
    "refuelled": _refuelled,
    "work_list": _work_list,
    "growing_list": _growing_list,
    "break_condition": _break_condition,
    "inner_loop": _inner_loop,
    "skipped_step": _skipped_step,
    "subtraction": _subtraction,
    "linked_nodes": _linked_nodes,
    "bisection": _bisection,
    "float_target": _float_target,
}


class _Counted:
    """Lines that count passes, in some programs: they change nothing about the end."""

    def __init__(self, rng: Random) -> None:
        self._name = rng.choice(("", "", "count", "steps", "rounds"))

    def before(self, indent: int) -> str:
        return f"\n{' ' * indent}{self._name} = 0" if self._name else ""

    def inside(self, indent: int) -> str:
        return f"\n{' ' * indent}{self._name} += 1" if self._name else ""

    def result(self, other: str) -> str:
        return self._name or other


def _module(functions: str, call: str) -> str:
    body = textwrap.dedent(functions).strip()
    return f"{body}\n\n\ndef main():\n    return {call}\n\n\nmain()\n"


def _orbit(start: int, step: Callable[[int], int]) -> list[int]:
    """The values from ``start`` on, up to the first that comes again."""
    values: list[int] = []
    while start not in values:
        values.append(start)
        start = step(start)
    return values


def _course(rule: tuple[int, int], start: int) -> list[int]:
    """From ``start`` to 1 or to the first value that comes again; empty if it is long."""
    factor, add = rule
    values = [start]
    while len(values) <= _MOST_PASSES:
        last = values[-1]
        values.append(last // 2 if last % 2 == 0 else factor * last + add)
        if values[-1] == 1 or values[-1] in values[:-1]:
            return values
    return []


def _share_one(first: tuple[object, object], second: tuple[object, object]) -> bool:
    return (first[0] == second[0]) != (first[1] == second[1])


def _num_subtractions(a: int, b: int) -> int:
    passes = 0
    while a != b:
        a, b = (a - b, b) if a > b else (a, b - a)
        passes += 1
    return passes


def _last_below(goal: float, step: float, start: float) -> float:
    """The last partial sum below the goal."""
    while start + step < goal:
        start += step
    return start

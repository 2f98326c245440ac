"""A seeded generator of small Python programs, whose traces teach and measure execution.

Every program is a whole trace context: helper functions, ``f`` and a ``main`` that calls it. None
is run to make it; types, ranges, sizes and the number of trace events are known while it is
written (``cwm_jax.trace.programs``), so it always ends within the limits of its difficulty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from cwm_jax.trace.programs.bindings import NAMES, bind
from cwm_jax.trace.programs.containers import EXPRESSIONS
from cwm_jax.trace.programs.control import attempted, control
from cwm_jax.trace.programs.exceptions import (
    checking_function,
    escape,
    guarded,
    idle_guard,
    raising_loop,
)
from cwm_jax.trace.programs.expressions import called, expression, literal
from cwm_jax.trace.programs.functions import helper_function, recursive_function
from cwm_jax.trace.programs.scope import Scope, Unfit
from cwm_jax.trace.programs.statements import STATEMENTS
from cwm_jax.trace.programs.values import HelperFunction, Level

# Kinds of programs and the difficulty from which on they occur.
FROM_DIFFICULTY = {
    "arithmetic": 1,
    "strings": 1,
    "lists": 1,
    "dicts": 1,
    "tuples_sets": 1,
    "branches": 2,
    "loops": 2,
    "comprehensions": 4,
    "calls": 4,
    "recursion": 5,
    "exceptions": 5,
}
KINDS = tuple(FROM_DIFFICULTY)
DATA_KINDS = KINDS[:5]
LEVELS = {
    1: Level((2, 3), nesting=0, literal=9, magnitude=100, string=8, items=4, events=12,
             helpers=(0, 0), depth=1),
    2: Level((2, 3), nesting=1, literal=20, magnitude=1000, string=10, items=5, events=48,
             helpers=(0, 0), depth=2),
    3: Level((2, 4), nesting=2, literal=50, magnitude=5000, string=14, items=6, events=128,
             helpers=(0, 0), depth=2),
    4: Level((3, 5), nesting=3, literal=99, magnitude=10000, string=16, items=7, events=288,
             helpers=(0, 1), depth=3),
    5: Level((3, 6), nesting=3, literal=99, magnitude=20000, string=18, items=8, events=512,
             helpers=(1, 3), depth=3),
}  # fmt: skip
ESCAPE_FRACTION = 1 / 8  # assumed: how many of the exceptions programs end in one that main sees
EVENTS_AROUND = 5  # call, line and return of main, call and return of f
EVENTS_OF_AN_ESCAPE = 2  # the exception, in f and in main
TRIES = 12
ATTEMPTS = 64
PARAMETERS = {
    "arithmetic": ("int",),
    "strings": ("str", "str", "list[str]"),
    "lists": ("list[int]", "list[int]", "list[str]"),
    "dicts": ("dict[str, int]",),
    "tuples_sets": ("tuple[int]", "tuple[int]", "set[int]"),
}
NESTED = {"lists": "list[list[int]]", "tuples_sets": "list[tuple[str, int]]"}
# What shows in a line that a kind is in a program; no string of a program looks like it.
MARKS = {
    "branches": re.compile(r"^ *if | else "),
    "loops": re.compile(r"^ *(for|while) "),
    "comprehensions": re.compile(r"[^ ] +for "),
    "calls": re.compile(r"\blambda "),
    "exceptions": re.compile(r"^ *(try:|raise |assert )"),
}
START = "def main():  # << START_OF_TRACE\n    return f({})\n"


@dataclass(frozen=True)
class GeneratedProgram:
    """A program whose execution from ``main`` is to be traced.

    Attributes:
        source: the trace context, from its first newline to the one after ``return f(...)``.
        kinds: what of the kinds asked for is in it, in the order of ``KINDS``.
        difficulty: from 1 to 5.
        name: "gen-SEED-INDEX".
    """

    source: str
    kinds: tuple[str, ...]
    difficulty: int
    name: str


def generate_program(
    seed: int, index: int, *, difficulty: int | None = None, kinds: Sequence[str] = KINDS
) -> GeneratedProgram:
    """A program; a pure function of its arguments on every CPython.

    ==========  ==========  =======  ========  ==========  ======  =======================
    difficulty  statements  nesting  integers  characters  events  new
    ==========  ==========  =======  ========  ==========  ======  =======================
    1           2 to 3      0        100       8           12      straight-line
    2           2 to 3      1        1000      10          48      branches, loops
    3           2 to 4      2        5000      14          128     branches in loops
    4           3 to 5      3        10000     16          288     helpers, comprehensions
    5           3 to 6      3        20000     18          512     recursion, exceptions
    ==========  ==========  =======  ========  ==========  ======  =======================

    Statements are the top-level ones of ``f``, some constructs of control on top; integers the
    greatest absolute value; characters those of an argument; events all that ``sys.settrace``
    reports from the call of ``main`` to its return. Expressions have one operator at difficulty 1,
    operators inside operators from 2 on. ``LEVELS`` has the whole table.

    Args:
        seed: of a family of programs.
        index: which program of the family.
        difficulty: from 1 to 5; by default one of those that the kinds allow.
        kinds: what the program may be about; a kind occurs from its ``FROM_DIFFICULTY`` on.

    Raises:
        ValueError: an unknown kind or difficulty, or no kind that occurs at this difficulty.
    """
    _check_request(difficulty, kinds)
    chosen = tuple(kind for kind in KINDS if kind in kinds)
    start = Random(f"cwm-jax program {seed} {index} {difficulty} {','.join(chosen)}")
    if difficulty is None:
        difficulty = start.choice([d for d in LEVELS if _at(d, chosen)])
    for attempt in range(ATTEMPTS):
        rng = Random(f"{start.random()} {attempt}")
        try:
            source, used = _program(rng, difficulty, _at(difficulty, chosen))
        except Unfit:
            continue
        found = tuple(kind for kind in chosen if kind in used)
        if found:
            return GeneratedProgram(source, found, difficulty, f"gen-{seed}-{index}")
    raise AssertionError(f"no program of {chosen} at difficulty {difficulty}: a bug")


def generate_programs(
    seed: int,
    count: int,
    *,
    difficulties: Sequence[int] = range(1, 6),
    kinds: Sequence[str] = KINDS,
) -> Iterator[GeneratedProgram]:
    """``count`` programs of the seed, by index, the difficulties taking turns.

    Raises:
        ValueError: as ``generate_program`` does.
    """
    if not difficulties:
        raise ValueError("difficulties is empty; expected some of 1 to 5: leave it out for all")
    for index in range(count):
        difficulty = difficulties[index % len(difficulties)]
        yield generate_program(seed, index, difficulty=difficulty, kinds=kinds)


def _check_request(difficulty: int | None, kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        got = f"unknown kinds {unknown}" if unknown else "no kinds"
        raise ValueError(f"generator: got {got}; expected some of {', '.join(KINDS)}: choose there")
    if difficulty is not None and difficulty not in LEVELS:
        raise ValueError(f"generator: got difficulty {difficulty}; expected 1 to 5: choose one")
    if difficulty is not None and not _at(difficulty, kinds):
        first = min(FROM_DIFFICULTY[kind] for kind in kinds)
        raise ValueError(
            f"generator: kinds {list(kinds)} do not occur at difficulty {difficulty}; expected "
            f"{first} or more: raise the difficulty or add a kind"
        )


def _at(difficulty: int, kinds: Sequence[str]) -> list[str]:
    return [kind for kind in kinds if FROM_DIFFICULTY[kind] <= difficulty]


def _program(rng: Random, difficulty: int, kinds: list[str]) -> tuple[str, set[str]]:
    """The source of a program and what is in it.

    Raises:
        Unfit: nothing came out of these choices.
    """
    level = LEVELS[difficulty]
    data, control_kinds = _plan(rng, difficulty, kinds)
    chosen = frozenset(data + control_kinds)
    helpers = _helpers(rng, level, chosen)
    left = level.events - EVENTS_AROUND
    reserved = {"f", "main", *(helper.name for helper in helpers)}
    scope = Scope(rng, level, chosen, left, EXPRESSIONS, list(helpers), reserved)
    parameters = _parameters(scope, data or ["arithmetic"], difficulty)
    escapes = "exceptions" in chosen and rng.random() < ESCAPE_FRACTION
    scope.returns_early = not escapes and difficulty > 1
    _body(scope, control_kinds, escapes)
    lines = [f"def f({', '.join(parameters)}):", *scope.lines]
    found = {*data, *(["exceptions"] if escapes else [])}
    for helper, text in reversed(helpers.items()):
        if any(re.search(rf"\b{helper.name}\(", line) for line in lines):
            lines = [*text, *lines]
            found |= {helper.kind, "calls"}
    found |= {kind for kind, mark in MARKS.items() if any(mark.search(line) for line in lines)}
    source = "\n" + "\n".join(lines) + "\n" + START.format(", ".join(parameters.values()))
    return source, found & chosen


def _plan(rng: Random, difficulty: int, kinds: list[str]) -> tuple[list[str], list[str]]:
    """The kinds of data and of control of one program."""
    data = [kind for kind in kinds if kind in DATA_KINDS]
    data = rng.sample(data, min(len(data), rng.randint(1, 2 + (difficulty >= 4))))
    control_kinds = [kind for kind in kinds if kind not in DATA_KINDS]
    hardest = [kind for kind in control_kinds if FROM_DIFFICULTY[kind] == difficulty]
    if difficulty == 2 and control_kinds:
        return data, [rng.choice(control_kinds)]
    found = [kind for kind in control_kinds if rng.random() < 0.75]
    if hardest and not set(hardest) & set(found):
        found.append(rng.choice(hardest))
    if difficulty == 3 and control_kinds and not found:
        found.append(rng.choice(control_kinds))
    if not data and not found:
        found = control_kinds
    return data, found


def _helpers(rng: Random, level: Level, kinds: frozenset[str]) -> dict[HelperFunction, list[str]]:
    """The functions beside ``f``, each with its lines; a later one may call the earlier."""
    helpers = {}
    low, high = level.helpers
    if "recursion" in kinds:
        helper, lines = recursive_function(rng, level)
        helpers[helper] = lines
    if "exceptions" in kinds and rng.random() < 0.4:
        helper, lines = checking_function(rng, level)
        helpers[helper] = lines
    if "calls" in kinds:
        for _ in range(max(rng.randint(low, high), 1) - (len(helpers) > 1)):
            helper, lines = helper_function(
                rng, level, kinds=kinds, makers=EXPRESSIONS, helpers=list(helpers)
            )
            helpers[helper] = lines
    return helpers


def _parameters(scope: Scope, data: list[str], difficulty: int) -> dict[str, str]:
    """Parameters of ``f`` of the kinds of data, declared, and the arguments as text."""
    rng, made = scope.rng, {}
    wanted = [rng.choice(PARAMETERS[kind]) for kind in data]
    if len(wanted) < 3 and rng.random() < 0.6:
        wanted.append(rng.choice(("int", rng.choice(PARAMETERS[rng.choice(data)]))))
    nested = [NESTED[kind] for kind in data if kind in NESTED]
    if nested and difficulty >= 4 and "loops" in scope.kinds and rng.random() < 0.4:
        wanted[0] = rng.choice(nested)
    for type_name in wanted:
        name, value = scope.fresh_name(NAMES[type_name]), literal(scope, type_name)
        scope.declare(name, value.bounds)
        made[name] = value.text
    return made


def _body(scope: Scope, control_kinds: list[str], escapes: bool) -> None:
    """The statements of ``f``, one of each kind of control among them, and its return."""
    rng = scope.rng
    steps = [_STEPS[kind] for kind in control_kinds]
    steps += [_data] * (rng.randint(*scope.level.statements) - len(steps) // 2)
    rng.shuffle(steps)
    for step in steps:
        for _ in range(TRIES):
            if attempted(scope, lambda step=step: step(scope)):
                break
    if "exceptions" in control_kinds and not escapes and rng.random() < 0.15:
        attempted(scope, lambda: idle_guard(scope))
    if escapes:
        scope.charge(EVENTS_OF_AN_ESCAPE)
    if escapes and not any(attempted(scope, lambda: escape(scope)) for _ in range(TRIES)):
        raise Unfit
    _return(scope)


def _data(scope: Scope) -> None:
    kinds = [kind for kind in DATA_KINDS if kind in scope.kinds] or ["arithmetic"]
    table = STATEMENTS[scope.rng.choice(kinds)]
    scope.rng.choices(list(table), list(table.values()))[0](scope)


def _branch(scope: Scope) -> None:
    control(scope, kind="branches")


def _loop(scope: Scope) -> None:
    control(scope, kind="loops")


def _comprehension(scope: Scope) -> None:
    """A variable whose value is made by a comprehension or a generator expression."""
    types = ("list[int]", "list[str]", "int", "bool", "dict[str, int]")
    value = expression(scope, scope.rng.choice(types))
    if not MARKS["comprehensions"].search(value.text):
        raise Unfit
    bind(scope, value)


def _call(scope: Scope) -> None:
    types = {h.result.type for h in scope.helpers if h.kind != "exceptions"}
    bind(scope, called(scope, scope.rng.choice(sorted(types) or ["int"])))


def _exception(scope: Scope) -> None:
    (guarded if scope.rng.random() < 0.75 else raising_loop)(scope)


def _return(scope: Scope) -> None:
    """Return what nothing has read, or else something made of what is there."""
    rng = scope.rng
    unread = [v.name for v in scope.variables.values() if not v.used]
    if not unread or (len(unread) == 1 and rng.random() < 0.3):
        types = [v.bounds.type for v in scope.variables.values() if v.bounds.type != "bool"]
        value = expression(scope, rng.choice(types or ["int"]))
        if unread and not scope.variables[unread[0]].used:
            unread.append(value.text)
        else:
            unread = [value.text]
    unread = list(dict.fromkeys(unread))
    numbers = all(n in scope.variables and scope.variables[n].bounds.type == "int" for n in unread)
    if numbers and len(unread) > 1 and rng.random() < 0.4:
        scope.emit(f"return [{', '.join(unread)}]")
    elif len(unread) == 2 and rng.random() < 0.15:
        scope.emit(f"return {{'{unread[0][:1]}1': {unread[0]}, 'other': {unread[1]}}}")
    else:
        scope.emit(f"return {', '.join(unread)}")


_STEPS = {
    "branches": _branch,
    "loops": _loop,
    "comprehensions": _comprehension,
    "calls": _call,
    "recursion": _call,
    "exceptions": _exception,
}

"""The heads of the ``for`` loops of generated programs."""

from __future__ import annotations

from dataclasses import dataclass

from cwm_jax.trace.programs.expressions import CHAR_NAMES, ITEM_NAMES
from cwm_jax.trace.programs.scope import Scope, Unfit
from cwm_jax.trace.programs.values import Bounds

LOOP_INTS = ("i", "j", "k")


@dataclass(frozen=True, slots=True)
class Iteration:
    """The head of a ``for``: text, variables, how often at most, and what must not change.

    ``index`` says that the first variable is a valid index of what must not change.
    """

    head: str
    variables: tuple[tuple[str, Bounds], ...]
    times: int
    locked: str = ""
    index: bool = False


def _over_range(scope: Scope) -> Iteration:
    rng = scope.rng
    name, most = scope.fresh_name(LOOP_INTS), scope.level.items
    limits = [v for v in scope.candidates("int") if 1 <= v.bounds.high <= most]
    if limits and rng.random() < 0.5:
        limit = rng.choice(limits)
        limit.used = True
        high = limit.bounds.high
        return Iteration(
            f"{name} in range({limit.name})", ((name, Bounds("int", 0, high - 1)),), high
        )
    start, step, times = rng.randint(0, 4), rng.choice((1, 1, 2, 3)), rng.randint(2, most)
    stop = start + step * times
    text = f"range({start}, {stop}, {step})" if step > 1 else f"range({start}, {stop})"
    if start == 0 and step == 1:
        text = f"range({stop})"
    if rng.random() < 0.15:
        text = f"range({stop}, {start}, -{step})"
        return Iteration(f"{name} in {text}", ((name, Bounds("int", start + 1, stop)),), times)
    return Iteration(f"{name} in {text}", ((name, Bounds("int", start, stop - step)),), times)


def _over_indexes(scope: Scope) -> Iteration:
    source = scope.read(scope.rng.choice(("list[int]", "str", "list[str]")))
    most = source.bounds.max_size
    if most < 1:
        raise Unfit
    name = scope.fresh_name(LOOP_INTS)
    bounds = Bounds("int", 0, most - 1)
    return Iteration(
        f"{name} in range(len({source.text}))", ((name, bounds),), most, source.text, True
    )


def _over_items(scope: Scope) -> Iteration:
    rng = scope.rng
    source = scope.read(rng.choice(("list[int]", "list[str]", "str", "tuple[int]", "set[int]")))
    b, kind = source.bounds, source.bounds.type
    if b.max_size < 1:
        raise Unfit
    name, bounds = item_variable(scope, b)
    if kind == "set[int]":
        return Iteration(f"{name} in sorted({source.text})", ((name, bounds),), b.max_size)
    form = rng.choice(("{}", "{}", "{}", "{}", "reversed({})", "{}[1:]", "{}[::-1]", "enumerate"))
    if form == "enumerate":
        index, start = scope.fresh_name(("i", "idx", "pos")), rng.choice(("", "", ", 1"))
        head = f"{index}, {name} in enumerate({source.text}{start})"
        place = Bounds("int", bool(start), b.max_size - 1 + bool(start))
        return Iteration(head, ((index, place), (name, bounds)), b.max_size, source.text)
    return Iteration(
        f"{name} in {form.format(source.text)}", ((name, bounds),), b.max_size, source.text
    )


def _over_pairs(scope: Scope) -> Iteration:
    """``zip`` of two sequences, or the tuples of a list of them."""
    rows = scope.candidates("list[tuple[str, int]]")
    if rows:
        source = scope.read("list[tuple[str, int]]")
        b = source.bounds
        word, value = (
            scope.fresh_name(("name", "word", "key")),
            scope.fresh_name(("n", "v", "amount")),
        )
        made = ((word, Bounds("str", 0, 0, 0, b.width)), (value, Bounds("int", b.low, b.high)))
        return Iteration(f"{word}, {value} in {source.text}", made, b.max_size, source.text)
    kinds = ("list[int]", "list[str]", "str", "tuple[int]")
    left, right = (scope.read(scope.rng.choice(kinds)) for _ in range(2))
    times = min(left.bounds.max_size, right.bounds.max_size)
    if times < 1:
        raise Unfit
    other = right.text if right.text != left.text else f"{right.text}[1:]"
    (a, a_bounds), (b, b_bounds) = (
        item_variable(scope, left.bounds),
        item_variable(scope, right.bounds),
    )
    if a == b:
        b = f"{b}2"
    if b in scope.variables:
        raise Unfit
    made = ((a, a_bounds), (b, b_bounds))
    return Iteration(f"{a}, {b} in zip({left.text}, {other})", made, times, left.text)


def _over_table(scope: Scope) -> Iteration:
    source = scope.read("dict[str, int]")
    b = source.bounds
    key, value = scope.fresh_name(("k", "key", "name")), scope.fresh_name(("v", "val", "n"))
    word, item = Bounds("str", 0, 0, 0, b.width), Bounds("int", b.low, b.high)
    if b.max_size < 1:
        raise Unfit
    if scope.rng.random() < 0.3:
        form = scope.rng.choice(("{}", "sorted({})", "list({})"))
        head = f"{key} in {form.format(source.text)}"
        return Iteration(head, ((key, word),), b.max_size, source.text)
    form = scope.rng.choice(("{}.items()", "{}.items()", "sorted({}.items())"))
    head = f"{key}, {value} in {form.format(source.text)}"
    return Iteration(head, ((key, word), (value, item)), b.max_size, source.text)


def _over_parts(scope: Scope) -> Iteration:
    text = scope.read("str")
    times = min(text.bounds.max_size // 2 + 1, 4)
    name = scope.fresh_name(ITEM_NAMES["str"])
    bounds = Bounds("str", 0, 0, 0, text.bounds.max_size)
    return Iteration(f"{name} in {text.text}.split()[:{times}]", ((name, bounds),), times)


def item_variable(scope: Scope, bounds: Bounds) -> tuple[str, Bounds]:
    if bounds.type == "str":
        return scope.fresh_name(CHAR_NAMES), Bounds("str", 0, 0, 1, 1)
    if bounds.type == "list[str]":
        return scope.fresh_name(ITEM_NAMES["str"]), Bounds("str", 0, 0, 0, bounds.width)
    return scope.fresh_name(ITEM_NAMES["int"]), Bounds("int", bounds.low, bounds.high)


ITERATIONS = (
    _over_items, _over_items, _over_items, _over_items, _over_range, _over_range, _over_indexes,
    _over_pairs, _over_table, _over_table, _over_parts,
)  # fmt: skip

"""Statements of generated programs that change a variable, by its type."""

from __future__ import annotations

from dataclasses import replace

from cwm_jax.trace.programs.bindings import bind
from cwm_jax.trace.programs.expressions import expression, key_of, leaf, number, some_int
from cwm_jax.trace.programs.scope import Scope, Unfit
from cwm_jax.trace.programs.values import PRODUCT, SUM, Bounds, Expression, Variable


def change(scope: Scope, variable: Variable) -> None:
    """One statement that changes the variable, as its type offers."""
    if variable.name in scope.locked or variable.fixed:
        raise Unfit
    makers = CHANGES[variable.bounds.type]
    scope.rng.choice(makers)(scope, variable)


# -- int -------------------------------------------------------------------------------------------


def _room(scope: Scope, variable: Variable) -> tuple[int, int]:
    """How far down and up the variable may go each time that this block runs."""
    if variable.block == scope.block:
        b, most = variable.bounds, scope.level.magnitude
        return b.low + most, most - b.high
    times = scope.times // variable.times
    return variable.slack_low // times, variable.slack_high // times


def _add(scope: Scope, variable: Variable) -> None:
    value = expression(scope, "int", min(scope.level.depth, 2))
    down, up = _room(scope, variable)
    sign = "+" if scope.rng.random() < 0.7 else "-"
    if value.text in ("0", variable.name):
        raise Unfit
    if sign == "-":
        down, up = up, down
    if value.bounds.high > up or value.bounds.low < -down:
        if up < 2:
            raise Unfit
        most = min(up + 1, scope.rng.choice((3, 5, 7, 10, 20, 50)))
        value = Expression(f"{value.at(PRODUCT)} % {most}", Bounds("int", 0, most - 1), PRODUCT)
    low, high = value.bounds.low, value.bounds.high
    if sign == "-":
        low, high = -high, -low
    scope.change(variable, low=low, high=high)
    scope.emit(f"{variable.name} {sign}= {value.text}")


def _rebind_int(scope: Scope, variable: Variable) -> None:
    """``x = x * 3 % 17``, ``x = max(x, y)`` and the like."""
    rng, name = scope.rng, variable.name
    choice = rng.randrange(4)
    own = Expression(name, variable.bounds)
    if choice == 0:
        other = some_int(scope, 1)
        if other.text == name:
            raise Unfit
        text = rng.choice(("max", "min"))
        scope.assign(variable, scope.known(variable).hull(other.bounds))
        scope.emit(f"{name} = {text}({name}, {other.text})")
    elif choice == 1:
        divisor = rng.randint(2, 9)
        b = scope.known(variable)
        if variable.block == scope.block:
            scope.assign(variable, Bounds("int", b.low // divisor, b.high // divisor))
        else:  # it ends between where it was and zero
            scope.assign(variable, replace(b, low=min(b.low, 0), high=max(b.high, 0)))
        scope.emit(f"{name} //= {divisor}")
    elif choice == 2:
        factor, divisor = rng.randint(2, 9), rng.choice((7, 10, 13, 17, 26, 31, 50, 97))
        other = leaf(scope, "int")
        if other.text == "0":
            raise Unfit
        scope.assign(variable, Bounds("int", 0, divisor - 1))
        scope.emit(f"{name} = ({own.text} * {factor} + {other.at(PRODUCT)}) % {divisor}")
    else:
        divisor = rng.choice((5, 7, 10, 11, 16, 20, 32))
        scope.assign(variable, Bounds("int", 0, divisor - 1))
        scope.emit(f"{name} %= {divisor}")


# -- str -------------------------------------------------------------------------------------------


def _append_text(scope: Scope, variable: Variable) -> None:
    value = expression(scope, "str", 1)
    b, most = value.bounds, 4
    if value.text == variable.name:
        raise Unfit
    if variable.block != scope.block:
        most = variable.slack_grow * variable.times // scope.times
    if b.max_size > max(most, 1):
        if most < 1 or value.text.startswith("'"):
            raise Unfit
        size = min(most, scope.rng.randint(1, 3))
        b = replace(b, min_size=min(b.min_size, size), max_size=size)
        value = Expression(f"{value.at(0)}[:{size}]", b)
    if variable.block == scope.block:
        text = f"{variable.name} += {value.text}"
        scope.assign(variable, _longer(variable.bounds, b))
    else:
        scope.change(variable, grow=b.max_size)
        text = f"{variable.name} += {value.text}"
        if scope.rng.random() < 0.3:
            text = f"{variable.name} = {value.at(SUM)} + {variable.name}"
    scope.emit(text)


def _longer(bounds: Bounds, by: Bounds) -> Bounds:
    sizes = (bounds.min_size + by.min_size, bounds.max_size + by.max_size)
    return replace(bounds, min_size=sizes[0], max_size=sizes[1])


def _rebind_text(scope: Scope, variable: Variable) -> None:
    value = expression(scope, "str", 1)
    if variable.empty or value.text == variable.name or value.text.startswith("'"):
        raise Unfit
    scope.assign(variable, value.bounds)
    scope.emit(f"{variable.name} = {value.text}")


# -- lists -----------------------------------------------------------------------------------------


def item_type(variable: Variable) -> str:
    return "int" if "int" in variable.bounds.type else "str"


def item_bounds(variable: Variable, value: Bounds) -> Bounds:
    width = value.max_size if value.type == "str" else 0
    return Bounds(variable.bounds.type, value.low, value.high, 0, 0, width)


def _append(scope: Scope, variable: Variable) -> None:
    value = expression(scope, item_type(variable), 1)
    scope.change(variable, grow=1, item=item_bounds(variable, value.bounds))
    if scope.rng.random() < 0.2:
        index = scope.rng.choice((0, 0, 1, 2))
        scope.emit(f"{variable.name}.insert({index}, {value.text})")
    else:
        scope.emit(f"{variable.name}.append({value.text})")


def _extend(scope: Scope, variable: Variable) -> None:
    value = expression(scope, variable.bounds.type, 1)
    if value.text == variable.name:
        raise Unfit
    b = value.bounds
    least = variable.bounds.min_size + b.min_size
    scope.change(variable, grow=b.max_size, item=b)
    if variable.block == scope.block:
        scope.assign(variable, replace(variable.bounds, min_size=least))
    form = scope.rng.choice(("{}.extend({})", "{} += {}"))
    scope.emit(form.format(variable.name, value.text))


def _reorder(scope: Scope, variable: Variable) -> None:
    form = scope.rng.choice(
        ("{0}.reverse()", "{0}.sort()", "{0}.sort(reverse=True)", "{0} = {0}[::-1]")
    )
    if variable.empty or (form.endswith("[::-1]") and variable.block != scope.block):
        raise Unfit
    variable.used = False
    scope.emit(form.format(variable.name))


def _set_item(scope: Scope, variable: Variable) -> None:
    least = variable.bounds.min_size
    if least < 1:
        raise Unfit
    value = expression(scope, item_type(variable), 1)
    index = scope.rng.randint(-least, least - 1)
    scope.change(variable, item=item_bounds(variable, value.bounds))
    scope.emit(f"{variable.name}[{index}] = {value.text}")


def _swap_items(scope: Scope, variable: Variable) -> None:
    least = variable.bounds.min_size
    if least < 2:
        raise Unfit
    i, j = scope.rng.sample((0, 1, -1) if least > 2 else (0, 1), 2)
    name = variable.name
    variable.used = False
    scope.emit(f"{name}[{i}], {name}[{j}] = {name}[{j}], {name}[{i}]")


def _take_item(scope: Scope, variable: Variable) -> None:
    """``x = nums.pop(0)`` or ``del nums[1]`` where an item is known to be there."""
    b, rng = variable.bounds, scope.rng
    if b.min_size < 2:
        raise Unfit
    scope.change(variable, shrink=1)
    if variable.block == scope.block:
        scope.assign(variable, replace(variable.bounds, max_size=b.max_size - 1))
    index = rng.randint(-2, 1)
    if rng.random() < 0.3:
        scope.emit(f"del {variable.name}[{index}]")
        return
    kind = item_type(variable)
    item = Bounds("int", b.low, b.high) if kind == "int" else Bounds("str", 0, 0, 0, b.width)
    bind(scope, Expression(f"{variable.name}.pop({'' if index == -1 else index})", item))


# -- dict ------------------------------------------------------------------------------------------


def _count_key(scope: Scope, variable: Variable) -> None:
    key = key_of(scope)
    by = scope.read("int") if scope.candidates("int") and scope.rng.random() < 0.5 else number(1)
    down, up = _room(scope, variable)
    if by.bounds.high > up or by.bounds.low < -down:
        by = number(1)
    zero = Bounds(variable.bounds.type, 0, 0, 0, 0, key.bounds.max_size)
    low, high = by.bounds.low, by.bounds.high
    scope.change(variable, low=low, high=high, grow=1, item=zero)
    name = variable.name
    scope.emit(f"{name}[{key.text}] = {name}.get({key.text}, 0) + {by.at(PRODUCT)}")


def _set_key(scope: Scope, variable: Variable) -> None:
    key, value = key_of(scope), expression(scope, "int", 1)
    item = replace(item_bounds(variable, value.bounds), width=key.bounds.max_size)
    scope.change(variable, grow=1, item=item)
    form = "{}.setdefault({}, {})" if scope.rng.random() < 0.2 else "{}[{}] = {}"
    scope.emit(form.format(variable.name, key.text, value.text))


def _pop_key(scope: Scope, variable: Variable) -> None:
    if variable.block == scope.block:
        b = variable.bounds
        key = key_of(scope)
        scope.assign(variable, replace(b, min_size=max(b.min_size - 1, 0)))
        bounds = Bounds("int", min(b.low, 0), max(b.high, 0))
        bind(scope, Expression(f"{variable.name}.pop({key.text}, 0)", bounds))
        return
    raise Unfit


def _update_table(scope: Scope, variable: Variable) -> None:
    value = expression(scope, "dict[str, int]", 1)
    if value.text == variable.name:
        raise Unfit
    scope.change(variable, grow=value.bounds.max_size, item=value.bounds)
    scope.emit(f"{variable.name}.update({value.text})")


# -- tuples and sets -------------------------------------------------------------------------------


def _add_member(scope: Scope, variable: Variable) -> None:
    value = expression(scope, "int", 1)
    if value.bounds.low < 0:
        raise Unfit
    if scope.rng.random() < 0.2 and variable.block == scope.block:
        scope.assign(variable, replace(variable.bounds, min_size=0))
        scope.emit(f"{variable.name}.discard({value.text})")
        return
    scope.change(variable, grow=1, item=item_bounds(variable, value.bounds))
    scope.emit(f"{variable.name}.add({value.text})")


CHANGES = {
    "int": (_add, _add, _add, _rebind_int),
    "str": (_append_text, _append_text, _rebind_text),
    "list[int]": (_append, _append, _append, _extend, _reorder, _set_item, _swap_items, _take_item),
    "list[str]": (_append, _append, _append, _extend, _reorder, _set_item, _swap_items, _take_item),
    "dict[str, int]": (_count_key, _count_key, _set_key, _set_key, _pop_key, _update_table),
    "set[int]": (_add_member,),
}

"""Inverses of what leaves names out: imports, parameters, attributes, arguments of calls."""

from __future__ import annotations

import ast
import collections
import functools
import itertools
import math
import re
import sys
from collections.abc import Iterator, Sequence

from cwm_jax.forager.agent.policies.inverses.scope import FIRST_VALUES, MOST_NAMES, Draft, Scope
from cwm_jax.rl.envs.mutations.functions import own_nodes
from cwm_jax.rl.envs.mutations.text import Text

# Where a name that nobody defines is looked for, after the project's own modules; assumed.
_HOMES = (collections, functools, itertools, math, re)


def imports(text: Text, undefined: str, own: Sequence[tuple[str, str]]) -> Iterator[Draft]:
    """Of a name that is not defined.

    Args:
        text: of the module that reads it.
        undefined: the name.
        own: (module, name) of what the project defines.
    """
    lines = [f"from {module} import {name}" for module, name in own if name == undefined]
    lines += [f"from {m.__name__} import {undefined}" for m in _HOMES if hasattr(m, undefined)]
    if undefined in sys.stdlib_module_names:
        lines.insert(0, f"import {undefined}")
    at = _import_place(text)
    for number, line in enumerate(lines):
        why = f"`{undefined}` is read and never imported."
        source = text.replaced([(at, at, f"{line}\n")])
        yield Draft(cost=-2.0 + 0.1 * number, why=why, source=source)


def parameters(scope: Scope) -> Iterator[Draft]:
    """A parameter of each name that the function reads and nobody gives."""
    text, own = scope.text, scope.node.args
    opening = text.content.find(b"(", text.start(scope.node)) + 1
    plain = [*own.posonlyargs, *own.args]
    places = [text.start(a) for a in plain if a.arg not in ("self", "cls")]
    defaults = dict(zip(plain[::-1], own.defaults[::-1], strict=False))
    ends = [text.end(defaults.get(a, a)) for a in plain]
    for name in scope.undefined:
        why = f"`{scope.name}` reads `{name}`, which may have been one of its parameters."
        if ends:
            at = ends[-1]
            yield Draft(cost=0.4, why=why, source=text.replaced([(at, at, f", {name}")]))
            none = text.replaced([(at, at, f", {name}=None")])
            yield Draft(cost=0.5, why=why, source=none)
        else:
            yield Draft(cost=0.4, why=why, source=text.replaced([(opening, opening, name)]))
        for number, at in enumerate(places):
            source = text.replaced([(at, at, f"{name}, ")])
            yield Draft(cost=0.4 + 0.1 * number, why=why, source=source)


def further_parameters(scope: Scope, names: Sequence[str]) -> Iterator[Draft]:
    """A parameter that callers give and the body does not read, of these names or of any."""
    own = scope.node.args
    plain = [*own.posonlyargs, *own.args]
    opening = scope.text.content.find(b"(", scope.text.start(scope.node)) + 1
    places = [scope.text.end(plain[-1]), *map(scope.text.start, plain)] if plain else []
    why = f"Callers of `{scope.name}` give it more than it takes."
    for name in names or ("value",):
        if not plain:
            source = scope.text.replaced([(opening, opening, name)])
            yield Draft(cost=0.6, why=why, source=source)
        for number, at in enumerate(places):
            inserted = f"{name}, " if number else f", {name}=None"
            source = scope.text.replaced([(at, at, inserted)])
            yield Draft(cost=0.6 + 0.1 * number, why=why, source=source)


def attributes(scope: Scope, name: str) -> Iterator[Draft]:
    """A first value of an attribute, where an object is made."""
    why = f"`{scope.name}` may have lost the first value of `{name}`."
    own = [p for p in scope.parameters if p != "self"]
    values = dict.fromkeys([*(p for p in own if p == name), *FIRST_VALUES, *own])
    for rank, value in enumerate(values):
        source = scope.after(scope.body[-1], f"self.{name} = {value}")
        yield Draft(cost=0.1 * rank, why=why, source=source)


def arguments(scope: Scope, lacking: str, missing: str) -> Iterator[Draft]:
    """One more argument of a call.

    Args:
        scope: of the function with the calls.
        lacking: the function of which an error says that it is given too little; else empty.
        missing: the name of what it says is not given; else empty.
    """
    calls = [n for n in own_nodes(scope.node) if isinstance(n, ast.Call)]
    for call in calls:
        named = scope.text.of(call.func).rpartition(".")[2]
        is_named = bool(lacking) and named in (lacking, "super().__init__")
        values = [*_constants(named, call), *_likely(missing, scope, call.lineno)]
        if is_named:
            values += [v for v in _numbers(scope) if v not in values]
        for rank, value in enumerate(values):
            cost = (0.3 if is_named else 2.0) + 0.2 * rank
            cost -= 0.5 * (value in scope.unread)
            yield from _with_argument(scope, call, value, cost=cost)
        if missing and is_named:
            yield from _with_argument(scope, call, f"{missing}={missing}", cost=0.3)


def _import_place(text: Text) -> int:
    first = text.tree.body[0] if isinstance(text.tree, ast.Module) and text.tree.body else None
    if not isinstance(first, ast.Expr):
        return 0
    body = [s for s in ast.walk(text.tree) if isinstance(s, ast.ImportFrom)]
    futures = [s for s in body if s.module == "__future__"]
    at = text.end(futures[-1] if futures else first)
    return text.content.find(b"\n", at) + 1


def _likely(missing: str, scope: Scope, line: int) -> list[str]:
    """Names that may be given, the likeliest first."""
    names = [n for n in scope.unread if n not in ("self", "cls")] + scope.near(line)
    names = list(dict.fromkeys(names))
    if missing in names:
        names = [missing, *(n for n in names if n != missing)]
    return names[:MOST_NAMES]


def _numbers(scope: Scope) -> list[str]:
    """Small ones, and texts that the function has."""
    found = [n for n in own_nodes(scope.node) if isinstance(n, ast.Constant)]
    own = [scope.text.of(n) for n in found if isinstance(n.value, int | str)]
    return list(dict.fromkeys([*own, *map(str, range(1, 9))]))[:12]


def _constants(named: str, call: ast.Call) -> list[str]:
    """What is often the second argument."""
    if len(call.args) != 1:
        return []
    usual = {
        "range": ["1", "0"],
        "get": ["0", "[]", "None"],
        "round": ["2"],
        "max": ["0"],
        "min": ["0"],
        "setdefault": ["[]", "set()"],
        "getattr": ["None"],
    }
    return usual.get(named, [])


def _with_argument(scope: Scope, call: ast.Call, value: str, *, cost: float) -> Iterator[Draft]:
    text = scope.text
    why = f"The call `{_short(text.of(call.func))}` of line {call.lineno} may lack an argument."
    given = [*call.args, *(k.value for k in call.keywords)]
    closing = text.end(call) - 1
    if not given:
        yield Draft(cost=cost, why=why, source=text.replaced([(closing, closing, value)]))
        return
    last = max(text.end(part) for part in given)
    yield Draft(cost=cost, why=why, source=text.replaced([(last, last, f", {value}")]))
    if "=" not in value:
        for number, part in enumerate(call.args):
            at = text.start(part)
            source = text.replaced([(at, at, f"{value}, ")])
            yield Draft(cost=cost + 0.1 + 0.1 * number, why=why, source=source)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else line[:37] + "..."

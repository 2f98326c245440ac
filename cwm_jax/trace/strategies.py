"""Hypothesis strategies for the arguments of functions, found in source text that is never run.

Values are small, as those of tests and examples are (assumed: the report's fuzzing is unpublished),
and each is a literal: `literal` writes it and ``ast.literal_eval`` reads it back.
"""

from __future__ import annotations

import ast
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from cwm_jax.trace.tracer import PARSE_ERRORS

MAX_ITEMS = 6  # of a container
MAX_DEPTH = 4  # of nested annotations; deeper ones are not looked at

_LETTERS = string.ascii_lowercase
_SOME_UNICODE = "äéßñøЖλ中😀"


def _text(characters: Sequence[str], min_size: int = 0, max_size: int = 20) -> SearchStrategy[str]:
    # st.text keeps a table of all Unicode in a folder that it makes in the working directory
    items = st.lists(st.sampled_from(characters), min_size=min_size, max_size=max_size)
    return items.map("".join)


_integers = st.one_of(
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(-20, 100),
    st.integers(-(10**6), 10**9),
)
_floats = st.one_of(
    st.integers(-40, 200).map(lambda tenths: tenths / 4),
    st.floats(-1e6, 1e6, allow_nan=False, allow_infinity=False, width=32),
)
_words = _text(_LETTERS, 1, 8)
_texts = st.one_of(
    _words,
    st.lists(_words, min_size=1, max_size=5).map(" ".join),
    _text(string.ascii_letters + string.digits + " .,:;!?-_()[]{}\n"),
    _text(_LETTERS + _SOME_UNICODE, max_size=10),
)
_bytes = _text(string.ascii_letters + string.digits + " \n", max_size=12).map(str.encode)
_scalars = st.one_of(_integers, _texts, st.booleans(), _floats, st.none())
_items = st.one_of(_integers, _words)
_anything = st.one_of(_scalars, st.lists(_integers, max_size=MAX_ITEMS))

_PLAIN: dict[str, SearchStrategy[Any]] = {
    "int": _integers,
    "float": _floats,
    "bool": st.booleans(),
    "str": _texts,
    "bytes": _bytes,
    "bytearray": _bytes,
    "None": st.none(),
    "Any": _anything,
    "object": _anything,
    "Text": _texts,
    "AnyStr": _texts,
    "Number": _integers,
    "Hashable": _items,
}
_HASHABLE = {"int", "float", "bool", "str", "bytes", "None", "Text", "AnyStr", "Hashable"}
_LISTS = {"list", "sequence", "mutablesequence", "iterable", "collection", "container"}
# A frozenset has no literal: a set stands for it.
_SETS = {"set", "frozenset", "abstractset", "mutableset"}
_DICTS = {"dict", "mapping", "mutablemapping", "defaultdict", "ordereddict"}
_WRAPPERS = {"annotated", "final", "required", "notrequired", "readonly"}


def literal(value: Any) -> str:
    """Source of a value: its ``repr``, with sets in an order that no hash decides."""
    if isinstance(value, set) and value:
        return "{" + ", ".join(sorted(map(literal, value))) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(literal, value)) + (",)" if len(value) == 1 else ")")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, float | complex):
        return repr(value).replace("inf", "1e999")  # as a source may spell it
    return repr(value)


def strategy_from_annotation(node: ast.expr | None, depth: int = 0) -> SearchStrategy[Any] | None:
    """Values that an annotation allows; None for one that names no type with a literal."""
    if node is None or depth > MAX_DEPTH:
        return None
    if isinstance(node, ast.Constant):
        return _from_constant(node.value, depth)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _any_of([node.left, node.right], depth)
    if not isinstance(node, ast.Subscript):
        name = _last_name(node)
        return _PLAIN[name] if name in _PLAIN else _from_generic(name.lower(), [], depth)
    arguments = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return _from_generic(_last_name(node.value).lower(), arguments, depth)


def strategy_from_values(values: Sequence[Any]) -> SearchStrategy[Any]:
    """Values like those that were seen: themselves, and what a small change makes of them."""
    return st.one_of(st.sampled_from(values), *[_neighbours(value) for value in values])


def _from_constant(value: object, depth: int) -> SearchStrategy[Any] | None:
    if value is None:
        return st.none()
    if not isinstance(value, str):
        return None
    try:
        return strategy_from_annotation(ast.parse(value, mode="eval").body, depth + 1)
    except PARSE_ERRORS:
        return None


def _from_generic(
    name: str, arguments: Sequence[ast.expr], depth: int
) -> SearchStrategy[Any] | None:
    if name in ("optional", "union"):
        none = [ast.Constant(None)] if name == "optional" else []
        return _any_of([*arguments, *none], depth)
    if name == "literal":
        return _from_literals(arguments)
    if name in _WRAPPERS:
        return strategy_from_annotation(arguments[0], depth) if arguments else None
    if name == "tuple":
        return _tuples(arguments, depth)
    if arguments and name in _SETS | _DICTS | {"counter"} and not _is_hashable(arguments[0]):
        return None
    inner = _known([strategy_from_annotation(argument, depth + 1) for argument in arguments])
    return None if inner is None else _container(name, inner)


def _container(name: str, inner: list[SearchStrategy[Any]]) -> SearchStrategy[Any] | None:
    if name in _LISTS:
        return st.lists(inner[0] if inner else _items, max_size=MAX_ITEMS)
    if name in _SETS:
        return st.sets(inner[0] if inner else _integers, max_size=MAX_ITEMS)
    if name == "counter":
        return st.dictionaries(inner[0] if inner else _words, st.integers(0, 12), max_size=4)
    if name in _DICTS:
        keys, values = inner if len(inner) == 2 else (_words, _items)
        return st.dictionaries(keys, values, max_size=4)
    return None


def _known(found: Sequence[SearchStrategy[Any] | None]) -> list[SearchStrategy[Any]] | None:
    """All of them, or None if one is unknown."""
    known = [strategy for strategy in found if strategy is not None]
    return known if len(known) == len(found) else None


def _any_of(nodes: Sequence[ast.expr], depth: int) -> SearchStrategy[Any] | None:
    """Of a union's members, those that are known; one that is None alone says nothing."""
    found = [strategy_from_annotation(node, depth + 1) for node in nodes]
    known = [strategy for strategy in found if strategy is not None]
    says = [s for s, node in zip(found, nodes, strict=True) if s is not None and not _is_none(node)]
    return st.one_of(known) if says else None


def _from_literals(nodes: Sequence[ast.expr]) -> SearchStrategy[Any] | None:
    values = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return st.sampled_from(values) if values else None


def _tuples(arguments: Sequence[ast.expr], depth: int) -> SearchStrategy[Any] | None:
    if not arguments:
        return st.lists(_items, max_size=MAX_ITEMS).map(tuple)
    if len(arguments) == 2 and _is_ellipsis(arguments[1]):
        items = strategy_from_annotation(arguments[0], depth + 1)
        return None if items is None else st.lists(items, max_size=MAX_ITEMS).map(tuple)
    inner = _known([strategy_from_annotation(argument, depth + 1) for argument in arguments])
    return None if inner is None else st.tuples(*inner)


def _is_hashable(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return _is_hashable(node.left) and _is_hashable(node.right)
    if isinstance(node, ast.Subscript):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        name = _last_name(node.value).lower()
        if name == "tuple":
            return all(_is_hashable(part) or _is_ellipsis(part) for part in parts)
        return name == "literal" or (
            name in ("optional", "union") and all(map(_is_hashable, parts))
        )
    return _is_none(node) or _last_name(node) in _HASHABLE


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _neighbours(value: Any) -> SearchStrategy[Any]:
    """What a small change makes of a value, of the same type."""
    of_kind: Mapping[type, Callable[[Any], SearchStrategy[Any]]] = {
        bool: lambda _: st.booleans(),
        int: lambda v: st.one_of(st.integers(v - 3, v + 3), st.integers(0, max(2 * abs(v), 12))),
        float: lambda v: st.sampled_from([v, v + 1, v - 0.5, v / 2, -v, 0.0]),
        str: _texts_like,
        bytes: lambda v: st.sampled_from([v, v[:-1], v[1:], v + v, v[::-1]]),
        list: lambda v: _items_like(v).map(list),
        tuple: lambda v: st.tuples(*map(_neighbours, v)),
        set: lambda v: _items_like(sorted(v, key=literal)).map(set),
        dict: lambda v: _items_like([*v.items()]).map(dict),
    }
    return of_kind.get(type(value), st.just)(value)


def _texts_like(value: str) -> SearchStrategy[str]:
    words = value.split(" ")
    changed = [value, value[:-1], value[1:], value + value, value[::-1], value.swapcase()]
    changed += [" ".join(words[1:]), " ".join(reversed(words)), value[: len(value) // 2]]
    same_kind = _text(sorted(set(value)), max_size=len(value) + 3) if value else _words
    return st.one_of(st.sampled_from(changed), same_kind)


def _items_like(values: Sequence[Any]) -> SearchStrategy[list[Any]]:
    """Some of the items in another order, or as many as before, each a little changed."""
    if not values:
        return st.just([])
    chosen = st.lists(st.sampled_from(values), max_size=MAX_ITEMS)
    return st.one_of(chosen, st.tuples(*map(_neighbours, values)).map(list))

"""Frozen dataclasses read from text and JSON, written back, and checked; knows no field by name."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from typing import Any, Literal


def override(config: Any, *assignments: str) -> Any:
    """Returns ``config`` with fields replaced: ``"optimizer.learning_rate=3e-4"``.

    The text is read as the field's type; ``none`` is None, tuples are comma-separated. All
    assignments are applied before the result is validated, so fields that depend on each other can
    change together.

    Raises:
        ValueError: no ``=``, an unknown key (the nearest known one is named), or text that is not
            of the type.
    """
    changes: dict[Any, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(
                f"--set {assignment!r}: expected key=value, for example "
                "optimizer.learning_rate=3e-4"
            )
        key = key.strip()
        _note_change(changes, config, key.split("."), text.strip(), key=key, root=config)
    return _with_changes(config, changes)


def _note_change(
    changes: dict[Any, Any], config: Any, path: list[str], text: str, *, key: str, root: Any
) -> None:
    """Puts a value into ``changes``, a tree of the fields (and items of tuples) to replace."""
    if not path or not dataclasses.is_dataclass(config):
        raise ValueError(f"--set {key}: does not name a value; expected the key of one field")
    hints = typing.get_type_hints(type(config))
    name, rest = path[0], path[1:]
    if name not in hints:
        prefix = key.removesuffix(".".join(path))
        known = [prefix + k for k in known_keys(config)] + known_keys(root) + _item_keys(root)
        hint = _items_hint(config, path, prefix) or nearest_hint(key, known)
        raise ValueError(f"--set {key}: unknown key{hint}")
    value = getattr(config, name)
    if dataclasses.is_dataclass(value):
        if not rest and text.lower() in ("none", "null"):
            if changes.get(name) is not None:
                raise _set_twice(key, name)
            changes[name] = _value_from_text(text, hints[name], key)  # a section that may lack
        elif not rest:
            raise ValueError(
                f"--set {key}: names a section; expected one of "
                f"{', '.join(known_keys(value)[:6])}, ..."
            )
        else:
            inner = _tree(changes, name, key)
            _note_change(inner, value, rest, text, key=key, root=root)
    elif rest and isinstance(value, tuple):
        index = _index(value, name, rest, key)  # data.sources.0.path: one item of a tuple
        items = _tree(_tree(changes, name, key), index, key)
        _note_change(items, value[index], rest[1:], text, key=key, root=root)
    elif rest and value is None:
        raise ValueError(
            f"--set {key}: {name} is none there and has no field {rest[0]!r}; expected a section "
            "that the config file sets: add it in the file"
        )
    elif rest:
        raise ValueError(f"--set {key}: {name} is a value and has no field {rest[0]!r}")
    else:
        changes[name] = _value_from_text(text, hints[name], key)


def _tree(changes: dict[Any, Any], name: Any, key: str) -> dict[Any, Any]:
    """The part of ``changes`` below a name, which no other assignment has replaced as a whole."""
    found = changes.setdefault(name, {})
    if not isinstance(found, dict):
        raise _set_twice(key, name)
    return found


def _set_twice(key: str, name: Any) -> ValueError:
    return ValueError(
        f"--set {key}: {name} is set twice, as a whole and in part; expected one of them: drop "
        "the other"
    )


def _index(value: tuple, name: str, rest: list[str], key: str) -> int:
    """The item of a tuple that ``rest`` begins with."""
    if rest[0].isdigit() and int(rest[0]) < len(value):
        return int(rest[0])
    counted = f"{name} has {len(value)} items, counted from 0"
    if not _labels(value):
        raise ValueError(f"--set {key}: {counted}, and no {rest[0]!r}")
    prefix = key.removesuffix(".".join([name, *rest]))
    named = any(hasattr(item, rest[0]) for item in value)  # phases.rl.group_size: N is left out
    text = _items_text(prefix + name, value, rest if named else rest[1:])
    raise ValueError(f"--set {key}: {counted + ': ' if rest[0].isdigit() else ''}{text}")


def _items_hint(config: Any, path: list[str], prefix: str) -> str:
    """For a key that belongs to the items of a tuple of sections; empty if none has it."""
    for name, value in _sections(config):
        if any(hasattr(item, path[0]) for item in value):
            return f"; {_items_text(prefix + name, value, path)}"
    return ""


def _items_text(name: str, value: tuple, rest: list[str]) -> str:
    wanted = ".".join([name, "N", *(rest or ["KEY"])])
    last = name.rsplit(".", 1)[-1]
    return f"{last} are {', '.join(_labels(value))}: write {wanted}"


def _item_keys(config: Any) -> list[str]:
    return [f"{name}.N.{k}" for name, value in _sections(config) for k in known_keys(value[-1])]


def _sections(config: Any) -> list[tuple[str, tuple]]:
    """(name, items) of the fields that are tuples of sections."""
    named = [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]
    return [(name, value) for name, value in named if isinstance(value, tuple) and _labels(value)]


def _labels(value: tuple) -> list[str]:
    """Numbers of sections, each with its name, which is the first field where that is a text."""
    labels = []
    for number, item in enumerate(value):
        if not dataclasses.is_dataclass(item):
            return []
        first = getattr(item, dataclasses.fields(item)[0].name)
        labels.append(f"{number} {first}" if isinstance(first, str) else f"{number}")
    return labels


def _with_changes(config: Any, changes: dict[Any, Any]) -> Any:
    values = {}
    for name, change in changes.items():
        value = getattr(config, name)
        if not isinstance(change, dict):
            values[name] = change
        elif isinstance(value, tuple):
            values[name] = _with_items(name, value, change)
        else:
            values[name] = _with_changes(value, change)
    return dataclasses.replace(config, **values)


def _with_items(name: str, value: tuple, changes: dict[Any, Any]) -> tuple:
    items = list(value)
    for index, change in changes.items():
        try:
            items[index] = _with_changes(value[index], change)
        except ValueError as error:
            raise ValueError(f"{name}.{_labels(value)[index]}: {error}") from error
    return tuple(items)


def _value_from_text(text: str, hint: Any, key: str) -> Any:
    kinds = _alternatives(hint)
    for kind in sorted(kinds, key=lambda kind: kind is not type(None)):  # "none" is a str too
        try:
            return _parse(text, kind)
        except ValueError:
            continue
    raise ValueError(f"--set {key}: got {text!r}; expected {_type_name(hint)}")


def _parse(text: str, kind: Any) -> Any:
    origin = typing.get_origin(kind)
    if kind is type(None) and text.lower() in ("none", "null"):
        return None
    if origin is Literal and text in typing.get_args(kind):
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is int:
        return int(text.replace("_", ""), 10) if not _is_exact_float(text) else int(float(text))
    if kind is float:
        return float(text)
    if kind is str:
        return text
    if origin is tuple and not any(dataclasses.is_dataclass(a) for a in typing.get_args(kind)):
        item = typing.get_args(kind)[0]
        return tuple(
            _parse(part.strip(), item) for part in text.strip("()").split(",") if part.strip()
        )
    raise ValueError(text)


def _is_exact_float(text: str) -> bool:
    """True for whole numbers written as 2e9 or 1_000.0."""
    try:
        return not text.lstrip("+-").replace("_", "").isdigit() and float(text).is_integer()
    except ValueError:
        return False


def known_keys(config: Any) -> list[str]:
    """Every settable key below ``config``, dotted."""
    keys = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            keys += [f"{field.name}.{key}" for key in known_keys(value)]
        else:
            keys.append(field.name)
    return keys


def flatten(config: Any) -> dict[str, Any]:
    """Dotted key -> value for every leaf field; nested tuples of dataclasses stay whole."""
    flat = {}
    for key in known_keys(config):
        value = config
        for name in key.split("."):
            value = getattr(value, name)
        flat[key] = value
    return flat


def to_json(config: Any) -> Any:
    """Plain dicts, lists and scalars; ``from_json`` is its inverse."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_json(item) for item in config]
    return config


def from_json(cls: Any, value: Any) -> Any:
    """Rebuilds a config dataclass from ``to_json``'s output.

    Raises:
        ValueError: an unknown or a missing key, or a value of the wrong type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{cls.__name__} is {value!r}; expected its keys and values")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise ValueError(
            f"{cls.__name__}: unknown key {unknown[0]!r}{nearest_hint(unknown[0], hints)}"
        )
    missing = sorted(f.name for f in required_fields(cls) if f.name not in value)
    if missing:
        raise ValueError(f"{cls.__name__}: missing {', '.join(missing)}")
    return cls(**{name: _from_json_value(item, hints[name]) for name, item in value.items()})


def _from_json_value(value: Any, hint: Any) -> Any:
    for kind in _alternatives(hint):
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            return from_json(kind, value)
        if typing.get_origin(kind) is tuple and isinstance(value, list):
            item = typing.get_args(kind)[0]
            return tuple(_from_json_value(v, item) for v in value)
    return value


def check_types(config: Any) -> None:
    """Raises ValueError where a value is not of its field's type (whole numbers are floats)."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not any(_is_a(value, kind) for kind in _alternatives(hints[field.name])):
            raise ValueError(
                f"{type(config).__name__}.{field.name} is {value!r}; expected "
                f"{_type_name(hints[field.name])}"
            )


def check_positive(config: Any, *names: str) -> None:
    """Raises ValueError for a named field that is set and not above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{type(config).__name__}.{name} is {value}; expected more than 0")


def nearest_hint(name: str, known: Any) -> str:
    """``"; did you mean 'x'?"`` for the nearest known name, or nothing."""
    known = list(known)
    last = name.rsplit(".", 1)[-1]
    fields = [key.rsplit(".", 1)[-1] for key in known]
    if last in fields:  # a right field in the wrong section
        return f"; did you mean {known[fields.index(last)]!r}?"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:
        close = difflib.get_close_matches(last, fields, n=1, cutoff=0.7)
        close = [known[fields.index(field)] for field in close]
    return f"; did you mean {close[0]!r}?" if close else ""


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def _is_a(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return value in typing.get_args(kind)
    if origin is tuple:
        items = typing.get_args(kind)
        fixed = items[-1] is not Ellipsis
        return (
            isinstance(value, tuple)
            and (not fixed or len(value) == len(items))
            and all(_is_a(v, items[0]) for v in value)
        )
    if kind is float:  # no limit is spelt None, never inf
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _type_name(hint: Any) -> str:
    return " or ".join(
        "none"
        if kind is type(None)
        else getattr(kind, "__name__", str(kind)).replace("typing.", "")
        if typing.get_origin(kind) is None
        else str(kind).replace("typing.", "")
        for kind in _alternatives(hint)
    )


def required_fields(cls: Any) -> list[dataclasses.Field]:
    """The fields without a default."""
    return [
        f
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]

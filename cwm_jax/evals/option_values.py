"""A set's own settings, ``--option name=value``, read from their texts."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from cwm_jax.evals.problem import SetOptions
from cwm_jax.rl.envs.fields import listed


def whole_number(options: SetOptions, name: str, default: int, *, least: int = 1) -> int:
    """Raises ValueError for what is none, or less than ``least``."""
    (value,) = _whole(name, [options.values.get(name, str(default))], least)
    return value


def whole_numbers(
    options: SetOptions, name: str, default: Sequence[int], *, least: int = 1
) -> tuple[int, ...]:
    """Of a list with commas; raises as `whole_number`, and for a value that is there twice."""
    values = _whole(name, _parts(options, name, map(str, default)), least)
    if len({*values}) != len(values):
        raise ValueError(f"--option {name}={options.values[name]}: a value is there twice")
    return tuple(values)


def fraction(options: SetOptions, name: str, default: float) -> float:
    """More than 0, at most 1; raises ValueError for what is not."""
    text = options.values.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise ValueError(f"--option {name}={text}: expected more than 0 and at most 1, as 0.02")
    return value


def one_of(options: SetOptions, name: str, known: Collection[str], default: str) -> str:
    """The value of a setting, one of those known; raises ValueError for another."""
    value = options.values.get(name, default)
    if value not in known:
        raise ValueError(f"--option {name}={value}: expected one of {listed(known)}")
    return value


def names(options: SetOptions, name: str, known: Sequence[str]) -> tuple[str, ...]:
    """Of a list with commas, in the order of ``known``, which is what is missing stands for.

    Raises:
        ValueError: one is not known.
    """
    wanted = _parts(options, name, known)
    unknown = [part for part in wanted if part not in known]
    if unknown:
        raise ValueError(f"--option {name} has {unknown[0]!r}; expected some of {', '.join(known)}")
    return tuple(n for n in known if n in wanted)


def _parts(options: SetOptions, name: str, default) -> list[str]:
    text = options.values.get(name)
    return [*default] if text is None else [part.strip() for part in text.split(",")]


def _whole(name: str, texts: Sequence[str], least: int) -> list[int]:
    for text in texts:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise ValueError(
                f"--option {name}: {text!r}; expected a whole number, {least} or more, without "
                "spaces or signs"
            )
    return [int(text) for text in texts]

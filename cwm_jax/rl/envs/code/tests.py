"""The tests of a problem, as its task's data state them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

_FORMS = (
    '{"style": "stdin", "cases": [{"input": text, "output": text}, ...]}, '
    '{"style": "function", "name": text, "cases": [{"args": [...], "expected": ...}, ...]} or '
    '{"style": "asserts", "code": text, "entry": text} with perhaps "setup"'
)


@dataclasses.dataclass(frozen=True)
class StdinCase:
    """What a program reads, and what it is to print."""

    input: str
    output: str


@dataclasses.dataclass(frozen=True)
class FunctionCase:
    """What a function is called with, and what it is to return; both of JSON."""

    args: list[Any]
    expected: Any


@dataclasses.dataclass(frozen=True)
class StdinTests:
    """Whole programs."""

    cases: tuple[StdinCase, ...]


@dataclasses.dataclass(frozen=True)
class FunctionTests:
    """Calls of one function, or of the method of that name of a class ``Solution``."""

    name: str
    cases: tuple[FunctionCase, ...]


@dataclasses.dataclass(frozen=True)
class AssertTests:
    """Assertions in Python.

    Attributes:
        entry: the function that they call.
        code: assertions, or a function ``check`` that is given the entry (HumanEval's style).
        setup: runs before the entry has its name: imports, and what a problem's prompt defines.
    """

    entry: str
    code: str
    setup: str = ""


Tests = StdinTests | FunctionTests | AssertTests


def parse_tests(data: Mapping[str, Any]) -> Tests:
    """The tests of a task's data.

    Raises:
        ValueError: if they have none of the three forms.
    """
    try:
        return _parsed(data["tests"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        found = repr(data.get("tests"))
        raise ValueError(
            f"a code task's tests are {found[:200]} ({type(error).__name__}: {error}); expected "
            f"{_FORMS}: mend the task"
        ) from None


def _parsed(tests: Mapping[str, Any]) -> Tests:
    style = tests["style"]
    if style == "asserts":
        return AssertTests(_text(tests["entry"]), _text(tests["code"]), tests.get("setup") or "")
    cases = tests["cases"]
    if not cases:
        raise ValueError("no case")
    if style == "stdin":
        return StdinTests(
            tuple(StdinCase(_text(case["input"]), _text(case["output"])) for case in cases)
        )
    if style == "function":
        found = tuple(FunctionCase(list(case["args"]), case["expected"]) for case in cases)
        return FunctionTests(_text(tests["name"]), found)
    raise ValueError(f"style {style!r}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value

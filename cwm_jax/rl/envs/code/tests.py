"""The tests of a problem, as its task's data state them::

{"style": "stdin", "cases": [{"input": text, "output": text}, ...]}
{"style": "function", "name": text, "cases": [{"args": [...], "expected": ...}, ...]}
{"style": "asserts", "entry": text, "code": text}, perhaps with "setup", text
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from cwm_jax.rl.envs.fields import each, fields, identifier, items, optional_text, short, text


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
        calls: those that begin the assertions, if they are known, as ``{"args": ..., "kwargs":
            ...}`` that `inside.encode` spells: they are answered before the assertions start, which
            otherwise start again after each.
    """

    entry: str
    code: str
    setup: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()


Tests = StdinTests | FunctionTests | AssertTests


def parse_tests(tests: Any) -> Tests:
    """The tests of a task's data.

    Raises:
        ValueError: they have none of the three forms.
    """
    style = tests.get("style") if isinstance(tests, Mapping) else None
    if not isinstance(style, str) or style not in _READERS:
        raise ValueError(
            f"tests are {short(tests)}; expected an object whose style is "
            f"{' or '.join(map(repr, _READERS))}"
        )
    return _READERS[style](tests)


def _stdin(tests: Mapping[str, Any]) -> StdinTests:
    fields(tests, "tests", ("style", "cases"))
    return StdinTests(tuple(each(tests["cases"], "tests.cases", _stdin_case)))


def _stdin_case(case: Any) -> StdinCase:
    fields(case, "it", ("input", "output"))
    return StdinCase(
        text(case["input"], "input", may_be_empty=True),
        text(case["output"], "output", may_be_empty=True),
    )


def _function(tests: Mapping[str, Any]) -> FunctionTests:
    fields(tests, "tests", ("style", "name", "cases"))
    cases = each(tests["cases"], "tests.cases", _function_case)
    return FunctionTests(identifier(tests["name"], "tests.name"), tuple(cases))


def _function_case(case: Any) -> FunctionCase:
    fields(case, "it", ("args", "expected"))
    return FunctionCase(items(case["args"], "args", may_be_empty=True), case["expected"])


def _asserts(tests: Mapping[str, Any]) -> AssertTests:
    fields(tests, "tests", ("style", "entry", "code"), ("setup",))
    entry = identifier(tests["entry"], "tests.entry")
    code = text(tests["code"], "tests.code")
    setup = optional_text(tests, "setup", "tests.setup")
    if not any(name in part for name in (entry, "check") for part in (code, setup)):
        raise ValueError(
            f"tests.code does not call {entry!r}, which is its entry; expected assertions that do, "
            "or a function check that is given it"
        )
    return AssertTests(entry, code, setup)


_READERS: dict[str, Callable[[Mapping[str, Any]], Tests]] = {
    "stdin": _stdin,
    "function": _function,
    "asserts": _asserts,
}

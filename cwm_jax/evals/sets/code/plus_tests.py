"""EvalPlus' tests of HumanEval: inputs, on which a reference solution says what is expected."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import Any

from cwm_jax.rl.envs.code.grading import Grader
from cwm_jax.rl.envs.code.inside import decode, encode
from cwm_jax.rl.envs.code.tests import AssertTests
from cwm_jax.rl.envs.fields import each, items, short

_ZERO_FINDER = "find_zero"  # any zero is right: HumanEval/32
# Source: EvalPlus compares as numpy's allclose, with this tolerance where floats are expected.
_CHECK = """
from math import inf, nan

def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)

def _floats(value):
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)

def _near(found, expected, tolerance):
    if _number(found) and _number(expected):
        if found == expected:
            return True
        return abs(found - expected) <= tolerance + 1e-7 * abs(expected)
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        same = len(found) == len(expected)
        return same and all(_near(a, b, tolerance) for a, b in zip(found, expected))
    return found == expected

def _same(found, expected, tolerance):
    if found == expected:
        return True
    tolerance = tolerance or (1e-6 if _floats(expected) else 0)
    if not tolerance or type(found) is not type(expected):
        return False
    return _near(found, expected, tolerance)

def check(candidate):
    for number, (arguments, expected) in enumerate(zip(INPUTS, EXPECTED)):
        found = candidate(*arguments)
        assert _same(found, expected, TOLERANCE), f"input {number}"
"""
_CHECK_ZERO = """
from math import inf, nan

def check(candidate):
    for number, arguments in enumerate(INPUTS):
        assert abs(poly(*arguments, candidate(*arguments))) <= TOLERANCE, f"input {number}"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlusTests:
    """Inputs of a function; made once, when they are first needed.

    Attributes:
        inputs: lists of arguments.
        tolerance: absolute, of floats; 0 is EvalPlus' own.
        entry, prompt, reference: as of the problem.
    """

    inputs: tuple[list[Any], ...]
    tolerance: float
    entry: str = ""
    prompt: str = ""
    reference: str = ""
    _made: list[AssertTests] = dataclasses.field(default_factory=list, compare=False)
    _lock: Any = dataclasses.field(default_factory=threading.Lock, compare=False)

    def made(self, grader: Grader) -> AssertTests:
        """The assertions.

        Raises:
            EnvironmentFailure: there is no sandbox, or the reference fails on an input.
        """
        with self._lock:
            if not self._made:
                self._made.append(self._make(grader))
        return self._made[0]

    def _make(self, grader: Grader) -> AssertTests:
        empty = encode({})
        calls = [{"args": encode(tuple(values)), "kwargs": empty} for values in self.inputs]
        head = f"INPUTS = {[*self.inputs]!r}\nTOLERANCE = {self.tolerance!r}\n"
        if self.entry == _ZERO_FINDER:
            code = _CHECK_ZERO + head
        else:
            returned = grader.returned(self.reference, self.entry, calls)
            code = f"{_CHECK}{head}EXPECTED = {[decode(value) for value in returned]!r}\n"
        return AssertTests(self.entry, code, self.prompt, tuple(calls))


def read_plus(row: Mapping[str, Any]) -> PlusTests:
    """The tests of a line of EvalPlus' file, as yet without the problem.

    Raises:
        ValueError: inputs or tolerance are none.
    """
    inputs = each(row["base_input"], "base_input", _arguments)
    inputs += each(row["plus_input"], "plus_input", _arguments, may_be_empty=True)
    tolerance = row.get("atol") or 0
    if not isinstance(tolerance, int | float) or isinstance(tolerance, bool) or tolerance < 0:
        raise ValueError(f"atol is {short(tolerance)}; expected a number, 0 or more")
    return PlusTests(inputs=tuple(inputs), tolerance=tolerance)


def _arguments(value: Any) -> list[Any]:
    return items(value, "arguments", may_be_empty=True)

"""Hidden tests that are calls with known results: made in the sandbox, judged on the host."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import marshal
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.rl.environment import EnvironmentFailure, waiting_for_others
from cwm_jax.rl.envs.prediction import is_same_value
from cwm_jax.sandbox import Limits, Outcome, Pool, Reply, SandboxError

_PROGRAM = Path(__file__).with_name("called.py")
_MIB = 1 << 20
_CALL_S = 1.0  # assumed: of one call of a small function
_POOL_SIZE = 4  # assumed: gradings at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """An expression in a module's names, and what it comes to.

    Attributes:
        module: that is imported.
        call: the expression.
        expected: ``repr`` of its value; None where it raises.
        raises: name of the exception's type.
    """

    module: str
    call: str
    expected: str | None = None
    raises: str | None = None

    def __post_init__(self) -> None:
        if (self.expected is None) == (self.raises is None):
            raise ValueError(
                f"the call {self.call!r} has expected={self.expected!r} and raises="
                f"{self.raises!r}; expected just one of them: take the other out"
            )

    def is_right(self, result: CallResult) -> bool:
        if self.raises is not None:
            return result.raises == self.raises
        assert self.expected is not None
        return result.value is not None and is_same_value(result.value, self.expected)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallResult:
    """What a call came to: a value's spelling, or an exception, or neither: it does not end."""

    value: str | None = None
    raises: str | None = None
    message: str = ""


class CallsFailed(Exception):  # noqa: N818
    """The repository's code ended the calls before they were done; the text says how."""


def call_all(
    files: Mapping[str, bytes], calls: Sequence[Call], *, timeout_s: float, unsafe: bool = False
) -> list[CallResult]:
    """Makes the calls in one process of a sandbox that holds the files, and nothing else of them.

    The process is told no expected result. It writes what it likes to stdout and stderr, which
    nobody reads; of its reply only strings are taken.

    Raises:
        CallsFailed: there is no reply of that form.
        EnvironmentFailure: the sandbox cannot be had.
    """
    request = {
        "files": dict(files),
        "calls": [(call.module, call.call) for call in calls],
        "call_s": _CALL_S,
    }
    limits = Limits(
        cpu_s=timeout_s, wall_s=timeout_s, memory_bytes=512 * _MIB, reply_bytes=8 * _MIB
    )
    try:
        reply = _pool(os.getpid(), unsafe).call(marshal.dumps(request), limits=limits)
    except SandboxError as error:
        raise EnvironmentFailure(f"the sandbox failed: {error}") from error
    return _results(reply, len(calls))


def _results(reply: Reply, number: int) -> list[CallResult]:
    if reply.outcome is not Outcome.OK or reply.value is None:
        raise CallsFailed(f"the code ended the tests ({reply.outcome.value}): {reply.detail}")
    try:
        found = json.loads(reply.value)
        if not isinstance(found, list) or len(found) != number:
            raise ValueError(f"not {number} results")
        return [_result(entry) for entry in found]
    except (ValueError, TypeError, RecursionError) as error:
        raise CallsFailed(f"the code ended the tests with a reply of its own: {error}") from None


def _result(entry: Any) -> CallResult:
    """Untrusted: only lists of strings are taken."""
    if not isinstance(entry, list) or not all(isinstance(text, str) for text in entry):
        raise ValueError("not a list of strings")
    if len(entry) == 2 and entry[0] == "returns":
        return CallResult(value=entry[1])
    if len(entry) == 3 and entry[0] == "raises":
        return CallResult(raises=entry[1], message=entry[2])
    if entry == ["hangs"]:
        return CallResult()
    raise ValueError("an unknown kind of result")


@functools.cache
def _pool(pid: int, unsafe: bool) -> Pool:
    """Warm interpreters of this process; each call has a new child and an empty folder."""
    pool = Pool(
        _PROGRAM, size=_POOL_SIZE, unsafe=unsafe, preload=("json",), waiting=waiting_for_others
    )
    atexit.register(lambda: pool.close() if os.getpid() == pid else None)
    return pool

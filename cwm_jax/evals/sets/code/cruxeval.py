"""CruxEval's file, and whether a prediction is right."""

from __future__ import annotations

import ast
import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

from cwm_jax.evals.problem import Verdict
from cwm_jax.evals.sets.asking import name_of, row_of
from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.answers import NoAnswerError
from cwm_jax.rl.envs.code.grading import Grader, GradingLimits
from cwm_jax.rl.envs.code.tests import AssertTests
from cwm_jax.rl.envs.fields import text
from cwm_jax.rl.envs.record_files import read_records
from cwm_jax.sandbox import SandboxError
from cwm_jax.trace.episodes import Episode, Program, context_of_call
from cwm_jax.trace.format import check_plain
from cwm_jax.trace.tracer import PARSE_ERRORS, TraceError, Tracer

# Source: 3 s is the official grader's limit; the others are assumed.
_LIMITS = GradingLimits(
    test_s=3.0, total_s=None, memory_bytes=1 << 30, output_bytes=1 << 20, calls=4
)
_MAX_SAID_CHARACTERS = 20_000  # assumed: of a prediction
_INSIDE = Path(__file__).with_name("cruxeval_inside.py")
_LINES = "lines with id, code, input and output"


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the official file; ``context`` is ``code`` with a ``main`` that calls ``f``."""

    name: str
    code: str
    input: str
    output: str
    context: str


def read_rows(path: Path) -> list[Row]:
    """The lines of an official file.

    Raises:
        ValueError: with file and line: it cannot be read, has no line, a line lacks a key, defines
            no ``f``, has arguments or a value that do not parse, or an id that is another's.
    """
    return read_records(path, _read, form=_LINES, what="problem")


class Judge:
    """Evaluates predictions in the sandbox, and traces; for any number of threads."""

    def __init__(self, *, unsafe: bool = False):
        self._grader = Grader(_LIMITS, unsafe=unsafe)
        self._inside = _INSIDE.read_text()
        self._unsafe, self._lock = unsafe, threading.Lock()
        self._tracer: Tracer | None = None

    def output(self, row: Row, said: str) -> Verdict:
        """Whether it is what ``f`` returns; ``f`` itself is not there."""
        return self._judged("cruxeval_output", self._inside, said, row)

    def input(self, row: Row, said: str) -> Verdict:
        """Whether ``f`` returns the output for it.

        Majorities are of the arguments as they are spelt, since different ones are right.
        """
        code = f"{row.code}\n\n{self._inside}"
        verdict = self._judged("cruxeval_input", code, said, row)
        return dataclasses.replace(verdict, answer="".join(said.split()))

    def trace(self, row: Row) -> Episode:
        """The true trace.

        Raises:
            EnvironmentFailure: there is none.
        """
        program = Program(name=row.name, context=row.context, source="jsonl", origin=row.name)
        try:
            with self._lock:
                self._tracer = self._tracer or Tracer(unsafe=self._unsafe)
            episode = program.episodes(self._tracer)[0]
        except (TraceError, SandboxError) as error:
            raise EnvironmentFailure(f"{row.name}: {error}") from error
        if not episode.finished:
            raise EnvironmentFailure(f"{row.name}: its true trace is cut: {episode.status}")
        return episode

    def close(self) -> None:
        self._grader.close()
        with self._lock:
            if self._tracer:
                self._tracer.close()
            self._tracer = None

    def _judged(self, entry: str, code: str, said: str, row: Row) -> Verdict:
        if len(said) > _MAX_SAID_CHARACTERS:
            raise NoAnswerError(f"{len(said)} characters")
        tests = AssertTests(entry, f"assert ({row.output}) == {entry}({said!r})")
        grade = self._grader.grade(code, tests)
        passed = grade.verdict.value == "passed"
        return Verdict(
            passed=passed,
            answer=canonical(grade.returned[0]) if grade.returned else None,
            reason="" if passed else f"{grade.verdict.value}: {grade.detail}".rstrip(": "),
            info={"said": said},
        )


def canonical(value: Any) -> str:
    """One spelling of values that Python calls equal, of what `inside.encode` wrote.

    A candidate may have written it: what is of another form is spelt as it is.
    """
    try:
        return json.dumps(_canonical(value))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return json.dumps(value)


def _canonical(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        number = float.fromhex(content)
        whole = number.is_integer() and abs(number) < 1 << 53
        return int(number) if whole else value
    if kind in ("set", "frozenset"):
        return {"set": sorted(map(json.dumps, map(_canonical, content)))}
    if kind == "dict":
        return {"dict": sorted(json.dumps([_canonical(k), _canonical(v)]) for k, v in content)}
    return {kind: [_canonical(item) for item in content] if kind == "tuple" else content}


def _read(value: Any) -> tuple[str, Row]:
    keys = ("id", "code", "input", "output")
    record = row_of(value, keys)
    name = name_of(record, "id")
    code, arguments, output = (
        text(record[key], key, may_be_empty=key == "input") for key in keys[1:]
    )
    for what, source in (("code", code), ("input", f"f({arguments})"), ("output", f"({output})")):
        _check_source(what, source)
        check_plain(source, what)
    functions = [n.name for n in ast.parse(code).body if isinstance(n, ast.FunctionDef)]
    if "f" not in functions:
        raise ValueError(f"code defines {functions}; expected the function f")
    try:
        context = context_of_call(code, arguments)
    except TraceError as error:
        raise ValueError(str(error)) from None
    return name, Row(name, code, arguments, output, context)


def _check_source(what: str, source: str) -> None:
    try:
        ast.parse(source)
    except PARSE_ERRORS as error:
        raise ValueError(f"{what} is no Python ({error}); expected source that parses") from None

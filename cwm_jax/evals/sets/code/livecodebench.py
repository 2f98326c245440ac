"""LiveCodeBench's files: one problem on each line, with its hidden tests packed."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import io
import itertools
import json
import pickletools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.evals.sets.asking import name_of, row_of
from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.code.tests import FunctionCase, FunctionTests, StdinCase, StdinTests
from cwm_jax.rl.envs.fields import each, identifier, optional_text, short, text
from cwm_jax.rl.envs.record_files import parsed, read_records

_KEYS = (
    *("question_title", "question_content", "question_id", "contest_date", "difficulty"),
    *("starter_code", "public_test_cases", "private_test_cases"),
)
_FORM = (
    "lines with question_id, question_content, contest_date, public_test_cases, "
    "private_test_cases and the rest of LiveCodeBench's keys"
)
_MAX_TESTS_BYTES = 1 << 30  # assumed: of a problem's tests, unpacked; the largest take 100 MB
# A pickle of one string has no others.
_STRING_OPCODES = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_OTHER_OPCODES = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}
_STDIN, _FUNCTIONAL = "stdin", "functional"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Days of contests, the first and the last included."""

    first: datetime.date
    last: datetime.date

    def has(self, day: datetime.date) -> bool:
        return self.first <= day <= self.last


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A problem; its tests stay in the file, since those of all together take gigabytes.

    Attributes:
        name: ``question_id``.
        day: of the contest.
        title, content, starter, difficulty, platform: as in the file.
        entry: the function that is called; empty for a program.
        place: path, first byte and number of bytes of the line.
    """

    name: str
    day: datetime.date
    title: str
    content: str
    starter: str
    difficulty: str
    platform: str
    entry: str
    place: tuple[Path, int, int]

    def tests(self) -> StdinTests | FunctionTests:
        """Public and hidden ones, read again.

        Raises:
            EnvironmentFailure: the file is not any more what was checked.
        """
        path, start, length = self.place
        try:
            with path.open("rb") as file:
                file.seek(start)
                line = file.read(length)
            return _tests(row_of(parsed(line, form=_FORM), _KEYS))
        except (OSError, ValueError) as error:
            raise EnvironmentFailure(f"{path} has changed since it was read: {error}") from error


def read_rows(path: Path, window: Window | None) -> list[Row]:
    """The problems of a file, or of all ``*.jsonl`` of a folder, whose contest was in the window.

    Tests of those are unpacked and checked, and then dropped.

    Raises:
        ValueError: with file and line, for a file that cannot be used.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} has no *.jsonl; expected LiveCodeBench's files: name another")
    found: dict[str, Row] = {}
    for file in files:
        for row in _rows_of(file, window):
            if row.name in found:
                raise ValueError(
                    f"{file} has the problem {row.name!r}, and {found[row.name].place[0]} has it, "
                    "too; expected each once: leave one file out"
                )
            found[row.name] = row
    return list(found.values())


def packed_text(packed: str) -> str:
    """What base64 of zlib of a pickle of one string holds; nothing is ever unpickled.

    Raises:
        ValueError: it is not that, or the pickle holds anything else, such as an object to make.
    """
    try:
        unpack = zlib.decompressobj()
        content = unpack.decompress(base64.b64decode(packed, validate=True), _MAX_TESTS_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"it is neither JSON nor packed JSON ({error})") from None
    if not unpack.eof:
        raise ValueError(
            f"it is cut, or unpacks to more than {_MAX_TESTS_BYTES} bytes; expected less"
        )
    return _pickled_string(content)


def _pickled_string(content: bytes) -> str:
    strings = []
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
            if opcode.name in _STRING_OPCODES:
                strings.append(argument)
            elif opcode.name not in _OTHER_OPCODES:
                raise ValueError(f"its pickle has {opcode.name} {short(argument)}")
    except ValueError as error:
        raise ValueError(f"{error}; expected a pickle of one text, and nothing else") from None
    if len(strings) != 1:
        raise ValueError(f"its pickle has {len(strings)} texts; expected one")
    return strings[0]


def _rows_of(path: Path, window: Window | None) -> list[Row]:
    lines = _places(path)

    def read(value: Any) -> tuple[str, Row]:
        row = _read(value, (path, *next(lines)))
        if window is None or window.has(row.day):
            _tests(value)
        return row.name, row

    rows = read_records(path, read, form=_FORM, what="problem")
    return [row for row in rows if window is None or window.has(row.day)]


def _places(path: Path) -> Iterator[tuple[int, int]]:
    """(first byte, number of bytes) of each line that is not blank.

    Raises:
        ValueError: the file has no lines of its own: it is an array, or packed.
    """
    start = 0
    with path.open("rb") as file:
        for line in file:
            if not start and line.lstrip()[:1] not in (b"{", b""):
                raise ValueError(f"the file begins with {line[:20]!r}; expected JSONL: unpack it")
            if line.strip():
                yield start, len(line)
            start += len(line)


def _read(value: Any, place: tuple[Path, int, int]) -> Row:
    row = row_of(value, _KEYS)
    entry = _metadata(row).get("func_name") or ""
    return Row(
        name=name_of(row, "question_id"),
        day=_day(row["contest_date"]),
        title=text(row["question_title"], "question_title", may_be_empty=True),
        content=text(row["question_content"], "question_content"),
        starter=optional_text(row, "starter_code", "starter_code"),
        difficulty=text(row["difficulty"], "difficulty"),
        platform=optional_text(row, "platform", "platform"),
        entry=identifier(entry, "metadata.func_name") if entry else "",
        place=place,
    )


def _day(value: Any) -> datetime.date:
    try:
        return datetime.datetime.fromisoformat(text(value, "contest_date")).date()
    except ValueError:
        raise ValueError(
            f"contest_date is {short(value)}; expected a date as 2024-10-05T00:00:00"
        ) from None


def _tests(row: Mapping[str, Any]) -> StdinTests | FunctionTests:
    kinds = ("public_test_cases", "private_test_cases")
    cases = [*itertools.chain.from_iterable(_cases(row[kind], kind) for kind in kinds)]
    styles = {case["testtype"] for case in cases}
    if styles == {_STDIN}:
        return StdinTests(tuple(StdinCase(case["input"], case["output"]) for case in cases))
    if styles != {_FUNCTIONAL}:
        raise ValueError(
            f"testtype is {sorted(styles)}; expected {_STDIN!r} alone or {_FUNCTIONAL!r} alone"
        )
    name = _metadata(row).get("func_name")
    if not name:
        raise ValueError("metadata has no func_name, and the tests call a function; expected it")
    made = tuple(_function_case(case) for case in cases)
    return FunctionTests(identifier(name, "metadata.func_name"), made)


def _cases(value: Any, what: str) -> Sequence[Mapping[str, str]]:
    cases = value
    if isinstance(value, str):
        try:
            cases = json.loads(value)
        except (ValueError, RecursionError):
            cases = _json(_named(packed_text, value, what), what)
    private = what.startswith("private")
    return each(cases, what, _case, may_be_empty=private)


def _named(read, value: str, what: str) -> str:
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _json(content: str, what: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is no JSON ({error}); expected a list of tests") from None


def _case(value: Any) -> Mapping[str, str]:
    case = row_of(value, ("input", "output", "testtype"))
    return {key: text(case[key], key, may_be_empty=True) for key in case if key in _CASE_KEYS}


_CASE_KEYS = ("input", "output", "testtype")


def _function_case(case: Mapping[str, str]) -> FunctionCase:
    """Arguments stand on lines of their own, each in JSON."""
    lines = [line for line in case["input"].split("\n") if line.strip()]
    return FunctionCase([_json(line, "input") for line in lines], _json(case["output"], "output"))


def _metadata(row: Mapping[str, Any]) -> Mapping[str, Any]:
    value = row.get("metadata") or {}
    found = _json(value, "metadata") if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise ValueError(f"metadata is {short(found)}; expected an object")
    return found

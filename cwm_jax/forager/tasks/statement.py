"""The text of an issue, in our own words, from what a failing test wrote.

It says what goes wrong and never how it was right: a line of the test's output that the mended
source has is left out.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Collection, Sequence

MOST_LINES = 12  # assumed: of an error's text; comparisons of large values go on for pages
MOST_COLUMNS = 240  # assumed
_LEAST_TELLING = 4  # characters: "else:" tells nobody's fix, and stands everywhere

# By the kind of the fault; none says which it is, or where. Assumed: as people write.
_OPENINGS = {
    "functions": (
        "Something that this project is to do is no longer done.",
        "Part of what this project offers has stopped working.",
    ),
    "arguments": (
        "A call that should just work gives a wrong result, or is refused.",
        "What I pass in does not arrive as I expect.",
    ),
    "variables": (
        "The values that come out are not the ones that belong there.",
        "Results look mixed up, though the input is fine.",
    ),
    "statements": (
        "A step seems to be left out: what I get is incomplete or missing.",
        "I do not get back what I should.",
    ),
    "operators": (
        "Some inputs are handled the wrong way round, or a result is computed wrongly.",
        "For some inputs the outcome is wrong.",
    ),
}
_ANY_OPENING = ("Something does not work as it should.", "I found a behaviour that is wrong.")
_WHERE = re.compile(r'^(?:  File "(?P<file>[^"]+)", line \d+|(?P<short>[^\s:]+\.py):\d+: in )')
_ERROR = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt|Exit|Failed)\b.*)$")
# What two runs of one command differ in.
_VARYING = (
    (re.compile(r"\b0x[0-9a-f]{6,}\b"), "0x..."),
    (re.compile(r"/tmp/(?:pytest-of-\w+/pytest-\d+|tmp\w+)"), "/tmp/..."),
    (re.compile(r"\b\d+\.\d+ ?s(?:econds)?\b"), "... s"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A test that fails, as its run alone shows it.

    Attributes:
        test: its name in the format of the suite.
        checked: the line of the test at which it ends; empty if none is shown.
        error: what was raised, with its message.
    """

    test: str
    checked: str
    error: tuple[str, ...]


def read_failure(test: str, output: str) -> Failure | None:
    """What the output of pytest (``--tb=short``) or unittest shows of a test; None if no error.

    Of several errors it is the first.
    """
    lines = normalised(output).replace("\r\n", "\n").split("\n")
    short = [number for number, line in enumerate(lines) if line.startswith("E  ")]
    if short:
        error = _while([line[1:].strip() for line in lines[short[0] :] if line[:1] == "E"])
        return Failure(test=test, checked=_checked(lines[: short[0]]), error=error)
    for number, line in enumerate(lines):
        if _ERROR.match(line) and any(map(_WHERE.match, lines[:number])):
            return Failure(
                test=test, checked=_checked(lines[:number]), error=_while(lines[number:])
            )
    return None


def normalised(output: str) -> str:
    """Without addresses, temporary folders and times, so that each run writes the same."""
    for pattern, other in _VARYING:
        output = pattern.sub(other, output)
    return output


def statement(
    failure: Failure, *, kind: str, num_failing: int, mended: Collection[str], seed: str
) -> str:
    """The text of an issue; the same arguments give the same text.

    Args:
        failure: that it tells of.
        kind: of the fault; one that has no words of its own gets those for any.
        num_failing: tests that fail with the fault.
        mended: lines that the fix adds; none is told.
        seed: of the choice of words.
    """
    rng = random.Random(f"statement/{seed}")
    told = _Untold(mended)
    error = told.kept(failure.error)
    parts = [_title(failure, error), rng.choice(_OPENINGS.get(kind, _ANY_OPENING))]
    if checked := told.kept([failure.checked] if failure.checked else []):
        parts.append(rng.choice(("For example, here:", "It shows in this line of a test:")))
        parts.append(_quoted(checked))
    if error:
        parts.append(rng.choice(("I get:", "What happens instead:", "It ends with:")))
        parts.append(_quoted(error))
    parts.append(_extent(failure.test, num_failing))
    return "\n\n".join(parts) + "\n"


def _checked(before: Sequence[str]) -> str:
    """The source line that the first place of the traceback, the test's own, shows."""
    for number, line in enumerate(before):
        found = _WHERE.match(line)
        if found and "/unittest/" not in (found["file"] or "") and number + 1 < len(before):
            return before[number + 1].strip()
    return ""


def _while(lines: Sequence[str]) -> tuple[str, ...]:
    """Up to the end of the error's paragraph, cut to what people read."""
    found = []
    for line in lines:
        if line.startswith(("=====", "-----", "_____")) or len(found) == MOST_LINES:
            break
        if not line.strip() and found:
            break
        found.append(line if len(line) <= MOST_COLUMNS else line[: MOST_COLUMNS - 3] + "...")
    return tuple(found)


class _Untold:
    """Lines that are not to be read in an issue."""

    def __init__(self, mended: Collection[str]) -> None:
        stripped = (line.strip() for line in mended)
        self._lines = [line for line in stripped if len(line.rstrip(":")) > _LEAST_TELLING]

    def kept(self, lines: Sequence[str]) -> list[str]:
        return [line for line in lines if not any(untold in line for untold in self._lines)]


def _title(failure: Failure, error: Sequence[str]) -> str:
    words = _words(failure.test)
    raised = re.match(r"[A-Za-z_][\w.]*", error[0]) if error else None
    name = raised[0].rpartition(".")[2] if raised and _ERROR.match(error[0]) else ""
    if not name or name in ("AssertionError", "Failed"):
        return f"# Wrong behaviour: {words}"
    return f"# {name}: {words}"


def _words(test: str) -> str:
    """``tests/test_a.py::TestB::test_it_works[1]`` is "it works"."""
    last = test.split("[")[0].replace("::", ".").rpartition(".")[2]
    return re.sub(r"^test_?", "", last).replace("_", " ").strip() or last


def _quoted(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}".rstrip() for line in lines)


def _extent(test: str, num_failing: int) -> str:
    others = num_failing - 1
    if not others:
        return f"The test `{test}` fails for it; the others pass."
    tests = "test fails" if others == 1 else "tests fail"
    return f"The test `{test}` fails for it, and {others} more {tests}; the others pass."

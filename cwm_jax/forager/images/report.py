"""What came of each source: one line of ``builds.jsonl``, and all of them as a table."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from cwm_jax.config.schema import check_types, from_json, nearest_hint, to_json

# From the least that a source can come to, to the most.
FAILURES = {
    "excluded": "no data may come from the project",
    "source": "it is not there, or may not be used",
    "no-recipe": "nothing says how its tests are run",
    "sandbox": "the sandbox failed",
    "disk": "it takes too much room",
    "install": "no recipe installs it",
    "timeout": "an installation or the tests took too long",
    "no-tests": "it is installed, and no test is run",
    "tests-fail": "too many of its tests fail",
}
_DETAIL_CHARACTERS = 80
_COMMIT_CHARACTERS = 12
_COLUMNS = ("source", "image or failure", "recipe", "commit", "passed", "failed", "skipped")
_COLUMNS += ("flaky", "build s", "tests s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildRow:
    """One source: the attempt that gave an image, or the one that came furthest.

    Attributes:
        source: as it was asked for.
        failure: one of `FAILURES`; empty if there is an image.
        detail: why it failed, in words.
        image: its name in the store; empty if it failed.
        recipe: name of the recipe; empty if none was tried, as is the commit.
        commit: full hash.
        passed: tests that passed, of runs that came to an end, as the next three.
        failed: tests that failed.
        skipped: tests that were skipped.
        flaky: tests whose outcomes were not the same each time.
        build_s: of the installation.
        tests_s: of the runs of the tests.
        all_s: of everything that was tried for the source.

    Raises:
        ValueError: a value is of another type, unknown or negative, or there is an image and a
            failure, or neither.
    """

    source: str
    failure: str = ""
    detail: str = ""
    image: str = ""
    recipe: str = ""
    commit: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    flaky: int = 0
    build_s: float = 0.0
    tests_s: float = 0.0
    all_s: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        if self.failure and self.failure not in FAILURES:
            raise ValueError(
                f"failure is {self.failure!r}; expected one of {', '.join(FAILURES)}"
                f"{nearest_hint(self.failure, FAILURES)}"
            )
        if bool(self.failure) == bool(self.image):
            raise ValueError(
                f"{self.source} has the image {self.image!r} and the failure {self.failure!r}; "
                "expected one of them"
            )
        for name in ("passed", "failed", "skipped", "flaky", "build_s", "tests_s", "all_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0")

    @property
    def status(self) -> str:
        return "failed" if self.failure else "built"

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it; ``status`` is there for who only reads the file."""
        return {"status": self.status, **to_json(self)}

    @classmethod
    def from_json(cls, values: Any) -> BuildRow:
        """The inverse of `to_json`.

        Raises:
            ValueError: a key is missing or unknown, or as of the class.
        """
        if not isinstance(values, dict) or "status" not in values:
            raise ValueError(f"a build is {str(values)[:200]}; expected an object with a status")
        row = from_json(cls, {name: item for name, item in values.items() if name != "status"})
        if row.status != values["status"]:
            raise ValueError(
                f"{row.source} has the status {values['status']!r}; expected {row.status!r}, as "
                f"its failure is {row.failure!r}"
            )
        return row


def render(rows: Sequence[BuildRow]) -> str:
    """A table in Markdown of all rows, and how many failed of what."""
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS)), *map(_row_line, rows), ""]
    counts = collections.Counter(row.failure for row in rows)
    lines.append(f"{counts.pop('', 0)} of {len(rows)} sources have an image.")
    if counts:
        lines += ["", _line(["failure", "sources", "meaning"]), _line(["---"] * 3)]
        names = [name for name in FAILURES if name in counts]
        lines += [_line([name, counts[name], FAILURES[name]]) for name in names]
    return "\n".join(lines) + "\n"


def _row_line(row: BuildRow) -> str:
    what = row.image
    if row.failure:
        detail = row.detail[:_DETAIL_CHARACTERS]
        what = f"{row.failure}: {detail}" if detail else row.failure
    counts = [row.passed, row.failed, row.skipped, row.flaky, row.build_s, row.tests_s]
    return _line([row.source, what, row.recipe, row.commit[:_COMMIT_CHARACTERS], *counts])


def _line(cells: Sequence[object]) -> str:
    """What a project prints can hold what means something in a table, or to a terminal."""
    texts = [f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells]
    clean = (re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text).replace("|", "\\|") for text in texts)
    return f"| {' | '.join(clean)} |"

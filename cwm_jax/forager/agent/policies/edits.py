"""Changes of a file as calls of the tool edit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def edit_of(path: str, before: str, after: str) -> str:
    """The lines that differ, with as many around them as make them unique.

    Args:
        path: of the file.
        before, after: two texts of it that differ; both end with a line end.
    """
    old, new = before.split("\n")[:-1], after.split("\n")[:-1]
    first = next(n for n in itertools.count() if old[n : n + 1] != new[n : n + 1])
    most = min(len(old), len(new)) - first
    last = next((n for n in range(most) if old[-1 - n] != new[-1 - n]), most)
    while True:
        wanted = old[first : len(old) - last]
        if any(line.strip() for line in wanted) and _count(old, wanted) == 1:
            break
        first, last = max(0, first - 1), max(0, last - 1)
    search, replace = "\n".join(wanted), "\n".join(new[first : len(new) - last])
    return f"{path}\n<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE"


def _count(lines: Sequence[str], wanted: Sequence[str]) -> int:
    size = len(wanted)
    return sum(lines[n : n + size] == wanted for n in range(len(lines) - size + 1))

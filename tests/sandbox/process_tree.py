"""Processes as the host sees them."""

import time
from pathlib import Path


def wait_until(condition) -> None:
    while not condition():
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    """Also where the process that inherited it has not collected it yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


def descendants(pid: int) -> list[int]:
    """Children before grandchildren."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [*map(int, listed), *(other for child in listed for other in descendants(int(child)))]

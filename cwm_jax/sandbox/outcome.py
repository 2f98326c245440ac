"""How a run in the sandbox ended."""

from __future__ import annotations

import dataclasses
import enum


class SandboxError(RuntimeError):
    """The sandbox itself cannot be had here: not installed, or it does not start."""


class Outcome(enum.Enum):
    """What ended a run; the value is the word that other formats store."""

    OK = "ok"
    EXIT = "exit"  # a status other than 0, or gone without a reply
    SIGNAL = "signal"
    CPU = "cpu"
    WALL = "wall"
    MEMORY = "memory"
    OUTPUT = "output"  # too much on stdout or stderr, or too long a reply
    ERROR = "error"  # the handler raised


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completed:
    """A program that was run; ``returncode`` is negative for a signal, as in `subprocess`."""

    outcome: Outcome
    returncode: int
    stdout: bytes
    stderr: bytes
    cpu_s: float
    wall_s: float
    detail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """A worker's answer; ``value`` is bytes when the outcome is OK, else None."""

    outcome: Outcome
    value: bytes | None
    stdout: bytes
    stderr: bytes
    cpu_s: float
    wall_s: float
    detail: str

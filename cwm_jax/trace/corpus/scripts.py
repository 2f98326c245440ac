"""Whole scripts as work, each with what it reads from the standard input."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from cwm_jax.trace.episodes import Episode, Program, context_of_script, decode_source
from cwm_jax.trace.tracer import Tracer

STDIN_SUFFIX = ".in"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
    """A script; that it is no Python shows when it is traced.

    Attributes:
        name: unique and stable.
        content: of the file.
        stdin: of the file beside it, or empty.
    """

    name: str
    content: bytes
    stdin: bytes = b""
    source: str = "script"

    def episodes(self, tracer: Tracer) -> list[Episode]:
        """Its one episode; raises TraceError as `Tracer.trace` does."""
        context = context_of_script(decode_source(self.content), self.stdin)
        program = Program(name=self.name, context=context, source=self.source, origin=self.name)
        return program.episodes(tracer)


def script_paths(folder: Path) -> list[Path]:
    """Every ``*.py`` below a folder, sorted.

    Raises:
        ValueError: there is none.
    """
    paths = sorted(folder.rglob("*.py"))
    if not paths:
        raise ValueError(f"{folder}: no *.py below it; expected a folder of scripts: name another")
    return paths


def stdin_path(script: Path) -> Path:
    """Where the standard input of a script is, if it has one."""
    return script.with_suffix(STDIN_SUFFIX)


def scripts(folder: Path, *, prefix: str = "") -> Iterator[Script]:
    """The scripts of a folder; ``NAME.in`` beside ``NAME.py`` is its standard input."""
    for path in script_paths(folder):
        stdin = stdin_path(path)
        yield Script(
            name=f"{prefix}{path.relative_to(folder).as_posix()}".replace("#", "-"),
            content=path.read_bytes(),
            stdin=stdin.read_bytes() if stdin.exists() else b"",
        )

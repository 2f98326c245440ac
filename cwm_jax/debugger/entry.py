"""Where a debugged program begins: a call, its marked line, its ``main``, or its first line."""

from __future__ import annotations

import ast

from cwm_jax.debugger.program import Program
from cwm_jax.trace.contexts import context_of_program, has_marker
from cwm_jax.trace.format import START_MARKER
from cwm_jax.trace.tracer import PARSE_ERRORS, find_entry, source_lines, unmarked


def program_of_source(source: str, call: str | None = None) -> Program:
    """The program in the form that models are trained on.

    Args:
        source: of a file; a line of it may carry the start marker.
        call: ``f(1, x=2)`` of one of its functions; without it the marked line is the entry, else
            ``main``, else the whole script.

    Raises:
        ValueError: no such call, a source that does not parse, or one that spells special tokens.
    """
    if call is None and not has_marker(source):
        source = _with_marked_main(source) or source
    return Program(context_of_program(source, call))


def added_lines(source: str, program: Program) -> int:
    """How many lines stand before a source's first in the program that is debugged."""
    first = next(iter(source_lines(source)), "")
    return next((n for n, line in enumerate(program.lines) if line == unmarked(first)), 0)


def _with_marked_main(source: str) -> str | None:
    """None where the source has no ``main`` that can be marked."""
    try:
        body = ast.parse(source).body
    except PARSE_ERRORS:
        return None  # whatever reads it next names what is wrong with it
    found = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == "main"]
    if not found:
        return None
    lines = source_lines(source)
    line = lines[found[-1].lineno - 1]
    text = line.rstrip("\r\n")
    lines[found[-1].lineno - 1] = text.rstrip() + START_MARKER + line[len(text) :]
    marked = "".join(lines)
    try:
        entry = find_entry(marked)
    except ValueError:
        return None
    return marked if entry is not None and entry[1] == "main" else None

"""The context that a program's file is traced in: a call of its, its marked line, or all of it."""

from __future__ import annotations

import ast
import builtins
import symtable

from cwm_jax.trace.episodes import context_of_call, context_of_script
from cwm_jax.trace.tracer import PARSE_ERRORS, source_lines, unmarked


def context_of_program(source: str, call: str | None = None, stdin: bytes | None = None) -> str:
    """A source with the start marker on the line where its trace begins.

    Args:
        source: of a file; one of its lines may carry the marker.
        call: ``f(1, x=2)`` of one of its functions, in place of the marked line.
        stdin: what the whole script reads.

    Raises:
        ValueError: no such call, a source that does not parse, or ``stdin`` for a single call.
    """
    is_marked = has_marker(source)
    if stdin is not None and (is_marked or call is not None):
        raise ValueError(
            "--stdin is given; expected none with --call or a marked line, which nothing feeds: "
            "leave it out, or trace the whole script"
        )
    if call is not None:
        return _context_of_call(source, call.strip())
    return source if is_marked else context_of_script(source, stdin or b"")


def has_marker(source: str) -> bool:
    """Whether a line ends with the start marker."""
    return any(unmarked(line) != line for line in source_lines(source))


def _context_of_call(source: str, call: str) -> str:
    """The context of ``f(1, x=2)``.

    Raises:
        ValueError: it is no call, or the source has nothing of that name.
    """
    try:
        tree = ast.parse(call, mode="eval").body
    except PARSE_ERRORS:
        tree = None
    name, _, rest = call.partition("(")
    if not isinstance(tree, ast.Call) or ast.unparse(tree.func) != name.strip():
        raise ValueError(f"--call is {call!r}; expected one call of a function, as 'f(1, x=2)'")
    root = name.strip().partition(".")[0]
    if (bound := _bound_names(source)) is not None and root not in {*bound, *dir(builtins)}:
        raise ValueError(
            f"--call is {call!r}, but nothing in the file is named {root!r}; expected one of its "
            f"names: {', '.join(sorted(bound)) or 'it has none'}"
        )
    return context_of_call(source, rest.removesuffix(")"), function=name.strip())


def _bound_names(source: str) -> set[str] | None:
    """Names that a module binds; None where they are not known: a star import, a syntax error."""
    try:
        symbols = symtable.symtable(source, "main.py", "exec").get_symbols()
    except PARSE_ERRORS:
        return None  # the tracer names what is wrong with it
    bound = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
    return None if "import *" in source else bound

"""Changes of a module that may mend a small fault: inverses of mutations, likeliest first."""

from __future__ import annotations

import ast
import collections
import functools
import io
import itertools
import math
import re
import tokenize
from collections.abc import Iterator

from cwm_jax.rl.envs.swe.shipped.mutations import mutations

_INVOLUTIONS = ("operators", "arguments", "variables")
# What the mutations' own table does not lead back to.
_OTHERS = {"+": ("*",), "*": ("/", "**"), "//": ("%",), "/": ("//",), "if": ("if not",)}
_OTHERS["while"] = ("while not",)
_HOMES = (collections, functools, itertools, math, re)


def reachable(source: str, expression: str) -> list[str]:
    """Names of the module's functions that a call comes to, the nearest first."""
    tree = ast.parse(source)
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    found: list[str] = []
    queue: list[ast.AST] = [ast.parse(expression.strip(), mode="eval")]
    while queue:
        for node in ast.walk(queue.pop(0)):
            if isinstance(node, ast.Name) and node.id in functions and node.id not in found:
                found.append(node.id)
                queue.append(functions[node.id])
    return found


def repairs(source: str, functions: list[str], trouble: str) -> Iterator[str]:
    """Whole texts of the changed module, each once; ``trouble`` is what the call came to."""
    seen = {source}
    swaps = [m for m in mutations(source) if m.function in functions]
    involutions = (m.source for kind in _INVOLUTIONS for m in swaps if m.kind == kind)
    likeliest = _returns(source, functions) if "None" in trouble else _imports(source, trouble)
    kinds = (likeliest, involutions, _operators(source, functions))
    for text in itertools.chain(*kinds, _returns(source, functions)):
        if text not in seen and _parses(text):
            seen.add(text)
            yield text


def _imports(source: str, trouble: str) -> Iterator[str]:
    name = re.search(r"name '(\w+)' is not defined", trouble)
    if name is None:
        return
    word = name[1]
    lines = [f"from {m.__name__} import {word}" for m in _HOMES if hasattr(m, word)]
    first = ast.parse(source).body[0]
    at = (first.end_lineno or 0) if isinstance(first, ast.Expr) else 0
    old = source.splitlines(keepends=True)
    for line in [f"import {word}", *lines]:
        yield "".join([*old[:at], f"{line}\n", *old[at:]])


def _operators(source: str, functions: list[str]) -> Iterator[str]:
    lines = source.splitlines(keepends=True)
    inside = _lines_of(source, functions)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (row, start), (_, end) = token.start, token.end
        for other in _OTHERS.get(token.string, ()) if row in inside else ():
            line = lines[row - 1]
            yield "".join([*lines[: row - 1], line[:start] + other + line[end:], *lines[row:]])


def _returns(source: str, functions: list[str]) -> Iterator[str]:
    """A return of one of a function's names after one of its lines, the last lines first."""
    lines = source.splitlines(keepends=True)
    for function in _nodes(source, functions):
        stored = [
            n.id
            for n in ast.walk(function)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        ]
        names = list(dict.fromkeys([*stored[::-1], *(a.arg for a in function.args.args)]))
        for statement in reversed([n for n in ast.walk(function) if isinstance(n, ast.stmt)][1:]):
            end, indent = statement.end_lineno or 0, " " * statement.col_offset
            for name in names:
                yield "".join([*lines[:end], f"{indent}return {name}\n", *lines[end:]])


def _nodes(source: str, functions: list[str]) -> list[ast.FunctionDef]:
    found = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
    return [found[name] for name in functions]


def _lines_of(source: str, functions: list[str]) -> list[int]:
    nodes = _nodes(source, functions)
    return [n for f in nodes for n in range(f.lineno, (f.end_lineno or 0) + 1)]


def _parses(text: str) -> bool:
    try:
        compile(text, "repaired", "exec")
    except (SyntaxError, ValueError):
        return False
    return True

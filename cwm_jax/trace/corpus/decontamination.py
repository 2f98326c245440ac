"""Benchmark programs, found in contexts whatever their names, comments and layout.

A function is compared by the SHA-256 of its syntax tree without docstrings, annotations and
comments, with every name it binds or that is no builtin replaced by the number of its first
appearance. Attributes, keywords of calls, imported names and constants stay as they are.

Too small a function is no evidence, as every corpus has ``return a + b``: what has fewer than
`MIN_NODES` nodes is compared on neither side.
"""

from __future__ import annotations

import ast
import builtins
import copy
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.trace.tracer import PARSE_ERRORS

# Nodes of a normalised function, its own included, but not the names' contexts. Measured: of 9200
# functions of the standard library and 7600 generated ones, what equals one of 1145 benchmark
# functions has at most 10, such as len(x) and a + b.
MIN_NODES = 11
_BUILTINS = frozenset(dir(builtins))
_DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """The functions of benchmark programs.

    Attributes:
        files: name, number of programs, and of functions that are compared, of each file.
        digests: of the functions.
    """

    files: tuple[tuple[str, int, int], ...] = ()
    digests: frozenset[bytes] = frozenset()

    @property
    def sha256(self) -> str:
        """Of all digests, in hex."""
        return hashlib.sha256(b"".join(sorted(self.digests))).hexdigest()

    def to_json(self) -> dict[str, Any]:
        keys = ("name", "programs", "functions")
        files = [dict(zip(keys, file, strict=True)) for file in self.files]
        return {"files": files, "sha256": self.sha256}


def load_benchmarks(paths: Sequence[Path]) -> Benchmarks:
    """Reads JSONL files with ``code``, or ``prompt`` and ``canonical_solution``, in each line.

    Raises:
        ValueError: a line that is no such object, or whose program does not parse.
    """
    files, digests = [], set()
    for path in paths:
        programs = list(_programs(Path(path)))
        found = [digest for source in programs for digest in function_digests(source)]
        files.append((Path(path).name, len(programs), len(found)))
        digests.update(found)
    return Benchmarks(tuple(files), frozenset(digests))


@functools.lru_cache(maxsize=256)  # one context often has several episodes
def function_digests(source: str) -> tuple[bytes, ...]:
    """The digest of each function of a source, nested ones and methods too, in the order of `walk`.

    Raises:
        SyntaxError: it does not parse.
    """
    tree = ast.parse(source)
    imported = _imported(tree)
    normalised = (
        _normalised(node, imported) for node in ast.walk(tree) if isinstance(node, _FUNCTION)
    )
    return tuple(
        hashlib.sha256(ast.dump(node).encode()).digest()
        for node in normalised
        if _num_nodes(node) >= MIN_NODES
    )


def _programs(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                source = _source_of_row(row)
                ast.parse(source)
            except (*PARSE_ERRORS, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number}: {error!r}; expected an object with a Python program in "
                    "'code', or in 'prompt' and 'canonical_solution': leave out lines that are none"
                ) from error
            yield source


def _source_of_row(row: Mapping[str, str]) -> str:
    return row["code"] if "code" in row else row["prompt"] + row["canonical_solution"]


def _imported(tree: ast.AST) -> set[str]:
    nodes = (n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom))
    aliases = (alias for node in nodes for alias in node.names)
    return {alias.asname or alias.name.partition(".")[0] for alias in aliases}


def _normalised(function: ast.AST, imported: set[str]) -> ast.AST:
    stripped = _Stripper().visit(copy.deepcopy(function))
    kept = (_BUILTINS | imported) - _bound_names(stripped)
    return _Renamer(kept).visit(stripped)


def _num_nodes(tree: ast.AST) -> int:
    return sum(not isinstance(node, ast.expr_context) for node in ast.walk(tree))


def _bound_names(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif not isinstance(node, ast.alias):
            found = (getattr(node, key, None) for key in ("name", "rest"))
            names.update(name for name in found if isinstance(name, str))
    return names


class _Stripper(ast.NodeTransformer):
    """Takes away what changes nothing that a function does."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, _FUNCTION):
            node.returns = node.type_comment = None
        if isinstance(node, ast.arg):
            node.annotation = node.type_comment = None
        return super().generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return self.generic_visit(ast.Assign(targets=[node.target], value=node.value))


class _Renamer(ast.NodeTransformer):
    """Numbers every name that is not kept, in the order of their first appearance."""

    def __init__(self, kept: set[str] | frozenset[str]) -> None:
        self._kept = kept
        self._numbers: dict[str, str] = {}

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for key in ("id", "arg", "name", "rest"):
            is_keyword = isinstance(node, ast.keyword | ast.alias)
            if isinstance(name := getattr(node, key, None), str) and not is_keyword:
                setattr(node, key, self._number(name))
        if isinstance(node, ast.Global | ast.Nonlocal):
            node.names = [self._number(name) for name in node.names]
        return super().generic_visit(node)

    def _number(self, name: str) -> str:
        if name in self._kept:
            return name
        return self._numbers.setdefault(name, f"#{len(self._numbers)}")

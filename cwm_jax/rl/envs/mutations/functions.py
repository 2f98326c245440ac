"""The functions of a source: where they are, and what is in them."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Function:
    """A function of a source.

    Attributes:
        name: qualified, as in ``__qualname__``: ``Class.method``, ``outer.<locals>.inner``.
        first, last: its lines from 1, both included; decorators belong to it.
        line: of its ``def``.
    """

    name: str
    first: int
    line: int
    last: int


def functions(source: str) -> list[Function]:
    """All functions and methods of a source, nested ones too, in the order of the text."""
    found = []
    for name, node, _ in function_nodes(ast.parse(source)):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        assert node.end_lineno is not None
        found.append(Function(name=name, first=first, line=node.lineno, last=node.end_lineno))
    return found


def function_nodes(
    tree: ast.AST, prefix: str = ""
) -> Iterator[tuple[str, FunctionNode, list[ast.stmt]]]:
    """Each function's qualified name, its node and the block that it is a statement of."""
    for block in blocks(tree):
        for node in block:
            if isinstance(node, FunctionNode):
                yield prefix + node.name, node, block
                yield from function_nodes(node, f"{prefix}{node.name}.<locals>.")
            elif isinstance(node, ast.ClassDef):
                yield from function_nodes(node, f"{prefix}{node.name}.")
            else:
                yield from function_nodes(node, prefix)


def blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """The blocks of statements of a node itself, in the order of the text."""
    for field in ("body", "handlers", "cases", "orelse", "finalbody"):
        value = getattr(node, field, None)
        if not isinstance(value, list):
            continue
        if field in ("handlers", "cases"):
            for part in value:
                yield from blocks(part)
        elif value:
            yield value


def own_statements(node: ast.AST) -> Iterator[tuple[ast.stmt, list[ast.stmt]]]:
    """Its statements and their blocks, without those of functions and classes within."""
    for block in blocks(node):
        for statement in block:
            yield statement, block
            if not isinstance(statement, _SCOPES):
                yield from own_statements(statement)


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """What a function runs: not functions and classes within, nor what is in f-strings.

    Before Python 3.12 the places of nodes in f-strings are wrong.
    """
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*_SCOPES, ast.JoinedStr)):
            yield child
            yield from own_nodes(child)

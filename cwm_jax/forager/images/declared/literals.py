"""Literals of Python's syntax trees, without running anything."""

from __future__ import annotations

import ast
from typing import Any

_MAX_DEPTH = 20  # of literals within literals; assumed
_MAX_ITEMS = 200  # of a sum of lists; assumed


def module_literals(tree: ast.Module) -> dict[str, Any]:
    """Literals that names of a module are assigned to, as far as they are literals."""
    names: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            value = literal(node.value, names)
            for target in node.targets:
                if isinstance(target, ast.Name) and value is not None:
                    names[target.id] = value
    return names


def literal(node: ast.AST | None, names: dict[str, Any], *, depth: int = _MAX_DEPTH) -> Any:
    """Texts, lists (also of tuples and sets) and dictionaries, names and sums of these; or None."""
    if depth == 0:
        return None
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [literal(item, names, depth=depth - 1) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [literal(key, names, depth=depth - 1) for key in node.keys]
        values = [literal(value, names, depth=depth - 1) for value in node.values]
        return {k: v for k, v in zip(keys, values, strict=True) if isinstance(k, str)}
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left = literal(node.left, names, depth=depth - 1)
        right = literal(node.right, names, depth=depth - 1)
        if isinstance(left, list) and isinstance(right, list):
            # A list that is added to itself again and again would fill the memory.
            return (left + right)[:_MAX_ITEMS]
    return None


def last_name(node: ast.AST | None) -> str:
    """``c`` of ``a.b.c`` and of ``c``; empty for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")

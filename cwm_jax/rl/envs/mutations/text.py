"""The text of a source, changed at the places of its tree's nodes and nowhere else."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable

Placed = ast.expr | ast.stmt | ast.arg | ast.keyword


class Text:
    """A source and where the nodes of its tree lie in it; offsets are those of UTF-8 bytes."""

    def __init__(self, source: str):
        self._mark = "\ufeff" if source.startswith("\ufeff") else ""
        self.content = source.removeprefix(self._mark).encode()
        self.tree = ast.parse(self.content.decode())
        self._lines = self.content.splitlines(keepends=True)
        self._starts = [0, *itertools.accumulate(map(len, self._lines))]

    def start(self, node: Placed) -> int:
        return self._starts[node.lineno - 1] + node.col_offset

    def end(self, node: Placed) -> int:
        line, column = end(node)
        return self._starts[line - 1] + column

    def of(self, node: Placed) -> str:
        return self.content[self.start(node) : self.end(node)].decode()

    def replaced(self, spans: Iterable[tuple[int, int, str]]) -> str:
        """The source with other text in some places that do not overlap."""
        content = self.content
        for first, last, other in sorted(spans, reverse=True):
            content = content[:first] + other.encode() + content[last:]
        return self._mark + content.decode()

    def permuted(self, nodes: Iterable[ast.expr], others: Iterable[ast.expr]) -> str:
        """The source with each node's text replaced by that of the other one at its index."""
        pairs = zip(nodes, others, strict=True)
        return self.replaced((self.start(a), self.end(a), self.of(b)) for a, b in pairs)

    def without_element(self, first: int, last: int) -> str | None:
        """Without an element of a list and its comma; None if no comma is beside it."""
        after = re.match(rb"\s*,[ \t]*", self.content[last:])
        before = re.search(rb",\s*\Z", self.content[:first])
        if after:
            last += after.end()
        elif before:
            first = before.start()
        else:
            return None
        return self.replaced([(first, last, "")])

    def without_lines(self, first: int, last: int) -> str:
        """Without those lines, counted from 1."""
        return self.replaced([(self._starts[first - 1], self._starts[last], "")])

    def without_statements(self, nodes: list[ast.stmt], block: list[ast.stmt]) -> str:
        """Without neighbours of a block; ``pass`` stands for them where the text needs one."""
        first_line = first_of(nodes[0])
        last_line, column = end(nodes[-1])
        before = self._lines[first_line - 1][: nodes[0].col_offset]
        after = self._lines[last_line - 1][column:]
        alone = not before.strip() and not after.strip()
        start = self._starts[first_line - 1] + nodes[0].col_offset
        chained = self.content[start : start + 4] == b"elif"
        if alone and (chained or len(nodes) < len(block)):
            return self.without_lines(first_line, last_line)
        return self.replaced([(start, self.end(nodes[-1]), "pass")])


def first_of(node: ast.stmt) -> int:
    """The first line of a statement, its decorators included."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def end(node: Placed) -> tuple[int, int]:
    """The last line of a node and the column behind it."""
    assert node.end_lineno is not None and node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset

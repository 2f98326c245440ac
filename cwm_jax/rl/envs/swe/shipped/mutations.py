"""Faults to be found: small changes of a module's text, of the report's five kinds.

Each keeps all other text as it is, so that its inverse is a small patch. Whether it breaks
anything, tests have to say.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator

KINDS = ("functions", "arguments", "variables", "statements", "operators")

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_COMPOUND = (ast.If, ast.For, ast.While, ast.Try, ast.With)
# (spelling in the source, what takes its place)
_OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Add: (r"\+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: (r"\*", "+"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "//"),
    ast.Pow: (r"\*\*", "*"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: (r"\bin\b", "not in"),
    ast.NotIn: (r"\bnot\s+in\b", "in"),
    ast.Is: (r"\bis\b", "is not"),
    ast.IsNot: (r"\bis\s+not\b", "is"),
    ast.And: (r"\band\b", "or"),
    ast.Or: (r"\bor\b", "and"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutation:
    """A changed module.

    Attributes:
        kind: one of `KINDS`.
        function: in which it is, the outermost one; empty in the module's own statements.
        what: was done, in words.
        source: of the whole module afterwards.
    """

    kind: str
    function: str
    what: str
    source: str


def mutations(source: str) -> Iterator[Mutation]:
    """All mutations of a module that compile and change it, in a fixed order, each text once."""
    seen = {source}
    for mutation in _drafts(_Text(source)):
        if mutation.source not in seen and _compiles(mutation.source):
            seen.add(mutation.source)
            yield mutation


def _drafts(text: _Text) -> Iterator[Mutation]:
    tree = ast.parse(text.source)
    for kind, name, what, changed in itertools.chain(
        _dropped_imports(tree, text),
        *(_of_function(node, text) for node in tree.body if isinstance(node, _Function)),
    ):
        yield Mutation(kind=kind, function=name, what=what, source=changed)


def _of_function(function: _Function, text: _Text) -> Iterator[tuple[str, str, str, str]]:
    for kind, changes in (
        ("functions", _less_of_function(function, text)),
        ("arguments", _other_arguments(function, text)),
        ("variables", _swapped_variables(function, text)),
        ("statements", _dropped_returns(function, text)),
        ("operators", _other_operators(function, text)),
    ):
        for what, changed in changes:
            yield kind, function.name, what, changed


def _less_of_function(function: _Function, text: _Text) -> Iterator[tuple[str, str]]:
    first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
    yield "removed", text.without_lines(first, _end(function)[0], blank_lines=True)
    for node in ast.walk(function):
        if isinstance(node, _COMPOUND):
            for changed in text.without_statement(node):
                yield f"the {type(node).__name__.lower()} of line {node.lineno} removed", changed


def _dropped_imports(tree: ast.Module, text: _Text) -> Iterator[tuple[str, str, str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for changed in text.without_statement(node):
                yield "statements", "", f"the import of line {node.lineno} dropped", changed


def _dropped_returns(function: _Function, text: _Text) -> Iterator[tuple[str, str]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Return):
            for changed in text.without_statement(node):
                yield f"the return of line {node.lineno} dropped", changed


def _other_arguments(function: _Function, text: _Text) -> Iterator[tuple[str, str]]:
    arguments = function.args
    simple = not (arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg)
    if simple and not arguments.kwarg and len(arguments.args) > 1:
        start = text.start(arguments.args[0])
        end = max(text.end(node) for node in [*arguments.args, *arguments.defaults])
        for index, argument in enumerate(arguments.args):
            fewer = ast.unparse(_without_parameter(arguments, index))
            yield f"the parameter {argument.arg} removed", text.replaced([(start, end, fewer)])
    for node in _walk_outside_strings(function):
        if isinstance(node, ast.Call) and not any(isinstance(a, ast.Starred) for a in node.args):
            for left, right in itertools.pairwise(node.args):
                what = f"two arguments of the call in line {node.lineno} exchanged"
                yield what, text.exchanged([(left, right)])


def _without_parameter(arguments: ast.arguments, index: int) -> ast.arguments:
    fewer = copy.deepcopy(arguments)
    del fewer.args[index]
    default = index - (len(arguments.args) - len(arguments.defaults))
    if default >= 0:
        del fewer.defaults[default]
    return fewer


def _swapped_variables(function: _Function, text: _Text) -> Iterator[tuple[str, str]]:
    outside = {id(node) for node in _walk_outside_strings(function)}
    names: dict[str, list[ast.Name]] = {}
    in_strings = set()
    stored = {argument.arg for argument in function.args.args}
    for node in (n for statement in function.body for n in ast.walk(statement)):
        if isinstance(node, ast.Name):
            names.setdefault(node.id, []).append(node)
            if isinstance(node.ctx, ast.Store):
                stored.add(node.id)
            if id(node) not in outside:
                in_strings.add(node.id)
    for a, b in itertools.combinations(sorted(stored & set(names) - in_strings), 2):
        changes = [(node, b) for node in names[a]] + [(node, a) for node in names[b]]
        spans = [(text.start(node), text.end(node), other) for node, other in changes]
        yield f"{a} and {b} exchanged", text.replaced(spans)


def _other_operators(function: _Function, text: _Text) -> Iterator[tuple[str, str]]:
    for node in _walk_outside_strings(function):
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            span = (text.start(node), text.start(node.operand), "")
            yield f"an operator of line {node.lineno} dropped", text.replaced([span])
        for change in _operator_changes(node, text):
            yield f"an operator of line {getattr(node, 'lineno', 0)} replaced", change


def _operator_changes(node: ast.AST, text: _Text) -> Iterator[str]:
    if isinstance(node, ast.BinOp):
        yield from text.with_operators([(node.left, node.op, node.right)])
    elif isinstance(node, ast.AugAssign):
        yield from text.with_operators([(node.target, node.op, node.value)])
    elif isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for (left, right), op in zip(itertools.pairwise(operands), node.ops, strict=True):
            yield from text.with_operators([(left, op, right)])
    elif isinstance(node, ast.BoolOp):
        pairs = itertools.pairwise(node.values)
        yield from text.with_operators([(left, node.op, right) for left, right in pairs])


class _Text:
    """A source and where the nodes of its tree lie in it; columns are those of UTF-8."""

    def __init__(self, source: str):
        self.source = source
        self._bytes = source.encode()
        self._lines = self._bytes.splitlines(keepends=True)
        self._starts = [0, *itertools.accumulate(map(len, self._lines))]

    def start(self, node: ast.expr | ast.stmt | ast.arg) -> int:
        return self._starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt | ast.arg) -> int:
        line, column = _end(node)
        return self._starts[line - 1] + column

    def replaced(self, spans: Iterable[tuple[int, int, str]]) -> str:
        """The source with other text in some places that do not overlap."""
        content = self._bytes
        for start, end, other in sorted(spans, reverse=True):
            content = content[:start] + other.encode() + content[end:]
        return content.decode()

    def exchanged(self, pairs: Iterable[tuple[ast.expr, ast.expr]]) -> str:
        spans = []
        for left, right in pairs:
            for node, other in ((left, right), (right, left)):
                inside = self._bytes[self.start(other) : self.end(other)].decode()
                spans.append((self.start(node), self.end(node), inside))
        return self.replaced(spans)

    def with_operators(self, places: Iterable[tuple[ast.expr, ast.AST, ast.expr]]) -> Iterator[str]:
        """The source with other operators between the operands, if they are found there."""
        spans = []
        for left, op, right in places:
            if type(op) not in _OPERATORS:
                return
            pattern, other = _OPERATORS[type(op)]
            start, end = self.end(left), self.start(right)
            between = self._bytes[start:end].decode()
            found = list(re.finditer(pattern, between))
            if len(found) != 1 or "#" in between:
                return
            head, tail = between[: found[0].start()], between[found[0].end() :]
            spans.append((start, end, head + other + tail))
        yield self.replaced(spans)

    def without_lines(self, first: int, last: int, *, blank_lines: bool = False) -> str:
        """Without those lines, and the blank ones that follow."""
        while blank_lines and last < len(self._lines) and not self._lines[last].strip():
            last += 1
        return b"".join(self._lines[: first - 1] + self._lines[last:]).decode()

    def without_statement(self, node: ast.stmt) -> Iterator[str]:
        """Without it, or where a block would be left empty with a ``pass`` in its place."""
        first, (last, column) = node.lineno, _end(node)
        before, after = self._lines[first - 1][: node.col_offset], self._lines[last - 1][column:]
        if before.strip() or after.strip():
            return
        without = self.without_lines(first, last)
        yield (
            without
            if _compiles(without)
            else self.replaced([(self.start(node), self.end(node), "pass")])
        )


def _walk_outside_strings(node: ast.AST) -> Iterator[ast.AST]:
    """As `ast.walk`, but not into f-strings: before Python 3.12 places in them are wrong."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.JoinedStr):
            yield from _walk_outside_strings(child)


def _end(node: ast.expr | ast.stmt | ast.arg) -> tuple[int, int]:
    assert node.end_lineno is not None and node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset


def _compiles(source: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a comparison may look odd, and still compile
        try:
            compile(source, "mutated", "exec")
        except (SyntaxError, ValueError):
            return False
    return True

"""What a function's names tell: which it lacks, which it never reads, what it may leave out."""

from __future__ import annotations

import ast
import builtins
import dataclasses
from collections.abc import Iterator

from cwm_jax.rl.envs.mutations.functions import FunctionNode, function_nodes
from cwm_jax.rl.envs.mutations.text import Text

# What a name may have begun with, the commonest first; and how many names are tried at one place.
FIRST_VALUES = ("0", "[]", "{}", "None", "1", "''", "set()", "False", "True")  # assumed
MOST_NAMES = 5  # assumed
_BUILTINS = frozenset(dir(builtins)) | {"__file__", "__name__", "__doc__", "__class__"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """A changed module.

    Attributes:
        cost: lower is likelier; assumed, from what inverses have mended.
        why: the guess, in words.
        source: all of the module afterwards.
    """

    cost: float
    why: str
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scope:
    """A function and its names.

    Attributes:
        text: of the module.
        name: qualified.
        node: of the function.
        parameters, stored: names in the order of the text, each once; ``self`` among them.
        undefined: names that it reads and nobody gives.
        unread: parameters and local names that it never reads.
    """

    text: Text
    name: str
    node: FunctionNode
    parameters: tuple[str, ...]
    stored: tuple[str, ...]
    undefined: tuple[str, ...]
    unread: tuple[str, ...]

    @property
    def local(self) -> tuple[str, ...]:
        """Names that hold values here: those that gather something first, then the newest."""
        own = [name for name in self.parameters if name not in ("self", "cls")]
        gathering = [name for name in self.stored if name in self.gathered]
        return tuple(dict.fromkeys([*gathering, *reversed(self.stored), *own]))

    def near(self, line: int) -> list[str]:
        """Names that hold values, those first that got theirs last before a line."""
        places = {
            n.id: n.lineno
            for n in ast.walk(self.node)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and n.lineno <= line
        }
        return sorted(self.local, key=lambda name: -places.get(name, self.node.lineno))

    @property
    def gathered(self) -> frozenset[str]:
        """Names that a loop or a call adds to."""
        found = set()
        for node in ast.walk(self.node):
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                root = node.value.func
                while isinstance(root, ast.Attribute | ast.Subscript):
                    root = root.value
                if isinstance(root, ast.Name):
                    found.add(root.id)
        return frozenset(found)

    @property
    def body(self) -> list[ast.stmt]:
        """Without the docstring."""
        skip = ast.get_docstring(self.node, clean=False) is not None
        return self.node.body[skip:]

    def statements(self) -> Iterator[ast.stmt]:
        """All within, in the order of the text."""
        for statement in self.body:
            yield from (n for n in ast.walk(statement) if isinstance(n, ast.stmt))

    def after(self, statement: ast.stmt, line: str) -> str:
        """The module with a line behind a statement, at its indentation."""
        indent = _indent(self.text, statement)
        at = _line_end(self.text, statement)
        return self.text.replaced([(at, at, f"\n{indent}{line}")])

    def before(self, statement: ast.stmt, line: str) -> str:
        """The module with a line before a statement, at its indentation."""
        indent = _indent(self.text, statement)
        at = self.text.start(statement) - statement.col_offset
        return self.text.replaced([(at, at, f"{indent}{line}\n")])


def scopes(text: Text) -> Iterator[Scope]:
    """Of each function of a module."""
    outer = {name for node in _outside_functions(text.tree) for name in _given(node)}
    nodes = [(name, node) for name, node, _ in function_nodes(text.tree)]
    around: dict[str, set[str]] = {}
    for name, node in nodes:
        own = {given for inner in ast.walk(node) for given in _given(inner)}
        around[name] = own
        enclosing = {n for other in around if name.startswith(f"{other}.") for n in around[other]}
        loaded = _loaded(node)
        known = outer | own | enclosing | _BUILTINS
        parameters = tuple(a.arg for a in _arguments(node.args))
        stored = tuple(dict.fromkeys(_stored(node)))
        yield Scope(
            text=text,
            name=name,
            node=node,
            parameters=parameters,
            stored=stored,
            undefined=tuple(n for n in loaded if n not in known),
            unread=tuple(n for n in (*parameters, *stored) if n not in loaded and n != "_"),
        )


def _loaded(node: ast.AST) -> dict[str, None]:
    names = (n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
    return {n.id: None for n in names}


def _stored(node: FunctionNode) -> Iterator[str]:
    """In the order of the text; a comprehension's names are its own."""
    found = []
    for inner in _outside_comprehensions(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            found.append((inner.lineno, inner.col_offset, inner.id))
    for *_, name in sorted(found):
        yield name


def _given(node: ast.AST) -> Iterator[str]:
    """Names that a node binds."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.alias):
        yield (node.asname or node.name).split(".")[0]
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
        yield node.name or ""


def _outside_comprehensions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            yield from _outside_comprehensions(child)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _outside_functions(child)


def _arguments(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    for more in (arguments.vararg, arguments.kwarg):
        if more is not None:
            yield more


def _indent(text: Text, statement: ast.stmt) -> str:
    start = text.start(statement)
    before = text.content[start - statement.col_offset : start].decode()
    return before if not before.strip() else " " * statement.col_offset


def _line_end(text: Text, statement: ast.stmt) -> int:
    at = text.content.find(b"\n", text.end(statement))
    return len(text.content) if at < 0 else at

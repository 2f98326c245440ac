"""The context of an episode that is cut from a run: an excerpt of the files that it enters.

The report says that context is gathered and compressed, not how. This rule is assumed. Of each
file: the whole source of the functions that are entered, with decorators; the headers of the
classes around methods; the imports and assignments of the module whose names those functions use.
All of it is physical lines of the file, in its order, so that the source line of every frame
occurs; the rest is dropped. Several files follow each other under comments with their names, the
entry's last.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cwm_jax.trace.episodes import decode_source
from cwm_jax.trace.format import START_MARKER
from cwm_jax.trace.tracer import PARSE_ERRORS, TraceError, marked_line, source_lines

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Assignment = ast.Assign | ast.AnnAssign | ast.AugAssign


@dataclasses.dataclass(frozen=True)
class Scope:
    """A code object, as its first line and dotted name."""

    file: str
    first_line: int
    name: str


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """A context with its marked line, and where the lines of the files are in it.

    Attributes:
        context: its text.
        lines: (file, line) to the 1-based line of the context.
    """

    context: str
    lines: Mapping[tuple[str, int], int]


class SourceFile:
    """A parsed file.

    Raises:
        TraceError: it cannot be read or parsed.
    """

    def __init__(self, path: Path) -> None:
        try:
            text = decode_source(path.read_bytes())
            self.tree = ast.parse(text)
        except (OSError, *PARSE_ERRORS) as error:
            raise TraceError("source", f"{path}: {type(error).__name__}: {error}") from None
        self.lines = source_lines(text)
        if self.lines and not self.lines[-1].endswith("\n"):
            self.lines[-1] += "\n"
        self._bound = list(_bound_names(self.tree))

    def kept_lines(self, scopes: Iterable[Scope]) -> set[int]:
        """Lines of an excerpt for the scopes, all of them of this file.

        Raises:
            TraceError: one is not in the file.
        """
        kept: set[int] = set()
        used = {"*"}  # what a star binds is not known
        for first_line in {scope.first_line for scope in scopes}:
            *classes, entered = self._path(first_line)
            for node in classes:
                kept |= self._header(node)
            kept.update(_lines(entered))
            used |= {n.id for n in ast.walk(entered) if isinstance(n, ast.Name)}
        for node, names in self._bound:
            if names & used:
                kept.update(_lines(node))
        return self._with_neighbours(kept)

    def _with_neighbours(self, kept: set[int]) -> set[int]:
        """With the rest of statements that share a line with what is kept: ``a = 1; b = (``."""
        begun = [{*_lines(node)} for node in self.tree.body if not isinstance(node, ast.ClassDef)]
        while more := [lines for lines in begun if lines & kept and not lines <= kept]:
            kept = kept.union(*more)
        return kept

    def definition(self, scope: Scope) -> int:
        """The line of the ``def`` of a function.

        Raises:
            TraceError: there is none.
        """
        name = scope.name.rpartition(".")[2]
        for node in ast.walk(self._path(scope.first_line)[-1]):
            if not isinstance(node, _Function) or node.name != name:
                continue
            if _lines(node)[0] == scope.first_line:
                return node.lineno
        raise TraceError("source", f"{scope.file}:{scope.first_line} defines no {scope.name}")

    def _path(self, line: int) -> list[ast.stmt]:
        """The classes around a line, and the statement of the innermost that holds it."""
        path: list[ast.stmt] = []
        body: Sequence[ast.stmt] = self.tree.body
        while True:
            found = next((node for node in body if line in _lines(node)), None)
            if found is None:
                raise TraceError("source", f"no statement in line {line}: was the file changed?")
            path.append(found)
            if not isinstance(found, ast.ClassDef):
                return path
            body = found.body

    def _header(self, node: ast.stmt) -> set[int]:
        """Lines of a class up to its body."""
        assert isinstance(node, ast.ClassDef)
        last = max(_lines(node.body[0])[0] - 1, node.lineno)
        while last > node.lineno and self.lines[last - 1].strip()[:1] in ("", "#"):
            last -= 1
        return set(range(_lines(node)[0], last + 1))


def make_excerpt(
    files: Mapping[str, SourceFile], scopes: Sequence[Scope], names: Mapping[str, str]
) -> Excerpt:
    """The context of an episode.

    Args:
        files: by path.
        scopes: that are entered, the entry first.
        names: of the files, for people.

    Raises:
        TraceError: a scope is not in its file, or the entry's line cannot carry the mark.
    """
    entry = scopes[0]
    entered = list(dict.fromkeys(scope.file for scope in scopes if scope.file != entry.file))
    mark = files[entry.file].definition(entry)
    texts: list[str] = []
    places: dict[tuple[str, int], int] = {}
    for file in [*entered, entry.file]:
        if entered:
            texts.append(f"# {names[file]}\n")
        kept = files[file].kept_lines(scope for scope in scopes if scope.file == file)
        for line in sorted(kept):
            text = files[file].lines[line - 1]
            if (file, line) == (entry.file, mark):
                text = text.removesuffix("\n") + START_MARKER + "\n"
            texts.append(text)
            places[file, line] = len(texts)
    context = "".join(texts)
    # A line that goes on after a backslash cannot carry it, and a source may spell it elsewhere.
    if marked_line(context) != places[entry.file, mark] or "\\" + START_MARKER in context:
        raise TraceError("marker", f"{names[entry.file]}:{mark} cannot carry the start marker")
    return Excerpt(context, places)


def _lines(node: ast.AST) -> range:
    """Of a statement with its decorators."""
    assert isinstance(node, ast.stmt)
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return range(first, (node.end_lineno or node.lineno) + 1)


def _bound_names(tree: ast.Module) -> Iterator[tuple[ast.stmt, set[str]]]:
    """The imports and assignments of a module, with the names that they bind."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, {(a.asname or a.name).partition(".")[0] for a in node.names}
        elif isinstance(node, _Assignment):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            yield node, {name.id for name in names}

"""Programs: a struct, a table, helpers and functions, and a `main` that tries them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from cwm_jax.forager.documents.c_programs.expressions import Expressions
from cwm_jax.forager.documents.c_programs.scope import Array, Function, Scope, Variable
from cwm_jax.forager.documents.c_programs.shapes import SHAPES, Parameters, draw_record
from cwm_jax.forager.documents.c_programs.statements import INDENT, Statements
from cwm_jax.forager.documents.c_programs.values import KINDS

_NAMES = ("update", "mix", "scan", "encode", "measure", "step", "apply", "fold", "probe", "select")
_RECURSIVE = 0.15  # assumed: of helpers


@dataclasses.dataclass(frozen=True, kw_only=True)
class CProgram:
    """Some functions in C, and how to try them.

    Attributes:
        source: a translation unit without a `main` and without headers. A parameter ``n`` counts
            the elements of the arrays before it; an array's declared length is all there.
        driver: appended to the source, a whole program that calls its functions within that, and
            prints a number made of all that they return and change.
        shapes: names of the functions' shapes.
    """

    source: str
    driver: str
    shapes: tuple[str, ...]


def c_program(seed: int, number: int) -> CProgram:
    """A program; the same for the same arguments on every machine.

    Args:
        seed: of a collection of programs.
        number: of the program in it.
    """
    return _Writer(random.Random(f"c program {seed} {number}")).program()


class _Writer:
    def __init__(self, draw: random.Random) -> None:
        self._draw, self._record = draw, draw_record(draw)
        self._functions: list[Function] = []
        self._calls: list[list[str]] = []
        self._table: Array | None = None

    def program(self) -> CProgram:
        parts = []
        names = self._draw.sample(_NAMES, 5)
        shapes = [self._draw.choice(sorted(SHAPES)) for _ in range(self._draw.randrange(1, 3))]
        if self._draw.random() < 0.4:
            parts.append(self._table_text())
        for _ in range(self._draw.randrange(0, 3)):
            parts.append(self._helper(names.pop()))
        functions = [self._function(names.pop(), shape) for shape in shapes]
        if "record" in shapes:
            parts.insert(0, self._record.definition)
        source = "\n\n".join((*parts, *functions)) + "\n"
        return CProgram(source=source, driver=_driver(self._calls), shapes=tuple(shapes))

    def _scope(self) -> Scope:
        scope = Scope(draw=self._draw, functions=list(self._functions))
        if self._table is not None:
            scope.arrays.append(self._table)
        return scope

    def _table_text(self) -> str:
        length = self._draw.choice((8, 16))
        values = ", ".join(f"{self._draw.getrandbits(16)}u" for _ in range(length))
        self._table = Array(name="table", element="unsigned", length=length, fixed=True)
        return f"static const unsigned table[{length}] = {{{values}}};"

    def _helper(self, name: str) -> str:
        """A function of single values that later ones may call."""
        if self._draw.random() < _RECURSIVE:
            return self._recursive(name)
        result, scope = self._draw.choice(KINDS), self._scope()
        kinds = [self._draw.choice(KINDS) for _ in range(self._draw.randrange(1, 3))]
        parameters = Parameters(scope, self._record)
        for kind in kinds:
            parameters.single(kind)
        words = self._draw.sample(("declare", "if", "leave", "assign", "for"), 2)
        lines = Statements(scope, result, deep=1).of_plan(words)
        lines += Statements(scope, result).returned()
        self._functions.append(Function(name=name, result=result, parameters=tuple(kinds)))
        return _text(f"static {result} {name}({', '.join(parameters.texts)})", lines)

    def _recursive(self, name: str) -> str:
        """It calls itself with less each time, 32 times at most."""
        scope = self._scope()
        scope.variables = [
            Variable(name="n", kind="unsigned", fixed=True),
            Variable(name="d", kind="unsigned"),
        ]
        value = Expressions(scope)
        first, again, last = (value.value("unsigned", 2) for _ in range(3))
        by, sign = self._draw.choice((2, 3, 10)), self._draw.choice("+^*")
        lines = [f"if (n < {by}u)", f"{INDENT}return {first.text};"]
        lines += [f"return {name}(n / {by}u, {again.text}) {sign} {last.operand};"]
        self._functions.append(
            Function(name=name, result="unsigned", parameters=("unsigned", "unsigned"))
        )
        return _text(f"static unsigned {name}(unsigned n, unsigned d)", lines)

    def _function(self, name: str, shape: str) -> str:
        result, scope = self._draw.choice(KINDS), self._scope()
        parameters = Parameters(scope, self._record)
        for word in SHAPES[shape].parameters:
            parameters.add(word)
        statements = Statements(scope, result)
        lines = [*statements.of_plan(SHAPES[shape].plan), *statements.returned()]
        call = f"{name}({', '.join(parameters.arguments)})"
        self._calls.append([*parameters.before, _folded(call), *map(_folded, parameters.changed)])
        return _text(f"{result} {name}({', '.join(parameters.texts)})", lines)


def _text(head: str, lines: Sequence[str]) -> str:
    return "\n".join((head, "{", *(INDENT + line for line in lines), "}"))


def _folded(value: str) -> str:
    """A double's sign is enough; others are taken whole."""
    return f"h = h * 31u + FOLD({value});"


def _driver(calls: Sequence[Sequence[str]]) -> str:
    fold = (
        "#define FOLD(x) _Generic((x), double: (unsigned long long)((x) > 0.0), "
        "default: (unsigned long long)(x))"
    )
    lines = ["unsigned long long h = 0;"]
    for call in calls:
        lines += ["{", *(INDENT + line for line in call), "}"]
    lines += ['__builtin_printf("%llu\\n", h);', "return 0;"]
    return f"\n{fold}\n\n{_text('int main(void)', lines)}\n"

"""What functions look like: their parameters, and the statements that their bodies begin with."""

from __future__ import annotations

import dataclasses
import random

from cwm_jax.forager.documents.c_programs.scope import BYTE, Array, Scope, Variable
from cwm_jax.forager.documents.c_programs.values import KINDS, SUFFIX, Kind

_ELEMENTS = ("int", "unsigned", BYTE, "double", "unsigned long long")
_FIELDS = ("left", "top", "size", "mask", "count", "next")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Kinds of parameters, of `Parameters`, and of statements, of `Statements`."""

    parameters: tuple[str, ...]
    plan: tuple[str, ...]


SHAPES = {
    "straight": Shape(
        parameters=("single", "single", "single"),
        plan=("declare", "declare", "if", "assign", "assign"),
    ),
    "branches": Shape(
        parameters=("single", "single"), plan=("declare", "switch", "if", "leave", "assign")
    ),
    "bits": Shape(parameters=("single",), plan=("declare", "declare", "while", "assign")),
    "count": Shape(parameters=("single", "single"), plan=("declare", "declare", "for", "do")),
    "reduce": Shape(parameters=("source", "single"), plan=("declare", "declare", "over", "assign")),
    "transform": Shape(parameters=("target", "also"), plan=("declare", "over")),
    "search": Shape(parameters=("source", "single"), plan=("declare", "search", "assign")),
    "record": Shape(parameters=("record", "single"), plan=("assign", "if", "assign", "for")),
    "local": Shape(parameters=("single", "single"), plan=("array", "declare", "for", "store")),
    "block": Shape(parameters=("fixed", "single"), plan=("declare", "for", "if", "store")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A struct; fields by name, and of an array of its own the length, a power of two."""

    name: str
    fields: dict[str, Kind]
    values: int

    @property
    def definition(self) -> str:
        """In C."""
        lines = [f"    {kind} {name};" for name, kind in self.fields.items()]
        lines += [f"    int values[{self.values}];"]
        return "\n".join((f"struct {self.name} {{", *lines, "};"))


def draw_record(draw: random.Random) -> Record:
    """A struct of two to four fields and an array."""
    names = draw.sample(_FIELDS, draw.randrange(2, 5))
    return Record(
        name=draw.choice(("node", "item", "block", "state")),
        fields={name: draw.choice(KINDS) for name in names},
        values=draw.choice((2, 4, 8)),
    )


class Parameters:
    """Draws a function's parameters, makes them known, and says how a caller may fill them.

    Attributes:
        texts: their declarations.
        before: what a caller declares.
        arguments: what it then gives.
        changed: expressions, of integers or doubles, of what the function may have changed.
    """

    def __init__(self, scope: Scope, record: Record) -> None:
        self._scope, self._draw, self._record = scope, scope.draw, record
        self.texts: list[str] = []
        self.before: list[str] = []
        self.arguments: list[str] = []
        self.changed: list[str] = []

    def add(self, word: str) -> None:
        """One of the kinds that shapes name."""
        if word == "single":
            self.single(self._draw.choice(KINDS))
        elif word == "record":
            self._of_record()
        elif word == "fixed":
            self._array(self._scope.name("tmg"), self._draw.choice((8, 16)), fixed=False)
        elif word == "also":
            self._array("src", "n", fixed=True)
        else:
            self._array("a" if word == "source" else "dst", "n", fixed=word == "source")
            self._scope.variables.append(Variable(name="n", kind="int", fixed=True))
            self.texts.append("int n")
            self.arguments.append("8")

    def single(self, kind: Kind) -> None:
        """One value of a type, which the function may assign to."""
        name = self._scope.name("pcef" if kind != "double" else "rst")
        self._scope.variables.append(Variable(name=name, kind=kind))
        self.texts.append(f"{kind} {name}")
        self.arguments.append(_sample(self._draw, kind))

    def _array(self, name: str, length: int | str, *, fixed: bool) -> None:
        element = self._draw.choice(_ELEMENTS)
        self._scope.arrays.append(Array(name=name, element=element, length=length, fixed=fixed))
        qualified = f"const {element}" if fixed else element
        declared = f"{name}[{length}]" if isinstance(length, int) else f"*{name}"
        self.texts.append(f"{qualified} {declared}")
        count = length if isinstance(length, int) else 8
        values = ", ".join(_sample(self._draw, element) for _ in range(count))
        given = f"{name}_{len(self.arguments)}"
        self.before.append(f"{element} {given}[{count}] = {{{values}}};")
        self.arguments.append(given)
        self.changed += [f"{given}[{at}]" for at in range(count)]

    def _of_record(self) -> None:
        record, name = self._record, "rec"
        for field, kind in record.fields.items():
            self._scope.variables.append(Variable(name=f"{name}->{field}", kind=kind))
        values = Array(name=f"{name}->values", element="int", length=record.values)
        self._scope.arrays.append(values)
        self.texts.append(f"struct {record.name} *{name}")
        samples = [_sample(self._draw, kind) for kind in record.fields.values()]
        filled = ", ".join(_sample(self._draw, "int") for _ in range(record.values))
        self.before.append(f"struct {record.name} given = {{{', '.join(samples)}, {{{filled}}}}};")
        self.arguments.append("&given")
        self.changed += [f"given.{field}" for field in record.fields]
        self.changed += [f"given.values[{at}]" for at in range(record.values)]


def _sample(draw: random.Random, element: str) -> str:
    """A literal, often one at the end of a type's range."""
    if element == BYTE:
        return str(draw.randrange(256))
    if element == "int":
        return draw.choice((str(draw.randrange(-9, 99)), "2147483647", "(-2147483647 - 1)", "-1"))
    if element == "double":
        return draw.choice(("0.0", "-1.5", "1e10", f"{draw.randrange(99)}.25"))
    most = draw.choice((8, 32)) if element == "unsigned" else draw.choice((8, 64))
    return f"{draw.getrandbits(most)}{SUFFIX[element]}"
